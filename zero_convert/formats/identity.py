"""The identity of a start: the architecture digest `za1`, and `zs1`, which is architecture and weights together.

    za1 = SHA-256( b"za1\\0" + canonical JSON of the network's description )
    zs1 = SHA-256( b"zs1\\0" + the raw za1 + the raw zc1 )

Two files of one `zc1` hold the same weights; of one `zs1` also the same network, so that training from them starts
alike. What the description says is decided in `graph/architecture.py`; `zc1` is in `digests.py`. Knows no torch.
"""

from __future__ import annotations

import hashlib
from typing import Any

from zero_convert.formats.digests import canonical_json


def architecture_digest(description: Any) -> str:
    """The `za1` digest, hex, of a network's description.

    Args:
        description: lists, dicts, strings, whole numbers, booleans and None. Fractions are spelled as text, so that
            the digest does not depend on how a library prints them.
    """
    return hashlib.sha256(b"za1\0" + canonical_json(description).encode("ascii")).hexdigest()


def start_digest(architecture: str, weights: str) -> str:
    """The `zs1` digest, hex, of an architecture digest and a weights digest, both hex; "" where one is not known."""
    if not architecture or not weights:
        return ""
    return hashlib.sha256(b"zs1\0" + bytes.fromhex(architecture) + bytes.fromhex(weights)).hexdigest()
