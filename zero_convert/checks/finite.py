"""Is every number a number?

Looked at: every floating tensor of the state dict, and the outputs in training and evaluation mode. An infinity in a
buffer is allowed and counted: attention masks hold them on purpose.

Where ONNX Runtime computes on a device, every value in between is looked at that is finite on the CPU: a kernel may
hide what it reads (the ReLU of WebGPU makes 0 of a NaN).

Fails on any NaN, and on an infinity in a parameter or an output.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from zero_convert.graph.state import stored_tensors

from .harness.bench import Answer, CheckContext
from .harness.session import SessionContext

NAME = "finite"
QUESTION = "Is every value of the state dict and of the outputs finite?"
AFTER = "outputs"
LEVELS = ("quick", "full")
NEEDS = ()
SESSION = True
LEAST = {"values": 1, "output tensors": 1}
OUTPUT = "the output"


def ask(context: CheckContext) -> Answer:
    root = context.subject.traced.root
    parameters = {name for name, _ in root.named_parameters(remove_duplicate=False)}
    wrong, values, infinite = [], 0, 0
    for name, tensor in stored_tensors(root).items():
        if not tensor.is_floating_point():
            continue
        values += tensor.numel()
        if _sums_up(tensor) or bool(torch.isfinite(tensor).all()):
            continue
        if bool(torch.isnan(tensor).any()) or name in parameters:
            wrong.append(name)
        else:
            infinite += int(torch.isinf(tensor).sum())
    magnitudes, looked = {}, 0
    for mode in context.modes:
        outputs = context.run(mode).outputs
        looked += len(outputs)
        if not all(bool(torch.isfinite(t).all()) for t in outputs):
            wrong.append(f"{OUTPUT} in {mode} mode")
        else:
            magnitudes[mode] = max((float(t.abs().max()) for t in outputs if t.numel()), default=0.0)
    if isinstance(context, SessionContext):
        wrong += [f"the value of {name}" for name in context.not_finite()]
    refusal = context.refusal()
    summary = f"{values:,} values and {looked} outputs are finite"
    if refusal:
        summary = f"{values:,} values are finite, and no output was seen: it {refusal}"
    if wrong:
        summary = f"NaN or infinity in {', '.join(wrong[:4])}{' …' if len(wrong) > 4 else ''}"
    return Answer(
        "fail" if wrong else "warn" if refusal else "pass",
        summary,
        {"values": values, "not_finite": wrong, "infinite_in_buffers": infinite, "largest_output": magnitudes}
        | ({"refused": dict(context.refused)} if context.refused else {}),
        "no NaN, no infinity",
        _remedy(wrong),
        {"values": values, "output tensors": looked},
    )


def _remedy(wrong: list[str]) -> str:
    if not wrong:
        return ""
    if all(name.startswith((OUTPUT, "the value of")) for name in wrong):
        return "The check signal names the first depth that is not finite; --input gives other example inputs."
    return "--dry-run names the rule of a tensor; a file written earlier is damaged, or was trained."


def _sums_up(tensor: Tensor) -> bool:
    """Whether the sum is finite, so that all values are; a tenth of the time of asking each of them."""
    return tensor.element_size() > 1 and math.isfinite(float(tensor.sum()))
