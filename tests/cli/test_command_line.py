# SPDX-License-Identifier: Apache-2.0
"""The command line itself: as installed, mounted elsewhere, with wrong settings, and what it never prints."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from flask import Flask
from sqlalchemy import Engine, create_engine

import sa_asherah
from sa_asherah.cli.deployment import Deployment
from sa_asherah.cli.root import cli
from sa_asherah.kms.vault import VaultTransitKMS
from tests.cli.site import BASE, Site, run

COMMANDS = [("init",), ("rotate",), ("kms", "migrate", "--from", "static", "--to", "vault"), ("vault", "rewrap")]
NO_EXTRA = (
    "import sys; sys.modules['{}'] = None; sys.modules.pop('sa_asherah', None);"
    "import importlib.util as u; real = u.find_spec;"
    "u.find_spec = lambda name, *rest: None if name == '{}' else real(name, *rest);"
    "from sa_asherah.cli import main; main()"
)


def program(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run the command line as users do."""
    return subprocess.run(
        [sys.executable, *arguments],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(Path(sa_asherah.__file__).parents[1]), **environ},
        capture_output=True,
        check=False,
        text=True,
        timeout=60,
    )


def test_as_a_module_it_does_its_work(static_site: Site) -> None:
    static_site.now = time.time()
    static_site.live("static", 1)
    done = program("-W", "error", "-m", "sa_asherah", "rotate", "--force", "--json", **static_site.environ)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["made"] is True
    assert len(static_site.rows("_SK_")) == 2
    failed = program("-m", "sa_asherah", "rotate", **{**static_site.environ, "STATIC_MASTER_KEY_HEX": "11" * 32})
    assert (failed.returncode, failed.stdout, failed.stderr.count("\n")) == (1, "", 1)
    assert failed.stderr.startswith("Error: static KMS decrypt failed")


@pytest.mark.parametrize("name", ["click", "rich"])
def test_without_the_extra_it_says_what_to_install(name: str) -> None:
    done = program("-c", NO_EXTRA.format(name, name))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"sa-asherah needs {name}: pip install 'sa_asherah[cli]'\n"


def test_help_names_exit_statuses_and_completion_and_needs_no_key_service() -> None:
    done = program("-X", "importtime", "-m", "sa_asherah", "--help")
    assert done.returncode == 0
    assert "3  nothing found" in done.stdout
    assert "_SA_ASHERAH_COMPLETE=bash_source" in done.stdout
    assert not [name for name in ("hvac", "boto3") if f"| {name}\n" in done.stderr]
    assert program("-m", "sa_asherah", "--version").stdout.startswith("sa-asherah, version ")


def test_completion_is_clicks_own() -> None:
    done = program("-m", "sa_asherah", _SA_ASHERAH_COMPLETE="bash_complete", COMP_WORDS="sa-asherah va", COMP_CWORD="1")
    assert done.stdout.split() == ["plain,vault"]


@pytest.mark.parametrize(("given", "seconds"), [({}, 30.0), ({"VAULT_RETRY_DEADLINE": "5"}, 5.0)], ids=["none", "own"])
def test_a_command_waits_longer_for_vault_than_a_request(given: dict[str, str], seconds: float) -> None:
    environ = BASE | {"VAULT_ADDR": "http://127.0.0.1:1", "VAULT_TRANSIT_KEY": "master", "VAULT_TOKEN": "t"} | given
    with Deployment(environ).key_service(KMS="vault") as service:
        assert isinstance(service, VaultTransitKMS)
        assert service.settings.deadline == seconds


def test_the_demo_is_a_command() -> None:
    outcome = run({}, "demo")
    assert outcome.status == 0
    assert "0 plaintext bytes in the file" in outcome.out.splitlines()[-1]
    shown = run({}, "demo", "--json")
    assert (shown.status, shown.json["passed"], shown.json["lines"][-1]) == (0, True, outcome.out.splitlines()[-1])


