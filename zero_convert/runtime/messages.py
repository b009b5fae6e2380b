"""What libraries print, log and warn of: dropped or moved, in the calling thread only. No torch here."""

from __future__ import annotations

import functools
import logging
import re
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from .patches import Shared, replaced


class _Blocks(threading.local):
    count = 0


class _Filter:
    """A filter of warnings that applies in threads with a block of `without_warnings`.

    It stands where a filter has a regular expression for the message: there Python and its C code call `match`.
    """

    def __init__(self, category: type[Warning], message: str) -> None:
        self.blocks, self._pattern = _Blocks(), re.compile(message)
        self.item: Any = ("ignore", self, category, None, 0)
        self.lists: list[list[Any]] = []  # that hold it
        self.shared = Shared(self._put)

    def match(self, text: str) -> bool:
        return self.blocks.count > 0 and self._pattern.match(text) is not None

    def insert(self) -> None:
        filters: list[Any] = warnings.filters  # type: ignore[assignment]
        if self.item not in filters:
            filters.insert(0, self.item)  # what Python remembers of warnings that were shown stays valid
            self.lists.append(filters)

    def _put(self) -> Callable[[], object]:
        self.insert()
        _present.append(self)

        def take() -> None:
            _present.remove(self)
            for filters in (*self.lists, warnings.filters):
                if self.item in filters:
                    filters.remove(self.item)  # type: ignore[attr-defined]
            self.lists.clear()

        return take


_present: list[_Filter] = []


_filter: Any = functools.cache(_Filter)


def _watch() -> Callable[[], object]:
    """`warnings.catch_warnings` of another thread ends with the list of filters that it began with: ours return."""
    module: Any = warnings
    mutated = module._filters_mutated  # called after each change of the filters

    def watched() -> None:
        mutated()
        for each in list(_present):
            each.insert()

    def take() -> None:
        if module._filters_mutated is watched:
            module._filters_mutated = mutated

    module._filters_mutated = watched
    return take


_watched = Shared(_watch) if hasattr(warnings, "_filters_mutated") else Shared(lambda: lambda: None)


@contextmanager
def without_warnings(category: type[Warning] = Warning, message: str = "") -> Iterator[None]:
    """Warnings of the category whose text begins with the regular expression are dropped."""
    mine = _filter(category, message)
    with mine.shared.needed(), _watched.needed():
        mine.blocks.count += 1
        try:
            yield
        finally:
            mine.blocks.count -= 1


@contextmanager
def without_logs(level: int = logging.CRITICAL, logger: str = "") -> Iterator[None]:
    """Records up to the level, of the logger and of those below it, are dropped."""

    def handling(handle: Callable[..., None]) -> Callable[..., None]:
        def some(self: logging.Logger, record: logging.LogRecord) -> None:
            below = not logger or f"{record.name}.".startswith(f"{logger}.")
            if record.levelno > level or not below:
                handle(self, record)

        return some

    with replaced(logging.Logger, "handle", handling):
        yield


@contextmanager
def printed_to(stream: Any, *names: str) -> Iterator[None]:
    """What is written to `sys.stdout` (or the streams of `sys` with these names) goes to the stream."""
    with ExitStack() as stack:
        for name in names or ("stdout",):
            if getattr(sys, name) is not None:  # of a process without one
                stack.enter_context(replaced(sys, name, lambda _: stream))
        yield
