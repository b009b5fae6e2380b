"""Which attributes of TorchScript's classes are parameters and which are buffers: its code says so, and is only read.

class Conv2d(Module):
  __parameters__ = ["weight", "bias", ]
  __buffers__ = []
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from .parsing.pickle_symbols import Array, Call, Table
from .parsing.zip_archive import Archive

Kinds = Mapping[str, Mapping[str, str]]  # class → attribute → "parameter" or "buffer"

_CLASS = re.compile(r"^class (\w+)\(Module\):\n((?:  __\w+__ = \[[^\n]*\]\n)*)", re.MULTILINE)
_LIST = re.compile(r"  __(parameter|buffer)s__ = \[([^\n]*)\]\n")
_NAME = re.compile(r'"(\w+)"')
_COST = 500  # bytes of memory of an attribute


def kinds(archive: Archive, folder: str) -> Kinds:
    """What the code below `folder` declares, by the names that pickles have for its classes."""
    found: dict[str, dict[str, str]] = {}
    for name in archive.members:
        if name.startswith(f"{folder}code/") and name.endswith(".py"):
            module = name.removeprefix(f"{folder}code/").removesuffix(".py").replace("/", ".")
            for cls, lists in _CLASS.findall(archive.unpacked(name).decode("utf-8", "replace")):
                attributes = found.setdefault(f"{module}.{cls}", {})
                for kind, names in _LIST.findall(lists):
                    listed = _NAME.findall(names)
                    archive.source.budget.take(_COST * len(listed))
                    attributes.update(dict.fromkeys(listed, kind))
    return found


def kind_at(root: Any, path: tuple[str, ...], known: Kinds) -> str:
    """What the tensor with these keys is; "" where no class says it."""
    at, kind = root, ""
    for key in path:
        kind = ""
        if isinstance(at, Call) and isinstance(at.state, Table):
            kind = known.get(str(at.function), {}).get(key, "")
            at = at.state.get(key)
        elif isinstance(at, Table):
            at = at.get(key)
        else:
            return ""
    return kind if isinstance(at, Array) else ""
