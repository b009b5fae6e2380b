"""safetensors files: header, tensors, digests. No torch, no numpy.

    8 bytes   length of the header, little-endian
    header    {"__metadata__":{…},"name":{"dtype":"F32","shape":[64,3],"data_offsets":[0,768]},…}, then spaces up to 8·n
    data      the tensors without gaps: widest dtype first (the library's enum, descending), then by name

Nothing is believed: what is taken from memory is bounded by the bytes that are really in the file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from os import PathLike
from typing import BinaryIO

from ..errors import MalformedError
from .digests import Written, brief, is_plain_text, parse_json
from .dtypes import DTYPES, stored
from .hashing_lanes import ParallelHasher
from .spans import DAMAGED, opened, read_pieces, read_span, size_of

HEADER_LIMIT = 100_000_000  # bytes, the reference library's
DIMENSIONS = 64  # numpy's limit: nothing that computes has more
METADATA = "__metadata__"


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor of a file: bytes `begin:end` of the data part."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class Header:
    """A file's header. `tensors` are in the order of their data, which starts at byte `data_start` of `size`."""

    metadata: Mapping[str, str]
    tensors: tuple[TensorInfo, ...]
    data_start: int
    size: int


def read_header(path: str | PathLike[str]) -> Header:
    """The header of the file at `path`, checked against itself and against the size of the file.

    Raises:
        MalformedError: it is no safetensors file, or one whose header claims what is not so.
        StorageError: it cannot be read.
    """
    with opened(path) as file:
        return _parse(_head(file, str(path)), size_of(file), str(path))


def read_metadata(path: str | PathLike[str]) -> Mapping[str, str]:
    """The metadata of the file at `path`; errors as `read_header`."""
    return read_header(path).metadata


def tensor_pieces(path: str | PathLike[str]) -> dict[str, Callable[[], Iterator[memoryview]]]:
    """Every tensor's name with a function that reads its bytes, at most 4 MiB at a time.

    Raises:
        MalformedError, StorageError: as `read_header`, now or when the bytes are read.
    """
    header = read_header(path)

    def one(info: TensorInfo) -> Iterator[memoryview]:
        with opened(path) as file:
            yield from _data(file, header, info, str(path))

    return {info.name: partial(one, info) for info in header.tensors}


def file_digests(path: str | PathLike[str]) -> Written:
    """The digests of the file at `path`, made again from its bytes.

    Raises:
        MalformedError, StorageError: as `read_header`; or the data ends early.
    """
    with opened(path) as file, ParallelHasher() as hasher:
        head = _head(file, str(path))
        header = _parse(head, size_of(file), str(path))
        hasher.file(head)
        for info in header.tensors:
            hasher.tensor(info.name, info.dtype, info.shape, _data(file, header, info, str(path)))
    return hasher.written()


# ---------------------------------------------------------------------------------------------------------------------


def _data(file: BinaryIO, header: Header, info: TensorInfo, where: str) -> Iterator[memoryview]:
    begin, end = header.data_start + info.begin, header.data_start + info.end
    return read_pieces(file, begin, end, where, f"the data of tensor {brief(info.name)}")


def _head(file: BinaryIO, where: str) -> bytes:
    """Length and header as they stand in the file."""
    size = size_of(file)
    prefix = read_span(file, 0, min(size, 8), where)
    length = int.from_bytes(prefix, "little")
    if len(prefix) < 8 or length > size - 8:
        expected = f"8 and a header of {length}" if len(prefix) == 8 else "at least 8"
        raise _malformed(where, "the file ends inside its header", f"{size} bytes", expected)
    if length > HEADER_LIMIT:
        raise _malformed(where, "the header is too long", f"{length} bytes", f"at most {HEADER_LIMIT}")
    return prefix + read_span(file, 8, length, where, "the header")


def _parse(head: bytes, size: int, where: str) -> Header:
    table = parse_json(head[8:], f"{where}, header")
    if not isinstance(table, dict) or not head[8:].startswith(b"{"):
        raise _malformed(where, "the header is no JSON object", repr(head[8:40]), "{…}")
    metadata = table.pop(METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _malformed(where, f"{METADATA} is malformed", "another shape", "an object of strings")
    infos = [_info(name, entry, where) for name, entry in table.items()]
    infos.sort(key=lambda info: (info.begin, info.end))
    expected = check_tiling(((info.name, info.begin, info.end) for info in infos), where)
    if len(head) + expected != size:
        at = f" (the last tensor is {brief(infos[-1].name)})" if infos else ""
        what = "bytes follow the last tensor" if len(head) + expected < size else "the data ends early"
        raise _malformed(where, f"{what}{at}", f"a file of {size} bytes", f"{len(head) + expected}")
    return Header(metadata, tuple(infos), len(head), size)


def check_tiling(spans: Iterable[tuple[str, int, int]], where: str) -> int:
    """Where the last tensor ends; name, begin and end of each follow the one before it, from 0 on, without gaps.

    Raises:
        MalformedError: they do not.
    """
    expected = 0
    for name, begin, end in spans:
        if begin != expected:
            what = "overlaps the one before it" if begin < expected else "leaves a hole before it"
            raise _malformed(where, f"tensor {brief(name)} {what}", f"offset {begin}", str(expected))
        expected = end
    return expected


def _info(name: str, entry: object, where: str) -> TensorInfo:
    """One entry of the header, checked against itself."""
    if not is_plain_text(name):
        raise _malformed(where, "a tensor's name holds control characters", brief(name), "plain text")
    tensor = f"tensor {brief(name)}"
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        got = list(entry) if isinstance(entry, dict) else entry
        raise _malformed(where, f"{tensor} has the wrong fields", brief(got), "dtype, shape, data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    row = stored(dtype) if isinstance(dtype, str) else None
    if row is None:
        known = "one of " + " ".join(name for name, row in DTYPES.items() if row.stored)
        raise _malformed(where, f"{tensor} has an unknown dtype", brief(dtype), known)
    if not isinstance(shape, list) or not all(type(size) is int and 0 <= size < 1 << 63 for size in shape):
        raise _malformed(where, f"{tensor} has an impossible shape", brief(shape), "sizes from 0 to 2**63 - 1")
    if (
        not isinstance(offsets, list)
        or len(offsets) != 2
        or not all(type(offset) is int for offset in offsets)
        or not 0 <= offsets[0] <= offsets[1] < 1 << 63
    ):
        raise _malformed(where, f"{tensor} has impossible offsets", brief(offsets), "[begin, end], 0 ≤ begin ≤ end")
    if len(shape) > DIMENSIONS:
        raise _malformed(where, f"{tensor} has too many dimensions", f"{len(shape)}", f"at most {DIMENSIONS}")
    if (bits := row.bits_of(shape)) is None:
        raise _malformed(where, f"{tensor} is too large", f"shape {brief(shape)}", "fewer than 2**63 bytes")
    if bits != 8 * (offsets[1] - offsets[0]):
        got, expected = f"{offsets[1] - offsets[0]} bytes", f"{bits / 8:g} for {dtype} {brief(shape)}"
        raise _malformed(where, f"{tensor} has offsets that do not fit its shape", got, expected)
    return TensorInfo(name, dtype, tuple(shape), offsets[0], offsets[1])


def _malformed(where: str, what: str, got: str, expected: str) -> MalformedError:
    return MalformedError(what, where=where, got=got, expected=expected, fix=DAMAGED)
