"""What the functions of operators share: arrays, limits, and the answer "none"."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Inputs = Sequence[Array | None]
Attributes = Mapping[str, Any]
Evaluator = Callable[[Inputs, Attributes], "Array | list[Array]"]

LIMIT = 1 << 16  # bytes of a result; a larger one is kept only where its operands are as large
_MANTISSAS = {"bfloat16": 7, "float16": 10, "float32": 23, "float64": 52}


class NoAnswerError(Exception):
    """An operator's result is not computed here."""


def none(*_: object) -> NoReturn:
    """Ends the function of an operator: there is no answer."""
    raise NoAnswerError


def one(inputs: Inputs, index: int = 0) -> Array:
    """An input that has to be there."""
    x = inputs[index] if index < len(inputs) else None
    if x is None:
        raise NoAnswerError
    return x


def integers(inputs: Inputs, index: int) -> list[int]:
    """The elements of an input of which all are known integers."""
    return [int(v) for v in indices(inputs, index).reshape(-1)]


def optional_integers(inputs: Inputs, index: int) -> list[int] | None:
    """The same, or None where the input is left out."""
    return None if index >= len(inputs) or inputs[index] is None else integers(inputs, index)


def indices(inputs: Inputs, index: int) -> Array:
    """An input of integers."""
    x = one(inputs, index)
    if x.dtype.kind not in "iu":
        raise NoAnswerError
    return x


def check_size(shape: Sequence[int], dtype: np.dtype[Any], operands: Sequence[Array]) -> None:
    """There is no answer beyond the limit, and no memory is taken for it."""
    if math.prod(shape) * dtype.itemsize > max(LIMIT, sum(x.nbytes for x in operands)):
        raise NoAnswerError


def is_float(dtype: np.dtype[Any]) -> bool:
    return dtype.name in _MANTISSAS


def wide(x: Array) -> Array:
    """Halves as float32, so that NumPy has every function of them."""
    return x.astype(np.float32) if is_float(x.dtype) and x.dtype.itemsize < 4 else x


def check_normal(*xs: Array) -> None:
    """There is no answer with numbers below the normal range of their type; they are told by their bits."""
    for x in xs:
        if is_float(x.dtype) and x.size:
            bits = np.ascontiguousarray(x).view(f"u{x.dtype.itemsize}").astype(np.uint64)
            digits, width = _MANTISSAS[x.dtype.name], 8 * x.dtype.itemsize
            exponent = (bits >> np.uint64(digits)) & np.uint64((1 << (width - 1 - digits)) - 1)
            if ((exponent == 0) & ((bits & np.uint64((1 << digits) - 1)) != 0)).any():
                raise NoAnswerError
