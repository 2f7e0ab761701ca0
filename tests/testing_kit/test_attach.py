# SPDX-License-Identifier: Apache-2.0
"""An `Asherah` for tests: no warning, no fixed key, not in production; engines are as before when it ends."""

from __future__ import annotations

import os
import warnings

import pytest
from sqlalchemy import Engine, create_engine, inspect

from sa_asherah import ConfigurationError
from sa_asherah.errors import KmsCiphertextError
from sa_asherah.kms import static
from sa_asherah.testing import AttachEngines, assert_encrypted_at_rest, static_asherah
from tests.testing_kit.application import Patient, attached


def test_no_warning_comes_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(static, "_warned", False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        static_asherah().close()


@pytest.mark.parametrize("name", ["ASHERAH_ENV", "APP_ENV", "FLASK_ENV", "DJANGO_ENV", "ENVIRONMENT"])
def test_production_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, name, "production")
    with pytest.raises(ConfigurationError, match=f"refused where {name}=production"):
        static_asherah()


def test_every_master_key_is_another(sqlite_engine: Engine) -> None:
    attached(sqlite_engine).detach(sqlite_engine)
    with static_asherah() as other:
        other.attach(sqlite_engine)
        with pytest.raises(KmsCiphertextError):
            assert_encrypted_at_rest(sqlite_engine, Patient.ssn)


def test_engines_get_a_key_table_and_are_detached_at_the_end(sqlite_url: str) -> None:
    engine = create_engine(sqlite_url)
    with static_asherah("records", "clinic") as asherah:
        attach = AttachEngines(asherah)
        assert attach(engine) is engine
        assert attach(engine) is engine
        assert inspect(engine).has_table("encryption_key")
        assert attached(engine) is asherah
        attach.close()
        assert not hasattr(engine.dialect, "_sa_asherah")
        attach.close()
    engine.dispose()


def test_an_engine_that_was_attached_before_stays_attached(sqlite_url: str) -> None:
    engine = create_engine(sqlite_url)
    with static_asherah() as asherah, static_asherah() as other:
        asherah.attach(engine)
        attach = AttachEngines(asherah)
        attach(engine.execution_options(isolation_level="SERIALIZABLE"))
        attach.close()
        assert attached(engine) is asherah
        with pytest.raises(ConfigurationError, match="another Asherah is attached"):
            AttachEngines(other)(engine)
    engine.dispose()
