"""An open file that is not believed: spans of it, a budget for what it makes us build, and the errors for both."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager
from types import TracebackType
from typing import BinaryIO

from zero_convert.errors import MalformedError, RefusedError
from zero_convert.formats.digests import is_plain_text
from zero_convert.formats.spans import DAMAGED, opened, read_span

from ..contents import Limits

PARTS = 4096  # characters of a name
JSON = 20  # bytes of memory that a byte of JSON may become


class Budget:
    """Counts what reading a file's structure takes from memory, before it is taken."""

    def __init__(self, limits: Limits, where: str) -> None:
        self.limits, self._where, self._left = limits, where, limits.max_bytes

    @property
    def left(self) -> int:
        """Bytes that may still be taken."""
        return self._left

    def take(self, size: int) -> None:
        """Account for `size` bytes.

        Raises:
            RefusedError: the file asks for more than the limit.
        """
        self._left -= size
        if self._left < 0:
            raise RefusedError(
                "the structure of the file takes more memory than allowed",
                where=self._where,
                got=f"more than {self.limits.max_bytes} bytes",
                expected=f"at most {self.limits.max_bytes}",
                fix="--max-bytes raises the limit.",
            )

    def tensors(self, count: int) -> None:
        """Refuse more tensors than allowed."""
        if count > self.limits.max_tensors:
            raise RefusedError(
                "the file holds more tensors than allowed",
                where=self._where,
                got=f"{count} or more",
                expected=f"at most {self.limits.max_tensors}",
                fix="--max-tensors raises the limit.",
            )


class Source(AbstractContextManager["Source"]):
    """A span of an open file: all of it, or a file inside a container. Positions count from the start of the file."""

    def __init__(self, path: str, budget: Budget) -> None:
        self.path = self.where = path
        self.budget = budget
        self.file: BinaryIO = opened(path)
        self.begin, self.end = 0, os.fstat(self.file.fileno()).st_size

    def inside(self, begin: int, end: int, what: str) -> Source:
        """The same file and budget, seen as if it were these bytes only."""
        inner = object.__new__(Source)
        inner.path, inner.where, inner.budget, inner.file = self.path, f"{self.where}, {what}", self.budget, self.file
        inner.begin, inner.end = begin, end
        return inner

    @property
    def size(self) -> int:
        return self.end - self.begin

    def read(self, begin: int, size: int) -> bytes:
        """Bytes `begin:begin+size`, which have to be there; the caller has bounded `size`."""
        if size < 0 or not self.begin <= begin <= begin + size <= self.end:
            raise self.malformed("it points outside of itself", f"bytes {begin}:{begin + size}", f"up to {self.end}")
        return read_span(self.file, begin, size, self.where)

    def small(self, begin: int, end: int) -> bytes:
        """The same of something that is taken into memory as a whole, and so is accounted for."""
        self.budget.take(end - begin)
        return self.read(begin, end - begin)

    def name(self, text: str, what: str) -> str:
        """`text`, which is a name: plain, and not endless."""
        if not is_plain_text(text) or len(text) > PARTS:
            raise self.malformed(f"{what} is no plain text", repr(text[:60]), "no control characters")
        return text

    def malformed(self, what: str, got: str = "", expected: str = "") -> MalformedError:
        return MalformedError(what, where=self.where, got=got, expected=expected, fix=DAMAGED)

    def close(self) -> None:
        self.file.close()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
