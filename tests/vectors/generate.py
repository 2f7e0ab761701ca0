# SPDX-License-Identifier: Apache-2.0
"""Writes the frozen vectors: `python -m tests.vectors.generate`. A change of the files is a change of the format.

Salts and nonces come from the name of the case instead of the operating system; everything else is what `seal` does.
`expect` is `ok` or the name of the error.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING
from unittest import mock

from sa_asherah.core import aead, cell, key_record
from sa_asherah.core.encoding import lp
from sa_asherah.core.ids import MAX_CREATED, KeyIds
from tests.vectors.two_keys import two_key_ciphertext

if TYPE_CHECKING:
    from collections.abc import Iterator

HERE = Path(__file__).parent
SECRET = bytes(range(32))
OTHER_SECRET = bytes(range(32, 64))
CREATED = 1_767_225_600

# One value of each type code of the cell format, as type byte and value.
SAMPLES = {
    "text": b"\x01" + "Grüße, 世界".encode(),
    "text-empty": b"\x01",
    "bytes": b"\x02\x00\x80\xff\x00",
    "boolean": b"\x03\x01",
    "integer": b"\x04" + (-7).to_bytes(8, "big", signed=True),
    "big-integer": b"\x05" + (2**70).to_bytes(9, "big", signed=True),
    "decimal": b"\x06-12.50",
    "float": b"\x07" + bytes.fromhex("3ff8000000000000"),
    "date": b"\x082026-01-31",
    "time": b"\x0912:30:00.000001",
    "datetime": b"\x0a2026-01-31T12:30:00+02:00",
    "interval": b"\x0b" + b"".join(n.to_bytes(8, "big", signed=True) for n in (-1, 3600, 5)),
    "uuid": b"\x0c" + bytes(range(16)),
    "enum": b"\x0dRED",
    "json": b'\x0e{"a":[1,null]}',
    "array": b"\x0f" + lp(b"\x01a") + b"\xff\xff\xff\xff",
}
CROWDED = b"\x02" + bytes(15) + b"\x80" + bytes(15)


@dataclass(frozen=True)
class Place:
    """Where a cell is found, and with which key the reader comes."""

    service: str = "records"
    product: str = "clinic"
    partition: str = "42"
    label: str = "patients.ssn"
    primary_key: str = ""
    secret: bytes = SECRET
    created: int = CREATED

    @property
    def aad(self) -> bytes:
        return cell.context(self.service, self.product, self.partition, self.label, self.primary_key)

    def request(self, flags: int, plaintext: bytes) -> cell.Request:
        padded = cell.pad(plaintext, 16) if flags & cell.PADDED else plaintext
        return cell.Request(cell.derive_cell_key(self.secret), self.created, flags, self.aad, padded)


HOME = Place()
ROW = Place(primary_key="7")
PLACES = {
    "unicode": Place("Dienst-ß", "製品", "Ünïcødé-账户", "таблица.столбец"),
    "partition-with-underscore": Place(partition="a_b"),
    "partition-with-everything": Place(partition="a_b c/d@e.com'\"\\\n"),
    "long-partition": Place(partition="x" * 200),
    "named-label": Place(label="ssn"),
    "row": ROW,
    "row-unicode": Place(primary_key="schlüssel"),
    "created-zero": Place(created=0),
    "created-last": Place(created=MAX_CREATED),
    "other-secret": Place(secret=OTHER_SECRET),
}
# Same text, other borders: what a MAC over joined names could not tell apart.
NEIGHBOURS = {
    "service": Place(service="record", product="sclinic"),
    "product": Place(product="clinic4", partition="2"),
    "partition": Place(partition="4", label="2patients.ssn"),
    "partition-zero": Place(partition="042"),
    "partition-space": Place(partition="42 "),
    "partition-other": Place(partition="43"),
    "label": Place(label="patients.ss", primary_key="n"),
    "label-case": Place(label="patients.SSN"),
    "label-column": Place(label="patients.name"),
    "label-table": Place(label="doctors.ssn"),
    "row": ROW,
    "swapped": Place(service="clinic", product="records"),
}


def noise(name: str, size: int) -> bytes:
    """Make up the random bytes of a case."""
    return hashlib.shake_256(name.encode()).digest(size)


def seal(name: str, *requests: cell.Request) -> list[bytes]:
    """Seal as one statement does, with made-up randomness."""
    with mock.patch("os.urandom", partial(noise, name)):
        return cell.seal(requests)


def craft(header: bytes, plaintext: bytes, place: Place = HOME) -> bytes:
    """Seal under any 28-byte header: every check but the one under test is passed."""
    okm = hmac.digest(cell.derive_cell_key(place.secret), b"sa_asherah/row/1" + header, "sha512")
    nonce = noise(header.hex(), 12)
    return header + okm[32:] + nonce + aead.cipher(okm[:32]).encrypt(nonce, plaintext, place.aad)


def vector(
    name: str, expect: str, place: Place, flags: int, stored: bytes | str, plaintext: bytes = b""
) -> dict[str, object]:
    """Describe one case."""
    names = {key: value for key, value in asdict(place).items() if key not in {"secret", "created"}}
    form = {"text": stored} if isinstance(stored, str) else {"cell": stored.hex()}
    described: dict[str, object] = {
        "name": name,
        "expect": expect,
        "secret": place.secret.hex(),
        **names,
        "flags": flags,
    }
    return described | form | {"plaintext": plaintext.hex()}


def opened() -> Iterator[dict[str, object]]:
    """Every sample with all flags; half of the forms as text; all places; one statement for two owners."""
    for kind, plaintext in SAMPLES.items():
        for flags in range(4):
            place = ROW if flags & cell.ROW_BOUND else HOME
            name = f"ok/{kind}/flags-{flags}"
            (sealed,) = seal(name, place.request(flags, plaintext))
            yield vector(name, "ok", place, flags, sealed, plaintext)
            if flags % 2 == len(plaintext) % 2:
                yield vector(f"{name}/as-text", "ok", place, flags, cell.to_text(sealed), plaintext)
    for kind, place in PLACES.items():
        flags = cell.ROW_BOUND if place.primary_key else 0
        (sealed,) = seal(f"ok/place/{kind}", place.request(flags, SAMPLES["text"]))
        yield vector(f"ok/place/{kind}", "ok", place, flags, sealed, SAMPLES["text"])
    for size in (1, 14, 15, 16, 17, 31, 32, 255):
        plaintext = b"\x02" + noise(f"size {size}", size - 1)
        for flags in (0, cell.PADDED):
            (sealed,) = seal(f"ok/size/{size}/flags-{flags}", HOME.request(flags, plaintext))
            yield vector(f"ok/size/{size}/flags-{flags}", "ok", HOME, flags, sealed, plaintext)
    (sealed,) = seal("ok/looks-padded", HOME.request(cell.PADDED, CROWDED))
    yield vector("ok/looks-padded", "ok", HOME, cell.PADDED, sealed, CROWDED)
    rows = [
        (place, flags) for flags in (0, cell.PADDED) for place in (HOME, Place(partition="43", secret=OTHER_SECRET))
    ]
    statement = seal("ok/statement", *(place.request(flags, SAMPLES["text"]) for place, flags in rows * 2))
    for number, (place, flags) in enumerate(rows * 2):
        yield vector(f"ok/statement/{number}", "ok", place, flags, statement[number], SAMPLES["text"])


def malformed() -> Iterator[dict[str, object]]:
    """Bytes that are no cell of version 1, authentic ones among them."""
    name, expect = "malformed", "MalformedCellError"
    (sealed,) = seal(name, HOME.request(0, SAMPLES["text-empty"]))
    for size in (0, 1, 4, 12, 28, 59, 60, 61, 72, 73, 87, 88):
        yield vector(f"{name}/truncated-{size}", expect, HOME, 0, sealed[:size])
    header = sealed[:28]
    for what, offset, value in (
        ("magic", 0, 0xA4), ("magic-text", 0, 0x73), ("magic-json", 0, 0x7B), ("version-0", 1, 0), ("version-2", 1, 2),
        ("suite-0", 2, 0), ("suite-2", 2, 2), *((f"flag-{bit}", 3, 1 << bit) for bit in range(2, 8)),
        ("year-10000", 4, 0x01), ("created-negative", 4, 0xFF),
    ):  # fmt: skip
        altered = header[:offset] + bytes([value]) + header[offset + 1 :]
        flags = value if offset == 3 else 0
        yield vector(f"{name}/authentic-{what}", expect, HOME, flags, craft(altered, SAMPLES["text"]))
    yield vector(f"{name}/authentic-empty", expect, HOME, 0, craft(header, b""))
    for declared in range(4):
        for written in (flags for flags in range(4) if flags != declared):
            (other,) = seal(f"{name}/{written}", HOME.request(written, SAMPLES["text"]))
            yield vector(f"{name}/flags-{written}-declared-{declared}", expect, HOME, declared, other)
    padded = header[:3] + b"\x02" + header[4:]
    for what, plaintext in (
        ("missing", b"\x01abc"), ("zeros", bytes(16)), ("too-short", b"\x01"), ("no-type-byte", b"\x80" + bytes(15)),
        ("only-mark", b"\x80"), ("junk-after", b"\x01a\x80\x00\x01"), ("other-mark", b"\x01a\x40\x00"),
    ):  # fmt: skip
        yield vector(f"{name}/padding-{what}", expect, HOME, cell.PADDED, craft(padded, plaintext))
    (sealed,) = seal(f"{name}/text", HOME.request(0, b"\x01ab"))
    text = cell.to_text(sealed)
    last = text[:-1] + chr(ord(text[-1]) + 1)  # 91 bytes leave four unused bits in the last character
    for what, altered_text in {
        "empty": "", "prefix-only": "sa1:", "no-prefix": text[4:], "upper-prefix": text.replace("sa1", "SA1"),
        "other-version": text.replace("sa1", "sa2"), "space-before": f" {text}", "newline-after": f"{text}\n",
        "padding": f"{text}=", "double-padding": f"{text}==", "plus": f"{text[:40]}+{text[41:]}",
        "slash": f"{text[:40]}/{text[41:]}", "space-inside": f"{text[:40]} {text[40:]}",
        "equals-inside": f"{text[:40]}={text[41:]}",
        "not-ascii": f"{text[:40]}é{text[41:]}", "full-width": f"{text[:40]}\uff21{text[41:]}", "not-canonical": last,
        "impossible-length": f"{text}AAA", "prefix-twice": f"sa1:{text}", "json": '{"Key":{}}', "plain": "123-45-6789",
    }.items():  # fmt: skip
        yield vector(f"{name}/text-{what}", expect, HOME, 0, altered_text)


def refused() -> Iterator[dict[str, object]]:
    """Well-formed cells that are altered, moved or read with another key."""
    flip = {"created": 11, "salt-first": 12, "salt-last": 27, "commitment-first": 28, "commitment-last": 59}
    (sealed,) = seal("refused", HOME.request(0, SAMPLES["text"]))
    for what, offset in flip.items():
        altered = sealed[:offset] + bytes([sealed[offset] ^ 1]) + sealed[offset + 1 :]
        yield vector(f"key/{what}", "DecryptionError", HOME, 0, altered)
    yield vector("key/other", "DecryptionError", replace(HOME, secret=OTHER_SECRET), 0, sealed)
    (other,) = seal("refused other", HOME.request(0, SAMPLES["text"]))
    yield vector("key/other-salt", "DecryptionError", HOME, 0, sealed[:12] + other[12:28] + sealed[28:])
    yield vector("key/other-commitment", "DecryptionError", HOME, 0, sealed[:28] + other[28:60] + sealed[60:])
    yield vector("key/made-up-as-text", "DecryptionError", HOME, 0, cell.to_text(b"\xa5\x01\x01" + bytes(90)))
    for what, offset in {"nonce": 60, "nonce-last": 71, "ciphertext": 72, "tag": -16, "tag-last": -1}.items():
        damaged = bytearray(sealed)
        damaged[offset] ^= 0x80
        yield vector(f"place/{what}", "WrongPlaceError", HOME, 0, bytes(damaged))
    yield vector("place/truncated", "WrongPlaceError", HOME, 0, sealed[:-1])
    yield vector("place/extended", "WrongPlaceError", HOME, 0, sealed + b"\x00")
    yield vector("place/other-head", "WrongPlaceError", HOME, 0, other[:60] + sealed[60:])
    for what, place in NEIGHBOURS.items():
        yield vector(f"place/{what}", "WrongPlaceError", place, 0, sealed)
        yield vector(f"place/{what}/as-text", "WrongPlaceError", place, 0, cell.to_text(sealed))
    (bound,) = seal("refused row", ROW.request(cell.ROW_BOUND, SAMPLES["text"]))
    yield vector("place/other-row", "WrongPlaceError", replace(ROW, primary_key="8"), cell.ROW_BOUND, bound)
    yield vector("place/no-row", "WrongPlaceError", HOME, cell.ROW_BOUND, bound)
    yield from two_keys()


def two_keys() -> Iterator[dict[str, object]]:
    """One ciphertext and tag, valid in plain AES-GCM for two owners: the commitment decides."""
    rival = Place(partition="43", secret=OTHER_SECRET)
    header = b"\xa5\x01\x01\x00" + CREATED.to_bytes(8, "big") + noise("two keys", 16)
    nonce = noise("two keys nonce", 12)
    first, second = (
        hmac.digest(cell.derive_cell_key(place.secret), b"sa_asherah/row/1" + header, "sha512")
        for place in (HOME, rival)
    )
    body = two_key_ciphertext((first[:32], HOME.aad), (second[:32], rival.aad), nonce)
    mine, theirs = header + first[32:] + nonce + body, header + second[32:] + nonce + body
    yield vector("two-keys/mine", "ok", HOME, 0, mine, aead.cipher(first[:32]).decrypt(nonce, body, HOME.aad))
    yield vector("two-keys/theirs", "ok", rival, 0, theirs, aead.cipher(second[:32]).decrypt(nonce, body, rival.aad))
    yield vector("two-keys/mine-as-theirs", "DecryptionError", rival, 0, mine)
    yield vector("two-keys/theirs-as-mine", "DecryptionError", HOME, 0, theirs)


@dataclass(frozen=True)
class BindCase:
    """What a `Bind` covers."""

    level: key_record.Level
    service: str
    product: str
    suffix: str
    partition: str
    id: str
    created: int
    parent_id: str
    parent_created: int
    secret: str

    def bind(self) -> str:
        parent = (self.parent_id, self.parent_created) if self.parent_id else None
        ids = KeyIds(self.service, self.product, self.suffix, peers=True)
        secret = bytes.fromhex(self.secret)
        return key_record.bind(self.level, ids, self.partition or None, self.id, self.created, parent, secret)


SYSTEM = BindCase(
    "SK", "records", "clinic", "", "", "_SK_records_clinic", CREATED, "", 0, SECRET.hex()
)  # fmt: skip
INTERMEDIATE = BindCase(
    "IK", "records", "clinic", "", "42", "_IK_42_records_clinic", CREATED, SYSTEM.id, CREATED, SECRET.hex()
)  # fmt: skip
REGIONAL = BindCase(
    "IK", "records", "clinic", "eu-central-1", "a_b", "_IK_a_b_records_clinic_eu-central-1", CREATED + 7,
    "_SK_records_clinic_eu-central-1", CREATED, OTHER_SECRET.hex(),
)  # fmt: skip
BINDS = {
    "system": SYSTEM,
    "intermediate": INTERMEDIATE,
    "regional": REGIONAL,
    "index": replace(INTERMEDIATE, level="IX", id="_IX_42_records_clinic"),
    "unicode": replace(INTERMEDIATE, service="Dienst-ß", partition="账户", id="_IK_账户_Dienst-ß_clinic"),
    "created-zero": replace(SYSTEM, created=0),
    "created-last": replace(SYSTEM, created=MAX_CREATED),
}
MOVES: dict[str, dict[str, str | int]] = {
    "level": {"level": "IX"},
    "service": {"service": "record", "product": "sclinic"},
    "product": {"product": "clinic2"},
    "suffix": {"suffix": "eu-central-1"},
    "partition": {"partition": "4", "id": "2_IK_42_records_clinic"},
    "id": {"id": "_IK_43_records_clinic"},
    "created": {"created": CREATED + 1},
    "parent": {"parent_id": "_SK_records_clinic2"},
    "parent-created": {"parent_created": CREATED - 1},
    "no-parent": {"parent_id": "", "parent_created": 0},
    "secret": {"secret": OTHER_SECRET.hex()},
}


def binds() -> Iterator[dict[str, object]]:
    """Records in their place, and one record in every other place."""
    for name, case in BINDS.items():
        yield {"name": f"ok/{name}", "expect": "ok", **asdict(case), "bind": case.bind()}
    for name, change in MOVES.items():
        moved = asdict(INTERMEDIATE) | change
        yield {"name": f"moved/{name}", "expect": "KeyRecordError", **moved, "bind": INTERMEDIATE.bind()}


def files() -> dict[str, str]:
    """All files: path below this folder and content, one vector a line."""
    cells = [*opened(), *malformed(), *refused()]
    about = {"cell/v1.json": ("sa_asherah cell v1", cells), "key_record/bind.json": ("sa_asherah bind 1", [*binds()])}
    rendered: dict[str, str] = {}
    for path, (title, vectors) in about.items():
        lines = ",\n".join(json.dumps(one, ensure_ascii=False) for one in vectors)
        rendered[path] = f'{{"format": "{title}", "vectors": [\n{lines}\n]}}\n'
    return rendered


if __name__ == "__main__":
    for path, content in files().items():
        (HERE / path).write_text(content, "utf-8")
