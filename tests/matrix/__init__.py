# SPDX-License-Identifier: Apache-2.0
"""The tables of `docs/reference/statements.md` as tests: every row has a case, every case a row, on six drivers.

Add a row to the page, then a case in a module `reading*.py`, `mapping*.py` or `writing*.py` of this folder, which
needs no other registration:

    @case("bulk_save_objects")  # the row's first cell, without backticks
    def bulk_save_objects(app: App) -> None: ...  # on empty tables of tests.orm.models and three clinics

What the case must show is what the row's second cell begins with: `works` or `not seen` (it returns), or the error
that it must raise, by its class (`OwnerRequiredError`). A database or driver that cannot do it stands in `not_on=` and
in the row's text. `@reading(row)` runs a function that reads the rows of `registration.fill`: with cold keys, and once
more, when it must raise `DecryptionError`, after every cell changed places with one of another owner.
"""
