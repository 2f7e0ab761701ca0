# SPDX-License-Identifier: Apache-2.0
"""What only one database has."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import insert, literal, select, text, update
from sqlalchemy.orm import Session

from sa_asherah import OwnerChangedError, OwnerRequiredError, UsageError
from tests.orm.app import App
from tests.orm.models import Base, Clinic, Letter, Patient, Visit, letters, table_of
from tests.orm.shapes import AFTER, BEFORE, ROWS
from tests.orm.traces import assert_no_traces


def read(app: App) -> list[tuple[Any, ...]]:
    app.cold()
    return app.rows(select(letters).order_by(letters.c.id))


def tuples(rows: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    return [tuple(row.values()) for row in rows]


@pytest.mark.parametrize("suite_url", ["postgresql"], indirect=True)
class TestPostgreSQL:
    def test_an_insert_in_a_cte(self, app: App) -> None:
        added = insert(letters).values(ROWS).returning(*letters.c).cte("added")
        assert sorted(app.rows(select(added.c.id, added.c.body))) == [(1, "canary 1"), (2, "canary 2")]
        assert_no_traces(app.engine)
        assert read(app) == tuples(ROWS)

    def test_an_update_in_a_cte(self, app: App) -> None:
        app.execute(letters.insert(), BEFORE)
        changed = (
            update(letters).where(letters.c.id == 1).values(body="canary new").returning(*letters.c).cte("changed")
        )
        assert app.rows(select(changed.c.body)) == [("canary new",)]
        assert_no_traces(app.engine)
        assert read(app) == tuples(AFTER)

    def test_dml_beside_a_select(self, app: App) -> None:
        app.execute(letters.insert(), BEFORE)
        beside = update(letters).where(letters.c.id == 1).values(body="canary new").cte("changed")
        assert app.rows(select(literal(1)).add_cte(beside)) == [(1,)]
        assert_no_traces(app.engine)
        assert read(app) == tuples(AFTER)

    def test_dml_beside_another_dml(self, app: App) -> None:
        app.execute(letters.insert(), BEFORE)
        first = update(letters).where(letters.c.id == 1).values(body="canary new").cte("changed")
        app.execute(insert(letters).values(id=4, clinic_id=3, body="canary 4").add_cte(first))
        assert_no_traces(app.engine)
        assert read(app) == [*tuples(AFTER), (4, 3, "canary 4", None)]

    def test_an_owner_changed_in_a_cte_is_refused(self, app: App) -> None:
        app.execute(letters.insert(), BEFORE)
        moving = update(letters).where(letters.c.id == 1).values(clinic_id=2)
        for statement in (
            select(literal(1)).add_cte(moving.cte("m")),
            select(moving.returning(letters.c.id).cte("m").c.id),
        ):
            with pytest.raises(OwnerChangedError):
                app.execute(statement)
        assert read(app) == tuples(BEFORE)

    def test_dml_deep_inside_is_refused_or_sealed(self, app: App) -> None:
        app.execute(letters.insert(), BEFORE)
        moving = update(letters).where(letters.c.id == 1).values(clinic_id=2).returning(letters.c.id).cte("m")
        writing = insert(letters).values(id=9, clinic_id=1, body="canary").returning(letters.c.id).cte("w")
        for cte in (moving, writing):
            with pytest.raises(UsageError):
                app.execute(select(Clinic.id).where(Clinic.id.in_(select(cte.c.id))))
        assert_no_traces(app.engine)
        assert read(app) == tuples(BEFORE)

    def test_update_from(self, app: App) -> None:
        app.execute(letters.insert(), BEFORE)
        app.execute(
            update(letters).where(letters.c.clinic_id == Clinic.id, Clinic.name == "Clinic 1").values(body="canary new")
        )
        assert read(app) == tuples(AFTER)

    def test_a_schema_for_each_tenant(self, app: App) -> None:
        with app.engine.begin() as connection:
            connection.execute(text("DROP SCHEMA IF EXISTS tenant CASCADE"))
            connection.execute(text("CREATE SCHEMA tenant"))
        engine = app.engine.execution_options(schema_translate_map={None: "tenant"})
        Base.metadata.create_all(engine)
        app.asherah.create_metastore(engine)
        with Session(engine) as session:
            session.add(Clinic(id=1, patients=[Patient(id=1, ssn="canary 1")]))
            session.flush()
            session.get_one(Patient, 1).notes = "canary note"
            session.flush()
            session.execute(update(Patient).where(Patient.id == 1).values(ssn="canary new"))
            session.execute(update(Patient), [{"id": 1, "notes": "canary bulk"}])
            session.commit()
        app.cold()
        with Session(engine) as session:
            patient = session.get_one(Patient, 1)
            assert (patient.ssn, patient.notes) == ("canary new", "canary bulk")
        assert app.rows(select(Patient)) == []
        with app.engine.begin() as connection:
            connection.execute(text("DROP SCHEMA tenant CASCADE"))


@pytest.mark.parametrize("suite_url", ["mariadb"], indirect=True)
class TestMariaDB:
    def fill(self, app: App) -> None:
        app.add(
            Patient(
                id=1,
                clinic_id=1,
                ssn="canary 1",
                notes="canary note",
                visits=[Visit(id=1, place_id=1, finding="canary f")],
            ),
            Patient(id=2, clinic_id=2, ssn="canary 2"),
        )

    def read(self, app: App) -> list[tuple[Any, ...]]:
        app.cold()
        return app.rows(select(Patient.clinic_id, Patient.ssn, Patient.notes).order_by(Patient.id))

    def test_an_update_of_many_tables(self, app: App) -> None:
        self.fill(app)
        joined = update(table_of(Patient)).where(Patient.id == Visit.patient_id)
        app.execute(joined.values({Patient.ssn: "canary new"}))
        assert self.read(app) == [(1, "canary new", "canary note"), (2, "canary 2", None)]
        app.execute(joined.values({Patient.ssn: "canary n2", Visit.place_id: 3, Visit.finding: "canary f2"}))
        assert self.read(app)[0] == (1, "canary n2", "canary note")
        assert app.rows(select(Visit.place_id, Visit.finding)) == [(3, "canary f2")]
        assert_no_traces(app.engine)

    def test_the_owner_of_another_table_is_refused(self, app: App) -> None:
        self.fill(app)
        joined = update(table_of(Clinic)).where(Patient.clinic_id == Clinic.id, Clinic.id == 1)
        with pytest.raises(OwnerChangedError):
            app.execute(joined.values({Patient.clinic_id: 2}))
        with pytest.raises(OwnerRequiredError):
            app.execute(joined.values({Patient.ssn: "canary"}))
        assert_no_traces(app.engine)
        assert self.read(app) == [(1, "canary 1", "canary note"), (2, "canary 2", None)]


def test_a_mapped_core_table_is_one_with_its_class(app: App) -> None:
    app.execute(letters.insert(), BEFORE)
    app.cold()
    with app.session() as session:
        assert [each.body for each in session.scalars(select(Letter).order_by(Letter.id))] == [
            "canary 1",
            "canary 2",
            None,
        ]
