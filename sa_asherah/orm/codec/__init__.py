# SPDX-License-Identifier: Apache-2.0
"""Values to plaintext bytes and back: the type codes of cell format v1 (`docs/reference/types.md`).

A code is the first byte of the plaintext. Each value has one encoding, and decoders accept no other; nothing here
uses `repr`, `eval` or pickle.
"""

from sa_asherah.orm.codec.choice import codec_for
from sa_asherah.orm.codec.form import Codec

__all__ = ["Codec", "codec_for"]
