# SPDX-License-Identifier: Apache-2.0
"""A configuration taken over from another Asherah service: Vault by its pod's token, keys in DynamoDB."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from sa_asherah import Asherah, KeyRecordError
from tests.cloud.clinic import Base, add, ssns
from tests.integration.methods import KubernetesRole
from tests.metastore.backends import engine_of
from tests.servers.openbao import SealableOpenBao, transit_policy
from tests.servers.reviewer import Reviewer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Engine

    from tests.servers.moto import Aws
    from tests.servers.openbao import OpenBao

CONFIGURATION = {
    "KMS": "vault",
    "VAULT_AUTH_METHOD": "kubernetes",
    "VAULT_AUTH_ROLE": "asherah-role",
    "VAULT_TRANSIT_KEY": "asherah-master",
    "Metastore": "dynamodb",
    "DDB_TABLE": "EncryptionKey",
    "AWS_REGION": "us-west-2",
    "SERVICE_NAME": "my-service",
    "PRODUCT_ID": "my-product",
}


@pytest.fixture
def role(openbao: OpenBao) -> Iterator[KubernetesRole]:  # noqa: ARG001 # it skips where there is no OpenBao
    """Vault as the configuration expects it: everything where it is by default."""
    with SealableOpenBao(tls=True, audited=True) as server, Reviewer() as reviewer:
        server.root.sys.enable_secrets_engine("transit")
        server.root.adapter.post("/v1/transit/keys/asherah-master")
        policy = server.policy(transit_policy("transit", "asherah-master"))
        yield KubernetesRole.reviewed_by(reviewer, server, policy, mount="kubernetes")


@pytest.fixture
def table(aws: Aws, role: KubernetesRole, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """The other service's key table, and the configuration in the environment of this process."""
    dynamodb = aws.client("dynamodb")
    dynamodb.create_table(
        TableName="EncryptionKey",
        KeySchema=[{"AttributeName": "Id", "KeyType": "HASH"}, {"AttributeName": "Created", "KeyType": "RANGE"}],
        AttributeDefinitions=[
            {"AttributeName": "Id", "AttributeType": "S"},
            {"AttributeName": "Created", "AttributeType": "N"},
        ],
        BillingMode="PAY_PER_REQUEST",
    )
    # What is different from pod to pod.
    pod = {"VAULT_ADDR": role.server.addr, "VAULT_CACERT": str(role.server.ca_cert), "XDG_RUNTIME_DIR": str(tmp_path)}
    for name, value in {**CONFIGURATION, **pod, "VAULT_K8S_TOKEN_PATH": str(role.pod(tmp_path))}.items():
        monkeypatch.setenv(name, value)
    yield dynamodb
    dynamodb.delete_table(TableName="EncryptionKey")


@pytest.fixture
def engine(sqlite_url: str) -> Iterator[Engine]:
    with engine_of(sqlite_url) as engine:
        Base.metadata.create_all(engine)
        yield engine


def items(table: Any) -> dict[str, dict[str, Any]]:
    return {item["Id"]["S"]: item for item in table.scan(TableName="EncryptionKey")["Items"]}


def test_it_works_unchanged(table: Any, role: KubernetesRole, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    with Asherah.from_env() as asherah:
        asherah.attach(engine)
        asherah.create_metastore(engine)
        add(engine, 7, "canary")
    assert role.logins() == 1
    found = items(table)
    assert set(found) == {"_SK_my-service_my-product", "_IK_7_my-service_my-product"}
    wrapped = found["_SK_my-service_my-product"]["KeyRecord"]["M"]["Key"]["S"]
    assert base64.b64decode(wrapped).startswith(b"vault:v1:")
    # As the other service writes them.
    for item in found.values():
        del item["KeyRecord"]["M"]["Bind"]
        table.put_item(TableName="EncryptionKey", Item=item)
    with Asherah.from_env() as asherah:
        asherah.attach(engine)
        assert ssns(engine) == ["canary"]
        add(engine, 7, "canary 2")
    assert items(table) == found
    monkeypatch.setenv("ASHERAH_PEERS", "0")
    with Asherah.from_env() as asherah:
        asherah.attach(engine)
        with pytest.raises(KeyRecordError, match="has no Bind"):
            ssns(engine)
