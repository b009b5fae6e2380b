"""safetensors files, written and read by us: the same bytes as the reference library, as a stream. No torch, no numpy.

    8 bytes   length of the header, little-endian
    header    {"__metadata__":{…},"name":{"dtype":"F32","shape":[64,3],"data_offsets":[0,768]},…}, then spaces up to 8·n
    data      the tensors without gaps: widest dtype first (the library's enum, descending), then by name

The writer measures the file's SHA-256, its size and every tensor's `zc1` leaf in the same pass; the two hashes of a
large tensor run in two threads while the caller's thread writes it and makes the next. The reader believes nothing:
what it takes from memory is bounded by the bytes that are really in the file.
"""

from __future__ import annotations

import collections
import hashlib
import io
import itertools
import json
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from os import PathLike
from pickle import PickleBuffer
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO

from zero_convert.formats.digests import (
    Leaf,
    Written,
    brief,
    is_plain_text,
    leaf_digest,
    leaf_hasher,
    parse_json,
    weights_digest,
)

from ..errors import MalformedError, ModelError, StorageError

if TYPE_CHECKING:
    from typing_extensions import Buffer

# dtype → bits per element, in the order of the file
DTYPES: Mapping[str, int] = {
    "U64": 64, "I64": 64, "F64": 64, "C64": 64, "F32": 32, "U32": 32, "I32": 32,
    "BF16": 16, "F16": 16, "U16": 16, "I16": 16,
    "F8_E5M2FNUZ": 8, "F8_E4M3FNUZ": 8, "F8_E8M0": 8, "F8_E4M3": 8, "F8_E5M2": 8, "I8": 8, "U8": 8,
    "F6_E3M2": 6, "F6_E2M3": 6, "F4": 4, "BOOL": 8,
}  # fmt: skip
HEADER_LIMIT = 100_000_000  # bytes, the reference library's
DIMENSIONS = 64  # numpy's limit: nothing that computes has more

_RANK = {dtype: rank for rank, dtype in enumerate(DTYPES)}
_METADATA = "__metadata__"
_CHUNK = 4 << 20  # bytes hashed or read at a time
_SMALL = 64 << 10  # below this many bytes a thread costs more than it saves
_IN_FLIGHT = 64 << 20  # bytes that may wait for their hashes


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor to write.

    Attributes:
        name: its key in the state dict.
        dtype: as safetensors spells it, a key of `DTYPES`.
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
        bits = DTYPES[self.dtype]
        for size in self.shape:
            bits *= size
        if bits % 8:
            raise ValueError(f"{self.name!r}: {self.dtype} {self.shape} does not end at a whole byte")
        return bits // 8


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


def file_order(entries: Iterable[Entry]) -> list[Entry]:
    """The entries as the file holds them: by dtype, then by name."""
    return sorted(entries, key=lambda entry: (_RANK[entry.dtype], entry.name))


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
    with Lanes() as lanes:
        header = _header_bytes(ordered, metadata)
        stream.write(header)
        lanes.file(header)
        for entry in ordered:
            data = raw_bytes(entry)
            lanes.tensor(entry.name, entry.dtype, entry.shape, pieces(data))
            stream.write(data)
        force_to_disk(stream)  # while the hashes finish
    return lanes.written()


def read_header(path: str | PathLike[str]) -> Header:
    """The header of the file at `path`, checked against itself and against the size of the file.

    Raises:
        MalformedError: it is no safetensors file, or one whose header claims what is not so.
        StorageError: it cannot be read.
    """
    with opened(path) as file:
        return _parse(_head(file, str(path)), os.fstat(file.fileno()).st_size, str(path))


def read_metadata(path: str | PathLike[str]) -> Mapping[str, str]:
    """The metadata of the file at `path`; errors as `read_header`."""
    return read_header(path).metadata


def iter_tensors(path: str | PathLike[str], header: Header) -> Iterator[tuple[TensorInfo, memoryview]]:
    """Every tensor's bytes in order of the file, at most 4 MiB at a time; an empty tensor gives one empty piece.

    Raises:
        MalformedError: the file ends before the header says it does.
        StorageError: it cannot be read.
    """
    with opened(path) as file:
        file.seek(header.data_start)
        for info in header.tensors:
            for piece in _read_pieces(file, info, str(path)):
                yield info, piece


def tensor_pieces(path: str | PathLike[str]) -> dict[str, Callable[[], Iterator[memoryview]]]:
    """Every tensor's name with a function that reads its bytes, at most 4 MiB at a time; errors as `iter_tensors`."""
    header = read_header(path)

    def pieces(info: TensorInfo) -> Iterator[memoryview]:
        with opened(path) as file:
            file.seek(header.data_start + info.begin)
            yield from _read_pieces(file, info, str(path))

    return {info.name: partial(pieces, info) for info in header.tensors}


