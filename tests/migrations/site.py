# SPDX-License-Identifier: Apache-2.0
"""A script directory as `alembic init` makes it, and the database that it migrates."""

from __future__ import annotations

import io
import itertools
import os
import sqlite3
import sys
import tomllib
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import event

import sa_asherah
from tests.servers.database import async_url

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import TracebackType

    from sa_asherah import Asherah

ROOT: Final = Path(__file__).parents[2]
MASTER_KEY: Final = "5b" * 32
ENVIRONMENT: Final = {
    "SERVICE_NAME": "records",
    "PRODUCT_ID": "clinic",
    "KMS": "static",
    "STATIC_MASTER_KEY_HEX": MASTER_KEY,
}
GROUP: Final = "alembic.plugins"
PROJECT: Final = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
ENTRY: Final[str] = PROJECT["entry-points"][GROUP]["sa_asherah"]
HEAD = '''"""Revision {name}."""
import sqlalchemy as sa
from alembic import op
from sa_asherah import Encrypted

revision = {name!r}
down_revision = {before!r}
'''
METADATA = 'target_metadata = config.attributes.get("metadata")'
PLUGINS = 'target_metadata=target_metadata, autogenerate_plugins=["alembic.autogenerate.*", "sa_asherah"]'


def _without_waiting_for_the_disk(connection: Any, _: object) -> None:
    if isinstance(connection, sqlite3.Connection):
        connection.execute("PRAGMA synchronous = OFF")


class Site:
    """A script directory and a database; engines end with the context."""

    def __init__(self, folder: Path, url: str, asherah: Asherah, template: str = "generic") -> None:
        self.folder = folder
        self.url = url
        self._template = template
        self.asherah = asherah
        self.output = io.StringIO()
        self.config = Config(folder / "alembic.ini", stdout=io.StringIO(), output_buffer=self.output)
        self.config.set_main_option("script_location", str(folder / "migrations"))
        self.engine = sa.create_engine(url)
        self._reader = sa.create_engine(url)
        self._numbers = itertools.count(1)
        self._before: str | None = None

    def __enter__(self) -> Self:
        event.listen(sa.Engine, "connect", _without_waiting_for_the_disk)
        self.folder.mkdir()
        command.init(self.config, str(self.folder / "migrations"), template=self._template)
        ini = (self.folder / "alembic.ini").read_text(encoding="utf-8")
        url = (async_url(self.url) if self._template == "async" else self.url).replace("%", "%%")
        lines = [f"sqlalchemy.url = {url}" if line.startswith("sqlalchemy.url") else line for line in ini.splitlines()]
        (self.folder / "alembic.ini").write_text("\n".join(lines), encoding="utf-8")
        self.replace("target_metadata = None", METADATA)
        self.replace("fileConfig(config.config_file_name)", "pass")  # it turns pytest's logging off
        self.replace("target_metadata=target_metadata", PLUGINS)
        self.config = Config(self.folder / "alembic.ini", stdout=io.StringIO(), output_buffer=self.output)
        self.config.attributes["asherah"] = self.asherah
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.engine.dispose()
        self._reader.dispose()
        event.remove(sa.Engine, "connect", _without_waiting_for_the_disk)

    def replace(self, old: str, new: str) -> None:
        """Change `env.py`."""
        env = self.folder / "migrations" / "env.py"
        text = env.read_text(encoding="utf-8")
        assert old in text
        env.write_text(text.replace(old, new), encoding="utf-8")

    def alembic(self, *arguments: str) -> tuple[list[str], dict[str, str]]:
        """Return command line and environment of Alembic, which finds the plugin by the package's entry point."""
        command, environment = program("alembic.__main__")
        if not metadata.entry_points(group=GROUP, name="sa_asherah"):
            description = self.folder / "installed" / "sa_asherah-0.dist-info"
            description.mkdir(parents=True, exist_ok=True)
            (description / "METADATA").write_text("Name: sa_asherah\nVersion: 0\n", encoding="utf-8")
            (description / "entry_points.txt").write_text(f"[{GROUP}]\nsa_asherah = {ENTRY}\n", encoding="utf-8")
            environment["PYTHONPATH"] += f"{os.pathsep}{description.parent}"
        return [*command, "-c", str(self.folder / "alembic.ini"), *arguments], environment

    def write(self, upgrade: str, downgrade: str = "pass") -> str:
        """Write a revision after the last one; return its name."""
        name = f"r{next(self._numbers)}"
        body = [HEAD.format(name=name, before=self._before)]
        for function, text in (("upgrade", upgrade), ("downgrade", downgrade)):
            lines = [f"    {line}" for line in text.strip().splitlines()]
            body += ["", f"def {function}() -> None:", *lines, ""]
        (self.folder / "migrations" / "versions" / f"{name}.py").write_text("\n".join(body), encoding="utf-8")
        self._before = name
        return name

    def upgrade(self, target: str = "head") -> None:
        """Run `alembic upgrade`."""
        command.upgrade(self.config, target)

    def upgrade_offline(self) -> None:
        """Run `alembic upgrade head --sql`; what it renders is in `output`."""
        command.upgrade(self.config, "head", sql=True)

    def downgrade(self, target: str) -> None:
        """Run `alembic downgrade`."""
        command.downgrade(self.config, target)

    def autogenerate(self, metadata: sa.MetaData, message: str = "change") -> list[str]:
        """Run `alembic revision --autogenerate`; return the texts of the new revisions, oldest first."""
        self.config.attributes["metadata"] = metadata
        made = command.revision(self.config, message, autogenerate=True)
        scripts = made if isinstance(made, list) else [made]
        return [Path(script.path).read_text(encoding="utf-8") for script in scripts if script is not None]

    def heads(self) -> Sequence[str]:
        """Return the revisions that nothing follows."""
        return ScriptDirectory.from_config(self.config).get_heads()

    def rows(self, statement: str) -> list[tuple[Any, ...]]:
        """Return what a statement finds, as it is stored."""
        with self.engine.connect() as connection:
            return [tuple(row) for row in connection.execute(sa.text(statement))]

    def read(self, statement: sa.Executable) -> list[tuple[Any, ...]]:
        """Return what a statement finds, as the application reads it, with no key at hand yet."""
        self.asherah.attach(self._reader)
        try:
            with self._reader.connect() as connection:
                return [tuple(row) for row in connection.execute(statement)]
        finally:
            self.asherah.detach(self._reader)

    def run(self, statement: str, parameters: Mapping[str, Any] | Sequence[Mapping[str, Any]] = ()) -> None:
        """Run a statement as a program does that knows nothing of us."""
        with self.engine.begin() as connection:
            connection.execute(sa.text(statement), parameters or None)


def program(name: str, *arguments: str) -> tuple[list[str], dict[str, str]]:
    """Return command line and environment of a program: one of ours, or a module."""
    environment = {**os.environ, **ENVIRONMENT, "PYTHONWARNINGS": "ignore"}
    environment["PYTHONPATH"] = str(Path(sa_asherah.__file__).parents[1])
    ours = Path(__file__).parent / "programs" / f"{name}.py"
    return [sys.executable, *([str(ours)] if ours.exists() else ["-m", name]), *arguments], environment
