"""Rehashes an ONNX file and the data file beside it: SHA-256, every initializer's `zc1` leaf, the weights digest."""

from __future__ import annotations

import os
from collections.abc import Iterator
from os import PathLike
from typing import BinaryIO

from zero_convert.formats.digests import Blob, Leaf, Written, brief, weights_digest
from zero_convert.formats.onnx import StoredTensor, header_of

from ..errors import MalformedError, StorageError
from .safetensors import DTYPES as BITS
from .safetensors import Lanes, opened

_CHUNK = 4 << 20  # bytes read at a time


def file_digests(path: str | PathLike[str]) -> Written:
    """The digests of the file at `path`, made again from its bytes and those of its data file.

    The data file has to hold the tensors that the model has in it, end to end, and nothing besides. Of several such
    files, which we never write, the digests of the last are told.

    Raises:
        MalformedError, RefusedError, StorageError: as `read_header`; or a tensor is not stored as raw bytes.
    """
    where = str(path)
    with opened(path) as file:
        header = header_of(file, where)
        for tensor in header.tensors:
            if tensor.begin < 0 or tensor.dtype not in BITS:
                raise MalformedError(
                    f"tensor {brief(tensor.name)} has no digest",
                    where=where,
                    got=f"{tensor.dtype}, not stored as raw bytes" if tensor.begin < 0 else tensor.dtype,
                    expected="raw bytes of a type that safetensors has",
                    fix="The file was not written by zero-convert.",
                )
        whole = _digests(file, 0, header.size, [t for t in header.tensors if not t.location], where)
    found = dict(whole.tensors)
    data: Blob | None = None
    for location in dict.fromkeys(t.location for t in header.tensors if t.location):
        beside = os.path.join(os.path.dirname(where), location)
        with opened(beside) as file:
            size = os.fstat(file.fileno()).st_size
            own = sorted((t for t in header.tensors if t.location == location), key=lambda t: (t.begin, t.end))
            _check_tiling(own, size, beside)
            part = _digests(file, 0, size, own, beside)
            found |= part.tensors
            data = Blob(part.sha256, part.size)
    leaves = {name: bytes.fromhex(leaf.digest) for name, leaf in found.items()}
    tensors: dict[str, Leaf] = {t.name: found[t.name] for t in header.tensors}
    return Written(whole.sha256, whole.size, tensors, weights_digest(leaves), data)


def _digests(file: BinaryIO, begin: int, end: int, tensors: list[StoredTensor], where: str) -> Written:
    """The digests of a whole file and of the tensors in it, which are in its order."""
    with Lanes() as lanes:
        position = begin
        for tensor in tensors:
            for piece in _pieces(file, position, tensor.begin, where):
                lanes.file(piece)
            lanes.tensor(tensor.name, tensor.dtype, tensor.shape, _pieces(file, tensor.begin, tensor.end, where))
            position = tensor.end
        for piece in _pieces(file, position, end, where):
            lanes.file(piece)
    return lanes.written()


def _pieces(file: BinaryIO, begin: int, end: int, where: str) -> Iterator[memoryview]:
    try:
        file.seek(begin)
        while begin < end:
            piece = file.read(min(end - begin, _CHUNK))
            if not piece:
                raise MalformedError("the file ends early", where=where, got=f"{begin} bytes", expected=f"{end}")
            begin += len(piece)
            yield memoryview(piece)
    except OSError as error:
        raise StorageError("cannot read the file", where=where, got=error.strerror or str(error)) from error


def _check_tiling(tensors: list[StoredTensor], size: int, where: str) -> None:
    expected = 0
    for tensor in tensors:
        if tensor.begin != expected:
            what = "overlaps the one before it" if tensor.begin < expected else "leaves a hole before it"
            got = f"offset {tensor.begin}"
            raise MalformedError(f"tensor {brief(tensor.name)} {what}", where=where, got=got, expected=str(expected))
        expected = tensor.end
    if expected != size:
        raise MalformedError("bytes follow the last tensor", where=where, got=f"{size} bytes", expected=str(expected))
