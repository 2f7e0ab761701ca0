# SPDX-License-Identifier: Apache-2.0
"""System keys on a journey, static key, Vault, AWS KMS, Vault: at every stop everything opens."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any

import pytest

from sa_asherah import Asherah, KmsCiphertextError
from tests.cli.site import BASE, run
from tests.cloud.clinic import Base, add, ssns
from tests.metastore.backends import engine_of
from tests.servers.moto import REGIONS

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sqlalchemy import Engine

    from sa_asherah.metastore.dynamodb import DynamoDBMetastore
    from tests.servers.moto import Aws
    from tests.servers.openbao import OpenBao

pytestmark = pytest.mark.filterwarnings("ignore::sa_asherah.StaticKeyWarning")

WEST, EAST, _ = REGIONS
FORMS = {"static": b"", "vault": b"vault:v", "aws": b'{"encryptedKey":'}


@pytest.fixture
def engine(sqlite_url: str) -> Iterator[Engine]:
    with engine_of(sqlite_url) as engine:
        Base.metadata.create_all(engine)
        yield engine


@pytest.fixture
def environ(
    aws: Aws, openbao: OpenBao, metastore: DynamoDBMetastore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> dict[str, str]:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    mount, key = openbao.new_transit()
    vault = {"VAULT_ADDR": openbao.addr, "VAULT_TRANSIT_MOUNT": mount, "VAULT_TRANSIT_KEY": key}
    return {
        **BASE,
        **vault,
        "VAULT_TOKEN": openbao.transit_token(mount, key),
        "KMS_KEY_ID": aws.new_key(WEST),
        "AWS_REGION": WEST,
        "Metastore": "dynamodb",
        "DDB_TABLE": metastore._table.name,
        "ASHERAH_PEERS": "0",
    }


def records(aws: Aws, metastore: DynamoDBMetastore, prefix: str) -> dict[str, bytes]:
    items: list[dict[str, Any]] = aws.client("dynamodb").scan(TableName=metastore._table.name)["Items"]
    return {
        item["Id"]["S"]: base64.b64decode(item["KeyRecord"]["M"]["Key"]["S"])
        for item in items
        if item["Id"]["S"].startswith(prefix)
    }


def reads(engine: Engine, environ: dict[str, str], **settings: str) -> list[str]:
    with Asherah.from_env({**environ, **settings}) as asherah:
        asherah.attach(engine)
        return ssns(engine)


@pytest.mark.long
def test_static_to_vault_to_aws_to_vault(
    aws: Aws, metastore: DynamoDBMetastore, engine: Engine, environ: dict[str, str]
) -> None:
    with Asherah.from_env(environ) as asherah:
        asherah.attach(engine)
        add(engine, 1, "canary 1")
        add(engine, 2, "canary 2")
    values, owners = ["canary 1", "canary 2"], records(aws, metastore, "_IK_")
    for old, new in (("static", "vault"), ("vault", "aws"), ("aws", "vault")):
        before = records(aws, metastore, "_SK_")
        looked = run(environ, "kms", "migrate", "--from", old, "--to", new, "--dry-run", "--json")
        assert (looked.status, looked.json["moved"]) == (0, 1)
        assert records(aws, metastore, "_SK_") == before
        assert reads(engine, environ, KMS=new, KMS_PREVIOUS=old) == values
        moved = run(environ, "kms", "migrate", "--from", old, "--to", new, "--json")
        assert (moved.status, moved.json["moved"], moved.json["complete"]) == (0, 1, True)
        (wrapped,) = records(aws, metastore, "_SK_").values()
        assert wrapped.startswith(FORMS[new])
        assert reads(engine, environ, KMS=new, KMS_PREVIOUS=old) == reads(engine, environ, KMS=new) == values
        with pytest.raises(KmsCiphertextError):
            reads(engine, environ, KMS=old)
        again = run(environ, "kms", "migrate", "--from", old, "--to", new, "--json")
        assert (again.status, again.json["already"], again.json["moved"]) == (0, 1, 0)
    assert records(aws, metastore, "_IK_") == owners


def test_to_more_regions_and_during_an_outage(aws: Aws, engine: Engine, environ: dict[str, str]) -> None:
    with Asherah.from_env(environ) as asherah:
        asherah.attach(engine)
        add(engine, 1, "canary")
    keys = f'{{"{WEST}": "{environ.pop("KMS_KEY_ID")}", "{EAST}": "{aws.new_key(EAST)}"}}'
    environ |= {"REGION_MAP": keys, "PREFERRED_REGION": EAST}
    assert run(environ, "kms", "migrate", "--from", "static", "--to", "aws").status == 0
    aws.refusals[EAST, "Decrypt"] = ("KMSInternalException", 500)
    assert reads(engine, environ, KMS="aws") == ["canary"]
    assert aws.calls.count((WEST, "Decrypt")) == 1
