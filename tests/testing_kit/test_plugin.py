# SPDX-License-Identifier: Apache-2.0
"""The pytest plugin in the project of a user, in a process of its own."""

from __future__ import annotations

import importlib.metadata
import os
import re
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest
import sqlalchemy

import sa_asherah

pytest_plugins = ["pytester"]

NAME = "sa_asherah.testing.plugin"
INSTALLED = any(point.name == NAME for point in importlib.metadata.entry_points(group="pytest11"))
PLUGINS = ("-p", "no:randomly", *(() if INSTALLED else ("-p", NAME)))

SETTINGS = """
[pytest]
filterwarnings = error
asyncio_mode = auto
asyncio_default_fixture_loop_scope = function
"""

MODELS = """
import logging
import warnings
import pytest
from sqlalchemy import String, create_engine, select, text
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from sqlalchemy.pool import StaticPool
from sa_asherah import ConfigurationError, Encrypted
from sa_asherah.testing import assert_encrypted_at_rest, assert_swaps_refused


class Base(DeclarativeBase):
    pass


class Patient(Base):
    __tablename__ = "patients"
    id: Mapped[int] = mapped_column(primary_key=True)
    clinic_id: Mapped[int]
    name: Mapped[str | None]
    ssn: Mapped[str] = mapped_column(Encrypted(String(), owner="clinic_id"))


def fill(session):
    session.add_all([Patient(id=number, clinic_id=number, ssn=f"secret {number}") for number in (1, 2)])
    session.commit()


@pytest.fixture
def engine(attach_asherah):
    engine = attach_asherah(create_engine("sqlite://", poolclass=StaticPool))
    Base.metadata.create_all(engine)
    yield engine
    engine.dispose()
"""


def run(pytester: pytest.Pytester, tests: str, *arguments: str) -> pytest.RunResult:
    """Run a user's tests; warnings are errors."""
    pytester.makefile(".ini", pytest=SETTINGS)
    pytester.makepyfile(MODELS + dedent(tests))
    return pytester.runpytest_subprocess(*PLUGINS, "-p", "no:cacheprovider", *arguments)


def test_engines_of_every_scope_and_kind_are_attached_and_detached(pytester: pytest.Pytester) -> None:
    tests = """
    from sa_asherah.testing import static_asherah

    engines = []

    @pytest.fixture(scope="session")
    def wide(asherah, tmp_path_factory):
        engine = create_engine(f"sqlite:///{tmp_path_factory.mktemp('wide')}/wide.db")
        asherah.attach(engine)
        asherah.create_metastore(engine)
        Base.metadata.create_all(engine)
        with Session(engine) as session:
            fill(session)
        yield engine
        asherah.detach(engine)
        engine.dispose()

    def test_memory(engine):
        with Session(engine) as session:
            fill(session)
        assert assert_encrypted_at_rest(engine, Patient.ssn) == 2
        assert assert_swaps_refused(engine, Base).tried == 2
        engines.append(engine)

    def test_detached(asherah):
        assert not hasattr(engines[0].dialect, "_sa_asherah")
        assert repr(asherah) == "<Asherah of '_SK_records_tests'>"

    @pytest.mark.parametrize("number", [1, 2])
    def test_wide(wide, attach_asherah, number):
        assert attach_asherah(wide) is wide
        with Session(wide) as session:
            assert session.get_one(Patient, 1).ssn == "secret 1"

    def test_still_attached(wide):
        assert hasattr(wide.dialect, "_sa_asherah")

    async def test_asynchronous(attach_asherah, tmp_path):
        engine = await attach_asherah(create_async_engine(f"sqlite+aiosqlite:///{tmp_path}/async.db"))
        async with engine.begin() as connection:
            await connection.run_sync(Base.metadata.create_all)
        async with AsyncSession(engine) as session:
            await session.run_sync(fill)
        async with engine.connect() as connection:
            assert await connection.run_sync(assert_encrypted_at_rest, Patient.ssn) == 2
        await engine.dispose()

    class TestOtherNames:
        @pytest.fixture
        def asherah(self):
            with static_asherah("billing", "bank") as asherah:
                yield asherah

        def test_names(self, engine):
            with Session(engine) as session:
                fill(session)
                assert "_SK_billing_bank" in session.scalars(text("SELECT id FROM encryption_key")).all()
    """
    run(pytester, tests, "-o", "sa_asherah_service=records").assert_outcomes(passed=7)


