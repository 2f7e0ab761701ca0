# SPDX-License-Identifier: Apache-2.0
"""Changes a database past the package, as accidents and attackers do."""

from __future__ import annotations

import json
from typing import Any

from sqlalchemy import Connection, and_, column, select, table, text

KEYS = ("id", "created", "key_record")
COLUMNS = {
    "clinics": ("id",),
    "patients": ("id", "clinic_id", "ssn", "note", "photo"),
    "visits": ("clinic_id", "number", "fee", "summary", "details"),
    "members": ("id", "name", "email"),
    "accounts": ("id", "level", "iban", "perk", "due"),
    "notices": ("id", "body"),
    "archive": ("id", "clinic_id", "body", "remark"),
    "encryption_key": KEYS,
}
PRIMARY = {
    "patients": ("id",),
    "visits": ("clinic_id", "number"),
    "members": ("id",),
    "accounts": ("id",),
    "notices": ("id",),
}


class Surgery:
    """Raw rows of one connection."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.dialect = connection.dialect.name

    def run(self, statement: str, **values: Any) -> None:
        """Run SQL."""
        self.connection.execute(text(statement), values)

    def rows(self, of: str, /, **where: Any) -> list[Any]:
        """Return rows of a table in the order of the primary key."""
        source = table(of, *map(column, COLUMNS[of]))
        query = select(source).order_by(*(source.c[key] for key in PRIMARY.get(of, KEYS[:2])))
        for key, value in where.items():
            query = query.where(source.c[key] == value)
        return list(self.connection.execute(query))

    def put(self, of: str, row: Any, /, **values: Any) -> tuple[str, ...]:
        """Change a row, and return its primary key as findings name it."""
        source = table(of, *map(column, COLUMNS[of]))
        keys = [(key, getattr(row, key)) for key in PRIMARY[of]]
        self.connection.execute(source.update().where(and_(*(source.c[k] == v for k, v in keys))).values(values))
        return tuple(str(value) for _, value in keys)

    # The key table

    def keys(self, key_id: str) -> list[Any]:
        """Return the records of an id, the oldest first."""
        return self.rows("encryption_key", id=key_id)

    def key(self, key_id: str) -> Any:
        """Return the oldest record of an id."""
        return self.keys(key_id)[0]

    @staticmethod
    def record(row: Any) -> dict[str, Any]:
        """Return the members of a record."""
        found: dict[str, Any] = row.key_record if isinstance(row.key_record, dict) else json.loads(row.key_record)
        return found

    def set_key(self, row: Any, record: dict[str, Any]) -> None:
        """Replace a record."""
        value = "CAST(:record AS JSONB)" if self.dialect == "postgresql" else ":record"
        self.connection.execute(
            text(f"UPDATE encryption_key SET key_record = {value} WHERE id = :id AND created = :created"),  # noqa: S608
            {"record": json.dumps(record), "id": row.id, "created": row.created},
        )

    def change_key(self, row: Any, **members: Any) -> None:
        """Change members of a record; `None` removes one."""
        record = self.record(row) | members
        self.set_key(row, {name: value for name, value in record.items() if value is not None})

    def insert_key(self, key_id: str, created: object, record: dict[str, Any]) -> None:
        """Insert a record."""
        value = "CAST(:record AS JSONB)" if self.dialect == "postgresql" else ":record"
        self.connection.execute(
            text(f"INSERT INTO encryption_key VALUES (:id, :created, {value})"),  # noqa: S608
            {"record": json.dumps(record), "id": key_id, "created": created},
        )

    def delete_keys(self, key_id: str) -> None:
        """Delete the records of an id."""
        self.run("DELETE FROM encryption_key WHERE id = :id", id=key_id)

    def drop_primary_key(self) -> None:
        """Leave the key table without a primary key."""
        if self.dialect == "sqlite":
            self.run("CREATE TABLE copy (id TEXT, created TIMESTAMP, key_record TEXT)")
            self.run("INSERT INTO copy SELECT * FROM encryption_key")
            self.run("DROP TABLE encryption_key")
            self.run("ALTER TABLE copy RENAME TO encryption_key")
        elif self.dialect == "postgresql":
            name = self.connection.execute(
                text("SELECT conname FROM pg_constraint WHERE conrelid = 'encryption_key'::regclass AND contype = 'p'")
            ).scalar_one()
            self.run(f"ALTER TABLE encryption_key DROP CONSTRAINT {name}")
        else:
            self.run("ALTER TABLE encryption_key DROP PRIMARY KEY")
