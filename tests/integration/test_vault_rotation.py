# SPDX-License-Identifier: Apache-2.0
"""New versions of the Transit key: nothing stored has to change, and what is re-wrapped opens all the same."""

from __future__ import annotations

import os
from typing import Any

import pytest

from sa_asherah.errors import KmsCiphertextError
from tests.integration.conftest import AuditedAccess
from tests.integration.records import Process
from tests.servers.openbao import transit_policy

BOUND: dict[str, Any] = {"bind_context": True, "service": "records", "product": "clinic"}


@pytest.mark.parametrize("bound", [False, True])
@pytest.mark.parametrize("may_rewrap", [False, True])
def test_blobs_open_after_rotation_and_after_rewrapping(
    audited: AuditedAccess, *, bound: bool, may_rewrap: bool
) -> None:
    policy = transit_policy(audited.mount, audited.key)
    if may_rewrap:
        policy += f'path "{audited.mount}/rewrap/{audited.key}" {{ capabilities = ["update"] }}'
    kms = audited.kms(token=audited.server.token(policy), **(BOUND if bound else {}))
    keys = [os.urandom(32) for _ in range(3)]
    blobs = [kms.encrypt_key(key) for key in keys]
    audited.configure(f"keys/{audited.key}/rotate")
    assert kms.encrypt_key(keys[0]).startswith(b"vault:v2:")
    assert [kms.decrypt_key(blob) for blob in blobs] == keys
    renewed = [kms.rewrap_key(blob) for blob in blobs]
    assert all(blob.startswith(b"vault:v2:") for blob in renewed)
    assert [kms.decrypt_key(blob) for blob in renewed] == keys
    assert kms.decrypt_keys([*blobs, *renewed]) == [*keys, *keys]
    rewrapped = [entry for entry in audited.calls("rewrap") if "error" not in entry]
    assert len(rewrapped) == (3 if may_rewrap and not bound else 0), "Transit's rewrap cannot take associated data"
    audited.configure(f"keys/{audited.key}/config", min_decryption_version=2)
    assert [kms.decrypt_key(blob) for blob in renewed] == keys
    audited.refusal(KmsCiphertextError, lambda: kms.decrypt_key(blobs[0]))


def test_a_blob_that_does_not_open_is_not_rewrapped(audited: AuditedAccess) -> None:
    kms = audited.kms()
    blob = kms.encrypt_key(os.urandom(32))
    damaged = blob[:40] + (b"A" if blob[40:41] != b"A" else b"B") + blob[41:]
    audited.refusal(KmsCiphertextError, lambda: kms.rewrap_key(damaged))


@pytest.mark.parametrize("other", [{}, {"service": "other"}, {"product": "other"}])
def test_a_bound_key_opens_for_its_service_and_product_only(audited: AuditedAccess, other: dict[str, str]) -> None:
    blob = audited.kms(**BOUND).encrypt_key(os.urandom(32))
    kms = audited.kms(**(BOUND | other if other else {}))
    error = audited.refusal(KmsCiphertextError, lambda: kms.decrypt_key(blob))
    assert "VAULT_TRANSIT_AAD, service or product" in str(error)
    assert audited.kms(**BOUND).decrypt_key(blob)


def test_an_unbound_key_does_not_open_where_binding_is_on(audited: AuditedAccess) -> None:
    blob = audited.kms().encrypt_key(os.urandom(32))
    audited.refusal(KmsCiphertextError, lambda: audited.kms(**BOUND).decrypt_key(blob))


def test_rows_open_after_rotation_and_after_old_versions_are_gone(audited: AuditedAccess, sqlite_url: str) -> None:
    first = Process(sqlite_url, audited.kms())
    first.create_tables()
    notes = [first.write() for _ in range(3)]
    audited.configure(f"keys/{audited.key}/rotate")
    second = Process(sqlite_url, audited.kms())
    assert second.read() == notes
    notes += [first.write(), second.write()]
    report = second.asherah.system_keys(second.engine).rewrap()
    assert report.is_complete
    audited.configure(f"keys/{audited.key}/config", min_decryption_version=2, min_encryption_version=2)
    audited.configure(f"keys/{audited.key}/trim", min_available_version=2)
    third = Process(sqlite_url, audited.kms())
    assert third.read() == notes
    third.write()
    assert first.read() == second.read() == third.read()
    for process in (first, second, third):
        process.close()
