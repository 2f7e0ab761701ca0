# SPDX-License-Identifier: Apache-2.0
"""What to re-encrypt: options that name models, or a table with its columns and types."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any, TypeVar

import click
from sqlalchemy import MetaData, Table
from sqlalchemy.exc import NoSuchTableError

from sa_asherah.cli.expression import read_type
from sa_asherah.errors import ConfigurationError, UsageError
from sa_asherah.reencrypt.plan import Change, Plan

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from sqlalchemy import Engine

__all__ = ["plan_options", "plans_of", "tables_of"]

F = TypeVar("F", bound="Callable[..., Any]")

_OPTIONS = (
    click.option(
        "--models",
        metavar="MODULE:NAME",
        help="A declarative base, MetaData, model or table: every Encrypted column is brought to its declared form and "
        "its owner's newest key. What reads= names is read, too.",
    ),
    click.option("--table", metavar="NAME", help="Instead of --models: a table, with its schema if it has one."),
    click.option("--column", metavar="NAME", help="With --table: the column that holds the values."),
    click.option(
        "--type",
        "target",
        metavar="TYPE",
        help='With --table: the type that is to read them, as in Python: Encrypted(String(), owner="tenant_id").',
    ),
    click.option(
        "--from",
        "sources",
        metavar="TYPE",
        multiple=True,
        help="With --table: the type that reads them now; give it again for several, which are tried in order. "
        "Default: --type, so that all comes to the newest keys.",
    ),
    click.option("--into", metavar="NAME", help="With --table: another column, which takes the new values."),
    click.option("--name", metavar="TEXT", help="Name of the job. Default: made of table and columns."),
)


def plan_options(command: F) -> F:
    """Add the options that say what to re-encrypt.

    Args:
        command: A function for click.

    Returns:
        The function.
    """
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def plans_of(engine: Engine, environ: Mapping[str, str], options: Mapping[str, Any]) -> tuple[Plan, ...]:
    """Make plans of what was given.

    Args:
        engine: The database; a table that is named is looked up there.
        environ: Where `env("NAME")` in a type looks.
        options: What click found for `plan_options`.

    Returns:
        One plan for each table.

    Raises:
        UsageError: The options do not say what to do.
        ConfigurationError: The models cannot be imported, there is no such table or column, or the plan cannot work.
    """
    models, table = options["models"], options["table"]
    others = [options["column"], options["target"], options["sources"], options["into"]]
    if (models is None) == (table is None) or (models is not None and any(others)):
        raise UsageError("what is to be re-encrypted? Give --models MODULE:NAME, or --table with --column and --type")
    if models is not None:
        return _declared(models, options["name"])
    if not options["column"] or not options["target"]:
        raise UsageError("--table needs --column NAME and --type TYPE")
    target = read_type(options["target"], environ)
    sources = [read_type(text, environ) for text in options["sources"]] or [target]
    change = Change(options["column"], target, sources, options["into"])
    return (Plan(_table(engine, table), [change], name=options["name"], newest_key=not options["sources"]),)


def _declared(models: str, name: str | None) -> tuple[Plan, ...]:
    found = tables_of(models)
    return Plan.of(found, name=name) if isinstance(found, MetaData) else (Plan.of(found, name=name),)


def tables_of(models: str) -> MetaData | Table:
    """Import what `--models` names.

    Args:
        models: `module:name`.

    Returns:
        The metadata, or one table.

    Raises:
        UsageError: It is neither a declarative base nor MetaData, a model or a table.
        ConfigurationError: It cannot be imported.
    """
    found: Any = _imported(models)
    if not isinstance(found, MetaData | Table):
        found = getattr(found, "__table__", None) if hasattr(found, "__table__") else getattr(found, "metadata", None)
    if isinstance(found, MetaData | Table):
        return found  # pyright: ignore[reportUnknownVariableType] # a Table's columns
    raise UsageError(f"{models} is neither a declarative base nor MetaData, a model or a table")


def _imported(models: str) -> Any:
    module, _, path = models.partition(":")
    if not module or not path:
        raise UsageError(f"--models names a module and what to take of it, for example app.models:Base; got {models!r}")
    if "" not in sys.path:
        sys.path.insert(0, "")  # the console script leaves out the folder that it is started in
    reason = ""
    try:
        found: Any = import_module(module)
        for part in path.split("."):
            found = getattr(found, part)
    except ModuleNotFoundError as error:
        reason = f"there is no module {error.name!r}"
    except AttributeError:
        reason = f"the module has no {path!r}, or importing it fails"
    except Exception as error:  # noqa: BLE001 -- the application's own; its text may hold a setting
        reason = f"importing it fails with {type(error).__name__}; python -c 'import {module}' shows where"
    else:
        return found
    raise ConfigurationError(f"--models {models}: {reason}. Start the command where the application starts")


def _table(engine: Engine, name: str) -> Table:
    schema, _, plain = name.rpartition(".")
    try:
        return Table(plain, MetaData(), schema=schema or None, autoload_with=engine)
    except NoSuchTableError:
        pass
    raise ConfigurationError(f"there is no table {name!r} in the database; check --table and --database")
