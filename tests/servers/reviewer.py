# SPDX-License-Identifier: Apache-2.0
"""The part of a Kubernetes API server that Vault asks whether a service account's token is good."""

from __future__ import annotations

import base64
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, Self

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa

if TYPE_CHECKING:
    from types import TracebackType

_PATH = "/apis/authentication.k8s.io/v1/tokenreviews"


class Reviewer:
    """Makes the tokens of pods and answers TokenReviews about them; starts on entering the context, ends with it.

    Attributes:
        fault: "" (none), `drop` (the connection), `forbid` (Vault may not ask: 403) or `break` (500).
        faults: How many more requests the fault hits; for ever if negative.
    """

    def __init__(self) -> None:
        self.fault = ""
        self.faults = -1
        self._key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        self._accounts: dict[str, dict[str, Any]] = {}

    def __enter__(self) -> Self:
        reviewer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                reviewer._answer(self)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 # the overridden name
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def url(self) -> str:
        """What Vault calls `kubernetes_host`."""
        return f"http://127.0.0.1:{self._server.server_port}"

    def jwt(
        self,
        account: str = "asherah-sa",
        namespace: str = "default",
        *,
        lifetime: float = 3600,
        audience: str = "vault",
    ) -> str:
        """Make the token of a pod that runs under this service account; with a negative lifetime it has expired."""
        now = int(time.time())
        about = {"namespace": namespace, "serviceaccount": {"name": account, "uid": f"uid-{account}"}}
        claims = {
            "iss": "https://kubernetes.default.svc",
            "sub": f"system:serviceaccount:{namespace}:{account}",
            "aud": [audience],
            "iat": now - 60,
            "nbf": now - 60,
            "exp": int(now + lifetime),
            "jti": f"token-{len(self._accounts)}",
            "kubernetes.io": about,
        }
        signed = f"{_encoded({'alg': 'RS256', 'kid': 'test', 'typ': 'JWT'})}.{_encoded(claims)}"
        signature = self._key.sign(signed.encode(), padding.PKCS1v15(), hashes.SHA256())
        token = f"{signed}.{base64.urlsafe_b64encode(signature).rstrip(b'=').decode()}"
        groups = ["system:serviceaccounts", f"system:serviceaccounts:{namespace}", "system:authenticated"]
        self._accounts[token] = {"username": claims["sub"], "uid": f"uid-{account}", "groups": groups}
        return token

    def _answer(self, handler: BaseHTTPRequestHandler) -> None:
        handler.close_connection = True
        asked = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        fault = self.fault if self.faults else ""
        self.faults -= bool(fault)
        if fault == "drop":
            return
        status, body = {"forbid": (403, _refusal(403)), "break": (500, _refusal(500))}.get(
            fault, (201, self._review(asked["spec"]))
        )
        if handler.path != _PATH:
            status, body = 404, _refusal(404)
        text = json.dumps(body).encode()
        handler.send_response(status)
        handler.send_header("Content-Type", "application/json")
        handler.send_header("Content-Length", str(len(text)))
        handler.end_headers()
        handler.wfile.write(text)

    def _review(self, spec: dict[str, Any]) -> dict[str, Any]:
        user = self._accounts.get(spec["token"])
        status = {"authenticated": True, "user": user, "audiences": spec.get("audiences", [])}
        if user is None:
            status = {"authenticated": False, "error": "invalid bearer token"}
        return {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": spec, "status": status}


def _encoded(part: dict[str, Any]) -> str:
    return base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode()


def _refusal(code: int) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "Status", "status": "Failure", "message": "no", "code": code}
