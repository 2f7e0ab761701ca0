# SPDX-License-Identifier: Apache-2.0
"""An HTTP server with one fixed answer, for what a real server cannot be made to say."""

from __future__ import annotations

import ssl
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Self

from tests.servers.certificates import Authority

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
        on: The behaviour for some paths.
        headers: Further headers of the answer.
        first: Status and text of the first answers, before `status` and `body` come to hold.
        received: The headers of all requests.
        asked: Their paths.
        sent: Their bodies.
    """

    status: int = 200
    body: str = ""
    content_type: str = "application/json"
    location: str = ""
    behaviour: str = "answer"
    tls: ssl.SSLContext | None = None
    then: str = ""
    on: dict[str, str] = field(default_factory=dict[str, str])
    headers: dict[str, str] = field(default_factory=dict[str, str])
    first: list[tuple[int, str]] = field(default_factory=list[tuple[int, str]])
    received: list[Message] = field(default_factory=list["Message"])
    asked: list[str] = field(default_factory=list[str])
    sent: list[bytes] = field(default_factory=list[bytes])

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
        behaviour = self.on.get(handler.path, behaviour)
        status, text = (
            self.first[len(self.received)] if len(self.received) < len(self.first) else (self.status, self.body)
        )
        self.received.append(handler.headers)
        self.asked.append(handler.path)
        self.sent.append(handler.rfile.read(int(handler.headers.get("Content-Length") or 0)))
        handler.close_connection = behaviour != "answer"
        if behaviour == "hang":
            self._ended.wait()
        if behaviour in {"hang", "drop"}:
            return
        body = text.encode()
        handler.send_response(status)
        handler.send_header("Content-Type", self.content_type)
        for name, value in self.headers.items():
            handler.send_header(name, value)
        if self.location:
            handler.send_header("Location", self.location)
        if status != 204:
            handler.send_header("Content-Length", str(len(body) + (behaviour == "cut")))
        handler.end_headers()
        handler.wfile.write(body)


def self_signed(folder: Path, name: str) -> tuple[Path, ssl.SSLContext]:
    """Make a certificate for a host; return the PEM file that vouches for it, and a server's context with it."""
    authority = Authority(folder, f"{name}-authority")
    return authority.pem, authority.server(name).server_context()
