"""Is the network linear at the start: f(x + y) = f(x) + f(y)?

For two batches x and y of the check's values, in training and evaluation mode, in the model's own precision. ReLUs
change their side for most values between x, y and x + y, so that a network that does not undo them is off by as much as
it returns.

Fails if an output of x + y differs from the sum by more than the scheme's limit times the largest output. What rounding
leaves of the inputs' size is no difference: the mean of mirrored pairs is 0, and would differ by all that it is.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .harness import isolation
from .harness.bench import Answer, CheckContext, disable_dropout
from .harness.inputs import Inputs, batches, floats
from .harness.recorder import largest, most

NAME = "linearity"
QUESTION = "Is the network linear, f(x + y) = f(x) + f(y)?"
AFTER = "jacobian"
LEVELS = ("quick", "full")
NEEDS = ("scheme",)
LEAST = {"output tensors": 1}
ROUNDING = 64  # units of float32's rounding, of the inputs' size
REMEDY = "A bias, a norm, or a ReLU whose channels are no mirrored pairs: --dry-run lists edits and rules."


def ask(context: CheckContext) -> Answer:
    limit = context.limits[NAME]
    if refusal := context.refusal():
        return Answer("skip", refusal)
    off: dict[str, float] = {}
    scale, size, seen = 0.0, 0.0, 0
    for mode in context.modes:
        x = context.inputs[mode != "train"]
        if not all(isinstance(value, Tensor) and value.is_floating_point() for value in x):
            return Answer("skip", "inputs that cannot be added")
        y = batches(x, None, samples=None, variant=1)[0]
        fx, fy = _returned(context, mode, x), _returned(context, mode, y)
        both = _returned(context, mode, tuple(a + b for a, b in zip(x, y, strict=True)))
        seen += len(both)
        scale = most((scale, *(largest(t) for t in both)))
        size = max(size, *(largest(t) for t in (*x, *y)))
        off[mode] = most(largest(t - a - b) for t, a, b in zip(both, fx, fy, strict=True))
    allowed = max(limit * scale, ROUNDING * torch.finfo(torch.float32).eps * size)
    wrong = any(not value <= allowed for value in off.values())
    summary = f"{seen} outputs of x + y differ from the sum by " + ", ".join(
        f"{v:.2g} in mode {m}" for m, v in off.items()
    )
    return Answer(
        "fail" if wrong else "pass",
        f"{summary} (outputs up to {scale:.3g})",
        {"off": off, "largest": scale},
        f"{limit:g} of the largest output",
        REMEDY if wrong else "",
        {"output tensors": seen},
    )


def _returned(context: CheckContext, mode: str, inputs: Inputs) -> list[Tensor]:
    module = context.module
    with isolation.kept(module), torch.no_grad():
        return floats(context.forward(disable_dropout(module.train(mode == "train")), inputs))
