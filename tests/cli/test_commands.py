# SPDX-License-Identifier: Apache-2.0
"""All commands: each has the options of its kind, its page names them, and none prints a secret, whatever happens."""

from __future__ import annotations

import json
import logging
import re
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click
import pytest
from click.testing import CliRunner
from sqlalchemy import create_engine, text
from sqlalchemy.engine import make_url

from sa_asherah.cli.root import cli
from tests.cli.site import BASE, DAY, Outcome, Site, run
from tests.servers.openbao import OpenBao

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "command-line.md"
READING = {"demo", "doctor", "status", "vault check", "vault policy", "verify"}


def leaves(command: click.Command, path: str = "") -> Iterator[tuple[str, click.Command]]:
    """Yield the commands that do something, by the words that call them."""
    if isinstance(command, click.Group):
        for name, child in command.commands.items():
            yield from leaves(child, f"{path} {name}".strip())
    else:
        yield path, command


COMMANDS = dict(leaves(cli))


def options_of(name: str) -> set[str]:
    options = [option for option in COMMANDS[name].params if isinstance(option, click.Option)]
    return {text for option in options for text in option.opts}


def without(option: str) -> set[str]:
    return {name for name in COMMANDS if option not in options_of(name)}


def test_every_command_has_the_options_of_its_kind() -> None:
    assert without("--json") == set()
    assert without("--dry-run") == READING
    assert without("--database") == {"demo", "vault check", "vault policy"}
    assert set(COMMANDS) - without("--yes") == {"reencrypt", "revoke", "shred"}


@pytest.mark.parametrize("name", [*COMMANDS, "nonsense", "vault nonsense"])
def test_wrong_arguments_are_json_where_json_is_asked_for(name: str) -> None:
    outcome = run({}, *name.split(), "--json", "--nonsense")
    assert (outcome.status, outcome.err, outcome.json["type"]) == (2, "", "UsageError")
    assert "nonsense" in outcome.json["error"]
    people = run({}, *name.split(), "--nonsense")
    assert (people.status, people.out, "nonsense" in people.err) == (2, "", True)


def section(name: str) -> str:
    """Return what the page says of a command."""
    parts = PAGE.read_text(encoding="utf-8").split(f"\n## {name}\n")
    return parts[1].split("\n## ")[0] if len(parts) > 1 else ""


def listed(part: str) -> set[str]:
    rows = re.findall(r"^\| `(--[a-z-]+)", part, re.MULTILINE)
    return set(rows)


def test_every_option_is_in_the_section_of_its_command_and_no_other() -> None:
    shared = listed(section("Options of several commands"))
    assert shared
    plans = options_of("reencrypt") & options_of("verify") - shared
    of_another = {"verify": plans | {"--html"}, "rewrap": set[str]()}
    for name in COMMANDS:
        own = options_of(name) - shared - of_another.get(name, set())
        assert listed(section(f"sa-asherah {name}")) - shared == own, name


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_there_for_each_shell_as_the_page_says(shell: str) -> None:
    assert f"_SA_ASHERAH_COMPLETE={shell}_source sa-asherah" in section("Completion")
    done = CliRunner().invoke(cli, prog_name="sa-asherah", env={"_SA_ASHERAH_COMPLETE": f"{shell}_source"})
    assert (done.exit_code, "sa_asherah_completion" in done.stdout, done.stderr) == (0, True, "")


