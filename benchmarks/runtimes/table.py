"""Each runtime on each case in a process with limits, what became of it, and the table of all."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .child import RUNTIMES
from .networks import SCHEMES, Case

LIMIT = 1e-5  # of the largest value of an output
SECONDS = 1200
MEMORY = 12 << 30  # bytes
CHILD = Path(__file__).with_name("child.py")


@dataclass(frozen=True)
class Outcome:
    """What a runtime made of a case.

    Attributes:
        difference: relative to the largest value of the output, the worst of all outputs and inputs.
        reason: why there is no difference; "" where there is one.
        missing: the runtime is not installed.
    """

    runtime: str
    network: str
    scheme: str
    version: str = ""
    difference: float = float("nan")
    reason: str = ""
    missing: bool = False

    @property
    def right(self) -> bool:
        """Whether it returned what the reference returned."""
        return not self.reason and self.difference <= LIMIT


def outcome(runtime: str, case: Case, python: str, environment: Mapping[str, str]) -> Outcome:
    """What the runtime makes of the case, in a process of that Python."""
    out = case.model.with_name(f"{runtime}.npz")
    command = [python, str(CHILD), runtime, str(case.model), str(out), *map(str, case.inputs)]
    began, told = time.monotonic(), {"MEMORY_LIMIT": str(MEMORY)}
    child = subprocess.Popen(
        command, env={**os.environ, **told, **environment}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    try:
        printed, errors = child.communicate(timeout=SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGKILL)
        child.communicate()
        return Outcome(runtime, case.network, case.scheme, reason=f"no answer in {SECONDS} s")
    found = re.search(r'\{"version": "([^"]*)"\}', printed)
    about = (runtime, case.network, case.scheme, found[1] if found else "")
    taken = f"{time.monotonic() - began:.0f} s"
    if child.returncode:
        print(f"{' '.join(about)}: {taken}\n{errors[-2000:]}", file=sys.stderr, flush=True)
        return Outcome(*about, reason=_gist(errors, child.returncode), missing=child.returncode == 2)
    difference, reason = compared(out, case)
    print(f"{' '.join(about)}: {difference:.1e} {reason}, {taken}", file=sys.stderr, flush=True)
    return Outcome(*about, difference, reason)


def compared(out: Path, case: Case) -> tuple[float, str]:
    """The largest difference from the reference, relative to the largest value, or why there is none."""
    worst = 0.0
    with np.load(out) as file:
        answers = {name: file[name] for name in file.files}
    for index, expected in enumerate(case.expected):
        for name, value in expected.items():
            answer = answers.get(f"{index}:{name}")
            if answer is None or answer.shape != value.shape:
                return float("nan"), f"{name} of sizes {value.shape} is {'missing' if answer is None else answer.shape}"
            if not np.isfinite(answer).all():
                return float("nan"), f"{name} is not finite"
            worst = max(worst, float(np.abs(answer - value).max() / np.abs(value).max()))
    return worst, ""


def _gist(errors: str, code: int) -> str:
    """The line that says most of what went wrong."""
    lines = [line.strip() for line in errors.splitlines() if line.strip()]
    telling = [line for line in lines if re.match(r"[\w.]*(error|exception)\b.*", line, re.I) or "error:" in line]
    found = (telling or lines or [f"ended with {code}"])[0 if telling and "error:" in telling[0] else -1]
    return re.sub(r"(/[\w.+-]+)+/", "", found)[:160].replace("|", "/")


def table(outcomes: Iterable[Outcome], networks: Sequence[str]) -> list[str]:
    """Markdown: a row for each runtime, a column for each network and scheme."""
    found = {(each.runtime, each.network, each.scheme): each for each in outcomes}
    columns = [f"{network} {scheme[-4:]}" for network in networks for scheme in SCHEMES]
    lines = [f"| runtime | version | {' | '.join(columns)} |", "|---" * (len(columns) + 2) + "|"]
    reasons: dict[str, None] = {}
    for runtime in RUNTIMES:
        row = [found[runtime, n, s] for n in networks for s in SCHEMES if (runtime, n, s) in found]
        if not row:
            continue
        version = next((each.version for each in row if each.version), "")
        if all(each.missing for each in row):
            lines.append(f"| {runtime} | not installed |{' – |' * len(columns)}")
            continue
        cells = [_cell(found.get((runtime, network, scheme))) for network in networks for scheme in SCHEMES]
        lines.append(f"| {runtime} | {version} | {' | '.join(cells)} |")
        reasons.update((f"* {e.runtime}, {e.network} {e.scheme}: {e.reason}", None) for e in row if e.reason)
    return [*lines, *(["", *reasons] if reasons else [])]


def _cell(each: Outcome | None) -> str:
    if each is None:
        return "–"
    if each.reason:
        return "fails"
    return f"{each.difference:.1e}" if each.right else f"**{each.difference:.1e}**"
