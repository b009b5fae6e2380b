"""What an operator of ONNX returns for constants, computed with exact operations only. No torch here.

    any type   values that are moved, repeated, picked or chosen keep their bits (`tensors.py`)
    integers   computed without a limit; a result that does not fit its type has no answer (`arithmetic.py`)
    floats     + - × ÷ √, comparisons, minima, floor and ceiling, and conversions: IEEE 754 rounds each of them in one
               way, so they have the same bits on every machine. What a library approximates (exp, pow, erf) or sums in
               an order of its own (matrix products, means) has no answer; nor have NaN as a result, and numbers below
               the normal range, which a processor may be set to take as 0

`evaluate` returns None where there is no answer: the operator stays in the graph, and the runtime computes it.
"""

from __future__ import annotations

import numpy as np

from .arithmetic import ARITHMETIC, CASTS
from .tensors import TENSORS
from .values import Array, Attributes, Inputs, NoAnswerError, check_size

__all__ = ["CASTS", "Array", "evaluate"]

_FUNCTIONS = {**TENSORS, **ARITHMETIC}
_MOVES = frozenset({"Identity", "Reshape", "Squeeze", "Unsqueeze", "Concat", "Slice", "Gather", "Cast", "Split"})


def evaluate(kind: str, inputs: Inputs, attributes: Attributes) -> list[Array] | None:
    """The outputs of an operator of the standard domain, from version 18 on, or None where there is no answer.

    Args:
        inputs: None for one that is left out. Arrays of `object` stand for vectors of which some elements are not
            known; they can be moved, and nothing else.
        attributes: by name; a tensor as an array.
    """
    function = _FUNCTIONS.get(kind)
    partial = any(x is not None and x.dtype == object for x in inputs)
    if function is None or (partial and kind not in _MOVES):
        return None
    try:
        with np.errstate(all="ignore"):
            result = function(inputs, attributes)
            outputs = [np.asarray(each) for each in (result if isinstance(result, list) else [result])]
            for output in outputs:
                check_size(output.shape, output.dtype, [x for x in inputs if x is not None])
    except (NoAnswerError, ValueError, IndexError, OverflowError):  # the last ones: a runtime refuses it as well
        return None
    return outputs
