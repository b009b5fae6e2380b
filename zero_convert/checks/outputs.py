"""Does the converted model return what the original returned: as many tensors, of the same shapes and dtypes?

It is run on the example inputs, in evaluation mode and, where its graph is another one, in training mode. There a batch
norm refuses a single value per channel; then the training graph is run with its modules in evaluation mode, as tracing
did.

Fails on any difference: a rewrite that changes a shape is wrong.
"""

from __future__ import annotations

import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_leaves

from ..records import Check
from . import _guard
from ._bench import Bench, moved, still

QUESTION = "Are the shapes and dtypes of the outputs the original's, in training and evaluation mode?"


def ask(bench: Bench) -> Check:
    traced, wrong, described = bench.subject.traced, [], ""
    for mode, expected in bench.subject.outputs.items():
        if mode == "train" and traced.train is traced.evaluate:
            continue
        found = returned(bench, mode)
        if found != tuple(expected):
            wrong.append(f"{mode} mode: {spell(found)} instead of {spell(expected)}")
        described = spell(found)
    return Check(
        "outputs",
        "fail" if wrong else "pass",
        QUESTION,
        "; ".join(wrong) if wrong else f"{described}, as the original",
        {"outputs": {mode: [list(shape) for shape, _ in of] for mode, of in bench.subject.outputs.items()}},
        "equal shapes and dtypes",
    )


def returned(bench: Bench, mode: str) -> tuple[tuple[tuple[int, ...], str], ...]:
    """Shape and dtype of every tensor that the converted model returns for the example inputs."""
    module, traced = bench.module, bench.subject.traced
    inputs = moved(bench.subject.inputs, module, bench.device)
    with _guard.kept(module), torch.no_grad():
        _guard.seed(bench.device)
        still(module.train(mode == "train"))
        try:
            values = module(*inputs)
        except ValueError as error:
            if mode != "train" or "more than 1 value per channel" not in str(error):
                raise
            values = fx.Interpreter(module.eval(), graph=traced.train).run(*inputs)
    return tuple(
        (tuple(t.shape), str(t.dtype).removeprefix("torch.")) for t in tree_leaves(values) if isinstance(t, Tensor)
    )


def spell(shapes: tuple[tuple[tuple[int, ...], str], ...]) -> str:
    return ", ".join(f"{'×'.join(map(str, shape)) or 'scalar'} {dtype}" for shape, dtype in shapes) or "nothing"