def file_digests(path: str | PathLike[str]) -> Written:
    """The digests of the file at `path`, made again from its bytes.

    Raises:
        MalformedError, StorageError: as `read_header` and `iter_tensors`.
    """
    with opened(path) as file, Lanes() as lanes:
        head = _head(file, str(path))
        header = _parse(head, os.fstat(file.fileno()).st_size, str(path))
        lanes.file(head)
        for info in header.tensors:
            lanes.tensor(info.name, info.dtype, info.shape, _read_pieces(file, info, str(path)))
    return lanes.written()


# ---------------------------------------------------------------------------------------------- writing


def _header_bytes(ordered: Sequence[Entry], metadata: Mapping[str, str] | None) -> bytes:
    table: dict[str, Any] = {} if metadata is None else {_METADATA: dict(sorted(metadata.items()))}
    offset = 0
    for entry in ordered:
        if entry.name == _METADATA:
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


def pieces(data: memoryview) -> Iterator[memoryview]:
    return (data[start : start + _CHUNK] for start in range(0, data.nbytes, _CHUNK))


def force_to_disk(stream: BinaryIO) -> None:
    """Have the disk take what was written so far, if `stream` is a file."""
    try:
        descriptor = stream.fileno()
    except (AttributeError, io.UnsupportedOperation):
        return
    stream.flush()
    os.fsync(descriptor)


class Lanes:
    """Hashes the file and its tensors side by side: one thread for each of the two, order kept within both.

    Small pieces of the file are gathered, small tensors hashed on the spot. At most `_IN_FLIGHT` bytes wait.
    """

    def __init__(self) -> None:
        self._file_hash = hashlib.sha256()
        self._size = 0
        self._gathered = bytearray()
        self._leaves: dict[str, tuple[str, tuple[int, ...], bytes | hashlib._Hash]] = {}
        self._waiting: collections.deque[tuple[int, Future[None]]] = collections.deque()
        self._in_flight = 0
        self._file_lane = ThreadPoolExecutor(1, "zero-convert-file-hash")
        self._leaf_lane = ThreadPoolExecutor(1, "zero-convert-leaf-hash")

    def file(self, piece: bytes | memoryview) -> None:
        """Take in the file's next bytes."""
        self._size += len(piece)
        if len(piece) < _SMALL:
            self._gathered += piece
            if len(self._gathered) >= _CHUNK:
                self._flush()
        else:
            self._flush()
            self._submit(self._file_lane, self._file_hash, piece)

    def tensor(self, name: str, dtype: str, shape: tuple[int, ...], pieces: Iterable[memoryview]) -> None:
        """Take in the file's next bytes, which are this tensor."""
        iterator = iter(pieces)
        first = next(iterator, memoryview(b""))
        if len(first) < _SMALL:  # then it is the only one
            self._leaves[name] = dtype, shape, leaf_digest(name, dtype, shape, first)
            self.file(first)
            return
        leaf = leaf_hasher(name, dtype, shape)
        for piece in itertools.chain((first,), iterator):
            self.file(piece)
            self._submit(self._leaf_lane, leaf, piece)
        self._leaves[name] = dtype, shape, leaf

    def leaves(self) -> dict[str, bytes]:
        """Name → raw leaf of every tensor taken in, once they are made."""
        while self._waiting:
            self._waiting.popleft()[1].result()
        self._in_flight = 0
        return {name: leaf if isinstance(leaf, bytes) else leaf.digest() for name, (_, _, leaf) in self._leaves.items()}

    def written(self) -> Written:
        """The digests of everything taken in; after the `with` block."""
        raw = self.leaves()
        tensors = {name: Leaf(dtype, shape, raw[name].hex()) for name, (dtype, shape, _) in self._leaves.items()}
        return Written(self._file_hash.hexdigest(), self._size, tensors, weights_digest(raw))

    def _flush(self) -> None:
        if self._gathered:
            self._submit(self._file_lane, self._file_hash, self._gathered)
            self._gathered = bytearray()

    def _submit(self, lane: ThreadPoolExecutor, hasher: hashlib._Hash, piece: Buffer) -> None:
        size = memoryview(piece).nbytes
        while self._waiting and self._in_flight + size > _IN_FLIGHT:
            waited, future = self._waiting.popleft()
            future.result()
            self._in_flight -= waited
        self._waiting.append((size, lane.submit(hasher.update, piece)))
        self._in_flight += size

    def __enter__(self) -> Lanes:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._flush()
        self._file_lane.shutdown(cancel_futures=kind is not None)
        self._leaf_lane.shutdown(cancel_futures=kind is not None)


