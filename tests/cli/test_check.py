# SPDX-License-Identifier: Apache-2.0
"""`vault check`: its findings as a table and as JSON, and its exit status."""

from __future__ import annotations

from sa_asherah.kms.vault.policy import policies
from tests.cli.site import Site
from tests.servers.openbao import OpenBao
from tests.servers.process import free_port


def levels(site: Site, **environ: str) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for finding in site.run("vault", "check", "--json", **environ).json["findings"]:
        found.setdefault(finding["subject"], set()).add(finding["level"])
    return found


def test_a_token_with_the_least_rights_passes(small_site: Site, openbao: OpenBao) -> None:
    mount, key = small_site.environ["VAULT_TRANSIT_MOUNT"], small_site.environ["VAULT_TRANSIT_KEY"]
    rights = policies(mount, key)
    token = openbao.token(rights["application"], no_default_policy=False)
    outcome = small_site.run("vault", "check", VAULT_TOKEN=token)
    assert outcome.status == 0
    assert f"{mount}/encrypt/{key}" in outcome.out
    assert token not in outcome.out
    found = levels(small_site, VAULT_TOKEN=token)
    assert found[f"{mount}/encrypt/{key}"] == found[f"{mount}/decrypt/{key}"] == {"ok"}
    decrypting = {
        "VAULT_TOKEN": openbao.token(rights["application-decrypt-only"], no_default_policy=False),
        "ASHERAH_CREATE_SYSTEM_KEYS": "0",
    }
    assert levels(small_site, **decrypting)[f"{mount}/encrypt/{key}"] == {"ok"}
    assert small_site.run("vault", "check", **{**decrypting, "ASHERAH_CREATE_SYSTEM_KEYS": ""}).status == 1
    assert levels(small_site, VAULT_TOKEN=token, ASHERAH_CREATE_SYSTEM_KEYS="0")[f"{mount}/encrypt/{key}"] == {
        "warning"
    }


def test_what_does_not_work_ends_with_1_and_what_cannot_be_asked_with_2(small_site: Site) -> None:
    dead = small_site.run("vault", "check", VAULT_TOKEN="dead")
    assert dead.status == 1
    assert "error" in dead.out
    assert small_site.run("vault", "check", VAULT_ADDR=f"http://127.0.0.1:{free_port()}").status == 1
    missing = small_site.run("vault", "check", VAULT_ADDR="")
    assert (missing.status, missing.err.count("\n")) == (2, 1)
    assert "VAULT_ADDR is required" in missing.err
