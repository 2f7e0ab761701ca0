# SPDX-License-Identifier: Apache-2.0
"""What may be found: code, level, what is the case, what to do. `docs/reference/findings-of-doctor.md` lists it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

__all__ = ["KINDS", "Kind", "Level"]

Level = Literal["error", "warning", "note"]


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of finding.

    Attributes:
        level: `error`: data or keys are lost, exposed or in danger; `warning`: works, but should not stay so; `note`.
        case: What is the case.
        advice: What to do.
    """

    level: Level
    case: str
    advice: str


_RESTORE_KEY = "Restore this row of encryption_key from a backup; what the key encrypted cannot be read until then"
_RESTORE_VALUE = "Restore the value from a backup, and find out who writes to the table past the application"

KINDS: Final[dict[str, Kind]] = {
    # The key table
    "key-table-missing": Kind(
        "error",
        "there is no table encryption_key in this database",
        "Examine the database that holds it, restore it, or create it with asherah.create_metastore(engine)",
    ),
    "key-table-unsafe": Kind("error", "the key table or its database cannot be relied upon", "Change what is named"),
    "names-differ": Kind(
        "error",
        "the table holds system keys, but none of the names in the settings",
        "Set SERVICE_NAME, PRODUCT_ID and REGION_SUFFIX to what the application ran with",
    ),
    "region-unread": Kind(
        "warning",
        "there are keys of these names in a region whose suffix is not read",
        "Name it in read_suffixes (RECOVERY_REGION_SUFFIXES), or what was written there cannot be read here",
    ),
    # Keys
    "key-malformed": Kind("error", "the key record is not well-formed", _RESTORE_KEY),
    "key-date-differs": Kind(
        "error", "the record's member Created differs from the column created: it was re-dated", _RESTORE_KEY
    ),
    "key-date-unusable": Kind(
        "error", "the column created holds no date in whole seconds, so no reader finds this key", _RESTORE_KEY
    ),
    "key-from-future": Kind(
        "error",
        "the key is dated in the future: it encrypts nothing until then, and a clock or a writer was wrong",
        "Set the clocks right (NTP). If it stays the newest, values are written under the key before it",
    ),
    "key-twice": Kind(
        "error",
        "two records have the same id and date, so which one is read is chance",
        "Find out which one opens the values, remove the other, and restore the primary key (id, created)",
    ),
    "key-copied": Kind(
        "error",
        "the record holds the same wrapped key as another record: one of them was copied over",
        _RESTORE_KEY,
    ),
    "key-unbound": Kind(
        "error",
        "the record has no Bind: another Asherah implementation wrote it, or somebody altered it",
        "If others share this key table, set peers=True (ASHERAH_PEERS=1); else restore the row from a backup",
    ),
    "key-bind-broken": Kind(
        "error", "its Bind does not hold: the record was moved, re-dated or altered after it was written", _RESTORE_KEY
    ),
    "key-parent-missing": Kind(
        "error",
        "the system key that wraps it is not in the key table",
        "Restore that system key's row from a backup; without it nothing reads what this key encrypted",
    ),
    "key-parent-foreign": Kind(
        "error", "it names a system key of another service, product or region as its parent", _RESTORE_KEY
    ),
    "key-unopenable": Kind("error", "its system key does not open it: the record is damaged", _RESTORE_KEY),
    "system-key-unopenable": Kind(
        "error",
        "the key service does not open this system key",
        "Follow what the service says; if the record is damaged, restore its row from a backup",
    ),
    "key-orphaned": Kind(
        "note",
        "keys of an owner of whom no encrypted value was found in the tables examined",
        "Nothing need be done. If the owner is gone for good and nothing else uses its keys (sessions, other tables, "
        "backups), `sa-asherah shred` destroys them",
    ),
    "shred-unfinished": Kind(
        "error",
        "the owner has a tombstone, but this key was not destroyed",
        "Run `sa-asherah shred` for this owner again, until it writes its receipt",
    ),
    "shred-without-tombstone": Kind(
        "error",
        "the key was destroyed, but the owner has no tombstone, so that new keys are made for it",
        "Run `sa-asherah shred` for this owner again; after a restore, replay the receipts",
    ),
    # Declarations and columns
    "declaration-refused": Kind("error", "the declaration of the table cannot work", "Correct the declaration"),
    "schemas-share-tables": Kind(
        "warning",
        "tables of the same name in several schemas have the same labels, so a value moved between them is read",
        "Put the tenant into the partition, give each schema a key table of its own, or set label=",
    ),
    "no-primary-key": Kind(
        "error",
        "the table has no primary key, so its values were not examined",
        "Declare a primary key in the metadata",
    ),
    "table-missing": Kind(
        "error", "the declared table is not in the database", "Run the migrations, or examine the right database"
    ),
    "column-missing": Kind(
        "error", "a declared column is not in the database", "Run the migrations, or examine the right database"
    ),
    "column-type-wrong": Kind(
        "error",
        "the column's type is not the one that this storage= needs, so values are refused or changed",
        "Migrate the column, or declare the storage= that it has",
    ),
    "column-narrow": Kind(
        "warning",
        "the column is too narrow: a server that is not strict cuts values off, and then they are lost",
        "Widen it to the type that Encrypted creates",
    ),
    "column-collation-unsafe": Kind(
        "warning",
        "the column's collation takes different texts for equal",
        "MODIFY it to CHARACTER SET utf8mb4 COLLATE utf8mb4_bin",
    ),
    # Values
    "plaintext": Kind(
        "error",
        "the value is not encrypted",
        "Encrypt it with `sa-asherah reencrypt`, and find out who writes past the application",
    ),
    "window-open": Kind(
        "warning",
        "the value is in a form that only reads= still accepts",
        "Finish `sa-asherah reencrypt` before the window ends",
    ),
    "window-over": Kind(
        "error",
        "the value is in a form that reads= accepted until a day that is over, so it cannot be read",
        "Convert it with `sa-asherah reencrypt`, or give reads= a later date until that is done",
    ),
    "value-malformed": Kind("error", "the value is cut off or damaged", _RESTORE_VALUE),
    "format-differs": Kind(
        "error",
        "the value is encrypted in another format than the column declares",
        "Declare the format= and storage= that wrote it, or convert it with `sa-asherah reencrypt`",
    ),
    "flags-differ": Kind(
        "error",
        "the value is row-bound or padded otherwise than the column declares",
        "It was moved here, or bind_row= or pad= was changed: convert it with `sa-asherah reencrypt`",
    ),
    "key-missing": Kind(
        "error",
        "the key that the value names is not in the key table",
        "Restore the newest copy of the key table, or import the keys; nothing else reads this value",
    ),
    "owner-missing": Kind(
        "error",
        "the row holds encrypted values but has no owner",
        "Set the owner column to the owner that the values were written for",
    ),
    "owner-malformed": Kind(
        "error",
        "the row's owner is not in the canonical form of its type, so its values cannot be read",
        "Correct the owner column",
    ),
    "wrong-owner": Kind(
        "error",
        "the value was encrypted for another owner than the one of its row",
        "Set the row's owner back, or the value from a backup; find out who moved it",
    ),
    "wrong-column": Kind(
        "error",
        "the value was encrypted for another column or table",
        "Move it back, or give the renamed column label= with the old name",
    ),
    "wrong-row": Kind("error", "the value was encrypted for another row", "Move it back; find out who moved it"),
    "value-damaged": Kind("error", "no key and place that is known opens the value", _RESTORE_VALUE),
    "inner-type-differs": Kind(
        "error",
        "the value opens, but is not of the declared inner type",
        "Declare the type that wrote it, or convert it with `sa-asherah reencrypt`",
    ),
    "value-erased": Kind(
        "note", "the value's owner was erased; it can be read no more, as was wanted", "Delete it when convenient"
    ),
    # The key service
    "canary-failed": Kind(
        "error", "the key service does not wrap and open a trial key", "Follow what the service says"
    ),
    "vault": Kind("warning", "Vault is not set up as it should be", "See `sa-asherah vault check`"),
    "vault-error": Kind("error", "Vault does not serve", "See `sa-asherah vault check`"),
}
