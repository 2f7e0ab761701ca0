# SPDX-License-Identifier: Apache-2.0
"""Clients of AWS services, and what their errors mean; the only module that imports boto3."""

from __future__ import annotations

import logging
import re
import threading
from contextvars import ContextVar
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeAlias, TypeVar

from sa_asherah.core.fork import ForkAware
from sa_asherah.environ import read_text
from sa_asherah.errors import ConfigurationError

if find_spec("boto3") is None:
    raise ConfigurationError("AWS services need the package boto3: pip install 'sa_asherah[aws]'")

import boto3
import botocore.session
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionError,  # noqa: A004 # what botocore calls it
    CredentialRetrievalError,
    HTTPClientError,
    NoAuthTokenError,
    NoCredentialsError,
    PartialCredentialsError,
    SSOError,
    TokenRetrievalError,
    UnauthorizedSSOTokenError,
)
from botocore.loaders import create_loader

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["Clients", "Failure", "Kind", "check_region", "read_region"]

Kind: TypeAlias = Literal["unavailable", "credentials", "rights", "missing", "ciphertext", "condition", "other"]

C = TypeVar("C")
T = TypeVar("T")

_CONNECT_SECONDS = 2
_READ_SECONDS = 5

_NO_CREDENTIALS = (
    CredentialRetrievalError,
    NoAuthTokenError,
    NoCredentialsError,
    PartialCredentialsError,
    SSOError,
    TokenRetrievalError,
    UnauthorizedSSOTokenError,
)
_CODES: dict[Kind, frozenset[str]] = {
    "unavailable": frozenset(
        {
            "DependencyTimeoutException",
            "InternalServerError",
            "InternalServiceError",
            "KMSInternalException",
            "KeyUnavailableException",
            "LimitExceededException",
            "ProvisionedThroughputExceededException",
            "RequestLimitExceeded",
            "ServiceUnavailable",
            "SlowDown",
            "Throttling",
            "ThrottlingException",
            "TooManyRequestsException",
        }
    ),
    "credentials": frozenset(
        {
            "ExpiredToken",
            "ExpiredTokenException",
            "IncompleteSignature",
            "InvalidClientTokenId",
            "InvalidSignatureException",
            "MissingAuthenticationToken",
            "MissingAuthenticationTokenException",
            "RequestExpired",
            "SignatureDoesNotMatch",
            "UnrecognizedClientException",
        }
    ),
    "rights": frozenset(
        {"AccessDenied", "AccessDeniedException", "DecryptionFailure", "NotAuthorized", "OptInRequired"}
    ),
    "missing": frozenset(
        {
            "DisabledException",
            "InvalidArnException",
            "InvalidRequestException",
            "KMSInvalidStateException",
            "NotFoundException",
            "ResourceNotFoundException",
        }
    ),
    "ciphertext": frozenset({"IncorrectKeyException", "InvalidCiphertextException"}),
    "condition": frozenset({"ConditionalCheckFailedException", "TransactionCanceledException"}),
}
_KINDS: dict[str, Kind] = {code: kind for kind, codes in _CODES.items() for code in codes}

# AWS's descriptions of its services. Shared, since reading them is nine tenths of the work of making a client.
_descriptions = create_loader()

_in_call: ContextVar[bool] = ContextVar("sa_asherah_in_aws_call", default=False)


class Failure(Exception):  # noqa: N818 # never leaves the package: every caller makes an error of it
    """Why a call to AWS failed. AWS's own text is left out: for a bad signature it quotes the session token.

    Attributes:
        kind: What to do about it.
        code: AWS's code, or what happened to the connection.
        status: The HTTP status of the answer, `None` where there was none.
    """

    def __init__(self, kind: Kind, code: str, status: int | None = None) -> None:
        """Keep what is known.

        Args:
            kind: What to do about it.
            code: AWS's code, or what happened to the connection.
            status: The HTTP status, if any.
        """
        super().__init__(code)
        self.kind: Kind = kind
        self.code = code
        self.status = status


