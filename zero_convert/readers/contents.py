"""What a reader found in a file: one record for every format. Frozen facts; no byte of a tensor is in them.

A tensor's bytes stay in the file: `Storage` says where, `tensor_bytes.py` reads them through windows. Knows no format.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any

from zero_convert.formats.dtypes import DTYPES

IMPORTS = "loading it would import and run "  # what a reason for trust begins with that names a global


@dataclass(frozen=True, slots=True)
class Limits:
    """How much a file may ask for.

    Attributes:
        max_bytes: of memory for what is not tensor data: headers, pickles, directories, names. Each reader accounts for
            what it builds before it builds it.
        max_tensors: in one file.
    """

    max_bytes: int = 128 << 20
    max_tensors: int = 100_000


@dataclass(frozen=True, slots=True)
class Storage:
    """Bytes `begin:end` of the file `path`.

    Attributes:
        crc: the CRC-32 that the container records for exactly these bytes, if it does.
        varints: the bytes are protobuf's numbers, one for each element, and not the elements themselves.
        text: the bytes are UTF-8 of characters below 256, one for each byte of the elements (pickles of protocol 2).
    """

    path: str
    begin: int
    end: int
    crc: int | None = None
    varints: bool = False
    text: bool = False


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor of a file.

    Attributes:
        name: where it is found, keys joined by dots.
        dtype: a key of `DTYPES`, else what the file calls it.
        shape: its sizes in elements; () is a scalar.
        strides: in elements; None is row-major without gaps.
        storage: where its bytes are; None if the file holds none of them in a form that can be read.
        offset: of its first element in the storage, in bytes.
        kind: "parameter" or "buffer" where the file says so, else "".
        tie: the first tensor, by name, that is the same view of the same storage, if this is not the first itself.
        shares: a tensor that begins before this one and reaches into the same bytes, and is no tie.
        flipped: whose signs are the other way round in the file: "" none; of a complex tensor "imaginary" (a conjugate
            view), "real" or "both"; of any other "both" (a negative view).
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...] | None = None
    storage: Storage | None = None
    offset: int = 0
    kind: str = ""
    tie: str = ""
    shares: str = ""
    flipped: str = ""

    @property
    def values(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int | None:
        """Of its elements, row-major without gaps; None for a dtype of unknown width."""
        row = DTYPES.get(self.dtype)
        return None if row is None else (row.bits * self.values + 7) // 8


@dataclass(frozen=True, slots=True)
class Contents:
    """What is in a file.

    Attributes:
        path: the file that was asked for.
        format: "safetensors", "torch zip", …
        producer: who wrote it, as far as the file says.
        size: of the file and of those it names, in bytes.
        files: the others it names, by their names beside it.
        tensors: in the order of the file.
        payload: every span of the files that may hold values, whether they are read or not. What only frames them
            (headers, directories, alignment) is none. No default: a reader that forgot it would vouch for nothing.
        left_out: what is named as no weight of the model → its spans; of tensors `besides` says it.
        undigested: why no weights digest may be made, whatever the tensors hold; "" if one may.
        weights_at: the keys, joined by dots, under which the model's own tensors are in a larger checkpoint; "" if
            these are all tensors, or those on the first level.
        weights_prefix: what stands before each of their names besides, and does not belong to them: "module.".
        weights: the names in `tensors` of the model's own, mapped to their names in the model.
        besides: name of each tensor that is not the model's own → what it belongs to: a checkpoint's key, "constants of
            the program".
        metadata: texts of the file.
        globals: every class and function that a loader would import, "module.name", in the order of the file.
        trust: why loading it would mean to run code from it; empty if it would not.
        notes: what is unusual, in a line each.
        details: facts of one format, for JSON and the screen: operator sets, signatures, …
    """

    path: str
    format: str
    size: int
    tensors: tuple[Tensor, ...]
    weights: Mapping[str, str]
    payload: tuple[Storage, ...]
    producer: str = ""
    files: tuple[str, ...] = ()
    weights_at: str = ""
    weights_prefix: str = ""
    besides: Mapping[str, str] = field(default_factory=dict)
    left_out: Mapping[str, tuple[Storage, ...]] = field(default_factory=dict)
    undigested: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)
    globals: tuple[str, ...] = ()
    trust: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)

    @property
    def sections(self) -> dict[str, int]:
        """What the tensors that are not the model's own belong to, and how many there are."""
        return dict(Counter(self.besides.values()))
