# SPDX-License-Identifier: Apache-2.0
"""The configuration of other Asherah implementations, by its JSON names, as environment variables that say the same.

Strict: what is unknown, of another type or without a meaning here is an error that names the setting.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping
from typing import cast

from sa_asherah.errors import ConfigurationError

__all__ = ["json_name", "to_environ"]

_TEXTS = {
    "ServiceName": "SERVICE_NAME",
    "ProductID": "PRODUCT_ID",
    "Metastore": "Metastore",
    "KMS": "KMS",
    "PreferredRegion": "PREFERRED_REGION",
    "StaticMasterKeyHex": "STATIC_MASTER_KEY_HEX",
    "KmsKeyId": "KMS_KEY_ID",
    "SecretsManagerSecretId": "SECRETS_MANAGER_SECRET_ID",
    "DynamoDBTableName": "DDB_TABLE",
    "DynamoDBRegion": "AWS_REGION",
    "VaultAddr": "VAULT_ADDR",
    "VaultToken": "VAULT_TOKEN",
    "VaultAuthMethod": "VAULT_AUTH_METHOD",
    "VaultAuthRole": "VAULT_AUTH_ROLE",
    "VaultAuthMount": "VAULT_AUTH_MOUNT",
    "VaultApproleRoleId": "VAULT_APPROLE_ROLE_ID",
    "VaultApproleSecretId": "VAULT_APPROLE_SECRET_ID",
    "VaultClientCert": "VAULT_CLIENT_CERT",
    "VaultClientKey": "VAULT_CLIENT_KEY",
    "VaultK8sTokenPath": "VAULT_K8S_TOKEN_PATH",
    "VaultTransitKey": "VAULT_TRANSIT_KEY",
    "VaultTransitMount": "VAULT_TRANSIT_MOUNT",
}
_NUMBERS = {
    "ExpireAfter": "EXPIRE_AFTER_SECS",
    "CheckInterval": "REVOKE_CHECK_INTERVAL_SECS",
    "SessionCacheMaxSize": "SESSION_CACHE_MAX_SIZE",
    "SessionCacheDuration": "SESSION_CACHE_DURATION_SECS",
}
_FLAGS = {"EnableSessionCaching": "SESSION_CACHE", "EnableRegionSuffix": "ENABLE_REGION_SUFFIX"}
_SPECIAL = {"RegionMap": "REGION_MAP", "RecoveryRegionSuffixes": "RECOVERY_REGION_SUFFIXES"}
_ALL = _TEXTS | _NUMBERS | _FLAGS | _SPECIAL

_ENGINE = "the SQLAlchemy engine names the database of the key table: remove it, and call asherah.attach(engine)"
_POOL = "the key table is reached through the engine's own settings: remove it"
_BOTO = "boto3 reads it from the environment or its own files: remove it here, and set "
_NO_GUARD = "nothing of the kind is kept here: remove it"
_REFUSED = {
    "ConnectionString": _ENGINE,
    "SQLMetastoreDBType": _ENGINE,
    "PoolMaxOpen": _POOL,
    "PoolMaxIdle": _POOL,
    "PoolMaxLifetime": _POOL,
    "PoolMaxIdleTime": _POOL,
    "ReplicaReadConsistency": "keys are read from the primary: remove it, and call attach(engine, metastore=primary)",
    "DynamoDBEndpoint": _BOTO + "AWS_ENDPOINT_URL_DYNAMODB",
    "DynamoDBSigningRegion": "requests are signed for DynamoDBRegion: remove it",
    "AwsProfileName": _BOTO + "AWS_PROFILE",
    "SelfHealRecoveredKeys": "keys are read where they are and never copied: remove it",
    "ConfigDriftForceRun": _NO_GUARD,
    "ConfigDriftForceUpdate": _NO_GUARD,
    "Verbose": "set the level of the logger 'sa_asherah' instead, and remove it",
    "DisableZeroCopy": _NO_GUARD,
    "NullDataCheck": _NO_GUARD,
    "EnableCanaries": _NO_GUARD,
}


def json_name(text: str) -> str:
    """Put the JSON names of settings beside their variables in an error text.

    Args:
        text: A text that names variables.

    Returns:
        The text, with each variable's JSON name before it.
    """
    names = {variable: name for name, variable in _ALL.items() if variable != name}
    return re.sub(
        r"[A-Z][A-Z0-9_]{2,}", lambda found: f"{names[found[0]]} ({found[0]})" if found[0] in names else found[0], text
    )


def to_environ(config: Mapping[str, object], environ: Mapping[str, str]) -> dict[str, str]:
    """Lay a configuration over the environment, which supplies what it leaves out.

    Args:
        config: Settings by their JSON names; `None` counts as missing.
        environ: The environment.

    Returns:
        Variables.

    Raises:
        ConfigurationError: A setting is unknown, malformed, without meaning here, or the environment contradicts it.
    """
    merged = dict(environ)
    for name, value in config.items():
        variable = _variable(name)
        if _is_missing(value):
            continue
        if name in _REFUSED:
            if value is False:
                continue
            raise ConfigurationError(f"{name} is not supported: {_REFUSED[name]}")
        text = _text(name, value)
        given = environ.get(variable, "").strip()
        if given and given != text.strip():
            raise ConfigurationError(f"{name} and the environment variable {variable} differ; remove one of them")
        merged[variable] = text
    return merged


def _is_missing(value: object) -> bool:
    return value is None or value in ({}, []) or (isinstance(value, str) and not value.strip())


def _variable(name: str) -> str:
    variable = _ALL.get(name)
    if variable is None and name not in _REFUSED:
        near = difflib.get_close_matches(name, _ALL, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(sorted(_ALL))}"
        raise ConfigurationError(f"the setting {name!r} is not known; {hint}")
    return variable or ""


def _text(name: str, value: object) -> str:
    """Write a value as its variable has it. No error shows it: it may be a secret."""
    if name == "RegionMap":
        return _region_map(value)
    if name == "RecoveryRegionSuffixes":
        return _suffixes(value)
    kind, meaning = (
        (str, "text") if name in _TEXTS else (int, "a whole number") if name in _NUMBERS else (bool, "true or false")
    )
    if type(value) is not kind:
        raise ConfigurationError(f"{name} must be {meaning}, not {type(value).__name__}")
    return str(value).lower() if kind is bool else str(value)


def _region_map(value: object) -> str:
    regions: Mapping[object, object] = cast("Mapping[object, object]", value) if isinstance(value, Mapping) else {}
    if not regions or not all(isinstance(each, str) for pair in regions.items() for each in pair):
        raise ConfigurationError("RegionMap must be an object: region to ARN of the key there")
    return json.dumps(dict(regions))


def _suffixes(value: object) -> str:
    items = cast("list[object]", value) if isinstance(value, list) else [None]
    if not items or not all(isinstance(each, str) and "," not in each for each in items):
        raise ConfigurationError("RecoveryRegionSuffixes must be an array of region suffixes, '' for none")
    # A single empty suffix would look like a missing variable.
    texts = cast("list[str]", items)
    return ",".join(texts) if any(texts) else ","
