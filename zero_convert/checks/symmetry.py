"""When, if ever, do identical channels part in training?

A copy is trained for a few steps on one batch with hashed classes, in training mode with all its dropout, on the device
of the checks. Each parameter moves by 0.1 against its gradient in each step (by 0.01, and 0.001, if the channels had to
part and did not: too large a step can push the input of every ReLU below 0). After each step the spread (see
`channel_spread`) is measured with dropout off; the channels have parted when it is more than 0 anywhere. What parts
them is something that treats equal channels differently: dropout, or a device whose kernels add up in no fixed order.

The scheme says how many steps are made at most. Fails if a gradient is not finite, or if nothing breaks the symmetry:
without dropout, channels that are identical by then are so for ever on this device, and the network has the width of
one channel. Warns if the scheme put dropout in and they have not parted by then: its rate may be too small for so few
values, and more data may do.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from zero_convert.runtime import rng

from .harness.bench import Answer, CheckContext
from .harness.inputs import floats, moved
from .harness.remedies import INFINITE
from .harness.training import step
from .harness.watch import SPREAD_SIDES, spreads

NAME = "symmetry"
QUESTION = "When do identical channels part in training?"
AFTER = "channel_spread"
LEVELS = ("quick", "full")
NEEDS = ("scheme", "train")
LEAST = {"steps": 1}
SIZES = (0.1, 0.01, 0.001)


def ask(context: CheckContext) -> Answer:
    limit = int(context.limits[NAME])
    if not context.run("train").outputs:
        return Answer("skip", "nothing to train")
    expected = context.subject.options.get("break_symmetry", "none") != "none"
    for size in SIZES:
        parts, scale, broken = _train(context, limit, size)
        parted = bool(parts) and parts[-1] > 0
        if parted or not (expected or broken):
            break
    if broken:
        summary = f"gradient not finite in step {len(parts) + 1}: {broken}"
    elif parted:
        summary = f"identical up to step {len(parts) - 1}, parted in step {len(parts)}: spread {parts[-1]:.3g} "
        summary += f"(values up to {scale:.3g})"
    else:
        summary = f"still exactly identical after {len(parts)} steps"
    status = "fail" if broken else "pass" if parted else "warn" if expected else "fail"
    remedy = "--set break_symmetry=dropout:0.01; a device whose sums have no fixed order may do as well."
    if expected:
        remedy = "Training on more data may do; so does a larger rate in --set break_symmetry=dropout:P."
    return Answer(
        status,
        f"on {context.device}: {summary}",
        {"spread_after_step": parts, "step_size": size, "device": context.device},
        f"parted within {limit} steps",
        INFINITE if broken else "" if parted else remedy,
        {"steps": len(parts)},
    )


def _train(context: CheckContext, limit: int, size: float) -> tuple[list[float], float, str]:
    """The spread after each step up to the first that is more than 0, the largest value, and what was not finite."""
    module = context.fresh().train()
    rng.seed()
    largest_spreads: list[float] = []
    scale = 0.0
    for _ in range(limit):
        if broken := _step(context, module, size):
            return largest_spreads, scale, broken
        apart, sizes, _ = spreads(context, "train", context.fitting(SPREAD_SIDES)[0], module)
        scale = max(sizes.values(), default=0.0)
        largest_spreads.append(max(apart.values(), default=0.0))
        if largest_spreads[-1] > 0:
            break
    return largest_spreads, scale, ""


def _step(context: CheckContext, module: nn.Module, size: float) -> str:
    """Makes a step; names of parameters whose gradient is not finite, "" if all are."""
    inputs = moved(context.fitting(SPREAD_SIDES)[0], module, context.device)
    with torch.enable_grad():
        magnitudes = step(floats(context.subject.traced.call(module.train(), inputs)), module, size)
    return ", ".join([name for name, value in magnitudes.items() if not (value or 0.0) < math.inf][:3])
