"""A tensor's bytes from its file: little-endian, row-major, contiguous, in pieces of whole elements of at most 4 MiB.

A view with strides is gathered in windows, so that a transposed matrix larger than memory can be read. numpy is
imported for such views, and for numbers in protobuf's form, only.
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Iterator
from math import prod
from typing import TYPE_CHECKING, Any, BinaryIO

from zero_convert.formats.digests import brief
from zero_convert.formats.dtypes import DTYPES
from zero_convert.formats.spans import DAMAGED, opened, read_span

from ..errors import MalformedError
from .contents import Storage, Tensor
from .parsing.views import contiguous

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

PIECE = 4 << 20  # bytes at most; a multiple of every element's width
_WINDOW = 8 << 20  # bytes of the file that one gathering may span


def readable(tensor: Tensor) -> str:
    """Why the tensor's bytes cannot be read here; "" if they can."""
    if tensor.storage is None:
        return "the file holds no values for it in a form that can be read"
    if tensor.dtype not in DTYPES:
        return f"values of type {tensor.dtype} are quantized in blocks"
    return ""


def pieces(tensor: Tensor) -> Iterator[memoryview]:
    """The bytes of a tensor that is `readable`; none for an empty one.

    Raises:
        MalformedError: the file ends early, or holds a number that its type cannot.
        StorageError: it cannot be read.
    """
    if tensor.storage is not None and tensor.nbytes:
        stored = _stored(tensor, tensor.storage)
        yield from (_flipped(piece, tensor) for piece in stored) if tensor.flipped else stored


def _stored(tensor: Tensor, storage: Storage) -> Iterator[memoryview]:
    assert tensor.nbytes is not None
    with opened(storage.path) as file:
        if storage.varints:
            yield from _numbers(file, storage, tensor)
        elif storage.text:
            yield from _encoded(file, storage, tensor)
        elif contiguous(tensor):
            begin = storage.begin + tensor.offset
            yield from _span(file, begin, begin + tensor.nbytes, storage.path)
        else:
            yield from _gathered(file, tensor, storage)


def check_crc(storage: Storage) -> None:
    """Compare a storage's bytes with the CRC that its container records.

    Raises:
        MalformedError: they differ.
    """
    if storage.crc is None:
        return
    crc = 0
    with opened(storage.path) as file:
        for piece in _span(file, storage.begin, storage.end, storage.path):
            crc = zlib.crc32(piece, crc)
    if crc != storage.crc:
        raise MalformedError(
            "the CRC of a storage is wrong",
            where=storage.path,
            got=f"{crc:08x} for bytes {storage.begin}:{storage.end}",
            expected=f"{storage.crc:08x}",
            fix="The values were changed after the file was written.",
        )


def _span(file: BinaryIO, begin: int, end: int, where: str) -> Iterator[memoryview]:
    while begin < end:
        data = read_span(file, begin, min(end - begin, PIECE), where)
        begin += len(data)
        yield memoryview(data)


