"""The options --report and --plots of a conversion: the page and its figures, beside the files it is about."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import UsageError

if TYPE_CHECKING:
    from .display import Screen
    from .pipeline import Result, Saved
    from .result import Progress


def check(report: str | None, plots: str | None, outputs: Sequence[str], *, force: bool, dry_run: bool) -> None:
    """Everything that can be said against the two before any work is done.

    Raises:
        UsageError: nothing will be written that a report could be about, the report is one of the outputs, a library
            is missing, or a file is there and `force` is not given.
        StorageError: a folder is missing or not writable.
    """
    if report is None and plots is None:
        return
    name = "--report" if report is not None else "--plots"
    if dry_run:
        raise UsageError("a dry run writes nothing", where=name, fix="Leave one of the two out.")
    if report == "-" or any(report is not None and _same(report, output) for output in outputs):
        raise UsageError("the report needs a file of its own", where="--report", got=str(report), expected="FILE.html")
    from . import page

    page.check_outputs(report, plots, force)


def write(
    result: Result,
    report: str | None,
    plots: str | None,
    saved: Sequence[Saved],
    *,
    force: bool,
    progress: Progress | None,
) -> tuple[Path, ...]:
    """The files that were written. Errors as `page.save`."""
    if report is None and plots is None:
        return ()
    from . import page

    if progress is not None:
        progress("report", str(report or plots))
    return page.save(result, report, plots=plots, saved=saved, force=force)


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
