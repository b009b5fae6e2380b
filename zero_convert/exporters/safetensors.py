"""Writes safetensors files as a stream: the same bytes as the reference library. No torch, no numpy.

The file's SHA-256, its size and every tensor's `zc1` leaf are measured in the same pass; the two hashes of a large
tensor run in two threads while the caller's thread writes it and makes the next.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pickle import PickleBuffer
from typing import TYPE_CHECKING, Any, BinaryIO

from ..errors import ModelError
from ..formats.digests import Written
from ..formats.dtypes import DTYPES
from ..formats.hashing_lanes import ParallelHasher, pieces
from ..formats.safetensors import METADATA

if TYPE_CHECKING:
    from typing_extensions import Buffer


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor to write.

    Attributes:
        name: its key in the state dict.
        dtype: as safetensors spells it, one that safetensors has.
        shape: its sizes; () is a scalar. For F4 and F6 the sizes count elements, not bytes.
        data: called once, when it is this tensor's turn; returns its little-endian, row-major, contiguous bytes as
            any buffer (a numpy array is one). Nobody may change that buffer before the writer has returned.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    data: Callable[[], Buffer]

    @property
    def size(self) -> int:
        """Of the data, in bytes."""
        bits = DTYPES[self.dtype].bits * prod(self.shape)
        if bits % 8:
            raise ValueError(f"{self.name!r}: {self.dtype} {self.shape} does not end at a whole byte")
        return bits // 8


def file_order(entries: Iterable[Entry]) -> list[Entry]:
    """The entries as the file holds them: by dtype, then by name."""
    ranks = {name: rank for rank, (name, row) in enumerate(DTYPES.items()) if row.stored}
    return sorted(entries, key=lambda entry: (ranks[entry.dtype], entry.name))


def write(stream: BinaryIO, entries: Sequence[Entry], metadata: Mapping[str, str] | None = None) -> Written:
    """The digests of the file that was written to `stream`.

    For no metadata or one key, and at least one tensor, the bytes are those of `safetensors.serialize`.

    Args:
        stream: takes the bytes, front to back.
        entries: the tensors, ties resolved, in any order; each `data` is called once, in the order of the file.
        metadata: written with sorted keys.
    Raises:
        ModelError: a name that the format cannot hold.
        ValueError: a dtype that is none, a name twice, or a buffer that is not what its entry says: a mistake in the
            calling code.
    """
    ordered = file_order(entries)
    with ParallelHasher() as hasher:
        header = _header_bytes(ordered, metadata)
        stream.write(header)
        hasher.file(header)
        for entry in ordered:
            data = raw_bytes(entry)
            hasher.tensor(entry.name, entry.dtype, entry.shape, pieces(data))
            stream.write(data)
        force_to_disk(stream)  # while the hashes finish
    return hasher.written()


def _header_bytes(ordered: Sequence[Entry], metadata: Mapping[str, str] | None) -> bytes:
    table: dict[str, Any] = {} if metadata is None else {METADATA: dict(sorted(metadata.items()))}
    offset = 0
    for entry in ordered:
        if entry.name == METADATA:
            raise ModelError(
                "a tensor has a name that the safetensors format keeps for itself",
                got=repr(entry.name),
                fix="Rename that parameter or buffer.",
            )
        if entry.name in table:
            raise ValueError(f"two entries are called {entry.name!r}")
        size = entry.size
        table[entry.name] = {
            "dtype": entry.dtype,
            "shape": list(entry.shape),
            "data_offsets": [offset, offset + size],
        }
        offset += size
    try:
        header = json.dumps(table, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as error:
        raise ModelError(
            "a name is not text that a file can hold",
            got=repr(error.object[max(0, error.start - 20) : error.end + 20]),
            expected="no unpaired surrogates",
            fix="Rename that parameter or buffer.",
        ) from None
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header


def raw_bytes(entry: Entry) -> memoryview:
    """The entry's buffer as plain bytes, not copied."""
    buffer = entry.data()
    if not memoryview(buffer).c_contiguous:
        raise ValueError(f"{entry.name!r}: the buffer is not row-major and contiguous")
    data = PickleBuffer(buffer).raw()  # memoryview.cast refuses empty arrays and complex numbers
    if data.nbytes != entry.size:
        raise ValueError(f"{entry.name!r}: {data.nbytes} bytes for {entry.dtype} {entry.shape}")
    return data


def force_to_disk(stream: BinaryIO) -> None:
    """Have the disk take what was written so far, if `stream` is a file."""
    try:
        descriptor = stream.fileno()
    except (AttributeError, io.UnsupportedOperation):
        return
    stream.flush()
    os.fsync(descriptor)