# Wrong settings


@pytest.mark.parametrize("arguments", COMMANDS)
@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("SERVICE_NAME", "", "SERVICE_NAME is required"),
        ("STATIC_MASTER_KEY_HEX", "zz", "64 hexadecimal digits"),
        ("ASHERAH_DATABASE_URL", "", "give --database URL"),
        ("ASHERAH_DATABASE_URL", "not a url hunter2", "no SQLAlchemy URL"),
        ("ASHERAH_DATABASE_URL", "oracel://u:hunter2@h/d", "no SQLAlchemy URL"),
        ("ASHERAH_DATABASE_URL", "postgresql+pg8000://u:hunter2@h/d", "its driver is not installed: pg8000"),
        ("ASHERAH_DATABASE_URL", "sqlite://", "in memory"),
    ],
)
def test_a_wrong_setting_is_one_line_and_status_2(arguments: tuple[str, ...], name: str, value: str, text: str) -> None:
    vault = {"VAULT_ADDR": "http://127.0.0.1:1", "VAULT_TOKEN": "hunter2", "VAULT_TRANSIT_KEY": "k"}
    environ = {**BASE, **vault, "ASHERAH_DATABASE_URL": "sqlite:////nowhere/test.db", name: value}
    outcome = run(environ, *arguments)
    assert (outcome.status, outcome.out, outcome.err.count("\n")) == (2, "", 1)
    assert text in outcome.err
    as_json = run(environ, *arguments, "--json")
    assert (as_json.status, as_json.err) == (2, "")
    assert text in as_json.json["error"]
    assert "hunter2" not in outcome.err + as_json.out


def test_a_database_out_of_reach_is_one_line_without_its_password(static_site: Site) -> None:
    for url in ("postgresql+psycopg://u:hunter2@127.0.0.1:1/d", "mariadb+pymysql://u:hunter2@127.0.0.1:1/d"):
        outcome = static_site.run("rotate", "--database", url)
        assert (outcome.status, outcome.out, outcome.err.count("\n")) == (1, "", 1)
        assert "cannot be reached" in outcome.err
        assert "hunter2" not in outcome.err
    missing = static_site.run("rotate")
    assert (missing.status, missing.err.count("\n")) == (1, 1)


def test_a_missing_table_is_named_with_the_remedy(static_site: Site) -> None:
    engine = create_engine(static_site.url)
    engine.connect().close()
    engine.dispose()
    outcome = static_site.run("rotate")
    assert (outcome.status, "create_metastore" in outcome.err) == (1, True)


def test_rewrap_of_a_service_without_versions_is_wrong_usage(static_site: Site) -> None:
    static_site.live("static", 1)
    outcome = static_site.run("vault", "rewrap")
    assert (outcome.status, "KMS=vault" in outcome.err) == (2, True)


def test_an_unknown_key_service_is_named_with_those_there_are(static_site: Site) -> None:
    outcome = static_site.run("kms", "migrate", "--from", "static", "--to", "valt")
    assert (outcome.status, "vault" in outcome.err) == (2, True)


# Policies


def test_the_policy_of_one_job_can_be_piped() -> None:
    environ = {"VAULT_TRANSIT_KEY": "asherah-master"}
    officer = run(environ, "vault", "policy", "officer").out
    assert 'path "transit/encrypt/asherah-master"' in officer
    everything = run({}, "vault", "policy", "--key", "asherah-master", "--json").json["policies"]
    assert officer == everything["officer"]
    mounted = run(environ, "vault", "policy", "--mount", "team/kms").out
    assert all(f"# {job}\n" in mounted for job in everything)
    assert mounted.count('path "team/kms/decrypt/asherah-master"') == len(everything)
    assert "rewrap/" not in run({**environ, "VAULT_TRANSIT_AAD": "1"}, "vault", "policy", "rewrap").out


