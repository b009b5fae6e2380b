"""Does the same input give the same bits again?

The model's own forward runs twice on the same copy, in training and evaluation mode, with the same random seed and
deterministic algorithms; with `full` the gradients are compared as well.

Fails on any different bit. An operation without a deterministic kernel on the device, or a forward that depends on
something besides its input, is the usual cause.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..records import Check
from . import _guard
from ._bench import Bench, floats, moved
from ._loss import loss

QUESTION = "Are two runs on the same input equal bit for bit?"


def ask(bench: Bench) -> Check:
    different, compared = {}, 0
    for mode in bench.modes:
        inputs = moved(bench.small_inputs[mode != "train"], bench.module, bench.device)
        first, second = (_values(bench, mode, inputs) for _ in range(2))
        pairs = [(name, a, second[name]) for name, a in first.items()]
        compared += len(pairs)
        for name, a, b in pairs:
            if not _same_bits(a, b):
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


def _values(bench: Bench, mode: str, inputs: tuple[object, ...]) -> dict[str, Tensor]:
    """The outputs of one run, and with `full` the gradients of all parameters; on the CPU."""
    module = bench.module
    gradients = bench.level == "full"
    with _guard.kept(module), torch.set_grad_enabled(gradients):
        module.train(mode == "train")
        _guard.seed(bench.device)
        outputs = floats(module(*inputs))
        found = {f"output {i}": t.detach().cpu() for i, t in enumerate(outputs)}
        if gradients:
            named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
            made = torch.autograd.grad(loss(outputs), [p for _, p in named], allow_unused=True)
            for (name, _), g in zip(named, made, strict=True):
                if g is not None:
                    found[f"gradient of {name}"] = g.cpu()
    return found


def _same_bits(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.equal(a.reshape(-1).view(torch.uint8), b.reshape(-1).view(torch.uint8))
