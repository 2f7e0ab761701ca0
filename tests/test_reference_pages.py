# SPDX-License-Identifier: Apache-2.0
"""The reference pages say what the source says: no error text, setting, command or option is missing or made up."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import TYPE_CHECKING

import click
import pytest

import sa_asherah
import sa_asherah.errors
from sa_asherah import mapping
from sa_asherah.cli.command import Status
from sa_asherah.cli.root import cli

if TYPE_CHECKING:
    from collections.abc import Iterator

PACKAGE = Path(sa_asherah.__file__).parent
REFERENCE = Path(__file__).parents[1] / "docs" / "reference"
VAULT = sorted((PACKAGE / "kms" / "vault").glob("*.py"))
# Whose first argument is a text for the user, or the words of Vault's that choose one.
RAISING = re.compile(r"(Configuration|Kms\w*)Error|_Rule|_?failed|_?refused|foreign_ciphertext")
CHOOSING = re.compile(r"_(\w+_)?ADVICE|_COMMON")
# One of each kind, lest a change of the sources leave the tests without anything to compare.
KNOWN = {"Vault is sealed", "invalid role or secret ID", "VAULT_AUTH_METHOD=kubernetes needs VAULT_AUTH_ROLE"}


def page(name: str) -> str:
    return (REFERENCE / f"{name}.md").read_text(encoding="utf-8")


def first_cells(text: str, heading: str) -> Iterator[str]:
    """Yield the first cells of the rows of all tables whose first column has this heading."""
    is_wanted, previous = False, ""
    for line in text.splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] if line.startswith("|") else []
        if cells and not previous.startswith("|"):
            is_wanted = cells[0] == heading
        elif cells and is_wanted and not re.fullmatch("-+", cells[0]):
            yield cells[0]
        previous = line


def written(node: ast.AST) -> str | None:
    """Return a text as the source writes it, with `…` for what is filled in; None if it is no text."""
    match node:
        case ast.Constant(value=str(text)):
            return re.sub(r"\{\w*(![rsa])?\}", "…", text)
        case ast.JoinedStr(values=parts):
            return "".join("…" if isinstance(part, ast.FormattedValue) else written(part) or "" for part in parts)
        case ast.BinOp(left=left, right=right):
            return (written(left) or "…") + (written(right) or "…")
        case _:
            return None


def nodes(paths: list[Path]) -> Iterator[ast.AST]:
    """Yield every node of the sources."""
    for path in paths:
        yield from ast.walk(ast.parse(path.read_text(encoding="utf-8")))


def required(paths: list[Path]) -> set[str]:
    """Return the texts that a user may come to see."""
    found: set[str | None] = set()
    for node in nodes(paths):
        match node:
            case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name), args=[first, *_]):
                if RAISING.fullmatch(name):
                    found.add(written(first))
            case ast.Assign(targets=[ast.Name(id=name)], value=ast.Dict(keys=keys)):
                if CHOOSING.fullmatch(name):
                    found |= {written(key) for key in keys if key}
            case _:
                pass
    return {text for text in found if text and re.search(r"\w{3}", text.replace("…", ""))}


def says(shown: str, text: str) -> bool:
    """Tell whether what the page shows is that text or a part of it; `…` stands for anything."""
    return bool(re.search(".*".join(map(re.escape, shown.split("…"))), text, re.DOTALL))


@pytest.fixture(scope="module")
def shown() -> list[str]:
    """What the page on Vault's errors shows in the first column of its tables."""
    cells = first_cells(page("vault-errors"), "text")
    found = [text for cell in cells for text in re.findall(r"`([^`]+)`", cell)]
    assert found
    return found


def test_every_error_text_of_the_page_is_in_the_source(shown: list[str]) -> None:
    source = [text for node in nodes(VAULT) if (text := written(node))]
    assert [text for text in shown if not any(says(text, known) for known in source)] == []
    assert [text for text in shown if len(text.replace("…", "").strip()) < 6] == []


def test_every_error_text_of_the_source_is_on_the_page(shown: list[str]) -> None:
    wanted = required(VAULT)
    assert wanted >= KNOWN
    assert sorted(text for text in wanted if not any(says(known, text) for known in shown)) == []


def settings_read() -> set[str]:
    """Return the variables that the sources read."""
    found: set[str] = set()
    for node in nodes(sorted(PACKAGE.rglob("*.py"))):
        match node:
            case ast.Call(func=ast.Name(id=name), args=[_, ast.Constant(value=str(variable)), *_]):
                if name in {"read_count", "read_text", "read_flag", "read_seconds", "_required"}:
                    found.add(variable)
                elif name in {"either", "which"}:
                    found.add(f"VAULT_{variable}")
            case ast.Assign(targets=[ast.Name(id="_VARIABLES")], value=ast.Dict(values=values)):
                found |= {f"VAULT_{written(value)}" for value in values}
            case ast.Assign(targets=[ast.Name(id="_DATABASE" | "_AWS_NAMES")], value=value):
                found |= {text for part in ast.walk(value) if (text := written(part))}
            case _:
                pass
    return found


def test_every_setting_is_on_its_page_and_no_other() -> None:
    cells = " ".join(first_cells(page("settings"), "variable"))
    named, read = set(re.findall(r"`([A-Za-z0-9_]+)`", cells)), settings_read()
    assert read - named == set()
    source = "".join(path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py"))
    assert [name for name in named - read if f'"{name}"' not in source] == []


def test_every_json_name_is_on_the_page_of_settings_and_no_other() -> None:
    for heading, known in (("JSON name", mapping._ALL), ("refused JSON name", mapping._REFUSED)):
        cells = " ".join(first_cells(page("settings"), heading))
        assert sorted(re.findall(r"`(\w+)`", cells)) == sorted(known)


def test_every_variable_that_a_page_sets_is_a_setting() -> None:
    known = set(re.findall(r"`([A-Za-z0-9_]+)`", " ".join(first_cells(page("settings"), "variable"))))
    for path in sorted(REFERENCE.parent.rglob("*.md")):
        text = path.read_text(encoding="utf-8")
        exported = " ".join(re.findall(r"^export (.*)$", text, re.MULTILINE))
        named = set(re.findall(r"(?<!\S)(\w+)=", exported)) | set(re.findall(r"\{name: ([A-Z_0-9]+), value", text))
        assert named <= known, path.name


def test_every_error_class_is_on_the_page_of_errors() -> None:
    named = set(re.findall(r"`(\w+(?:Error|Warning))`", page("errors")))
    assert set(sa_asherah.errors.__all__) <= named


def commands(command: click.Command, path: str) -> Iterator[tuple[str, click.Command]]:
    """Yield the commands that do something, by the words that call them."""
    if isinstance(command, click.Group):
        for name, child in command.commands.items():
            yield from commands(child, f"{path} {name}")
    else:
        yield path, command


def test_every_command_option_and_status_is_on_the_page_and_no_other() -> None:
    text = page("command-line")
    known = dict(commands(cli, "sa-asherah"))
    named = " ".join(first_cells(text, "command"))
    assert set(re.findall(r"`(sa-asherah [a-z][a-z -]*[a-z])", named)) == set(known)
    options = [option for command in known.values() for option in command.params if isinstance(option, click.Option)]
    assert {name for option in options for name in option.opts} | {"--help"} == set(
        re.findall(r"`(--[a-z-]+)", " ".join(first_cells(text, "option")))
    )
    assert set(first_cells(text, "status")) == {str(status.value) for status in Status}
