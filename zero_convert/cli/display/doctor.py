"""What people see of `doctor`: one line a finding, what to do below it, and a last line that says it all."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from zero_convert.doctor import Finding

from . import Screen

_MARKS = {"ok": ("✓", "green"), "warn": ("!", "yellow"), "fail": ("✗", "red"), "absent": ("–", "dim")}
_TITLES = {"onnxruntime": "ONNX Runtime", "webgpu": "WebGPU"}


def findings(screen: Screen, found: Sequence[Finding]) -> None:
    """On stdout: it is the result."""
    for group, members in groupby(found, key=lambda one: one.group):
        table = Table.grid(padding=(0, 2))
        table.add_column(no_wrap=True)
        table.add_column()
        for one in members:
            mark, style = _MARKS[one.status]
            answer = Text(one.summary)
            if one.fix:
                answer.append(f"\n→ {one.fix}", style)
            if screen.verbose:
                for lost in one.missing:
                    package = f"{lost.package} {lost.installed or '(not installed)'}" if lost.package else lost.fix
                    answer.append(f"\n{lost.library}: {package}", "dim")
            table.add_row(Text.assemble((mark, style), f" {one.name.removesuffix('ExecutionProvider')}"), answer)
        screen.give(Text(_TITLES.get(group, group), "bold"), Padding(table, (0, 0, 0, 2)))
    broken = [one.name for one in found if one.status == "fail"]
    sound = [one.name for one in found if one.group in ("torch", "webgpu") and one.status == "ok"]
    works = [name for name in sound if _is_device(name)]
    last = f"{len(broken)} broken: {', '.join(broken)}" if broken else "nothing is broken"
    screen.give("", Text(f"{last}; checks can run on {' and '.join(works) or 'no device'}", "bold"))


def _is_device(name: str) -> bool:
    return name.partition(":")[0] in ("cpu", "cuda", "mps", "webgpu")
