"""Does the same input give the same bits again?

The model's own forward runs twice on the same copy, in training and evaluation mode, with the same random seed and
deterministic algorithms; with `full` the gradients are compared as well, and it runs twice more with whatever
algorithms the libraries choose. What differs then is told, and is no failure: it is
what a training without `torch.use_deterministic_algorithms` lives with.

Fails on any different bit with deterministic algorithms. An operation without a deterministic kernel on the device, or
a forward that depends on something besides its input, is the usual cause.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .harness import isolation
from .harness.bench import Answer, CheckContext
from .harness.inputs import floats
from .harness.recorder import same_bits
from .harness.training import gradients_of

NAME = "repeat"
QUESTION = "Are two runs on the same input equal bit for bit?"
AFTER = "gradients"
LEVELS = ("quick", "full")
NEEDS = ()
SESSION = True
LEAST = {"tensors": 1}
REMEDY = "Look for an operator without a deterministic kernel, a generator of its own, or a forward that remembers."


def ask(context: CheckContext) -> Answer:
    different, without, compared = dict[str, float](), dict[str, float](), 0
    full = _is_full(context)
    for mode in context.modes:
        first, second = (_values(context, mode) for _ in range(2))
        compared += len(first)
        different |= _differences(first, second, mode)
        if full:
            with isolation.any_algorithm(context.device):
                without |= _differences(first, _values(context, mode), mode)
                without |= _differences(_values(context, mode), _values(context, mode), mode)
    if not compared:
        return Answer("skip", context.refusal() or "no floating tensor is returned")
    worst = ", ".join(f"{name} by {value:.3g}" for name, value in list(different.items())[:4])
    free = ""
    if full:
        free = f"; without deterministic algorithms {len(without) or 'none'} differ" + (
            f", up to {max(without.values()):.3g}" if without else ""
        )
    return Answer(
        "fail" if different else "pass",
        (f"two runs differ: {worst}" if different else f"{compared} tensors equal bit for bit, run twice") + free,
        {"tensors": compared, "different": different} | ({"different_without_determinism": without} if full else {}),
        "equal bits",
        REMEDY if different else "",
        {"tensors": compared},
    )


def _is_full(context: CheckContext) -> bool:
    """Whether gradients and other algorithms are asked for; a session of ONNX Runtime has neither."""
    return context.level == "full" and not context.session


def _differences(first: dict[str, Tensor], second: dict[str, Tensor], mode: str) -> dict[str, float]:
    """What has other bits → by how much at most; NaN where it is not there or has another shape."""
    differences = {}
    for name, a in first.items():
        b = second.get(name)
        if b is None or a.shape != b.shape:
            differences[f"{name} in {mode} mode"] = float("nan")
        elif not same_bits(a, b):
            differences[f"{name} in {mode} mode"] = float((a - b).abs().max())
    return differences


def _values(context: CheckContext, mode: str) -> dict[str, Tensor]:
    """The outputs of one run, and with `full` the gradients of all parameters; on the CPU."""
    module = context.module
    with_gradients = _is_full(context)
    with isolation.kept(module), torch.set_grad_enabled(with_gradients):
        outputs = floats(context.forward(module.train(mode == "train"), context.small_inputs[mode != "train"]))
        values = {f"output {i}": t.detach().cpu() for i, t in enumerate(outputs)}
        if with_gradients:
            for name, g in gradients_of(outputs, module).items():
                if g is not None:
                    values[f"gradient of {name}"] = g.cpu()
    return values
