"""Values of a file's tensor for a tensor of a module, read by our own readers: no pickle is executed."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from zero_convert.errors import LoadError
from zero_convert.formats.digests import brief
from zero_convert.formats.dtypes import DTYPES
from zero_convert.formulas import Floats, Formula
from zero_convert.readers import Tensor
from zero_convert.readers.tensor_bytes import check_crc, pieces, readable


@dataclass(frozen=True, slots=True)
class FileValues(Formula):
    """The value that a file holds, for what the scheme leaves as it is.

    Args:
        stored: the file's tensor; it may be of another type than the module's.
    """

    shape: tuple[int, ...] = field()
    stored: Tensor

    @property
    def rule(self) -> str:
        return "kept from the file"

    def write(self, out: Floats, corner: tuple[int, ...]) -> None:
        """Set out to the block that begins at `corner`."""
        part = tuple(slice(start, start + size) for start, size in zip(corner, out.shape, strict=True))
        out[...] = self.values().double().numpy()[part]

    def values(self) -> torch.Tensor:
        """The tensor as it is stored, bit by bit.

        Raises:
            LoadError: it is of a type that torch has no number for, or holds NaN.
            MalformedError: its bytes are not what the file says of them.
        """
        stored = self.stored
        row = DTYPES.get(stored.dtype)
        why = readable(stored) or ("" if row is not None and row.written else f"its type is {stored.dtype}")
        where = stored.storage.path if stored.storage else ""
        if why or row is None:
            raise LoadError(f"tensor {brief(stored.name)} cannot be taken from the file", where=where, got=why)
        if stored.storage is not None:
            check_crc(stored.storage)
        data = bytearray().join(pieces(stored))
        empty = torch.empty(stored.shape, dtype=getattr(torch, str(row.torch)))
        values = torch.frombuffer(data, dtype=empty.dtype).reshape(stored.shape) if data else empty
        if bool(torch.isnan(values.float() if values.element_size() == 1 else values).any()):
            raise LoadError(
                f"tensor {brief(stored.name)} of the file would be kept, and holds NaN",
                where=where,
                fix="Leave --uncovered keep out: then nothing is taken from the file.",
            )
        return values
