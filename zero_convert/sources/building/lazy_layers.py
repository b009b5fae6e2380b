"""Lazy layers get their sizes: one forward pass of the example inputs, before anything else looks at the network.

Called under NaN-filled construction, so that what such a layer would draw at random is NaN as well. No model library
is known here.
"""

from __future__ import annotations

import torch
from torch import nn

from zero_convert.errors import LoadError
from zero_convert.sources.inputs import Inputs, copied, run
from zero_convert.sources.inputs.guess import guess
from zero_convert.sources.inputs.trials import lazy_names


def materialize(module: nn.Module, inputs: Inputs | None, model: str) -> tuple[tuple[str, ...], Inputs | None]:
    """The names of the tensors that had no shape before, and the inputs that gave them one (else `inputs` itself).

    The mode of every part and the values of its buffers are as before.

    Args:
        module: changed in place.
        inputs: example inputs; without them they are guessed, where something is lazy.

    Raises:
        LoadError: no inputs are known, the forward fails, or a layer is not reached by it.
    """
    lazy = lazy_names(module)
    if not lazy:
        return (), inputs
    where = f"{model}, {lazy[0]}"
    examples = inputs if inputs is not None else guess(module)
    if examples is None:
        raise LoadError(
            "the model has parameters without a shape, and no example input is known to give them one",
            where=where,
            got=f"{len(lazy)} lazy parameters",
            fix="Give an example input: --input 1x3x224x224, or example_inputs= in Python.",
        )
    modes = {part: part.training for part in module.modules()}
    try:
        for training in (False, True):  # an auxiliary head may run in training only
            if lazy_names(module):
                kept = {n: b.clone() for n, b in module.named_buffers() if not nn.parameter.is_lazy(b)}
                with torch.no_grad():
                    run(module.train(training), copied(examples))
                for name, buffer in module.named_buffers():
                    if name in kept:
                        buffer.copy_(kept[name])
    except Exception as error:
        text = " ".join(str(error).split())[:300]
        raise LoadError(
            "the model has parameters without a shape, and its forward fails",
            where=where,
            got=f"{type(error).__name__}: {text}",
            fix="Give an example input that fits: --input 1x3x224x224, or example_inputs= in Python.",
        ) from error
    finally:
        for part, training in modes.items():
            part.training = training
    if left := lazy_names(module):
        raise LoadError(
            "the model has parameters without a shape that its forward does not reach",
            where=f"{model}, {left[0]}",
            got=f"{len(left)} lazy parameters",
            fix="Give these layers their input sizes.",
        )
    return lazy, examples
