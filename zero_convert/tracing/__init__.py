"""Trace: from a module to a graph of its forward, one for training and one for evaluation.

The ladder tries one rung after the other and says why a rung did not work:

1. `fx`: torch.fx, known layers kept whole.
2. `fx+leaf`: the innermost submodule that fx cannot follow is kept whole too, and fx tries again.

A leaf hides what is inside it: `Traced.opaque` lists the leaves that are no known layer but own parameters.
This room changes neither the module nor its state.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from torch import fx, nn

from ..errors import TraceError
from ..live import Traced
from ..locate import user_frame
from .shapes import propagate_shapes, refuse_failing_forward
from .tracer import LayerTracer, TraceFailure

MAX_LEAVES = 256  # a model that needs more opaque leaves than this has no structure worth the name


def trace(module: nn.Module, example_inputs: Sequence[Any]) -> Traced:
    """The module's graphs in training and evaluation mode, with the shape of every value.

    Args:
        module: any module; its mode is restored, its parameters are read for their shapes only.
        example_inputs: positional arguments of `forward`; the optional ones left out take their defaults.

    Raises:
        TraceError: no rung captured the model, or its forward fails for these inputs.
    """
    modes = {m: m.training for m in module.modules()}
    failed: list[str] = []
    try:
        leaves: list[str] = []
        train = _climb(module, example_inputs, leaves, failed, training=True)
        evaluate = _climb(module, example_inputs, leaves, failed, training=False)
        if leaves:  # a leaf found in evaluation mode must be one in training mode as well
            train = _climb(module, example_inputs, leaves, failed, training=True)
        if str(train) == str(evaluate):
            evaluate = train
        module.eval()  # in training mode a batch norm refuses a single value per channel; shapes are the same
        for graph in dict.fromkeys((train, evaluate)):
            propagate_shapes(module, graph, example_inputs)
    finally:
        for m, mode in modes.items():
            m.training = mode
    return Traced(module, train, evaluate, "fx+leaf" if leaves else "fx", tuple(failed), tuple(leaves))


def _climb(
    module: nn.Module, inputs: Sequence[Any], leaves: list[str], failed: list[str], *, training: bool
) -> fx.Graph:
    """Trace in one mode; a submodule that fx cannot follow is added to `leaves`, its cause to `failed`."""
    module.train(training)
    while True:
        try:
            return LayerTracer(leaves, len(inputs)).trace(module)
        except TraceFailure as failure:
            cause = (
                f"{type(failure.cause).__name__}: {str(failure.cause).splitlines()[0] if str(failure.cause) else ''}"
            )
            where = user_frame(failure.cause, module) or inspect.getsourcefile(type(module)) or ""
            if not failure.path or len(leaves) >= MAX_LEAVES:
                refuse_failing_forward(module, inputs)
                raise TraceError(
                    "the model cannot be traced",
                    where=", ".join(filter(None, (type(module).__qualname__, failure.path, where))),
                    got=cause[:300],
                    expected="a forward whose control flow does not depend on tensor values",
                    fix="Give the part that branches on values a module of its own, so that it can be kept whole, "
                    "or pass other example inputs (--input).",
                ) from failure.cause
            leaves.append(failure.path)
            failed.append(f"{failure.path} kept whole: {cause[:160]} ({where})")
