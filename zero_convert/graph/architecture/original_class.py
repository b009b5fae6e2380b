"""Whether the tensors of a converted network also load into the class that was converted, and what they are there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from zero_convert.formats.identity import architecture_digest
from zero_convert.records import OriginalClass


def original_class(given: Mapping[str, Any], made: Mapping[str, Any]) -> OriginalClass:
    """The answer, from the descriptions of the network as it was given and of the one that was made of it."""
    wanted = {name: (shape, stored) for name, shape, stored in given["state"]}
    file = {name: shape for name, shape, stored in made["state"] if name == stored and shape is not None}
    missing = [name for name in wanted if name not in file]
    tied = [name for name in missing if wanted[name][1] in file]
    differing = [name for name in missing if name not in tied]
    differing += [name for name, shape in file.items() if name not in wanted or wanted[name][0] != shape]
    same = architecture_digest(given) == architecture_digest(made)
    return OriginalClass(not differing, same, tuple(sorted(differing)), tuple(tied))
