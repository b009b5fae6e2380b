"""Opens files that nobody vouches for, and reads spans of them in pieces. Knows no format."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from os import PathLike
from typing import BinaryIO, Protocol

from ..errors import MalformedError, StorageError
from .digests import brief

CHUNK = 4 << 20  # bytes read at a time
DAMAGED = "The file is damaged or was made by hand."


class Span(Protocol):
    """A tensor that is bytes `begin:end` of something."""

    @property
    def name(self) -> str: ...
    @property
    def begin(self) -> int: ...
    @property
    def end(self) -> int: ...


def opened(path: str | PathLike[str]) -> BinaryIO:
    """The file at `path`, open for reading.

    Raises:
        StorageError: it is no regular file, or cannot be read.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise StorageError("cannot read it", where=str(path), got="no regular file", expected="a file")
        return open(path, "rb")
    except (OSError, ValueError) as error:
        got = getattr(error, "strerror", None) or str(error)
        raise StorageError("cannot read the file", where=str(path), got=got) from error


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


def check_tiling(spans: Iterable[Span], where: str) -> int:
    """Where the last span ends; they have to follow each other from 0 on, without gaps.

    Raises:
        MalformedError: they do not.
    """
    expected = 0
    for span in spans:
        if span.begin != expected:
            what = "overlaps the one before it" if span.begin < expected else "leaves a hole before it"
            what, got = f"tensor {brief(span.name)} {what}", f"offset {span.begin}"
            raise MalformedError(what, where=where, got=got, expected=str(expected), fix=DAMAGED)
        expected = span.end
    return expected
