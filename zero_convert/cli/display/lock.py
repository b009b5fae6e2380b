"""What people see of locks: one line for each entry on stdout, what moved on stderr. Knows records, decides nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.text import Text

from . import Screen, error

if TYPE_CHECKING:
    from zero_convert.artifacts.comparing import Difference
    from zero_convert.artifacts.lock import Lock
    from zero_convert.artifacts.model_signing import Manifest
    from zero_convert.replay import Answer


def answer(screen: Screen, found: Answer, moved: str, to_stdout: bool = True) -> None:
    """`FILE: OK`, or what `moved` calls it and what moved, or `NOT CHECKED` and why."""
    word, style = ("OK", "green") if not found.exit_code else (moved, "bold red")
    if found.error is not None:
        word, style = "NOT CHECKED", "bold red"
    line = Text.assemble(f"{', '.join(file.path for file in found.entry.files)}: ", (word, style))
    (screen.give if to_stdout else screen.tell)(line)
    if found.error is not None:
        error(found.error, whole=True)
    screen.tell_first(found.differences)


def counts(screen: Screen, answers: Sequence[Answer], lock: str, hint: str = "") -> None:
    """The last lines: what to do where anything moved; how many were made again, and how many of them moved."""
    states = Counter("failed" if one.error else "moved" if one.differences else "the same" for one in answers)
    spelled = ", ".join(f"{states[state]} {state}" for state in ("the same", "moved", "failed") if states[state])
    if states["moved"] and hint:
        screen.tell(Text(hint))
    seconds = sum(one.seconds for one in answers)
    noun = "conversion" if len(answers) == 1 else "conversions"
    screen.tell(Text(f"{lock}: {len(answers)} {noun} in {seconds:.1f} s{f': {spelled}' if spelled else ''}", "dim"))


def recorded(screen: Screen, path: Path, lock: Lock) -> None:
    """After `lock`: where it is, and how many entries are there now."""
    count = len(lock.entries)
    screen.tell(Text.assemble(("locked ", "green"), f"in {path}, {count} {'entry' if count == 1 else 'entries'}"))


def manifest(screen: Screen, path: Path, expected: Manifest, found: Sequence[Difference]) -> None:
    """`FOLDER: OK`, or `DIFFERS` and which files; and that no signature was looked at."""
    word = ("DIFFERS", "bold red") if found else ("OK", "green")
    screen.give(Text.assemble(f"{path}: ", word))
    screen.tell_first(found)
    count = len(expected.resources)
    screen.tell(Text(f"{count} {'file' if count == 1 else 'files'} by digest; the signature was not checked", "dim"))