def test_a_policy_needs_a_key_and_a_job_that_there_is() -> None:
    assert run({}, "vault", "policy").status == 2
    outcome = run({"VAULT_TRANSIT_KEY": "k"}, "vault", "policy", "admin")
    assert (outcome.status, "officer" in outcome.err) == (2, True)


# Mounted elsewhere


@pytest.fixture
def engine(static_site: Site) -> Iterator[Engine]:
    """The engine of a web application whose service has a system key."""
    static_site.now = time.time()
    static_site.live("static", 1)
    engine = create_engine(static_site.url)
    yield engine
    engine.dispose()


def system_keys(engine: Engine) -> int:
    with engine.connect() as connection:  # it is still the application's own
        found: int = connection.exec_driver_sql(
            "SELECT count(*) FROM encryption_key WHERE id LIKE '\\_SK%' ESCAPE '\\'"
        ).scalar_one()
    return found


def test_flask_mounts_the_commands_with_its_own_engine(engine: Engine, static_site: Site) -> None:
    app = Flask(__name__)

    @app.cli.group("asherah", commands=cli.commands)
    @click.pass_context
    def asherah(ctx: click.Context) -> None:
        ctx.obj = Deployment({**static_site.environ, "ASHERAH_DATABASE_URL": ""}, engine)

    runner = app.test_cli_runner()
    made = runner.invoke(args=["asherah", "rotate", "--force"])
    assert (made.exit_code, made.output.startswith("Made"), system_keys(engine)) == (0, True, 2)
    assert runner.invoke(args=["asherah", "vault", "policy"]).exit_code == 2
    assert set(cli.commands) <= set(runner.invoke(args=["asherah", "--help"]).output.split())


def test_flask_mounts_them_with_the_environment(engine: Engine, static_site: Site) -> None:
    app = Flask(__name__)
    app.cli.add_command(cli, "asherah")
    found = app.test_cli_runner().invoke(args=["asherah", "status", "--json"], env=static_site.environ)
    assert (found.exit_code, len(json.loads(found.output)["system_keys"])) == (0, system_keys(engine))


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["rotate", "--force"], 0, "Made: system key"),
        (["revoke", "--partition", "nobody", "--yes"], 3, "Nothing found"),
        (["revoke"], 2, "Error: what is to be revoked?"),
        (["rotate", "--ahead", "x"], 2, "Invalid value for '--ahead'"),
        (["kms", "migrate", "--from", "static", "--to", "vault"], 2, "VAULT_"),
    ],
)
def test_a_management_command_of_django_calls_them_with_arguments(
    arguments: list[str],
    status: int,
    said: str,
    engine: Engine,
    static_site: Site,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Django hands over a list, and takes the exit status of the process for its own."""
    deployment = Deployment({**static_site.environ, "ASHERAH_DATABASE_URL": ""}, engine)
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments, "manage.py asherah", obj=deployment)
    shown = capsys.readouterr()
    assert (ended.value.code, said in shown.out + shown.err) == (status, True)
    assert system_keys(engine) == 1 + (status == 0)


def test_called_within_a_program_the_status_is_returned(engine: Engine, static_site: Site) -> None:
    deployment = Deployment({**static_site.environ, "ASHERAH_DATABASE_URL": ""}, engine)
    statuses = [
        cli.main(arguments, "asherah", standalone_mode=False, obj=deployment)
        for arguments in (["status"], ["revoke", "--system", "--created", "1", "--yes"], ["revoke"])
    ]
    assert statuses == [0, 3, 2]


def test_beside_another_programs_context_the_environment_counts(static_site: Site) -> None:
    @click.group()
    @click.pass_context
    def manage(ctx: click.Context) -> None:
        ctx.obj = object()

    manage.add_command(cli, "asherah")
    result = CliRunner().invoke(manage, ["asherah", "rotate"], env={**static_site.environ, "SERVICE_NAME": "a_b"})
    assert (result.exit_code, "'a_b' contains '_'" in result.output) == (2, True)
