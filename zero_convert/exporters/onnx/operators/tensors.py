"""Operators that move, repeat, pick and choose values, which keep their bits, and those that make values from sizes."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import onnx

from .values import (
    Array,
    Attributes,
    Evaluator,
    Inputs,
    check_size,
    indices,
    integers,
    none,
    one,
    optional_integers,
)

_EXACT_RANGE = 1 << 24  # whole numbers below it are exact in float32


def _identity(inputs: Inputs, attributes: Attributes) -> Array:
    return one(inputs)


def _reshape(inputs: Inputs, attributes: Attributes) -> Array:
    x, target = one(inputs), integers(inputs, 1)
    if not attributes.get("allowzero", 0):
        target = [x.shape[axis] if size == 0 else size for axis, size in enumerate(target)]
    return x.reshape(target)


def _squeeze(inputs: Inputs, attributes: Attributes) -> Array:
    axes = optional_integers(inputs, 1)
    return np.squeeze(one(inputs), None if axes is None else tuple(axes))


def _unsqueeze(inputs: Inputs, attributes: Attributes) -> Array:
    return np.expand_dims(one(inputs), tuple(integers(inputs, 1)))


def _flatten(inputs: Inputs, attributes: Attributes) -> Array:
    x, axis = one(inputs), attributes.get("axis", 1)
    return x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


def _transpose(inputs: Inputs, attributes: Attributes) -> Array:
    return np.transpose(one(inputs), attributes.get("perm"))


def _concat(inputs: Inputs, attributes: Attributes) -> Array:
    return np.concatenate([one(inputs, index) for index in range(len(inputs))], axis=attributes["axis"])


def _slice(inputs: Inputs, attributes: Attributes) -> Array:
    x, starts, ends = one(inputs), integers(inputs, 1), integers(inputs, 2)
    axes = optional_integers(inputs, 3) or list(range(len(starts)))
    steps = optional_integers(inputs, 4) or [1] * len(starts)
    index = [slice(None)] * x.ndim
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        index[axis] = slice(start, end, step)
    return x[tuple(index)]


def _gather(inputs: Inputs, attributes: Attributes) -> Array:
    x, index, axis = one(inputs), indices(inputs, 1), attributes.get("axis", 0)
    check_size((*x.shape[:axis], *index.shape, *x.shape[axis:][1:]), x.dtype, [x, index])
    return np.take(x, index, axis=axis)


def _gather_elements(inputs: Inputs, attributes: Attributes) -> Array:
    x, index, axis = one(inputs), indices(inputs, 1), attributes.get("axis", 0) % one(inputs).ndim
    beside = x[tuple(slice(None) if each == axis else slice(size) for each, size in enumerate(index.shape))]
    return np.take_along_axis(beside, np.where(index < 0, index + x.shape[axis], index), axis)


def _gather_nd(inputs: Inputs, attributes: Attributes) -> Array:
    x, index = one(inputs), indices(inputs, 1)
    check_size((*index.shape[:-1], *x.shape[index.shape[-1] :]), x.dtype, [x, index])
    return none() if attributes.get("batch_dims", 0) else np.asarray(x[tuple(np.moveaxis(index, -1, 0))])


def _expand(inputs: Inputs, attributes: Attributes) -> Array:
    x = one(inputs)
    shape = np.broadcast_shapes(x.shape, tuple(integers(inputs, 1)))
    check_size(shape, x.dtype, [x])
    return np.broadcast_to(x, shape)


def _tile(inputs: Inputs, attributes: Attributes) -> Array:
    x, repeats = one(inputs), integers(inputs, 1)
    check_size([size * count for size, count in zip(x.shape, repeats, strict=True)], x.dtype, [x])
    return np.tile(x, repeats)


def _split(inputs: Inputs, attributes: Attributes) -> list[Array]:
    x, axis = one(inputs), attributes.get("axis", 0)
    sizes = optional_integers(inputs, 1)
    if sizes is None:
        count = attributes["num_outputs"]
        size = -(-x.shape[axis] // count)
        sizes = [size] * (count - 1) + [x.shape[axis] - size * (count - 1)]
    if sum(sizes) != x.shape[axis] or min(sizes, default=0) < 0:
        return none()
    return list(np.split(x, [sum(sizes[:index]) for index in range(1, len(sizes))], axis))


def _where(inputs: Inputs, attributes: Attributes) -> Array:
    condition, a, b = (one(inputs, index) for index in range(3))
    check_size(np.broadcast_shapes(condition.shape, a.shape, b.shape), a.dtype, [condition, a, b])
    return np.where(condition, a, b) if a.dtype == b.dtype else none()


def _pad(inputs: Inputs, attributes: Attributes) -> Array:
    x, pads = one(inputs), integers(inputs, 1)
    if attributes.get("mode", b"constant") != b"constant" or min(pads, default=0) < 0:
        return none()
    axes = optional_integers(inputs, 3) or list(range(x.ndim))
    before, after = [0] * x.ndim, [0] * x.ndim
    for index, axis in enumerate(axes):
        before[axis], after[axis] = pads[index], pads[index + len(axes)]
    shape = [sum(sizes) for sizes in zip(before, x.shape, after, strict=True)]
    check_size(shape, x.dtype, [x])
    value = inputs[2].reshape(()) if len(inputs) > 2 and inputs[2] is not None else np.zeros((), x.dtype)
    made = np.full(shape, value, x.dtype)
    made[tuple(slice(first, first + size) for first, size in zip(before, x.shape, strict=True))] = x
    return made


def _scatter_nd(inputs: Inputs, attributes: Attributes) -> Array:
    made, index, values = one(inputs).copy(), indices(inputs, 1), one(inputs, 2)
    if attributes.get("reduction", b"none") != b"none":
        return none()
    for place in np.ndindex(index.shape[:-1]):
        made[tuple(index[place])] = values[place]
    return made


def _scatter_elements(inputs: Inputs, attributes: Attributes) -> Array:
    made, index, values = one(inputs).copy(), indices(inputs, 1), one(inputs, 2)
    if attributes.get("reduction", b"none") != b"none":
        return none()
    for place in np.ndindex(index.shape):
        target = list(place)
        target[attributes.get("axis", 0)] = index[place]
        made[tuple(target)] = values[place]
    return made


def _trilu(inputs: Inputs, attributes: Attributes) -> Array:
    x, (k, *_) = one(inputs), optional_integers(inputs, 1) or [0]
    rows, columns = np.indices(x.shape[-2:])
    kept = columns - rows >= k if attributes.get("upper", 1) else columns - rows <= k
    return np.where(kept, x, np.zeros((), x.dtype))


# ----------------------------------------------------------------------------------------------------------------------
# values that are made


def _shape(inputs: Inputs, attributes: Attributes) -> Array:
    sizes = one(inputs).shape
    return np.array(sizes[attributes.get("start", 0) : attributes.get("end", len(sizes))], np.int64)


def _size(inputs: Inputs, attributes: Attributes) -> Array:
    return np.array(one(inputs).size, np.int64)


def _constant_of_shape(inputs: Inputs, attributes: Attributes) -> Array:
    value = attributes.get("value", np.zeros(1, np.float32))
    shape = integers(inputs, 0)
    check_size(shape, value.dtype, [])
    return np.full(shape, value.reshape(()), value.dtype)


def _range(inputs: Inputs, attributes: Attributes) -> Array:
    ends = [one(inputs, index).reshape(()) for index in range(3)]
    dtype, exact = ends[0].dtype, [x.item() for x in ends]
    if dtype.kind not in "iu" and any(not float(x).is_integer() or abs(x) >= _EXACT_RANGE for x in exact):
        return none()  # start + i·delta is rounded in more than one way
    values = range(*(int(x) for x in exact))
    check_size([len(values)], dtype, [])
    return np.array(list(values), dtype)


def _eye_like(inputs: Inputs, attributes: Attributes) -> Array:
    x = one(inputs)
    dtype = onnx.helper.tensor_dtype_to_np_dtype(attributes["dtype"]) if "dtype" in attributes else x.dtype
    rows, columns = x.shape
    return np.eye(rows, columns, attributes.get("k", 0), dtype)


def _one_hot(inputs: Inputs, attributes: Attributes) -> Array:
    index, (depth, *_), (off, on) = indices(inputs, 0), integers(inputs, 1), one(inputs, 2)
    axis = attributes.get("axis", -1)
    axis = axis if axis >= 0 else index.ndim + 1 + axis
    check_size([*index.shape, depth], off.dtype, [])
    places = np.arange(depth).reshape([-1] + [1] * (index.ndim - axis))
    chosen: Array = np.where(places == np.expand_dims(np.where(index < 0, index + depth, index), axis), on, off)
    return chosen


def _non_zero(inputs: Inputs, attributes: Attributes) -> Array:
    return np.array(np.nonzero(one(inputs)), np.int64)


TENSORS: Mapping[str, Evaluator] = {
    "Identity": _identity, "Reshape": _reshape, "Squeeze": _squeeze, "Unsqueeze": _unsqueeze, "Flatten": _flatten,
    "Transpose": _transpose, "Concat": _concat, "Slice": _slice, "Gather": _gather, "GatherND": _gather_nd,
    "GatherElements": _gather_elements, "Expand": _expand, "Tile": _tile, "Split": _split, "Where": _where, "Pad": _pad,
    "ScatterND": _scatter_nd, "ScatterElements": _scatter_elements, "Trilu": _trilu, "Shape": _shape, "Size": _size,
    "ConstantOfShape": _constant_of_shape, "Range": _range, "EyeLike": _eye_like, "OneHot": _one_hot,
    "NonZero": _non_zero,
}  # fmt: skip
