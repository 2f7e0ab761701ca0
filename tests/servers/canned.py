# SPDX-License-Identifier: Apache-2.0
"""An HTTP server with one fixed answer, for what a real server cannot be made to say."""

from __future__ import annotations

import datetime as dt
import ipaddress
import ssl
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

if TYPE_CHECKING:
    from email.message import Message
    from pathlib import Path
    from types import TracebackType


@dataclass
class CannedServer:
    """Gives every request the same answer and remembers it; starts on entering the context, ends with it.

    Attributes:
        status: The answer's HTTP status.
        body: The answer's text.
        content_type: Its content type.
        location: Where it redirects to.
        behaviour: `answer`, `cut` (off in the middle), `hang` (say nothing until the end) or `drop` (the connection).
        tls: Speak TLS with this context.
        then: The behaviour after the first request.
        received: The headers of all requests.
    """

    status: int = 200
    body: str = ""
    content_type: str = "application/json"
    location: str = ""
    behaviour: str = "answer"
    tls: ssl.SSLContext | None = None
    then: str = ""
    received: list[Message] = field(default_factory=list["Message"])

    def __enter__(self) -> Self:
        self._ended = threading.Event()
        canned = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                canned._answer(self)

            do_GET = do_POST  # noqa: N815 # the name that the base class looks for

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 # the overridden name
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        if self.tls:
            self._server.socket = self.tls.wrap_socket(self._server.socket, server_side=True)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._ended.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def host(self) -> str:
        """Host and port."""
        return f"127.0.0.1:{self._server.server_port}"

    @property
    def addr(self) -> str:
        """The server's address, as `VAULT_ADDR` takes it."""
        return f"{'https' if self.tls else 'http'}://{self.host}"

    def _answer(self, handler: BaseHTTPRequestHandler) -> None:
        behaviour = self.then if self.then and self.received else self.behaviour
        self.received.append(handler.headers)
        handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
        handler.close_connection = behaviour != "answer"
        if behaviour == "hang":
            self._ended.wait()
        if behaviour in {"hang", "drop"}:
            return
        body = self.body.encode()
        handler.send_response(self.status)
        handler.send_header("Content-Type", self.content_type)
        if self.location:
            handler.send_header("Location", self.location)
        if self.status != 204:
            handler.send_header("Content-Length", str(len(body) + (behaviour == "cut")))
        handler.end_headers()
        handler.wfile.write(body)


def self_signed(folder: Path, name: str) -> tuple[Path, ssl.SSLContext]:
    """Make a certificate for a host; return its PEM file, which vouches for itself, and a server's context with it."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = dt.datetime.now(dt.UTC)
    alternative = x509.DNSName(name) if name[0].isalpha() else x509.IPAddress(ipaddress.ip_address(name))
    certificate = (
        x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([alternative]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem, key_pem = folder / f"{name}.pem", folder / f"{name}-key.pem"
    pem.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    key_pem.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem, key_pem)
    return pem, context
