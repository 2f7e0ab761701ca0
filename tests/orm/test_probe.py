from sqlalchemy import select
from tests.orm.models import *
def test_probe(app):
    app.add(Patient(id=1, clinic_id=1, ssn="canary 1"))
    assert app.rows(select(Patient.ssn)) == [("canary 1",)]
    app.cold()
    assert app.rows(select(Patient.ssn)) == [("canary 1",)]
