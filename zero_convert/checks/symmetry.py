"""When, if ever, do identical channels part in training?

A copy is trained for a few steps on one batch with hashed classes, in training mode with all its dropout, on the device
of the checks. Each parameter moves by 0.1 against its gradient in each step (by 0.01, and 0.001, if the channels had to
part and did not: too large a step can silence every ReLU). After each step the spread (see
`channel_spread`) is measured with dropout off; the channels have parted when it is more than 0 anywhere. What parts
them is something that treats equal channels differently: dropout, or a device whose kernels add up in no fixed order.

The scheme says how many steps are made at most. Fails if a gradient is not finite. Warns if the channels have not
parted by then: without anything that breaks the symmetry they never will on this device; with dropout the rate may be
too small for so few values.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, fx, nn

from zero_convert.runtime import rng

from ..records import Check
from .harness.bench import CheckContext
from .harness.inputs import floats, moved
from .harness.recorder import largest
from .harness.remedies import INFINITE
from .harness.training import step
from .harness.watch import SPREAD_SIDES, Spreads, watch

NAME = "symmetry"
QUESTION = "When do identical channels part in training?"
AFTER = "channel_spread"
LEVELS = ("quick", "full")
NEEDS = ("scheme", "train")
SIZES = (0.1, 0.01, 0.001)


def ask(context: CheckContext) -> Check:
    limit = int(context.limits[NAME])
    if not context.run("train").outputs:
        return Check(NAME, "skip", QUESTION, "nothing to train")
    expected = context.subject.options.get("break_symmetry", "none") != "none"
    for size in SIZES:
        spreads, scale, broken = _train(context, limit, size)
        parted = bool(spreads) and spreads[-1] > 0
        if parted or not (expected or broken):
            break
    if broken:
        summary = f"gradient not finite in step {len(spreads) + 1}: {broken}"
    elif parted:
        summary = f"identical up to step {len(spreads) - 1}, parted in step {len(spreads)}: spread {spreads[-1]:.3g} "
        summary += f"(values up to {scale:.3g})"
    else:
        summary = f"still exactly identical after {len(spreads)} steps"
    status = "fail" if broken else "pass" if parted else "warn"
    remedy = "--set break_symmetry=dropout:0.01; a device whose sums have no fixed order may do as well."
    if expected:
        remedy = "Training on more data may do; so does a larger rate in --set break_symmetry=dropout:P."
    return Check(
        NAME,
        status,
        QUESTION,
        f"on {context.device}: {summary}",
        {"spread_after_step": spreads, "step_size": size, "device": context.device},
        f"parted within {limit} steps",
        INFINITE if broken else remedy if status == "warn" else "",
    )


def _train(context: CheckContext, limit: int, size: float) -> tuple[list[float], float, str]:
    """The spread after each step up to the first that is more than 0, the largest value, and what was not finite."""
    module = context.fresh().train()
    rng.seed(context.device)
    spreads: list[float] = []
    scale = 0.0
    for _ in range(limit):
        broken = _step(context, module, size)
        if broken:
            return spreads, scale, broken
        spread, scale = _spread(context, module)
        spreads.append(spread)
        if spread > 0:
            break
    return spreads, scale, ""


def _step(context: CheckContext, module: nn.Module, size: float) -> str:
    """Makes a step; names of parameters whose gradient is not finite, "" if all are."""
    inputs = moved(context.fitting(SPREAD_SIDES)[0], module, context.device)
    with torch.enable_grad():
        magnitudes = step(floats(context.subject.traced.call(module.train(), inputs)), module, size)
    return ", ".join([name for name, value in magnitudes.items() if not (value or 0.0) < math.inf][:3])


def _spread(context: CheckContext, module: nn.Module) -> tuple[float, float]:
    """The largest spread of a signal that had none at the start, and the largest value."""
    spreads, sizes = Spreads(context, "train"), [0.0]

    def see(n: fx.Node, value: Tensor) -> None:
        spreads.see(n, value)
        sizes.append(largest(value))

    watch(context, "train", see, module=module, inputs=context.fitting(SPREAD_SIDES)[0])
    return max(spreads.judged().values(), default=0.0), max(sizes)
