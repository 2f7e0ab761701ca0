# SPDX-License-Identifier: Apache-2.0
"""The forms in which the values of a changed column stand, before and after."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sa_asherah.orm.types import Encrypted
from sa_asherah.reencrypt.ciphertext import EncryptedForm, ForeignForm
from sa_asherah.reencrypt.foreign.written import Foreign
from sa_asherah.reencrypt.plaintext import PlainForm

if TYPE_CHECKING:
    from sqlalchemy.engine import Dialect
    from sqlalchemy.schema import Table

    from sa_asherah.reencrypt.form import Form
    from sa_asherah.reencrypt.plan import Change

__all__ = ["forms_of"]


def forms_of(table: Table, change: Change, dialect: Dialect) -> tuple[Form, tuple[Form, ...]]:
    """Give the forms of a change.

    Plaintext recognises what none of the encrypted forms of the change does: nothing that looks like ciphertext, and
    does not open as such, is taken for plaintext.

    Args:
        table: The plan's table.
        change: The change.
        dialect: The engine's dialect.

    Returns:
        The form wanted, and those of the sources in their order.
    """
    types = [(change.goal, change.target), *((change.column, source) for source in change.sources)]
    forms: list[Form | None] = []
    for key, type_ in types:
        if isinstance(type_, Encrypted):
            forms.append(EncryptedForm(table.c[key], type_, dialect))
        else:
            forms.append(ForeignForm(table.c[key], type_, dialect) if isinstance(type_, Foreign) else None)
    # What the column of `into=` holds is never in the column that is read.
    others = [form for form in forms[change.into is not None :] if form is not None]
    found = [
        form or PlainForm(table.c[key], type_, dialect, others) for form, (key, type_) in zip(forms, types, strict=True)
    ]
    return found[0], tuple(found[1:])