LEAKS = """
@pytest.fixture
def watched(engine, leak_canaries):
    leak_canaries.watch(engine)
    with Session(engine) as session:
        session.add(Patient(id=1, clinic_id=1, ssn=leak_canaries("ssn")))
        session.commit()
    yield engine
    Base.metadata.drop_all(engine)

def test_no_leak(watched, leak_canaries):
    with Session(watched) as session:
        assert session.scalars(select(Patient.ssn)).all() == [leak_canaries("ssn")]

def test_plain_column(watched, leak_canaries):
    with watched.begin() as connection:
        connection.execute(text("UPDATE patients SET name = :name"), {"name": leak_canaries("ssn")})

def test_log(watched, leak_canaries):
    logging.getLogger("app").debug("%s", leak_canaries("ssn"))

def test_log_with_caplog(caplog, watched, leak_canaries):
    caplog.set_level(logging.ERROR)
    logging.getLogger("app").error("%s", leak_canaries("ssn"))

def test_levels_afterwards():
    assert logging.getLogger().level == logging.WARNING
    assert logging.getLogger("sqlalchemy.engine").level == logging.NOTSET

def test_printed(watched, leak_canaries):
    print(leak_canaries("ssn"))

def test_warned(watched, leak_canaries):
    warnings.simplefilter("always")
    warnings.warn(leak_canaries("ssn"))

def test_raised(watched, leak_canaries):
    raise LookupError(leak_canaries("ssn"))

def test_failed_assertion(watched, leak_canaries):
    assert leak_canaries("ssn") == "something else"

def test_failed_assertion_and_leak(watched, leak_canaries):
    print(leak_canaries("ssn"))
    assert 1 == 2

def test_skipped(watched, leak_canaries):
    pytest.skip("not today")

def test_checked_in_the_middle(watched, leak_canaries):
    leak_canaries.check()
    leak_canaries.look("the outbox", leak_canaries("ssn"))
    with pytest.raises(AssertionError, match="canary 'ssn' shows in the outbox$"):
        leak_canaries.check()
    leak_canaries._found.clear()
"""


def test_a_leak_fails_the_test_and_is_named(pytester: pytest.Pytester) -> None:
    result = run(pytester, LEAKS, "-v", "--tb=short", "--show-capture=no", "--disable-warnings")
    result.assert_outcomes(passed=3, failed=8, skipped=1)
    output = result.stdout.str()
    for place in (
        "the database: table patients, column name",
        "a log record of 'app' at DEBUG",
        "a log record of 'app' at ERROR",
        "the captured stdout",
        "a UserWarning",
        "the LookupError that ended the test",
    ):
        assert f"canary 'ssn' shows in {place}" in output
    assert "assert 1 == 2" in output
    # One value is shown: by the user's own assertion, which compares it.
    shown = {word.strip("'") for word in output.replace("=", " ").split() if word.strip("'").startswith("canary")}
    assert len([word for word in shown if len(word) == len("canary") + 24]) == 1


def test_the_plugin_brings_nothing_optional_where_it_is_not_used(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("""
        import sys

        def test_it(request):
            assert request.config.pluginmanager.has_plugin("sa_asherah.testing.plugin")
            assert not {"hvac", "alembic", "flask", "django", "boto3"} & set(sys.modules)
    """)
    pytester.runpytest_subprocess(*PLUGINS).assert_outcomes(passed=1)


def test_the_kit_without_pytest() -> None:
    """`sa_asherah.testing` serves other test runners."""
    program = "import sys, sa_asherah.testing as kit; sys.exit('pytest' in sys.modules or not kit.LeakCanaries)"
    packages = [str(Path(module.__file__ or "").parents[1]) for module in (sa_asherah, sqlalchemy)]
    subprocess.run([sys.executable, "-c", program], check=True, env={"PYTHONPATH": ":".join(packages)})


def test_the_page_in_the_documentation_works(pytester: pytest.Pytester) -> None:
    page = Path(__file__).parents[2] / "docs" / "how-to" / "testing.md"
    blocks = re.findall("```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    pytester.makefile(".ini", pytest=SETTINGS)
    pytester.makepyfile("\n".join([*blocks, "def test_shared(shared_engine): pass"]))
    pytester.runpytest_subprocess(*PLUGINS).assert_outcomes(passed=4)


@pytest.mark.skipif("SA_ASHERAH_WHEEL" not in os.environ, reason="only tox builds the wheel")
def test_pytest_finds_the_plugin_by_itself(pytestconfig: pytest.Config) -> None:
    assert pytestconfig.pluginmanager.has_plugin(NAME)
