"""How a long run reports its steps."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, str], None]  # takes the step and a detail of it


def tell(progress: Progress | None, step: str, detail: str) -> None:
    """Reports that a step begins, if anybody asked for reports."""
    if progress is not None:
        progress(step, detail)
