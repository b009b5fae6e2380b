"""numpy's arrays and numbers in pickles, as tensors: their bytes stand in the pickle itself, and stay there.

    _reconstruct(ndarray, …) with the state (1, shape, dtype, by columns, data)       what numpy writes
    _frombuffer(data, dtype, shape, order)                                           the same in protocol 5

`data` is a byte string, or until protocol 2 a text that is encoded as latin-1. Source: numpy/_core/multiarray.py.
"""

from __future__ import annotations

import re
from math import prod
from typing import Any

from zero_convert.formats.dtypes import DTYPES
from zero_convert.formats.safetensors import DIMENSIONS

from ..contents import Storage
from .pickle_symbols import Array, Call, Global, Sequence, StoredIn
from .source import Source
from .torch_pickles import Rebuild

_MODULE = r"numpy\.(?:core|_core)\.(?:multiarray|numeric)\."
_CALL = re.compile(_MODULE + r"(_reconstruct|_frombuffer)")
_TYPE = re.compile(r"([fiuc])(\d+)|(b)1")  # kind and bytes
_KINDS = {"f": "float", "i": "int", "u": "uint", "c": "complex"}


class Arrays:
    """The arrays of one file.

    Attributes:
        storages: where their bytes are, by key.
        unread: keys of those that are not read: of objects, of records, in big-endian order.
    """

    def __init__(self, source: Source, rebuild: Rebuild) -> None:
        self.storages: dict[str, Storage] = {}
        self.unread: list[tuple[str, ...]] = []
        self._source, self._rebuild = source, rebuild

    def array(self, call: Call, path: tuple[str, ...] | None = None) -> Array | None:
        """The array that a call makes; None if it makes none, or one that is not read: then `path` is remembered."""
        name = is_array(call)
        if name is None:
            return None
        made = self._made(name[1], call.arguments, call.state)
        if made is None and path is not None:
            self.unread.append(path)
        return made

    def _made(self, name: str, arguments: tuple[Any, ...], state: Any) -> Array | None:
        if name == "_reconstruct" and type(state) is tuple and len(state) == 5:
            return self._of(state[2], state[1], state[3] is True, state[4])
        if name == "_frombuffer" and len(arguments) == 4:
            return self._of(arguments[1], arguments[2], arguments[3] == "F", arguments[0])
        return None

    def _of(self, dtype: Any, shape: Any, columns: bool, data: Any) -> Array | None:
        row = _row(dtype)
        if isinstance(data, Call) and data.arguments:  # _codecs.encode(text, "latin1"), or bytearray(…)
            data = data.arguments[0]
        place = self._rebuild.place(data)
        sizes = tuple(shape.items) if isinstance(shape, Sequence) else shape
        if row is None or place is None or type(sizes) is not tuple or len(sizes) > DIMENSIONS:
            return None
        if not all(type(size) is int and 0 <= size < 1 << 62 for size in sizes):
            return None
        if type(data) is str and max(data, default="") > "\xff":
            raise self._source.malformed("a text that stands for bytes holds a character that is none")
        bits = DTYPES[row].bits_of(sizes)
        if bits is None or bits != 8 * len(data):
            return None
        strides = [prod(sizes[:axis]) if columns else prod(sizes[axis + 1 :]) for axis in range(len(sizes))]
        key = f"pickle {place[0]}"
        if key not in self.storages:
            self._source.budget.take(400)
            self.storages[key] = Storage(self._source.path, *place, text=type(data) is str)
        stored = StoredIn(key, row, prod(sizes))
        return Array(row, sizes, tuple(strides), stored)


def is_array(value: Any) -> re.Match[str] | None:
    """Whether a symbol is one of numpy's arrays, read or not."""
    return (
        _CALL.fullmatch(str(value.function)) if isinstance(value, Call) and isinstance(value.function, Global) else None
    )


def _row(dtype: Any) -> str | None:
    """The element type of `numpy.dtype("f4", …)` with the state (3, "<", …); None for any other."""
    if not isinstance(dtype, Call) or str(dtype.function) != "numpy.dtype" or not dtype.arguments:
        return None
    spelled, state = dtype.arguments[0], dtype.state
    order = state[1] if type(state) is tuple and len(state) > 1 else "|"
    match = _TYPE.fullmatch(spelled) if type(spelled) is str else None
    if match is None or order not in ("<", "|"):
        return None
    name = "bool" if match[3] else f"{_KINDS[match[1]]}{8 * int(match[2][:3])}"
    return next((row.name for row in DTYPES.values() if row.numpy == name and row.kind != "scaled"), None)