def _flipped(piece: memoryview, tensor: Tensor) -> memoryview:
    """The elements with their signs changed: of the imaginary part, the real one or both."""
    import numpy as np

    row = DTYPES[tensor.dtype]
    parts = 2 if row.kind == "complex" else 1
    numbers = np.frombuffer(piece, np.uint8).reshape(-1, parts, row.bits // 8 // parts).copy()
    first, last = {"real": (0, 1), "imaginary": (1, 2), "both": (0, parts)}[tensor.flipped]
    numbers[:, first:last, -1] ^= 0x80
    return memoryview(numbers.tobytes())


def _encoded(file: BinaryIO, storage: Storage, tensor: Tensor) -> Iterator[memoryview]:
    """Bytes that a pickle has as text; it was taken into memory to be read, so these are few."""
    import numpy as np

    text = read_span(file, storage.begin, storage.end - storage.begin, storage.path)
    data = text.decode("utf-8", "strict").encode("latin-1")
    width = DTYPES[tensor.dtype].bits // 8
    strides = None if tensor.strides is None else [step * width for step in tensor.strides]
    whole = np.ndarray(tensor.shape, np.dtype((np.void, width)), data, 0, strides).tobytes()
    yield from (memoryview(whole[at : at + PIECE]) for at in range(0, len(whole), PIECE))


# -- views


def _gathered(file: BinaryIO, tensor: Tensor, storage: Storage) -> Iterator[memoryview]:
    width = DTYPES[tensor.dtype].bits // 8
    strides = tuple(step * width for step in tensor.strides or ())
    for start, shape in _blocks(tensor.shape, PIECE // width):
        offset = tensor.offset + sum(at * step for at, step in zip(start, strides, strict=True))
        yield memoryview(_block(file, storage, offset, shape, strides, width).tobytes())


def _blocks(shape: tuple[int, ...], most: int) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """(start, shape) of blocks of at most `most` elements that follow one another in row-major order."""
    axis, inner = len(shape), 1
    while axis and inner * shape[axis - 1] <= most:
        axis -= 1
        inner *= shape[axis]
    if not axis:
        yield (0,) * len(shape), shape
        return
    rows = max(1, most // inner)
    for outer in itertools.product(*(range(size) for size in shape[: axis - 1])):
        for row in range(0, shape[axis - 1], rows):
            start = (*outer, row, *(0 for _ in shape[axis:]))
            yield start, (*(1 for _ in outer), min(rows, shape[axis - 1] - row), *shape[axis:])


def _block(
    file: BinaryIO, storage: Storage, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], width: int
) -> npt.NDArray[Any]:
    """The elements of a block as an array of raw elements."""
    import numpy as np

    reach = sum((size - 1) * step for size, step in zip(shape, strides, strict=True)) + width
    kind = np.dtype((np.void, width))
    if reach <= _WINDOW:
        data = read_span(file, storage.begin + offset, reach, storage.path)
        return np.ndarray(shape, kind, data, 0, strides)
    axis = max(range(len(shape)), key=lambda index: (shape[index] - 1) * strides[index])
    out = np.empty(shape, kind)
    inner = (*shape[:axis], 1, *shape[axis + 1 :])
    for index in range(shape[axis]):
        place = (slice(None),) * axis + (slice(index, index + 1),)
        out[place] = _block(file, storage, offset + index * strides[axis], inner, strides, width)
    return out


# -- numbers


def _numbers(file: BinaryIO, storage: Storage, tensor: Tensor) -> Iterator[memoryview]:
    """Protobuf's numbers as elements: the low bytes of each, which has to fit."""
    import numpy as np

    row, count, rest = DTYPES[tensor.dtype], 0, b""
    width, signed = row.bits // 8, row.kind == "int"
    at = storage.begin
    while at < storage.end:
        data = rest + read_span(file, at, min(storage.end - at, PIECE // 8 - len(rest)), storage.path)
        at += len(data) - len(rest)
        raw = np.frombuffer(data, np.uint8)
        ends = np.flatnonzero(raw < 0x80)
        if not len(ends):
            break
        used = int(ends[-1]) + 1
        values = _decoded(raw[:used], ends)
        if values is None:
            raise _unfit(tensor, storage, "a number of more than 64 bits", tensor.dtype)
        _check_range(values, width, signed, tensor, storage)
        count += len(values)
        rest = data[used:]
        yield memoryview(np.ascontiguousarray(values.view(np.uint8).reshape(-1, 8)[:, :width]).tobytes())
    if rest or count != prod(tensor.shape):
        raise _unfit(tensor, storage, f"{count} numbers", f"{prod(tensor.shape)}")


def _decoded(raw: npt.NDArray[np.uint8], ends: npt.NDArray[np.intp]) -> npt.NDArray[np.uint64] | None:
    """The numbers that end at `ends`; None if one has more than 64 bits."""
    import numpy as np

    starts = np.concatenate(([0], ends[:-1] + 1))
    place = np.arange(len(raw)) - np.repeat(starts, ends - starts + 1)
    if int(place.max()) > 9 or bool((raw[place == 9] > 1).any()):
        return None
    parts = (raw & 0x7F).astype(np.uint64) << (7 * place).astype(np.uint64)
    found: npt.NDArray[np.uint64] = np.bitwise_or.reduceat(parts, starts).astype("<u8")
    return found


def _check_range(values: npt.NDArray[np.uint64], width: int, signed: bool, tensor: Tensor, storage: Storage) -> None:
    import numpy as np

    if width == 8 or not len(values):
        return
    bits = 8 * width
    low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)
    numbers = values.view(np.int64)
    if int(numbers.min()) < low or int(numbers.max()) > high:
        raise _unfit(tensor, storage, "a number out of range", tensor.dtype)


def _unfit(tensor: Tensor, storage: Storage, got: str, expected: str) -> MalformedError:
    what = f"tensor {brief(tensor.name)} does not hold the values that its shape asks for"
    return MalformedError(what, where=storage.path, got=got, expected=expected, fix=DAMAGED)
