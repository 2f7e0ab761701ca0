# SPDX-License-Identifier: Apache-2.0
"""A master key kept in AWS Secrets Manager. Needs `pip install 'sa_asherah[aws]'`."""

from __future__ import annotations

import re
import threading
from typing import TYPE_CHECKING, NoReturn

from sa_asherah.boto import Clients, Failure, check_region, read_region
from sa_asherah.core import aead
from sa_asherah.core.fork import ForkAware
from sa_asherah.environ import read_text
from sa_asherah.errors import ConfigurationError
from sa_asherah.kms.aws.failure import kms_error
from sa_asherah.kms.static import LocalKMS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mypy_boto3_secretsmanager import SecretsManagerClient
    from mypy_boto3_secretsmanager.type_defs import GetSecretValueResponseTypeDef

    from sa_asherah.boto import Kind

__all__ = ["SecretsManagerKMS"]

_ADVICE: dict[Kind, str] = {
    "rights": "allow secretsmanager:GetSecretValue for the secret, and kms:Decrypt for the key that protects it",
    "missing": "the secret does not exist in this region or is to be deleted; check SECRETS_MANAGER_SECRET_ID and "
    "AWS_REGION",
}


class SecretsManagerKMS(LocalKMS, ForkAware):
    """Wraps system keys under a master key that every process fetches from AWS Secrets Manager, once, at first use.

    For a service that has a static master key already and is to move to a key service that keeps its key. The key is
    in the memory of every process: whoever reads that memory or the secret opens everything, Secrets Manager sees
    one read for each process and not each use, and the key cannot be rotated. Better than a key in the configuration,
    and no more than that. Safe to share between threads and forks.

    Args:
        secret_id: Name or ARN of the secret. Its text is 64 hexadecimal digits, or its binary value is 32 bytes, as
            the other Asherah implementations read it.
        region: The region that holds the secret.

    Raises:
        ConfigurationError: An argument is empty or malformed.
    """

    _name = "Secrets Manager KMS"
    _setting = "SECRETS_MANAGER_SECRET_ID"

    def __init__(self, secret_id: str, region: str) -> None:
        if not secret_id:
            raise ConfigurationError("KMS=secrets-manager needs SECRETS_MANAGER_SECRET_ID, the name or ARN of a secret")
        self._secret_id = secret_id
        self._region = check_region(region, "AWS_REGION")
        self._clients: Clients[SecretsManagerClient] = Clients("secretsmanager")
        self._fetched: bytes | None = None
        ForkAware.__init__(self)

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> SecretsManagerKMS:
        """Take the settings from environment variables.

        Args:
            environ: SECRETS_MANAGER_SECRET_ID and AWS_REGION. Credentials are not read from here but by boto3, from
                the process's environment.

        Returns:
            The service.

        Raises:
            ConfigurationError: A variable is missing or malformed.
        """
        return cls(read_text(environ, "SECRETS_MANAGER_SECRET_ID") or "", read_region(environ))

    def reset_after_fork(self) -> None:
        """Make the lock anew."""
        self._lock = threading.Lock()

    def close(self) -> None:
        """Forget the master key and close connections; the next use fetches it again."""
        with self._lock:
            self._fetched = None
        self._clients.close()

    def _key(self) -> bytes:
        # One request, however many threads start with it.
        with self._lock:
            if self._fetched is None:
                self._fetched = self._fetch()
            return self._fetched

    def _fetch(self) -> bytes:
        try:
            answer = self._clients.ask(self._region, lambda client: client.get_secret_value(SecretId=self._secret_id))
        except Failure as failure:
            call = f"AWS Secrets Manager: reading {self._secret_id!r} in {self._region}"
            error = kms_error(failure, call, "decrypt", _ADVICE)
        else:
            return self._parsed(answer)
        raise error

    def _parsed(self, answer: GetSecretValueResponseTypeDef) -> bytes:
        if "SecretString" in answer:
            text = answer["SecretString"].strip()
            key = bytes.fromhex(text) if re.fullmatch("[0-9a-fA-F]{64}", text) else b""
        else:
            key = answer.get("SecretBinary", b"")
        if len(key) != aead.KEY_SIZE:
            raise ConfigurationError(
                f"the secret {self._secret_id!r} must be a text of 64 hexadecimal digits or 32 binary bytes, and is "
                "neither; JSON is not read"
            )
        return key

    def __repr__(self) -> str:
        return f"SecretsManagerKMS({self._secret_id!r}, {self._region!r})"

    def __reduce__(self) -> NoReturn:
        raise TypeError("SecretsManagerKMS holds a key and cannot be pickled; make one in each process")
