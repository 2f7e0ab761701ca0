# SPDX-License-Identifier: Apache-2.0
"""`rotate`: what it does in which case, and what it says."""

from __future__ import annotations

import time

import pytest

from sa_asherah.kms.vault.policy import policies
from tests.cli.site import DAY, Site
from tests.servers.openbao import OpenBao


@pytest.fixture
def started(static_site: Site) -> Site:
    """A site with one system key, ten days old."""
    static_site.now = time.time() - 10 * DAY
    static_site.live("static", 1)
    return static_site


def test_a_fresh_system_key_needs_no_successor(started: Site) -> None:
    rows = started.rows()
    outcome = started.run("rotate")
    assert (outcome.status, outcome.out.startswith("Nothing to do: system key _SK_records_clinic")) == (0, True)
    found = started.run("rotate", "--json").json
    assert (found["due"], found["made"], found["id"]) == (False, False, "_SK_records_clinic")
    assert found["expires"] == found["created"] + 90 * DAY
    assert started.rows() == rows


def test_force_and_ahead_make_one_and_a_dry_run_does_not(started: Site) -> None:
    rows = started.rows()
    for option in (("--force",), ("--ahead", "81")):
        looked = started.run("rotate", *option, "--dry-run")
        assert (looked.status, "a successor is due" in looked.out) == (0, True)
        assert started.run("rotate", *option, "--dry-run", "--json").json["made"] is False
    assert started.rows() == rows
    assert started.run("rotate", "--force").out.startswith("Made: system key _SK_records_clinic created")
    assert started.run("rotate", "--force", "--json").json["made"] is True
    assert len(started.rows("_SK_")) == 3
    assert started.run("rotate", "--ahead", "90").status == 2


def test_the_first_one_is_made_for_a_new_service(started: Site) -> None:
    looked = started.run("rotate", "--dry-run", SERVICE_NAME="new")
    assert (looked.status, "there is no system key _SK_new_clinic" in looked.out) == (0, True)
    assert started.run("rotate", "--json", SERVICE_NAME="new").json["made"] is True


def test_an_application_that_may_only_decrypt_takes_the_officers_key_when_its_own_expires(
    site: Site, openbao: OpenBao
) -> None:
    rights = policies(site.environ["VAULT_TRANSIT_MOUNT"], site.environ["VAULT_TRANSIT_KEY"])
    tokens = {job: openbao.token(rights[job]) for job in ("officer", "application-decrypt-only")}
    officer = Site(site.url, {**site.environ, "KMS": "vault", "VAULT_TOKEN": tokens["officer"]})
    officer.now = site.now = time.time() - 91 * DAY
    officer.live("vault", 1)
    site.notes = officer.notes
    site.environ |= {"VAULT_TOKEN": tokens["application-decrypt-only"], "ASHERAH_CREATE_SYSTEM_KEYS": "0"}
    application = site.start("vault", create_system_keys=False)
    site.notes.append(application.write("tenant"))
    site.now = time.time()
    refused = site.run("rotate", KMS="vault")
    assert (refused.status, refused.err.count("\n"), len(site.rows("_SK_"))) == (1, 1, 1)
    assert "permission denied" in refused.err
    made = officer.run("rotate", "--json").json
    assert (made["due"], made["made"]) == (True, True)
    site.notes.append(application.write("tenant"))
    newest = max(site.rows("_IK_tenant_").values(), key=lambda record: record["Created"])
    assert newest["ParentKeyMeta"] == {"KeyId": made["id"], "Created": made["created"]}
    assert application.read() == site.notes
    assert site.reads_all("vault")
    application.close()
