"""The options --report and --plots of a conversion: the page and its figures, beside the files it is about."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from zero_convert.formats.naming import BESIDE

from ..errors import UsageError

if TYPE_CHECKING:
    from ..pipeline import Result, Saved
    from .display import Screen


def check(report: str | None, plots: str | None, outputs: Sequence[str], *, force: bool, dry_run: bool) -> None:
    """Everything that can be said against the two before any work is done.

    Raises:
        UsageError: nothing will be written that a report could be about, the report is one of the outputs or lies in
            the place of what is written beside them, a library is missing, or a file is there and `force` is not given.
        StorageError: a folder is missing or not writable.
    """
    if report is None and plots is None:
        return
    name = "--report" if report is not None else "--plots"
    if dry_run:
        raise UsageError("a dry run writes nothing", where=name, fix="Leave one of the two out.")
    taken = [beside for output in outputs for beside in (output, *(output + suffix for suffix in BESIDE))]
    if report == "-" or any(report is not None and _same(report, output) for output in taken):
        raise UsageError("the report needs a file of its own", where="--report", got=str(report), expected="FILE.html")
    from ..report import check_outputs

    check_outputs(report, plots, force)


class Pages:
    """The page and the figures of one conversion, written in one step with the files that they are about.

    Attributes:
        written: the paths, once they are.
    """

    def __init__(self, result: Result, report: str | None, plots: str | None, force: bool) -> None:
        self._result, self._report, self._plots, self._force = result, report, plots, force
        self.written: tuple[Path, ...] = ()

    @contextmanager
    def beside(self, saved: tuple[Saved, ...]) -> Iterator[list[tuple[Path, bytes]]]:
        """For `Result.save`. Errors as `report.save`."""
        if self._report is None and self._plots is None:
            yield []
            return
        from ..report import check_outputs, made

        check_outputs(self._report, self._plots, self._force)
        with made(self._result, self._report, plots=self._plots, saved=saved) as files:
            yield files
        self.written = tuple(path for path, _ in files)

    def alone(self) -> None:
        """Writes them where the result went to stdout. Errors as `report.save`."""
        if self._report is not None or self._plots is not None:
            from ..report import save

            self.written = save(self._result, self._report, plots=self._plots, force=self._force)


def tell(screen: Screen, pages: Sequence[Path]) -> None:
    """To the reader: the page, and how many figures lie where."""
    figures = [path for path in pages if path.suffix == ".png"]
    for path in pages:
        if path not in figures:
            screen.tell(f"wrote {path}")
    if figures:
        screen.tell(f"wrote {len(figures)} figures in {figures[0].parent}")


def _same(first: str, second: str) -> bool:
    return os.path.realpath(first) == os.path.realpath(second)
