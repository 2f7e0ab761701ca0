# SPDX-License-Identifier: Apache-2.0
"""With a real Vault: what it is asked, and what is found with and without it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, insert

from sa_asherah import Asherah
from sa_asherah.config import Settings
from sa_asherah.doctor import examine
from sa_asherah.kms.static import StaticKMS
from sa_asherah.kms.vault import VaultTransitKMS
from tests.doctor.clinic import Base, Clinic, asherah, live, metadata
from tests.doctor.surgery import Surgery
from tests.servers.openbao import OpenBao

CLINICS = (1, 2)


class Site:
    """A small clinic under a Transit key of its own."""

    def __init__(self, openbao: OpenBao, url: str) -> None:
        self.openbao = openbao
        self.mount, self.key = openbao.new_transit()
        self.engine: Engine = create_engine(url)
        Base.metadata.create_all(self.engine)
        with self.engine.begin() as connection:
            for clinic in CLINICS:
                connection.execute(insert(Clinic), {"id": clinic})
        keys = self.asherah("encrypt", "decrypt")
        keys.create_metastore(self.engine)
        live(self.engine, keys, 0, CLINICS)
        keys.close()

    def asherah(self, *rights: str) -> Asherah:
        """Start a process whose token has these rights."""
        policy = "".join(
            f'path "{self.mount}/{right}/{self.key}" {{ capabilities = ["update"] }}\n' for right in rights
        )
        policy += 'path "sys/capabilities-self" { capabilities = ["update"] }'  # as Vault's policy `default` grants
        token = self.openbao.token(policy)
        return asherah(VaultTransitKMS(addr=self.openbao.addr, key=self.key, token=token, mount=self.mount))

    def environ(self) -> dict[str, str]:
        """Settings that lead to a Vault that nobody reaches."""
        return {
            "SERVICE_NAME": "records",
            "PRODUCT_ID": "clinic",
            "KMS": "vault",
            "VAULT_ADDR": "http://127.0.0.1:1",
            "VAULT_TOKEN": "none",
            "VAULT_TRANSIT_KEY": "none",
        }


@pytest.fixture
def site(openbao: OpenBao, tmp_path: Path) -> Any:
    found = Site(openbao, f"sqlite:///{tmp_path / 'clinic.db'}")
    yield found
    found.engine.dispose()


def test_online_opens_every_value_and_warns_of_plain_http_only(site: Site) -> None:
    with site.asherah("encrypt", "decrypt") as keys:
        findings = examine(site.engine, keys, metadata(), online=True)
    assert [each.text for each in findings.found if "plain http" not in each.text] == []
    assert set(findings.counts) == {"vault"}
    assert findings.opened == findings.values > 0
    assert not findings.not_checked


def test_settings_suffice_without_vault_and_what_was_not_checked_is_named(site: Site) -> None:
    findings = examine(site.engine, Settings.from_env(site.environ()), metadata())
    assert findings.is_healthy, findings.found
    assert findings.opened == 0
    assert findings.values > 0
    assert "Bind" in findings.not_checked[0]


def test_without_vault_a_moved_row_whose_dates_differ_is_found(site: Site) -> None:
    with site.engine.begin() as connection:
        body = Surgery(connection)
        body.delete_keys("_IK_2_records_clinic")
    findings = examine(site.engine, Settings.from_env(site.environ()), metadata())
    assert set(findings.counts) == {"key-missing"}
    assert "there are keys of that date of '1'" in findings.found[0].text


def test_a_token_that_may_not_decrypt_is_an_error_and_no_value_is_blamed(site: Site) -> None:
    with site.asherah("encrypt") as keys:
        findings = examine(site.engine, keys, metadata(), online=True)
    assert (
        {"system-key-unopenable", "vault-error"}
        <= set(findings.counts)
        <= {
            "system-key-unopenable",
            "vault-error",
            "vault",
        }
    )
    assert findings.not_checked[-1] == "no trial key was wrapped: no system key opened"


def test_a_token_that_may_not_encrypt_fails_the_canary(site: Site) -> None:
    with site.asherah("decrypt") as keys:
        findings = examine(site.engine, keys, metadata(), online=True)
    assert set(findings.counts) == {"canary-failed", "vault-error", "vault"}
    assert findings.opened == findings.values


class Liar(StaticKMS):
    """Opens what it wrapped to something else, once it was told to; no real service can be made to."""

    lies = False

    def encrypt_key(self, key: bytes) -> bytes:
        return super().encrypt_key(bytes(len(key)) if self.lies else key)


@pytest.mark.filterwarnings("ignore::sa_asherah.errors.StaticKeyWarning")
def test_a_service_that_gives_another_key_back_is_found(sqlite_copy: Engine) -> None:
    liar = Liar(bytes(range(32)), {})
    liar.lies = True
    findings = examine(sqlite_copy, asherah(liar), metadata(), online=True)
    assert set(findings.counts) == {"canary-failed"}