def test_models_that_do_not_load_are_one_line_without_what_they_say(
    static_site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_models.py").write_text("raise KeyError('hunter2')")
    monkeypatch.syspath_prepend(tmp_path)
    create_engine(static_site.url).connect().close()
    for command in ("reencrypt", "verify", "doctor"):
        outcome = static_site.run(command, "--models", "broken_models:Base")
        assert (outcome.status, outcome.err.count("\n"), "fails with KeyError" in outcome.err) == (2, 1, True), outcome
        assert "hunter2" not in outcome.err


# Dry runs


def test_a_dry_run_of_any_command_that_writes_writes_nothing(
    small_site: Site, openbao: OpenBao, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    small_site.environ["KMS"] = "vault"
    small_site.now = time.time() - DAY
    small_site.live("vault", 1)
    later = Site(f"sqlite:///{tmp_path / 'later.db'}", {**small_site.environ, "ASHERAH_DATABASE_URL": ""})
    shutil.copy(str(make_url(small_site.url).database), tmp_path / "later.db")
    process = later.start("vault")
    process.write("newcomer")
    process.close()
    empty = f"sqlite:///{tmp_path / 'empty.db'}"
    create_engine(empty).connect().close()
    for call in (("revoke", "--partition", "tenant", "--yes"), ("export-keys", "keys")):
        assert later.run(*call, "--database", later.url).status == 0
    calls = [
        ("init",),
        ("init", "--database", empty),
        ("export-keys", "copy"),
        ("export-keys", "-"),
        ("import-keys", "keys", "--as-conflict", "kept"),
        ("kms", "migrate", "--from", "vault", "--to", "static"),
        ("reencrypt", "--models", NOTES),
        ("revoke", "--partition", "tenant"),
        ("revoke", "--system"),
        ("revoke", "--replay", "keys"),
        ("rotate", "--force"),
        ("shred", "--partition", "tenant", "--receipt", "receipts"),
        ("shred", "--epoch", "--exclusive-key", small_site.environ["VAULT_TRANSIT_KEY"]),
        ("vault", "rewrap"),
        ("rewrap",),
    ]
    called = {next(name for name in COMMANDS if " ".join(call).startswith(name)) for call in calls}
    assert called == set(COMMANDS) - READING
    before = everything(small_site, openbao, tmp_path)
    statuses = {" ".join(call): small_site.run(*call, "--dry-run").status for call in calls}
    assert everything(small_site, openbao, tmp_path) == before
    assert {call for call, status in statuses.items() if status} == {" ".join(calls[12])}  # no epoch is being ended


def everything(site: Site, openbao: OpenBao, folder: Path) -> dict[str, object]:
    """Return what the database and Vault hold, and which files there are."""
    engine = create_engine(site.url)
    with engine.connect() as connection:
        names = connection.scalars(text("SELECT name FROM sqlite_master WHERE type = 'table'")).all()
        tables = {name: connection.execute(text(f"SELECT * FROM {name}")).all() for name in names}  # noqa: S608
    engine.dispose()
    path = f"/v1/{site.environ['VAULT_TRANSIT_MOUNT']}/keys/{site.environ['VAULT_TRANSIT_KEY']}"
    return {**tables, "vault": openbao.root.adapter.get(path)["data"], "files": sorted(folder.iterdir())}


# Canaries


TYPE = 'Encrypted(String(), owner="tenant")'
TOKEN, OTHER_KEY = "hunter2-token", "hunter2-hunter2-key"
NOTES = "tests.integration.records:Base"


def calls(folder: Path) -> list[tuple[str, ...]]:
    """List commands, each of them at least once, in an order in which most work."""
    keys, receipts = str(folder / "keys"), str(folder / "receipts")
    old = ("--table", "notes", "--column", "text", "--type", TYPE, "--from", 'SQLAlchemyUtilsGCM(env("OLD"), "binary")')
    shred = ("shred", "--partition", "gone", "--models", NOTES)
    return [
        ("init", "--dry-run"),
        ("init",),
        ("status",),
        ("verify", "--models", NOTES),
        ("doctor", "--models", NOTES, "--online"),
        ("export-keys", keys),
        ("export-keys", keys),  # there is a file
        ("import-keys", keys, "--dry-run"),
        ("import-keys", keys, "--as-conflict", f"{keys}-kept"),
        ("rotate", "--force"),
        ("revoke", "--partition", "tenant", "--yes"),
        ("revoke", "--system", "--yes"),
        ("revoke", "--replay", keys),
        ("reencrypt", "--models", NOTES, "--dry-run"),
        ("reencrypt", "--models", NOTES, "--estimate"),
        ("reencrypt", "--models", NOTES, "--html", str(folder / "page.html")),
        ("reencrypt", *old, "--dry-run"),
        ("reencrypt", *old[:-1], f'SQLAlchemyUtilsGCM("{OTHER_KEY}", "binary"'),
        ("reencrypt", *old[:-1], f'FernetTokens("{OTHER_KEY}")'),
        (*shred, "--dry-run"),
        (*shred, "--yes", "--wait", "--receipt", receipts),
        ("shred", "--replay", receipts, "--yes"),
        ("shred", "--epoch", "--exclusive-key", "k", "--yes"),
        ("kms", "migrate", "--from", "static", "--to", "vault"),
        ("vault", "rewrap"),
        ("rewrap", "--dry-run"),
        ("vault", "check"),
        ("vault", "policy"),
        ("demo",),
    ]


def printed(outcome: Outcome) -> str:
    return outcome.out + outcome.err


@pytest.mark.parametrize(
    "harm",
    [
        "none",
        "damaged values",
        *(pytest.param(harm, marks=pytest.mark.long) for harm in ("other key service", "damaged keys", "no table")),
        "no server",
    ],
)
def test_no_command_prints_a_secret_whatever_happens(
    harm: str, postgresql_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    password = make_url(postgresql_url).password
    assert password
    site = Site(postgresql_url, {**BASE, "ASHERAH_DATABASE_URL": postgresql_url, **VAULT})
    site.now = time.time() - DAY
    site.live("static", 1)
    site.now = time.time()
    process = site.start("static")
    site.notes += [process.write("tenant"), process.write("gone")]
    process.close()
    secrets = {str(password), TOKEN, OTHER_KEY, BASE["STATIC_MASTER_KEY_HEX"], *site.notes, *stored(site)}
    harmed = harm_of(harm, site)
    shown: list[str] = []
    statuses: dict[str, set[int]] = {}
    with caplog.at_level(logging.DEBUG, "sa_asherah"):
        for number, arguments in enumerate(calls(tmp_path)):
            ways = [(), ("--json",)]
            for more in ways if harm == "none" else [ways[number % 2]]:
                outcome = site.run(*arguments, *more, **harmed)
                shown.append(printed(outcome))
                name = next(name for name in COMMANDS if " ".join(arguments).startswith(name))
                statuses.setdefault(name, set()).add(outcome.status)
                if more:
                    assert isinstance(json.loads(outcome.out), dict), name
    shown += [caplog.text, *(path.read_text(encoding="utf-8") for path in tmp_path.glob("page.html"))]
    assert set(statuses) == set(COMMANDS)
    if harm == "none":
        assert [name for name, found in statuses.items() if 0 not in found] == [
            "kms migrate",
            "vault rewrap",
            "rewrap",
            "vault check",
        ]
        secrets |= stored(site)  # what the commands made
    everything = "".join(shown)
    assert [secret for secret in secrets if secret in everything] == []


VAULT = {
    "VAULT_ADDR": "http://127.0.0.1:1",
    "VAULT_TOKEN": TOKEN,
    "VAULT_TRANSIT_KEY": "k",
    "VAULT_RETRY_DEADLINE": "0.1",
    "OLD": OTHER_KEY,
    "REVOKE_CHECK_INTERVAL_SECS": "0",
    "ASHERAH_MAX_STALE_SECS": "0",
}


def stored(site: Site) -> set[str]:
    """Return what the tables hold: wrapped keys, and cells as hexadecimal digits."""
    engine = create_engine(site.url)
    with engine.connect() as connection:
        cells = connection.scalars(text("SELECT encode(text, 'hex') FROM notes")).all()
    engine.dispose()
    return {*cells, *(str(record["Key"]) for record in site.rows().values() if "Key" in record)}


def harm_of(harm: str, site: Site) -> dict[str, str]:
    """Break something; return the settings that do."""
    statements = {
        "damaged keys": "UPDATE encryption_key SET key_record = jsonb_set(key_record, '{Key}', '\"aHVudGVyMg==\"')",
        "damaged values": "UPDATE notes SET text = convert_to('hunter2 in the wrong place', 'UTF8')",
        "no table": "ALTER TABLE encryption_key RENAME TO hidden_keys",
    }
    if harm in statements:
        engine = create_engine(site.url)
        with engine.begin() as connection:
            connection.execute(text(statements[harm]))
        engine.dispose()
    server = make_url(site.url).set(host="127.0.0.1", port=1, query={}).render_as_string(hide_password=False)
    return {
        "other key service": {"STATIC_MASTER_KEY_HEX": "11" * 32},
        "no server": {"ASHERAH_DATABASE_URL": server},
    }.get(harm, {})
