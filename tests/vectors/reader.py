# SPDX-License-Identifier: Apache-2.0
"""An independent reader of the frozen formats: the standard library and `cryptography`, nothing of sa_asherah.

Run it alone, `python tests/vectors/reader.py`: it checks every vector and says how many there are.
"""

import base64
import hmac
import json
import re
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM


def lp(*parts: "str | bytes") -> bytes:
    encoded = [part if isinstance(part, bytes) else part.encode() for part in parts]
    return b"".join(len(part).to_bytes(4, "big") + part for part in encoded)


def from_text(text: str) -> "bytes | None":
    """Bytes of the text form, None if the text is not the canonical one."""
    if not re.fullmatch(r"sa1:[A-Za-z0-9_-]*", text, re.ASCII) or len(text) % 4 == 1:
        return None
    raw = base64.urlsafe_b64decode(text[4:] + "=" * (-len(text) % 4))
    return raw if base64.urlsafe_b64encode(raw).decode().rstrip("=") == text[4:] else None


def read_cell(vector: "dict[str, Any]") -> "tuple[str, bytes]":
    """Open a cell: ("ok", type byte and value), or the name of the error and nothing."""
    cell = from_text(vector["text"]) if "text" in vector else bytes.fromhex(vector["cell"])
    if cell is None or len(cell) < 89 or cell[:3] != b"\xa5\x01\x01":
        return "MalformedCellError", b""
    flags, created = cell[3], int.from_bytes(cell[4:12], "big")
    padded = flags & 2 == 2
    if flags > 3 or flags != vector["flags"] or created > 253402300799 or (padded and len(cell) < 90):
        return "MalformedCellError", b""
    cell_key = hmac.digest(bytes.fromhex(vector["secret"]), b"sa_asherah/cell-key/1", "sha512")
    okm = hmac.digest(cell_key, b"sa_asherah/row/1" + cell[:28], "sha512")
    if not hmac.compare_digest(okm[32:], cell[28:60]):
        return "DecryptionError", b""
    place = [vector[name] for name in ("service", "product", "partition", "label", "primary_key")]
    try:
        plain = AESGCM(okm[:32]).decrypt(cell[60:72], cell[72:], lp("sa_asherah/ctx/1", *place))
    except InvalidTag:
        return "WrongPlaceError", b""
    if not padded:
        return "ok", plain
    unpadded = re.fullmatch(rb"(.+)\x80\x00*", plain, re.DOTALL)
    return ("ok", unpadded[1]) if unpadded else ("MalformedCellError", b"")


def read_bind(vector: "dict[str, Any]") -> str:
    """Compute the `Bind` of a key record."""
    bind_key = hmac.digest(bytes.fromhex(vector["secret"]), b"sa_asherah/bind-key/1", "sha512")[:32]
    names = [vector[name] for name in ("level", "service", "product", "suffix", "partition", "id")]
    created, parent_created = (vector[name].to_bytes(8, "big") for name in ("created", "parent_created"))
    place = lp("sa_asherah/bind/1", *names, created, vector["parent_id"], parent_created)
    return base64.b64encode(hmac.digest(bind_key, place, "sha256")).decode()


def vectors(name: str) -> "list[dict[str, Any]]":
    loaded: list[dict[str, Any]] = json.loads((Path(__file__).parent / name).read_text("utf-8"))["vectors"]
    return loaded


if __name__ == "__main__":
    cells, binds = vectors("cell/v1.json"), vectors("key_record/bind.json")
    wrong = [v["name"] for v in cells if read_cell(v) != (v["expect"], bytes.fromhex(v["plaintext"]))]
    wrong += [v["name"] for v in binds if (read_bind(v) == v["bind"]) != (v["expect"] == "ok")]
    print(f"{len(cells)} cells, {len(binds)} key records, {len(wrong)} not as expected", *wrong)  # noqa: T201
