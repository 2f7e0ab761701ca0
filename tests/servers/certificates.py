# SPDX-License-Identifier: Apache-2.0
"""A small certificate authority for servers and clients on this machine."""

from __future__ import annotations

import datetime as dt
import ipaddress
import itertools
import ssl
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

from tests.servers.process import hand_over

if TYPE_CHECKING:
    from pathlib import Path

_DAY = dt.timedelta(days=1)
_numbers = itertools.count(1)
_SIGNS_CERTIFICATES = x509.KeyUsage(
    digital_signature=False,
    content_commitment=False,
    key_encipherment=False,
    data_encipherment=False,
    key_agreement=False,
    key_cert_sign=True,
    crl_sign=True,
    encipher_only=False,
    decipher_only=False,
)


@dataclass(frozen=True)
class Pair:
    """A certificate and its key, as PEM files."""

    cert: Path
    key: Path

    def server_context(self) -> ssl.SSLContext:
        """Return what a server shows this certificate with."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.cert, self.key)
        return context


class Authority:
    """Issues certificates into a folder; `pem` is the file that vouches for them."""

    def __init__(self, folder: Path, name: str = "authority") -> None:
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _named(name)
        certificate = (
            _certificate(self._name, self._name, self._key, _DAY)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_SIGNS_CERTIFICATES, critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(self._key.public_key()), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        self.pem = self._write(f"{name}.pem", certificate.public_bytes(serialization.Encoding.PEM))

    def server(self, host: str) -> Pair:
        """Issue a certificate for a host name or an address."""
        name = x509.DNSName(host) if host[0].isalpha() else x509.IPAddress(ipaddress.ip_address(host))
        return self._issue(host, ExtendedKeyUsageOID.SERVER_AUTH, name, _DAY)

    def client(self, name: str, lifetime: dt.timedelta = _DAY) -> Pair:
        """Issue a certificate for a client; with a negative lifetime it has expired."""
        return self._issue(name, ExtendedKeyUsageOID.CLIENT_AUTH, x509.DNSName(f"{name}.example.com"), lifetime)

    def _issue(
        self, name: str, usage: x509.ObjectIdentifier, alternative: x509.GeneralName, lifetime: dt.timedelta
    ) -> Pair:
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = (
            _certificate(_named(name), self._name, key, lifetime)
            .add_extension(x509.SubjectAlternativeName([alternative]), critical=False)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        key_pem = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        return Pair(
            self._write(f"{name}.pem", certificate.public_bytes(serialization.Encoding.PEM)),
            self._write(f"{name}-key.pem", key_pem),
        )

    def _write(self, name: str, content: bytes) -> Path:
        path = self._folder / f"{next(_numbers)}-{name}"
        path.write_bytes(content)
        hand_over(path)
        return path


def _named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])


def _certificate(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, lifetime: dt.timedelta
) -> x509.CertificateBuilder:
    now, number = dt.datetime.now(dt.UTC), x509.random_serial_number()
    builder = x509.CertificateBuilder(issuer, subject, key.public_key(), number)
    return builder.not_valid_before(now - 9 * _DAY).not_valid_after(now + lifetime)
