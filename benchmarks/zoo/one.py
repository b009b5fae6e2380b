"""One model through every step, in a process that may die of it: one row for each scheme.

Uses what any user can use: `convert`, `Result`, `save`, `load`. A step that fails ends the row with one line of cause.
"""

from __future__ import annotations

import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

import zero_convert as zc
from zero_convert import sources
from zero_convert.errors import DeclinedError
from zero_convert.pipeline import Result, inspect_model

from .joins import call, count_joins, fill_in
from .slices import Model

UNTIL = ("inspect", "digest", "loaded")
Row = dict[str, Any]


@dataclass(frozen=True)
class Task:
    """What to do with one model: its schemes and how far each goes."""

    model: Model
    schemes: tuple[str, ...]
    until: str = "loaded"
    validate: str = "quick"
    count: bool = True  # joins by `joins.count_joins`
    largest: float = float("inf")
    scratch: str = ""  # folder for the files that are written and read back


@dataclass
class Clock:
    """Seconds of each step; a step lasts until the next begins."""

    tell: Callable[[str], None]
    step: str = ""
    spent: dict[str, float] = field(default_factory=dict)
    since: float = 0.0

    def __call__(self, step: str, detail: str = "") -> None:
        now = time.perf_counter()
        if self.step:
            self.spent[self.step] = self.spent.get(self.step, 0.0) + now - self.since
        if step != self.step and step:
            self.tell(step)
        self.step, self.since = step, now


def measure(task: Task, send: Callable[[Row], None], stage: Callable[[str], None]) -> None:
    """Sends one row for each scheme."""
    torch.set_num_threads(1)
    stage("load")
    head: Row = {"model": task.model.title, "zoo": task.model.zoo, "family": task.model.family}
    began = time.perf_counter()
    try:
        given = sources.load(task.model.name, task.model.model_args())
        head["parameters"] = sum(p.numel() for p in given.module.parameters())
        if head["parameters"] > task.largest:
            for scheme in task.schemes:
                send(
                    head | {"scheme": scheme, "until": task.until, "status": "skipped", "cause": "too many parameters"}
                )
            return
        inputs = given.example_inputs
        if task.count:
            stage("count")
            head |= counted(given.module, inputs)
    except Exception as error:
        for scheme in task.schemes:
            send(head | {"scheme": scheme, "until": task.until, "status": "failed"} | failure("load", error))
        return
    head["prepared"] = round(time.perf_counter() - began, 2)
    for scheme in task.schemes:
        row = head | {"scheme": scheme, "until": task.until}
        forget_peak()
        clock = Clock(stage)
        begin, busy = time.perf_counter(), time.process_time()
        try:
            follow(task, scheme, given.module, inputs, row, clock)
            row["status"] = "failed" if row.get("cause") else "ok"
        except Exception as error:
            step = clock.step
            row |= {"status": "declined" if isinstance(error, DeclinedError) else "failed"} | failure(step, error)
        clock("")
        row |= {
            "seconds": round(time.perf_counter() - begin, 2),
            "processor_seconds": round(time.process_time() - busy, 2),
            "steps": {step: round(spent, 2) for step, spent in clock.spent.items()},
            "peak_mib": peak_mib(),
        }
        if row["status"] != "ok" and "joins" not in row:
            row |= inspected(task)
        send(row)


def follow(task: Task, scheme: str, original: nn.Module, inputs: Any, row: Row, clock: Clock) -> None:
    """Fills the row step by step; what it holds when a step raises is what is known."""
    if task.until == "inspect":
        clock("inspect")
        row |= inspected(task)
        return
    validate = task.validate if task.until == "loaded" else "none"
    result = zc.convert(
        task.model.name,
        scheme=scheme,
        model_args=task.model.model_args(),
        device="cpu",
        validate=validate,
        progress=clock,
    )
    row |= planned(result)
    clock("digest")
    row["digest"] = result.weights_digest
    row["initialized"] = True
    if task.until == "digest":
        return
    row["checks"] = dict(Counter(check.status for check in result.checks))
    row["warned"] = [check.name for check in result.checks if check.status == "warn"]
    for check in result.checks:
        if check.name == "coverage":
            row["captured"] = check.numbers["share"]
    if result.failed:
        row |= {"stage": "validate", "cause": "; ".join(f"{c.name}: {c.summary}" for c in result.failed)[:300]}
        return
    row["validated"] = bool(result.checks)
    with tempfile.TemporaryDirectory(dir=task.scratch or None) as folder:
        path = Path(folder, "start.safetensors")
        clock("export")
        saved = result.save(path)[0]
        row |= {"exported": True, "bytes": saved.size}
        clock("read back")
        again = zc.load(path)
    clock("compare")
    row |= compared(result, again, original, inputs, strict=not result.plan.edits)


