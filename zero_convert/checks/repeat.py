"""Does the same input give the same bits again?

The model's own forward runs twice on the same copy, in training and evaluation mode, with the same random seed and
deterministic algorithms; with `full` the gradients are compared as well.

Fails on any different bit. An operation without a deterministic kernel on the device, or a forward that depends on
something besides its input, is the usual cause.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import generators
from ..records import Check
from . import _guard
from ._bench import Bench, call
from ._inputs import floats, moved
from ._loss import gradients_of

QUESTION = "Are two runs on the same input equal bit for bit?"


def ask(bench: Bench) -> Check:
    different, compared = {}, 0
    for mode in bench.modes:
        first, second = (_values(bench, mode) for _ in range(2))
        compared += len(first)
        for name, a in first.items():
            b = second.get(name)
            if b is None:
                different[f"{name} in {mode} mode"] = float("nan")
            elif not _same_bits(a, b):
                different[f"{name} in {mode} mode"] = float((a - b).abs().max()) if a.shape == b.shape else float("nan")
    worst = ", ".join(f"{name} by {value:.3g}" for name, value in list(different.items())[:4])
    return Check(
        "repeat",
        "fail" if different else "pass",
        QUESTION,
        f"two runs differ: {worst}" if different else f"{compared} tensors equal bit for bit, run twice",
        {"tensors": compared, "different": different},
        "equal bits",
    )


def _values(bench: Bench, mode: str) -> dict[str, Tensor]:
    """The outputs of one run, and with `full` the gradients of all parameters; on the CPU."""
    module = bench.module
    with_gradients = bench.level == "full"
    with _guard.kept(module), torch.set_grad_enabled(with_gradients):
        module.train(mode == "train")
        generators.seed(bench.device)
        inputs = moved(bench.small_inputs[mode != "train"], module, bench.device)
        outputs = floats(call(module, bench.subject, inputs))
        found = {f"output {i}": t.detach().cpu() for i, t in enumerate(outputs)}
        if with_gradients:
            for name, g in gradients_of(outputs, module).items():
                if g is not None:
                    found[f"gradient of {name}"] = g.cpu()
    return found


def _same_bits(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.equal(_bytes(a), _bytes(b))


def _bytes(t: Tensor) -> Tensor:
    return t.contiguous().reshape(-1).view(torch.uint8)
