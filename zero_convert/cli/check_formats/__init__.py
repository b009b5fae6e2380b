"""What `check` found, for programs: one format a file, each with `report(findings) -> str`. People read a page.

A format names the first thing of each kind that moved, and how many more of that kind there are; `json` has them all.
The standard library is all that is needed here.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from zero_convert.replay import Answer

FORMATS = ("github", "json", "junit", "sarif")


@dataclass(frozen=True)
class Findings:
    """Everything that was found about one lock.

    Attributes:
        lock: its path as it was typed, in POSIX spelling.
        answers: one for each entry, in the order of the lock.
        lines: (index of the entry, field[, item]) → line of the lock's text; empty where that is not known.
    """

    lock: str
    answers: tuple[Answer, ...]
    lines: Mapping[tuple[Any, ...], int]

    @property
    def exit_code(self) -> int:
        """The highest of the entries'."""
        return max((answer.exit_code for answer in self.answers), default=0)


@dataclass(frozen=True)
class Headline:
    """One thing to report about an entry: kind "tensor", "recipe", …, or "error"; a message; a line of the lock."""

    entry: str
    kind: str
    message: str
    line: int


def headlines(findings: Findings) -> Iterator[Headline]:
    """For each entry its error, or the first difference of each kind, causes first."""
    for answer in findings.answers:
        start = findings.lines.get((answer.index, "edits"), 1)
        if answer.error is not None:
            yield Headline(answer.entry.name, "error", str(answer.error), start)
        counts: dict[str, int] = {}
        for difference in answer.differences:
            counts[difference.kind] = counts.get(difference.kind, 0) + 1
        for kind, count in counts.items():
            first = next(difference for difference in answer.differences if difference.kind == kind)
            place = (answer.index, *first.place)
            line = findings.lines.get(place, findings.lines.get(place[:2], start))
            more = f", and {count - 1} more of this kind" if count > 1 else ""
            yield Headline(answer.entry.name, kind, f"{first}{more}", line)


def render(name: str, findings: Findings) -> str:
    """The findings in one of the `FORMATS`, without a line's end."""
    text: str = importlib.import_module(f"{__name__}.{name}").report(findings)
    return text