def planned(result: Result) -> Row:
    """What the plan says about capture, joins and edits."""
    plan = result.plan
    applied = {edit.target for edit in plan.edits if edit.applied}
    residual = [join for join in plan.joins if join.residual]
    return {
        "rung": plan.capture,
        "rungs_failed": list(plan.capture_attempts)[:8],
        "captured": getattr(plan, "captured", None),
        "joins": {"seen": len(plan.joins), "residual": len(residual)},
        "rewritten": sum(bool(applied & {j.node, *j.branch, *j.shortcut_layers}) for j in residual),
        "edits": sum(edit.applied for edit in plan.edits),
        "declined": dict(Counter(edit.reason for edit in plan.edits if not edit.applied).most_common(8)),
        "not_residual": dict(Counter(join.reason for join in plan.joins if not join.residual)),
    }


def inspected(task: Task) -> Row:
    """Rung and joins of the model as given, for a model whose conversion got no further."""
    try:
        found = inspect_model(task.model.name, task.model.model_args())
    except Exception:
        return {}
    residual = sum(join.residual for join in found.structure.joins)
    return {
        "rung": found.capture,
        "rungs_failed": list(found.capture_attempts)[:8],
        "captured": getattr(found, "captured", None),
        "joins": {"seen": len(found.structure.joins), "residual": residual},
    }


def counted(module: nn.Module, inputs: Any) -> Row:
    """The independent count of joins, or why there is none."""
    try:
        fill_in(module)
        return {"counted": len(count_joins(module, inputs))}
    except Exception as error:
        return {"counted": None, "count_failed": line_of(error)}


def compared(result: Result, again: nn.Module, original: nn.Module, inputs: Any, *, strict: bool) -> Row:
    """Whether the file gave the network back: tensors and outputs bit for bit, and for a scheme that changes no
    architecture, whether the unmodified class takes the values and answers the same."""
    made, back = result.module.state_dict(), again.state_dict()
    same = list(made) == list(back) and all(_equal(made[key], back[key]) for key in made)
    if not same:
        return {"loaded": False, "stage": "compare", "cause": "the state dict that was read back differs"}
    expected = outputs(result.module, inputs)
    if not agree(expected, outputs(again, inputs)):
        return {"loaded": False, "stage": "compare", "cause": "the forward of the network read back differs"}
    if not all(bool(torch.isfinite(t).all()) for t in expected if t.is_floating_point()):
        return {"loaded": True, "stage": "compare", "cause": "the forward is not finite"}
    if strict:
        original.load_state_dict(made, strict=True)
        if not agree(expected, outputs(original, inputs)):
            return {
                "loaded": True,
                "strict": False,
                "stage": "compare",
                "cause": "the unmodified class answers otherwise",
            }
    return {"loaded": True, "strict": True if strict else None}


def outputs(module: nn.Module, inputs: Any) -> list[torch.Tensor]:
    modes = {m: m.training for m in module.modules()}
    module.eval()
    torch.manual_seed(0)  # some models draw numbers in evaluation mode, too
    with torch.no_grad():
        found = call(module, inputs)
    for m, training in modes.items():
        m.training = training
    return [leaf for leaf in _leaves(found) if isinstance(leaf, torch.Tensor)]


def agree(left: list[torch.Tensor], right: list[torch.Tensor]) -> bool:
    return len(left) == len(right) and all(map(_equal, left, right))


def _leaves(value: Any) -> list[Any]:
    """Tensors of nested containers, those of the libraries' own output classes as well."""
    if isinstance(value, Mapping):
        return [leaf for part in value.values() for leaf in _leaves(part)]
    if isinstance(value, list | tuple):
        return [leaf for part in value for leaf in _leaves(part)]
    return tree_leaves(value)


def _equal(left: torch.Tensor, right: torch.Tensor) -> bool:
    return left.dtype == right.dtype and torch.equal(left, right)


def failure(step: str, error: BaseException) -> Row:
    return {"stage": step, "cause": line_of(error)}


def line_of(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:400]


def forget_peak() -> None:
    """The next `peak_mib` counts from here, where the system allows it."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def peak_mib() -> int:
    """The largest resident memory of this process, MiB."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line.split()[1] for line in lines if line.startswith("VmHWM"))) // 1024
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // (2**20 if sys.platform == "darwin" else 2**10)
