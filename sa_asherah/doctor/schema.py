# SPDX-License-Identifier: Apache-2.0
"""Compares what is declared with what the database has: tables, columns, types, widths, collations."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, Inspector, MetaData, Table, inspect, text

from sa_asherah.doctor.findings import Place
from sa_asherah.errors import ConfigurationError
from sa_asherah.orm.lineage import label_of
from sa_asherah.orm.plan import TablePlan, plan_of
from sa_asherah.orm.types import Encrypted

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from sqlalchemy import Column

    from sa_asherah.doctor.findings import Findings

__all__ = ["examinable", "plans_of"]

_TEXTS = frozenset({"TEXT", "VARCHAR", "CHAR", "NCHAR", "NVARCHAR", "TINYTEXT", "MEDIUMTEXT", "LONGTEXT", "CLOB"})
_BINARIES = frozenset({"BLOB", "TINYBLOB", "MEDIUMBLOB", "LONGBLOB", "BYTEA", "BINARY", "VARBINARY", "large_binary"})
_FITTING = {"binary": _BINARIES, "text": _TEXTS, "json": frozenset({"JSON", "JSONB"})}
_NARROW = frozenset({"TINYTEXT", "TEXT", "TINYBLOB", "BLOB"})
"""Up to 65,535 bytes, on MySQL and MariaDB."""
_COLLATIONS = text(
    "SELECT column_name, collation_name FROM information_schema.columns "
    "WHERE table_schema = COALESCE(:schema, DATABASE()) AND table_name = :name"
)


def plans_of(metadata: MetaData, findings: Findings) -> list[TablePlan]:
    """Find the tables with encrypted columns.

    Args:
        metadata: The declared tables.
        findings: Where to note declarations that cannot work.

    Returns:
        The plans of the others.
    """
    plans: list[TablePlan] = []
    schemas: defaultdict[str, set[str]] = defaultdict(set)
    for table in metadata.tables.values():
        for column in table.columns:
            if isinstance(column.type, Encrypted):
                schemas[label_of(column)].add(table.fullname)
        reason = ""
        try:
            plan = plan_of(table)
        except ConfigurationError as error:
            plan, reason = None, str(error)
        if reason:
            findings.tables += 1
            findings.add("declaration-refused", Place(table.fullname), reason)
        if plan is not None:
            findings.tables += 1
            plans.append(plan)
    for names in {frozenset(names) for names in schemas.values() if len(names) > 1}:
        findings.add("schemas-share-tables", Place(min(names)), ", ".join(sorted(names)))
    return plans


def examinable(connection: Connection, plan: TablePlan, findings: Findings) -> bool:
    """Compare a table with its declaration.

    Args:
        connection: To the database.
        plan: The table.
        findings: Where to note what differs.

    Returns:
        Whether its values can be read.
    """
    table, inspector = plan.table, inspect(connection)
    try:
        if not inspector.has_table(table.name, schema=table.schema):
            findings.add("table-missing", Place(table.fullname))
            return False
        types = {column["name"]: column["type"] for column in inspector.get_columns(table.name, schema=table.schema)}
        _compare_types(inspector, plan, types, findings)
        if connection.dialect.name in {"mysql", "mariadb"}:
            _compare_collations(connection, plan, findings)
    finally:
        connection.rollback()
    needed = [column for column in table.columns if column.key in plan.keys or column.primary_key]
    absent = [column.name for column in needed if column.name not in types]
    for name in absent:
        findings.add("column-missing", Place(table.fullname, name))
    return not absent


def _encrypted(table: Table) -> Iterator[tuple[Column[Any], Encrypted]]:
    for column in table.columns:
        if isinstance(column.type, Encrypted):
            yield column, column.type


def _compare_types(inspector: Inspector, plan: TablePlan, types: Mapping[str, Any], findings: Findings) -> None:
    dialect = inspector.dialect.name
    is_mysql = dialect in {"mysql", "mariadb"}
    for column, type_ in _encrypted(plan.table):
        found = types.get(column.name)
        name = getattr(found, "__visit_name__", "null")
        if found is None or name == "null":
            continue
        fitting = _FITTING[type_.storage]
        if type_.format == "asherah" and not (dialect == "postgresql" and type_.storage == "json"):
            fitting |= _FITTING["json"] | _TEXTS  # MariaDB's JSON is LONGTEXT
        place = Place(plan.table.fullname, column.name)
        length = getattr(found, "length", None)
        if name not in fitting:
            findings.add("column-type-wrong", place, f"it is {name}")
        elif dialect != "sqlite" and length is not None:  # SQLite enforces no length
            findings.add("column-narrow", place, f"it is {name}({length})")
        elif is_mysql and name in _NARROW:
            findings.add("column-narrow", place, f"it is {name}")


def _compare_collations(connection: Connection, plan: TablePlan, findings: Findings) -> None:
    found = connection.execute(_COLLATIONS, {"schema": plan.table.schema, "name": plan.table.name})
    collations = {str(row[0]): row[1] for row in found}
    for column, type_ in _encrypted(plan.table):
        collation = collations.get(column.name)
        if type_.storage == "text" and collation is not None and not collation.endswith("_bin"):
            findings.add("column-collation-unsafe", Place(plan.table.fullname, column.name), collation)