# ---------------------------------------------------------------------------------------------- reading


def opened(path: str | PathLike[str]) -> BinaryIO:
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise StorageError("cannot read it", where=str(path), got="no regular file", expected="a file")
        return open(path, "rb")
    except (OSError, ValueError) as error:
        got = getattr(error, "strerror", None) or str(error)
        raise StorageError("cannot read the file", where=str(path), got=got) from error


def _read(file: BinaryIO, size: int, where: str) -> bytes:
    try:
        return file.read(size)
    except OSError as error:
        raise StorageError("cannot read the file", where=where, got=error.strerror or str(error)) from error


def _read_pieces(file: BinaryIO, info: TensorInfo, where: str) -> Iterator[memoryview]:
    left = info.end - info.begin
    if left == 0:
        yield memoryview(b"")
    while left:
        piece = _read(file, min(left, _CHUNK), where)
        if not piece:
            raise _malformed(where, f"the data of tensor {brief(info.name)} ends early", f"{left} bytes missing", "")
        left -= len(piece)
        yield memoryview(piece)


def _head(file: BinaryIO, where: str) -> bytes:
    """Length and header as they stand in the file; its position is then the start of the data."""
    size = os.fstat(file.fileno()).st_size
    prefix = _read(file, 8, where)
    length = int.from_bytes(prefix, "little")
    if len(prefix) < 8 or length > size - 8:
        raise _malformed(
            where,
            "the file ends inside its header",
            f"{size} bytes",
            f"8 and a header of {length}" if len(prefix) == 8 else "at least 8",
        )
    if length > HEADER_LIMIT:
        raise _malformed(where, "the header is too long", f"{length} bytes", f"at most {HEADER_LIMIT}")
    text = _read(file, length, where)
    if len(text) != length:
        raise _malformed(where, "the file ends inside its header", f"{len(text)} of {length} bytes", "all of them")
    return prefix + text


def _parse(head: bytes, size: int, where: str) -> Header:
    table = parse_json(head[8:], f"{where}, header")
    if not isinstance(table, dict) or not head[8:].startswith(b"{"):
        raise _malformed(where, "the header is no JSON object", repr(head[8:40]), "{…}")
    metadata = table.pop(_METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _malformed(where, f"{_METADATA} is malformed", "another shape", "an object of strings")
    infos = [_info(name, entry, where) for name, entry in table.items()]
    infos.sort(key=lambda info: (info.begin, info.end))
    expected = 0
    for info in infos:
        if info.begin != expected:
            what = "overlaps the one before it" if info.begin < expected else "leaves a hole before it"
            raise _malformed(where, f"tensor {brief(info.name)} {what}", f"offset {info.begin}", f"{expected}")
        expected = info.end
    if len(head) + expected != size:
        at = f" (the last tensor is {brief(infos[-1].name)})" if infos else ""
        what = "bytes follow the last tensor" if len(head) + expected < size else "the data ends early"
        raise _malformed(where, f"{what}{at}", f"a file of {size} bytes", f"{len(head) + expected}")
    return Header(metadata, tuple(infos), len(head), size)


def _info(name: str, entry: object, where: str) -> TensorInfo:
    """One entry of the header, checked against itself."""
    if not is_plain_text(name):
        raise _malformed(where, "a tensor's name holds control characters", brief(name), "plain text")
    tensor = f"tensor {brief(name)}"
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        got = list(entry) if isinstance(entry, dict) else entry
        raise _malformed(where, f"{tensor} has the wrong fields", brief(got), "dtype, shape, data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise _malformed(where, f"{tensor} has an unknown dtype", brief(dtype), "one of " + " ".join(DTYPES))
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
    bits = DTYPES[dtype]
    for size in shape:
        bits *= size
        if bits >= 1 << 66:
            raise _malformed(where, f"{tensor} is too large", f"shape {brief(shape)}", "fewer than 2**63 bytes")
    if bits != 8 * (offsets[1] - offsets[0]):
        got, expected = f"{offsets[1] - offsets[0]} bytes", f"{bits / 8:g} for {dtype} {brief(shape)}"
        raise _malformed(where, f"{tensor} has offsets that do not fit its shape", got, expected)
    return TensorInfo(name, dtype, tuple(shape), offsets[0], offsets[1])


def _malformed(where: str, what: str, got: str, expected: str) -> MalformedError:
    return MalformedError(what, where=where, got=got, expected=expected, fix="The file is damaged or was made by hand.")