class Clients(ForkAware, Generic[C]):
    """The clients of one AWS service, one for each region and process. Safe to share between threads.

    Credentials, profiles, proxies and AWS_ENDPOINT_URL are boto3's own business: it finds them in the environment of
    the process.
    """

    def __init__(self, service: str, *, attempts: int = 3, connections: int = 10) -> None:
        """Prepare; no client is made yet.

        Args:
            service: boto3's name of the service.
            attempts: How often one call is tried at most.
            connections: How many connections a client keeps.
        """
        super().__init__()
        self._service = service
        self._config = Config(
            connect_timeout=_CONNECT_SECONDS,
            read_timeout=_READ_SECONDS,
            retries={"mode": "standard", "total_max_attempts": attempts},
            max_pool_connections=connections,
        )

    def reset_after_fork(self) -> None:
        """Forget the clients: their connections belong to the parent."""
        self._lock = threading.Lock()
        self._made: dict[str, C] = {}

    def ask(self, region: str, call: Callable[[C], T]) -> T:
        """Make a call.

        Args:
            region: The region to ask.
            call: The call, given the client.

        Returns:
            What it returned.

        Raises:
            Failure: It failed.
            ConfigurationError: boto3 cannot make a client with its settings.
        """
        client = self._client(region)
        token = _in_call.set(True)
        try:
            return call(client)
        except (ClientError, BotoCoreError) as error:
            failure = _failure(error)
            cause = _system_error(error)
        finally:
            _in_call.reset(token)
        # Not in the `except` block: the exception there leads to the request, and with it to keys and credentials.
        raise failure from cause

    def close(self) -> None:
        """Close the connections; the next call opens new ones."""
        with self._lock:
            made, self._made = self._made, {}
        for client in made.values():
            any_client: Any = client
            any_client.close()

    def _client(self, region: str) -> C:
        with self._lock:
            client = self._made.get(region)
            if client is None:
                client = self._made[region] = self._make(region)
            return client

    def _make(self, region: str) -> C:
        core = botocore.session.get_session()
        core.register_component("data_loader", _descriptions)
        session: Any = boto3.session.Session(botocore_session=core)
        try:
            client: C = session.client(self._service, region_name=region, config=self._config)
        except (BotoCoreError, ValueError) as error:
            reason = type(error).__name__
        else:
            return client
        raise ConfigurationError(
            f"boto3 cannot make a client for {self._service} in {region} ({reason}); check AWS_PROFILE, "
            "AWS_ENDPOINT_URL and the files that configure AWS"
        )


def read_region(environ: Mapping[str, str]) -> str:
    """Read the region that a process works in.

    Args:
        environ: The environment.

    Returns:
        AWS_REGION, else AWS_DEFAULT_REGION.

    Raises:
        ConfigurationError: Neither is set, or it is no region's name.
    """
    region = read_text(environ, "AWS_REGION") or read_text(environ, "AWS_DEFAULT_REGION")
    if region is None:
        raise ConfigurationError("AWS_REGION is required, e.g. us-west-2")
    return check_region(region, "AWS_REGION")


def check_region(region: str, setting: str) -> str:
    """Make sure that a region's name looks like one: it becomes part of a host's name.

    Args:
        region: The name.
        setting: Where it comes from.

    Returns:
        The name.

    Raises:
        ConfigurationError: It does not.
    """
    if not re.fullmatch("[a-z]{2,8}(-[a-z0-9]{1,16}){2,4}", region):
        raise ConfigurationError(f"{setting} is no AWS region: {region!r}; it must be like us-west-2")
    return region


def _failure(error: ClientError | BotoCoreError) -> Failure:
    if isinstance(error, ClientError):
        answer: Any = error.response
        code = str(answer.get("Error", {}).get("Code", ""))
        status = answer.get("ResponseMetadata", {}).get("HTTPStatusCode")
        return Failure(_kind(code, status), code if code.isalnum() else f"HTTP {status}", status)
    if isinstance(error, _NO_CREDENTIALS):
        return Failure("credentials", type(error).__name__)
    is_network = isinstance(error, HTTPClientError | ConnectionError)
    return Failure("unavailable" if is_network else "other", type(error).__name__)


def _kind(code: str, status: int | None) -> Kind:
    if status is not None and (status >= 500 or status == 429):  # noqa: PLR2004 # HTTP
        return "unavailable"
    return _KINDS.get(code, "other")


def _system_error(error: BaseException) -> OSError | None:
    """Find the operating system's error under botocore's; a copy, which leads to nobody's frames."""
    found: OSError | None = None
    current: BaseException | None = error
    while current is not None:
        if isinstance(current, OSError):
            found = current
        inner = getattr(current, "kwargs", {}).get("error")
        current = inner if isinstance(inner, BaseException) else current.__cause__ or current.__context__
    return None if found is None or found.errno is None else OSError(found.errno, found.strerror)


class _Discreet(logging.Filter):
    """Keeps out what botocore logs about requests and answers at level DEBUG: keys and ciphertexts are in them."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not (_in_call.get() and record.levelno <= logging.DEBUG)


for _name in ("auth", "endpoint", "hooks", "httpsession", "parsers", "regions", "retryhandler"):
    logging.getLogger(f"botocore.{_name}").addFilter(_Discreet(_name))
