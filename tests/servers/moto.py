# SPDX-License-Identifier: Apache-2.0
"""A stand-in for AWS: moto's server, behind a gate that can close regions and refuse calls.

moto has no IAM, never throttles and never fails: what AWS says then is said by the gate, in AWS's form.
"""

from __future__ import annotations

import http.client
import http.server
import json
import re
import threading
from typing import TYPE_CHECKING, Any, Self

import boto3
from moto.server import ThreadedMotoServer

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

__all__ = ["REGIONS", "Aws"]

REGIONS = ("us-west-2", "us-east-1", "eu-west-1")


class Aws:
    """AWS on a port of its own, from entering the context to its end.

    Attributes:
        down: Regions that close every connection without an answer.
        refusals: AWS's error code and HTTP status for (region, operation); an operation is like `Decrypt`.
        calls: (region, operation) of every call, in order.
        before: Called with region and operation before a call is passed on.
    """

    def __init__(self) -> None:
        self.down: set[str] = set()
        self.refusals: dict[tuple[str, str], tuple[str, int]] = {}
        self.calls: list[tuple[str, str]] = []
        self.before: Callable[[str, str], None] = lambda _region, _operation: None
        self._clients: dict[tuple[str, str], Any] = {}
        self._moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        self._gate = http.server.ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._gate.daemon_threads = True
        self._thread = threading.Thread(target=self._gate.serve_forever, args=(0.05,))

    def __enter__(self) -> Self:
        self._moto.start()
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._gate.shutdown()
        self._thread.join()
        self._gate.server_close()
        self._moto.stop()

    @property
    def url(self) -> str:
        """What AWS_ENDPOINT_URL takes."""
        return f"http://127.0.0.1:{self._gate.server_address[1]}"

    @property
    def environ(self) -> dict[str, str]:
        """What boto3 finds in the environment of a process that may do everything."""
        return {
            "AWS_ACCESS_KEY_ID": "AKIDCANARY",
            "AWS_SECRET_ACCESS_KEY": "secret-canary",
            "AWS_SESSION_TOKEN": "token-canary",
            "AWS_ENDPOINT_URL": self.url,
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": "/dev/null",
            "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
        }

    def client(self, service: str, region: str = REGIONS[0]) -> Any:
        """Return a client that goes past the gate."""
        if (service, region) not in self._clients:
            host, port = self._moto.get_host_and_port()
            session: Any = boto3.session.Session(aws_access_key_id="x", aws_secret_access_key="y")
            url = f"http://{host}:{port}"
            self._clients[service, region] = session.client(service, region_name=region, endpoint_url=url)
        return self._clients[service, region]

    def new_key(self, region: str = REGIONS[0]) -> str:
        """Make a KMS key; return its ARN."""
        arn: str = self.client("kms", region).create_key()["KeyMetadata"]["Arn"]
        return arn

    def reset(self) -> None:
        """Open the gate, and forget the calls."""
        self.down.clear()
        self.refusals.clear()
        self.calls.clear()
        self.before = lambda _region, _operation: None

    def _handler(self) -> type[http.server.BaseHTTPRequestHandler]:
        aws = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                signed = re.search(r"Credential=[^/]+/\d+/([^/]+)/", self.headers["Authorization"])
                region = signed[1] if signed else ""
                operation = self.headers["X-Amz-Target"].rpartition(".")[2]
                aws.calls.append((region, operation))
                if region in aws.down:
                    self.close_connection = True
                    return
                aws.before(region, operation)
                refusal = aws.refusals.get((region, operation))
                if refusal is None:
                    self._pass_on(body)
                else:
                    self._answer(refusal[1], json.dumps({"__type": refusal[0], "message": "token-canary"}).encode(), {})

            def _pass_on(self, body: bytes) -> None:
                connection = http.client.HTTPConnection(*aws._moto.get_host_and_port())
                try:
                    connection.request("POST", self.path, body, dict(self.headers.items()))
                    answer = connection.getresponse()
                    kept = {name: value for name, value in answer.getheaders() if name.lower().startswith("x-amz")}
                    self._answer(answer.status, answer.read(), kept)
                finally:
                    connection.close()

            def _answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Type", "application/x-amz-json-1.1")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 # the overridden signature
                """Keep quiet."""

        return Handler
