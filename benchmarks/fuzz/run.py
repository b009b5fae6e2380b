"""Reads cases and counts what became of them. A case is (format, number); its bytes follow from these two alone."""

from __future__ import annotations

import random
import resource
import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from zero_convert import inspection, readers
from zero_convert.errors import RefusedError, StorageError, ZeroConvertError

from .corpus import sound
from .mutations import mutated

SECONDS = 5.0
MEMORY = 256 << 20  # bytes above what the process had


@dataclass
class Report:
    """What became of the cases: outcome → number, and the first of those that went wrong."""

    outcomes: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    slowest: float = 0.0
    memory: int = 0

    def __str__(self) -> str:
        counts = ", ".join(f"{count:,} {name}" for name, count in sorted(self.outcomes.items()))
        return f"{counts}; slowest {self.slowest:.2f} s, {self.memory / 2**20:.0f} MiB above the start"


def case(kind: str, number: int) -> bytes:
    """The bytes of a case."""
    chance = random.Random(f"{kind} {number}")
    return mutated(kind, chance.choice(sound(kind)), chance)


def run(kind: str, numbers: Iterable[int], folder: Path, until: float = float("inf")) -> Report:
    """Read the cases, until the clock says otherwise."""
    path = folder / "case"
    sound(kind)
    report = Report()
    start = _peak()
    for number in numbers:
        if time.monotonic() > until:
            break
        path.write_bytes(case(kind, number))
        began = time.monotonic()
        outcome = _read(path)
        taken = time.monotonic() - began
        report.slowest, report.memory = max(report.slowest, taken), _peak() - start
        if taken > SECONDS:
            outcome = f"slow: {taken:.1f} s"
        report.outcomes[outcome.partition(":")[0]] += 1
        if outcome not in ("accepted", "refused"):
            report.wrong.append(f"{kind} {number}: {outcome}")
        if report.memory > MEMORY:
            report.wrong.append(f"{kind} {number}: {report.memory >> 20} MiB above the start")
            break
    return report


def _read(path: Path) -> str:
    try:
        contents = readers.read(path)
        inspection.facts(inspection.survey(contents, digest=True, values=True))
    except (RefusedError, StorageError):  # exit codes 4 and, for a missing data file, 74
        return "refused"
    except ZeroConvertError as error:
        return f"another error: {type(error).__name__}"
    except BaseException:
        return f"crash: {traceback.format_exc(limit=-3)}"
    return "accepted"


def _peak() -> int:
    """Bytes of memory that the process had at most."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak << 10
