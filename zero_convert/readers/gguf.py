"""GGUF headers (llama.cpp): metadata, and names, types and sizes of tensors. Their quantized values are not read.

    "GGUF"   version (2 or 3)   number of tensors   number of pairs   pairs   tensors   padding   data
    pair     text key, type, value         tensor   text name, dimensions, sizes (innermost first), type, offset

Source: ggml, docs/gguf.md. Numbers are little-endian, texts begin with their length as 8 bytes.
"""

from __future__ import annotations

import struct
from math import prod
from typing import Any

from zero_convert.formats.digests import brief
from zero_convert.formats.dtypes import find

from .contents import Contents, Storage, Tensor
from .parsing.source import Source

FORMAT = "GGUF"
# number of a type that is quantized in blocks → its name, elements in a block, bytes of a block
BLOCKS = {
    2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22), 7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34),
    9: ("Q8_1", 32, 36), 10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110), 12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210), 15: ("Q8_K", 256, 292), 16: ("IQ2_XXS", 256, 66),
    17: ("IQ2_XS", 256, 74), 18: ("IQ3_XXS", 256, 98), 19: ("IQ1_S", 256, 50), 20: ("IQ4_NL", 32, 18),
    21: ("IQ3_S", 256, 110), 22: ("IQ2_S", 256, 82), 23: ("IQ4_XS", 256, 136), 29: ("IQ1_M", 256, 56),
    34: ("TQ1_0", 256, 54), 35: ("TQ2_0", 256, 66),
}  # fmt: skip
_VALUES = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_TEXT, _ARRAY = 8, 9
_LONGEST = 1 << 16  # characters of a name or key; a value may be longer and is cut
_NUMBER = 100  # bytes that reading one costs
_SHOWN = 200  # characters of a value that are kept


class _Reader:
    def __init__(self, source: Source) -> None:
        self.source, self.at = source, source.begin

    def number(self, kind: str) -> Any:
        self.source.budget.take(_NUMBER)
        return self._unpacked(kind)

    def _unpacked(self, kind: str) -> Any:
        size = struct.calcsize(kind)
        data = self.source.read(self.at, size)
        self.at += size
        return struct.unpack(kind, data)[0]

    def text(self, longest: int) -> str:
        length = self.number("<Q")
        if length > self.source.end - self.at or (longest == _LONGEST and length > longest):
            raise self.source.malformed("a text is longer than the file, or than names are", str(length))
        data = self.source.small(self.at, self.at + min(length, longest))
        self.at += length
        return data.decode("utf-8", "replace")

    def value(self, kind: int) -> str:
        if kind == _TEXT:
            return self.text(_SHOWN)
        if kind == _ARRAY:
            inner, count = self.number("<I"), self.number("<Q")
            if inner in _VALUES:
                size = count * struct.calcsize(_VALUES[inner])
                if size > self.source.end - self.at:
                    raise self.source.malformed("an array is longer than the file", str(count))
                self.at += size
            elif inner == _TEXT:
                self.source.budget.take(_NUMBER * count)
                for _ in range(count):
                    length = self._unpacked("<Q")
                    if length > self.source.end - self.at:
                        raise self.source.malformed("a text is longer than the file", str(length))
                    self.at += length
            else:
                raise self.source.malformed("an array is of an unknown type", str(inner))
            return f"{count} values"
        if kind not in _VALUES:
            raise self.source.malformed("a value is of an unknown type", str(kind))
        return str(self.number(_VALUES[kind]))


def read(source: Source) -> Contents:
    """What the header says, checked against the size of the file."""
    reader = _Reader(source)
    reader.at += 4
    version, count, pairs = reader.number("<I"), reader.number("<Q"), reader.number("<Q")
    if version not in (2, 3):
        raise source.malformed("the version is unknown", str(version), "2 or 3")
    source.budget.tensors(count)
    metadata: dict[str, str] = {}
    for _ in range(pairs):
        key = source.name(reader.text(_LONGEST), "a key")
        if key in metadata:
            raise source.malformed("a key comes twice", brief(key), "unique keys")
        source.budget.take(200)
        metadata[key] = reader.value(reader.number("<I"))
    described = [_info(reader) for _ in range(count)]
    alignment = metadata.get("general.alignment", "32")
    if not alignment.isdigit() or not 0 < int(alignment) <= 1 << 20:
        raise source.malformed("the alignment is impossible", brief(alignment))
    step = int(alignment)
    start = -(-reader.at // step) * step
    tensors, expected = [], 0
    names: set[str] = set()
    for name, shape, kind, offset in described:
        dtype, block, width = kind
        values = prod(shape)
        size = values // block * width
        if name in names or values % block or offset != expected or start + offset + size > source.end:
            raise source.malformed(f"tensor {brief(name)} comes twice, or does not fit the file")
        names.add(name)
        expected = -(-(offset + size) // step) * step
        tensors.append(Tensor(name, dtype, shape, storage=Storage(source.path, start + offset, start + offset + size)))
    if tensors and source.end > start + expected:
        raise source.malformed("bytes follow the last tensor", str(source.end - start - expected), "none")
    return Contents(
        path=source.path,
        format=FORMAT,
        size=source.size,
        tensors=tuple(tensors),
        weights={tensor.name: tensor.name for tensor in tensors},
        payload=tuple(tensor.storage for tensor in tensors if tensor.storage is not None),
        producer=metadata.get("general.architecture", ""),
        metadata=metadata,
        details={"version": version},
    )


def _info(reader: _Reader) -> tuple[str, tuple[int, ...], tuple[str, int, int], int]:
    name = reader.source.name(reader.text(_LONGEST), "a tensor's name")
    rank = reader.number("<I")
    if rank > 8:
        raise reader.source.malformed(f"tensor {brief(name)} has too many dimensions", str(rank), "at most 8")
    sizes = [reader.number("<Q") for _ in range(rank)]
    number, offset = reader.number("<I"), reader.number("<Q")
    row = find("gguf", number)
    kind = BLOCKS.get(number) if row is None else (row.name, 1, row.bits // 8)
    if kind is None or prod(sizes) >= 1 << 62:
        raise reader.source.malformed(f"tensor {brief(name)} is of an unknown type or size", brief([number, sizes]))
    reader.source.budget.take(600)
    return name, tuple(reversed(sizes)), kind, offset
