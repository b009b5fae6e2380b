"""Opens untrusted files, and reads spans of them in pieces. Knows no format."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from os import PathLike
from typing import BinaryIO

from ..errors import MalformedError, StorageError

CHUNK = 4 << 20  # bytes read at a time
DAMAGED = "The file is damaged or was made by hand."


def opened(path: str | PathLike[str], what: str = "file") -> BinaryIO:
    """The file at `path`, which is a `what`, open for reading.

    Raises:
        StorageError: it is no regular file, or cannot be read.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise StorageError(f"cannot read the {what}", where=str(path), got="no regular file")
        return open(path, "rb")
    except (OSError, ValueError) as error:
        got = getattr(error, "strerror", None) or str(error)
        raise StorageError(f"cannot read the {what}", where=str(path), got=got) from error


def size_of(file: BinaryIO) -> int:
    """Of an open file, in bytes."""
    return os.fstat(file.fileno()).st_size


def read_span(file: BinaryIO, begin: int, size: int, where: str, what: str = "the file") -> bytes:
    """The bytes `begin:begin + size` of an open file.

    Raises:
        MalformedError: the file, or `what` of it, ends before that.
        StorageError: it cannot be read.
    """
    try:
        file.seek(begin)
        data = file.read(size)
    except OSError as error:
        raise StorageError("cannot read the file", where=where, got=error.strerror or str(error)) from error
    if len(data) != size:
        got, expected = f"{begin + len(data)} bytes", f"{begin + size}"
        raise MalformedError(f"{what} ends early", where=where, got=got, expected=expected, fix=DAMAGED)
    return data


def read_pieces(file: BinaryIO, begin: int, end: int, where: str, what: str = "the file") -> Iterator[memoryview]:
    """The bytes `begin:end` of an open file, at most `CHUNK` at a time. Errors as `read_span`."""
    for start in range(begin, end, CHUNK):
        yield memoryview(read_span(file, start, min(end - start, CHUNK), where, what))
