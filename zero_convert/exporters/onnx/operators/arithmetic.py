"""Operators that compute: integers without a limit, floats where IEEE 754 allows one result only."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx

from .values import (
    Array,
    Attributes,
    Evaluator,
    Inputs,
    check_normal,
    check_size,
    indices,
    integers,
    is_float,
    none,
    one,
    optional_integers,
    wide,
)

Function = Callable[..., Any]

CASTS = (1, 2, 3, 4, 5, 6, 7, 9, 10, 11, 12, 13, 16)  # ONNX's numbers of bool, integers and floats of 16 to 64 bits
_EXACT_RANGE = 1 << 24  # whole numbers below it are exact in float32


def cast(inputs: Inputs, attributes: Attributes) -> Array:
    """The values in the type `to`; of a vector with unknown elements only where that is int64."""
    x, kind = one(inputs), attributes["to"]
    if x.dtype == object:
        return x if kind == onnx.TensorProto.INT64 else none()
    dtypes = {each: onnx.helper.tensor_dtype_to_np_dtype(each) for each in CASTS}
    if kind not in dtypes or x.dtype not in dtypes.values():
        return none()
    dtype = dtypes[kind]
    if dtype == x.dtype:
        return x
    check_normal(x)
    if dtype.kind == "b":
        return np.asarray(x != 0)
    if dtype.kind in "iu":
        return _to_integers(x, dtype)
    if x.dtype.kind in "iub":
        return _to_floats(x, dtype)
    if x.dtype == np.float64 and dtype.itemsize < 4:
        return none()  # rounded once or twice
    made = x.astype(dtype)
    check_normal(made)
    return none() if (np.isnan(wide(made)) | ((made == 0) & (x != 0))).any() else made


def _to_integers(x: Array, dtype: np.dtype[Any]) -> Array:
    """Integers keep their lowest bits; floats lose what is behind the point, and have to fit."""
    if x.dtype.kind in "iub":
        return x.astype(dtype)
    limits, values = np.iinfo(dtype), [int(v) for v in x.flat]
    return np.array(values, dtype).reshape(x.shape) if _fit(values, limits) else none()


def _to_floats(x: Array, dtype: np.dtype[Any]) -> Array:
    """Integers are rounded once; halves by way of a float32 that holds them."""
    if dtype.itemsize >= 4:
        return x.astype(dtype)
    exact = all(abs(int(v)) < _EXACT_RANGE for v in x.flat)
    return x.astype(np.float32).astype(dtype) if exact else none()


def _fit(values: list[int], limits: Any) -> bool:
    return all(limits.min <= value <= limits.max for value in values)


def _computed(xs: list[Array], integer: Function, floating: Function | None) -> Array:
    """A function of each element."""
    dtype = xs[0].dtype
    if any(x.dtype != dtype for x in xs):
        return none()
    shape = np.broadcast_shapes(*(x.shape for x in xs))
    check_size(shape, dtype, xs)
    if dtype.kind in "iu":
        rows = [np.broadcast_to(x.astype(object), shape).flat for x in xs]
        values = [integer(*each) for each in zip(*rows, strict=True)]
        return np.array(values, dtype).reshape(shape) if _fit(values, np.iinfo(dtype)) else none()
    if floating is None or not is_float(dtype):
        return none()
    check_normal(*xs)
    made = np.asarray(floating(*xs)).astype(dtype, copy=False)
    check_normal(made)
    return none() if np.isnan(wide(made)).any() else made


def _elementwise(integer: Function, floating: Function | None) -> Evaluator:
    def function(inputs: Inputs, attributes: Attributes) -> Array:
        return _computed([one(inputs, index) for index in range(len(inputs))], integer, floating)

    return function


def _checked(function: Function, zero: Function) -> Function:
    """A function of floats whose result is 0 only where it has to be: one that is too small has no answer."""

    def checked(a: Array, b: Array) -> Array:
        made = np.asarray(function(a, b))
        return none() if ((made == 0) & ~zero(wide(a), wide(b))).any() else made

    return checked


def _folded(integer: Function, floating: Function) -> Evaluator:
    """A function over any number of inputs. Of zeros with two signs neither is the smaller."""

    def function(inputs: Inputs, attributes: Attributes) -> Array:
        made = one(inputs)
        for index in range(1, len(inputs)):
            other = one(inputs, index)
            if is_float(made.dtype) and ((made == 0) & (other == 0) & (np.signbit(made) != np.signbit(other))).any():
                return none()
            made = _computed([made, other], integer, floating)
        return made

    return function


def _quotient(a: int, b: int) -> int:
    """Toward zero."""
    if b == 0:
        none()
    return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


def _mod(inputs: Inputs, attributes: Attributes) -> Array:
    def remainder(a: int, b: int) -> int:
        if b == 0:
            none()
        return a - b * _quotient(a, b) if attributes.get("fmod", 0) else a % b

    return _computed([one(inputs), one(inputs, 1)], remainder, None)


def _clip(inputs: Inputs, attributes: Attributes) -> Array:
    made = one(inputs)
    for limit, function in zip(inputs[1:], (ARITHMETIC["Max"], ARITHMETIC["Min"]), strict=False):
        made = made if limit is None else np.asarray(function([made, limit], {}))
    return made


def _compared(function: Function) -> Evaluator:
    def answer(inputs: Inputs, attributes: Attributes) -> Array:
        a, b = one(inputs), one(inputs, 1)
        check_size(np.broadcast_shapes(a.shape, b.shape), np.dtype(bool), [a, b])
        check_normal(a, b)
        return np.asarray(function(a, b)) if a.dtype == b.dtype else none()

    return answer


def _bits(function: Function, kinds: str) -> Evaluator:
    def answer(inputs: Inputs, attributes: Attributes) -> Array:
        xs = [one(inputs, index) for index in range(len(inputs))]
        check_size(np.broadcast_shapes(*(x.shape for x in xs)), xs[0].dtype, xs)
        return np.asarray(function(*xs)) if all(x.dtype.kind in kinds for x in xs) else none()

    return answer


def _classified(function: Function) -> Evaluator:
    return lambda inputs, attributes: none() if attributes else np.asarray(function(wide(one(inputs))))


def _reduced(integer: Callable[[list[int]], int]) -> Evaluator:
    """A function over axes, of integers."""

    def function(inputs: Inputs, attributes: Attributes) -> Array:
        x, given = indices(inputs, 0), optional_integers(inputs, 1) or []
        if not given and attributes.get("noop_with_empty_axes", 0):
            return x
        axes = sorted(axis % x.ndim for axis in given) or list(range(x.ndim))
        kept = [axis for axis in range(x.ndim) if axis not in axes]
        rows = np.transpose(x, [*kept, *axes]).reshape(*(x.shape[axis] for axis in kept), -1)
        values = [integer([int(v) for v in rows[place]]) for place in np.ndindex(rows.shape[:-1])]
        sizes = [1 if axis in axes else size for axis, size in enumerate(x.shape)]
        sizes = sizes if attributes.get("keepdims", 1) else [x.shape[axis] for axis in kept]
        return np.array(values, x.dtype).reshape(sizes) if _fit(values, np.iinfo(x.dtype)) else none()

    return function


def _cum_sum(inputs: Inputs, attributes: Attributes) -> Array:
    x, (axis, *_) = indices(inputs, 0), integers(inputs, 1)
    if attributes.get("exclusive", 0) or attributes.get("reverse", 0):
        return none()
    made = np.cumsum(x.astype(object), axis)
    return made.astype(x.dtype) if _fit([int(v) for v in made.flat], np.iinfo(x.dtype)) else none()


ARITHMETIC: Mapping[str, Evaluator] = {
    "Cast": cast, "Mod": _mod, "Clip": _clip, "CumSum": _cum_sum,
    "Add": _elementwise(operator.add, _checked(np.add, lambda a, b: a == -b)),
    "Sub": _elementwise(operator.sub, _checked(np.subtract, lambda a, b: a == b)),
    "Mul": _elementwise(operator.mul, _checked(np.multiply, lambda a, b: (a == 0) | (b == 0))),
    "Div": _elementwise(_quotient, _checked(np.divide, lambda a, b: (a == 0) | np.isinf(b))),
    "Pow": _elementwise(lambda a, b: a**b if 0 <= b < 64 else none(), None),
    "Sqrt": _elementwise(none, np.sqrt),
    "Neg": _elementwise(operator.neg, np.negative), "Abs": _elementwise(abs, np.abs),
    "Floor": _elementwise(int, np.floor), "Ceil": _elementwise(int, np.ceil),
    "Sign": _elementwise(lambda a: (a > 0) - (a < 0), None),
    "Min": _folded(min, np.minimum), "Max": _folded(max, np.maximum),
    "Equal": _compared(np.equal), "Less": _compared(np.less), "Greater": _compared(np.greater),
    "LessOrEqual": _compared(np.less_equal), "GreaterOrEqual": _compared(np.greater_equal),
    "And": _bits(np.logical_and, "b"), "Or": _bits(np.logical_or, "b"), "Xor": _bits(np.logical_xor, "b"),
    "Not": _bits(np.logical_not, "b"), "BitwiseAnd": _bits(np.bitwise_and, "iu"),
    "BitwiseOr": _bits(np.bitwise_or, "iu"), "BitwiseXor": _bits(np.bitwise_xor, "iu"),
    "BitwiseNot": _bits(np.bitwise_not, "iu"),
    "IsNaN": _classified(np.isnan), "IsInf": _classified(np.isinf),
    "ReduceSum": _reduced(sum), "ReduceProd": _reduced(math.prod), "ReduceMax": _reduced(max),
    "ReduceMin": _reduced(min),
}  # fmt: skip
