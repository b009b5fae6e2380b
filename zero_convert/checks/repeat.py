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

from zero_convert.runtime import rng

from ..records import Check
from .harness import isolation
from .harness.bench import Bench, call
from .harness.inputs import floats, moved
from .harness.training import gradients_of

QUESTION = "Are two runs on the same input equal bit for bit?"
REMEDY = "Look for an operator without a deterministic kernel, a generator of its own, or a forward that remembers."


def ask(bench: Bench) -> Check:
    different, without, compared = dict[str, float](), dict[str, float](), 0
    for mode in bench.modes:
        first, second = (_values(bench, mode) for _ in range(2))
        compared += len(first)
        different |= _differences(first, second, mode)
        if bench.level == "full":
            with isolation.any_algorithm(bench.device):
                without |= _differences(first, _values(bench, mode), mode)
                without |= _differences(_values(bench, mode), _values(bench, mode), mode)
    if not compared:
        return Check("repeat", "skip", QUESTION, bench.refusal() or "no floating tensor is returned")
    worst = ", ".join(f"{name} by {value:.3g}" for name, value in list(different.items())[:4])
    told = ""
    if bench.level == "full":
        told = f"; without deterministic algorithms {len(without) or 'none'} differ" + (
            f", up to {max(without.values()):.3g}" if without else ""
        )
    return Check(
        "repeat",
        "fail" if different else "pass",
        QUESTION,
        (f"two runs differ: {worst}" if different else f"{compared} tensors equal bit for bit, run twice") + told,
        {"tensors": compared, "different": different}
        | ({"different_without_determinism": without} if bench.level == "full" else {}),
        "equal bits",
        REMEDY if different else "",
    )


def _differences(first: dict[str, Tensor], second: dict[str, Tensor], mode: str) -> dict[str, float]:
    """What has other bits → by how much at most; NaN where it is not there or has another shape."""
    found = {}
    for name, a in first.items():
        b = second.get(name)
        if b is None or a.shape != b.shape:
            found[f"{name} in {mode} mode"] = float("nan")
        elif not same_bits(a, b):
            found[f"{name} in {mode} mode"] = float((a - b).abs().max())
    return found


def _values(bench: Bench, mode: str) -> dict[str, Tensor]:
    """The outputs of one run, and with `full` the gradients of all parameters; on the CPU."""
    module = bench.module
    with_gradients = bench.level == "full"
    with isolation.kept(module), torch.set_grad_enabled(with_gradients):
        module.train(mode == "train")
        rng.seed()
        inputs = moved(bench.small_inputs[mode != "train"], module, bench.device)
        outputs = floats(call(module, bench.subject, inputs))
        found = {f"output {i}": t.detach().cpu() for i, t in enumerate(outputs)}
        if with_gradients:
            for name, g in gradients_of(outputs, module).items():
                if g is not None:
                    found[f"gradient of {name}"] = g.cpu()
    return found


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether shape and bits are the same: a NaN is like itself, and 0 is not like -0."""
    return a.shape == b.shape and torch.equal(_bytes(a), _bytes(b))


def _bytes(t: Tensor) -> Tensor:
    return t.contiguous().reshape(-1).view(torch.uint8)
