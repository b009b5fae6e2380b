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

import torch
from torch import Tensor, fx, nn

from zero_convert.runtime import rng

from ..records import Check
from ._spread import SIDES, Spreads
from ._steps import largest_of, move
from .gradients import INFINITE
from .harness.bench import Bench, call
from .harness.inputs import floats, moved
from .harness.recorder import largest
from .harness.training import gradients_of
from .harness.watch import watch

QUESTION = "When do identical channels part in training?"
SIZES = (0.1, 0.01, 0.001)


def ask(bench: Bench) -> Check | None:
    limit = bench.promised("symmetry")
    if limit is None:
        return None
    if "train" not in bench.modes or not bench.run("train").outputs:
        return Check("symmetry", "skip", QUESTION, "nothing to train")
    expected = bench.subject.options.get("break_symmetry", "none") != "none"
    for size in SIZES:
        spreads, scale, broken = _train(bench, int(limit), size)
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
        "symmetry",
        status,
        QUESTION,
        f"on {bench.device}: {summary}",
        {"spread_after_step": spreads, "step_size": size, "device": bench.device},
        f"parted within {int(limit)} steps",
        INFINITE if broken else remedy if status == "warn" else "",
    )


def _train(bench: Bench, limit: int, size: float) -> tuple[list[float], float, str]:
    """The spread after each step up to the first that is more than 0, the largest value, and what was not finite."""
    module = bench.fresh().train()
    rng.seed()
    spreads: list[float] = []
    scale = 0.0
    for _ in range(limit):
        broken = _step(bench, module, size)
        if broken:
            return spreads, scale, broken
        found, scale = _spread(bench, module)
        spreads.append(found)
        if found > 0:
            break
    return spreads, scale, ""


def _step(bench: Bench, module: nn.Module, size: float) -> str:
    """Makes a step; names of parameters whose gradient is not finite, "" if all are."""
    module.train()
    with torch.enable_grad():
        made = gradients_of(floats(call(module, bench.subject, _inputs(bench, module))), module)
    sizes = {name: largest_of(gradient) for name, gradient in made.items()}
    if broken := [name for name, size in sizes.items() if not size < float("inf")]:
        return ", ".join(broken[:3])
    for name, parameter in module.named_parameters():
        gradient = made.get(name)
        if gradient is not None and sizes[name] > 0:
            move(parameter, gradient, sizes[name], size)
    return ""


def _inputs(bench: Bench, module: nn.Module) -> tuple[object, ...]:
    return moved(bench.fitting(SIDES)[0], module, bench.device)


def _spread(bench: Bench, module: nn.Module) -> tuple[float, float]:
    """The largest spread of a signal that had none at the start, and the largest value."""
    spreads, sizes = Spreads(bench, "train"), [0.0]

    def see(n: fx.Node, value: Tensor) -> None:
        spreads.see(n, value)
        sizes.append(largest(value))

    watch(bench, "train", see, module=module, inputs=bench.fitting(SIDES)[0])
    return max(spreads.judged().values(), default=0.0), max(sizes)
