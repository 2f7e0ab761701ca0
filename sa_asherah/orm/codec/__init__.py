# SPDX-License-Identifier: Apache-2.0
"""Values to plaintext bytes and back: the type codes of cell format v1 (`docs/reference/types.md`).

A code is the first byte of the plaintext; `plain` leaves it out. Each value has one encoding, and decoders accept no
other (of JSON documents, `plain` does); nothing here uses `repr` of an object, `eval` or pickle.
"""

from sa_asherah.orm.codec.choice import codec_for
from sa_asherah.orm.codec.form import Codec
from sa_asherah.orm.codec.plain import plain_codec_for

__all__ = ["Codec", "codec_for", "plain_codec_for"]
