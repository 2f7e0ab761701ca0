# SPDX-License-Identifier: Apache-2.0
"""What `pgp_sym_encrypt` of PostgreSQL's pgcrypto writes: OpenPGP messages under a password (RFC 4880).

Opened here and not by the server: a password that is sent with a statement appears in the server's log, in the driver's
errors and in `pg_stat_activity`.
"""

from __future__ import annotations

import hashlib
import hmac
import zlib
from typing import Any, Final, Literal

from sqlalchemy.types import String, TypeEngine

from sa_asherah.core import aead
from sa_asherah.reencrypt.foreign.written import Foreign, KeyMaterial

__all__ = ["PgpSymmetric"]

_SESSION_KEY, _PROTECTED, _COMPRESSED, _LITERAL = 3, 18, 8, 11
_KEY_SIZES: Final = {7: 16, 8: 24, 9: 32}
"""AES by its number."""
_HASHES: Final = {1: "md5", 2: "sha1", 8: "sha256", 9: "sha384", 10: "sha512"}
_DIGEST_PACKET: Final = b"\xd3\x14"
_DIGEST_SIZE: Final = 20
_MAX_INFLATED: Final = 1 << 30


class PgpSymmetric(Foreign):
    """Reads a column of `pgp_sym_encrypt` or `pgp_sym_encrypt_bytea` with AES; without an integrity check, never.

    What was written with `disable-mdc=1`, with another cipher (bf, 3des, cast5) or with `convert-crlf=1` (its line ends
    stay CR LF) is not understood: let the server read it.
    """

    cache_ok = False

    def __init__(
        self,
        password: KeyMaterial,
        inner: TypeEngine[Any] | type[TypeEngine[Any]] = String,
        storage: Literal["text", "binary"] = "binary",
    ) -> None:
        """Keep what is needed for reading.

        Args:
            password: The second argument of `pgp_sym_encrypt`, or a function that gives it.
            inner: The type of the plaintext.
            storage: The type of the column; `armor()` is not understood, so it is a binary one.

        Raises:
            ConfigurationError: An argument is unusable.
        """
        super().__init__((password,), inner, storage)

    def _has_form(self, stored: bytes) -> bool:
        packets = _packets(stored)
        return packets is not None and [tag for tag, _ in packets] == [_SESSION_KEY, _PROTECTED]

    def _decrypt(self, stored: bytes) -> bytes | None:
        (_, wrapped), (_, protected) = _packets(stored) or [(0, b""), (0, b"")]
        key = _session_key(self._secret.get()[0], wrapped)
        inside = None if key is None or protected[:1] != b"\x01" else _unprotected(key, protected[1:])
        return None if inside is None else _literal(inside)


def _packets(stored: bytes) -> list[tuple[int, bytes]] | None:
    """Split into packets; `None` if it is none."""
    found: list[tuple[int, bytes]] = []
    while stored:
        header = stored[0]
        if not header & 0x80:
            return None
        if header & 0x40:
            body, rest = _new_body(stored[1:])
            tag = header & 0x3F
        else:
            tag, (body, rest) = (header >> 2) & 0x0F, _old_body(header & 3, stored[1:])
        if body is None:
            return None
        found.append((tag, body))
        stored = rest
    return found


def _new_body(data: bytes) -> tuple[bytes | None, bytes]:
    """Read a length of the new format, in parts where its writer did not know it, and what has that length."""
    parts: list[bytes] = []
    while data:
        first = data[0]
        if first < 192:  # noqa: PLR2004 -- RFC 4880, 4.2.2, as all that follow
            size, start = first, 1
        elif first < 224:  # noqa: PLR2004
            size, start = ((first - 192) << 8) + int.from_bytes(data[1:2], "big") + 192, 2
        elif first == 255:  # noqa: PLR2004
            size, start = int.from_bytes(data[1:5], "big"), 5
        else:
            size, start = 1 << (first & 0x1F), 1
        body, data = data[start : start + size], data[start + size :]
        if len(body) < size:
            return None, b""
        parts.append(body)
        if not 224 <= first < 255:  # noqa: PLR2004
            return b"".join(parts), data
    return None, b""


def _old_body(kind: int, data: bytes) -> tuple[bytes | None, bytes]:
    if kind == 3:  # noqa: PLR2004 -- to the end
        return data, b""
    width = 1 << kind
    end = width + int.from_bytes(data[:width], "big")
    return (data[width:end], data[end:]) if len(data) >= end else (None, b"")


def _session_key(password: bytes, packet: bytes) -> bytes | None:
    """Derive the key from the password, and unwrap the one in the packet if there is one."""
    size = _KEY_SIZES.get(packet[1]) if packet[:1] == b"\x04" and len(packet) > 3 else None  # noqa: PLR2004
    name = _HASHES.get(packet[3]) if size else None
    salted = {0: 4, 1: 12, 3: 13}.get(packet[2]) if name else None
    if size is None or name is None or salted is None or len(packet) < salted:
        return None
    material = packet[4:12] * (packet[2] != 0) + password
    count = len(material)
    if packet[2] == 3:  # noqa: PLR2004
        coded = packet[12]
        count = max(count, (16 + (coded & 15)) << ((coded >> 4) + 6))
    key, hashed = b"", (material * (count // len(material) + 1))[:count]
    while len(key) < size:
        # More bytes than a digest has: once more, behind zeros.
        zeros = bytes(len(key) // hashlib.new(name).digest_size)
        key += hashlib.new(name, zeros + hashed, usedforsecurity=False).digest()
    wrapped = packet[salted:]
    if not wrapped:
        return key[:size]
    inside = aead.decrypt_cfb(key[:size], wrapped)
    return inside[1:] if _KEY_SIZES.get(inside[0]) == len(inside) - 1 else None


def _unprotected(key: bytes, data: bytes) -> bytes | None:
    """Decrypt, and check the digest at the end."""
    plain = aead.decrypt_cfb(key, data)
    start, end = aead.BLOCK_SIZE + 2, len(plain) - _DIGEST_SIZE
    digest = hashlib.sha1(plain[:end], usedforsecurity=False).digest()
    is_whole = end - 2 >= start and plain[end - 2 : end] == _DIGEST_PACKET
    return plain[start : end - 2] if is_whole and hmac.compare_digest(digest, plain[end:]) else None


def _literal(data: bytes) -> bytes | None:
    """Read the literal data in the packets, decompressed if need be."""
    packets = _packets(data)
    if packets is None or len(packets) != 1:
        return None
    tag, body = packets[0]
    if tag == _COMPRESSED:
        inflated = _inflated(body)
        return None if inflated is None else _literal(inflated)
    start = 6 + body[1] if tag == _LITERAL and len(body) > 1 else len(body) + 1
    return body[start:] if start <= len(body) else None


def _inflated(body: bytes) -> bytes | None:
    bits = {1: -zlib.MAX_WBITS, 2: zlib.MAX_WBITS}.get(body[0] if body else 0)
    if bits is None:
        return None
    try:
        inflater = zlib.decompressobj(bits)
        found = inflater.decompress(body[1:], _MAX_INFLATED)
    except zlib.error:
        return None
    return found if inflater.eof else None
