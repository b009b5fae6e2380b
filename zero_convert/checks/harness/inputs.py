"""What the checks feed a network: nests like the example inputs, with other sizes and values. Nothing runs here.

An example input is a tensor, or a list, tuple or mapping of such, or anything else (None, a flag, a string), which
stays as it is. Values come from integer hashes, and every tensor has values of its own: a network that compares two
inputs returns 0 for equal ones, and all of it would look dead.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from zero_convert.formulas.hashing import words
from zero_convert.graph.example_values import reference_tensor
from zero_convert.graph.results import tensors_of

BATCH = 4  # with fewer, a batch norm over single values has no gradient to speak of
LARGE = 128 * 128  # positions from which on a network that takes no other size gets fewer samples

Inputs = tuple[Any, ...]
# Inputs on the CPU for training mode, and for evaluation mode, where samples do not mix, so that one is enough.
Batches = tuple[Inputs, Inputs]


def mapped(values: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The same nest of tuples, lists and mappings with every tensor changed, in order."""
    if isinstance(values, Tensor):
        return change(values)
    if isinstance(values, Mapping):
        changed = copy.copy(values) if isinstance(values, MutableMapping) else dict(values)  # a subclass stays one
        changed.update({key: mapped(value, change) for key, value in values.items()})
        return changed
    if isinstance(values, tuple) and hasattr(values, "_fields"):
        return type(values)(*(mapped(value, change) for value in values))
    if isinstance(values, list | tuple):
        return type(values)(mapped(value, change) for value in values)
    return values


def floats(values: Any) -> list[Tensor]:
    """The floating tensors in what a forward takes or returns; complex ones as pairs of real numbers."""
    found = (torch.view_as_real(t.resolve_conj()) if t.is_complex() else t for t in tensors_of(values))
    return [t for t in found if t.is_floating_point()]


def crops(given: Inputs, side: int) -> bool:
    """Whether an image or video among the inputs is larger than `side` in both directions."""
    return any(_is_image(x) and min(x.shape[-2:]) > side for x in tensors_of(given))


def batches(
    given: Inputs,
    side: int | None,
    *,
    samples: int | None = BATCH,
    few: int = BATCH // 2,
    variant: int = 0,
    lengthen: bool = False,
) -> Batches:
    """Like the example inputs: images cropped to `side` (None: as large as given), other values, more samples.

    A first dimension that the tensors among the arguments share is the batch. What lies in a list or mapping keeps its
    sizes: a detector takes one image for each sample there. Floating tensors get hashed values, except small ones in a
    list or mapping, which may be boxes or sizes that mean something. Integers and bools are drawn from the example's
    own, so that they stay indices and masks that the network understands.

    Args:
        samples: how many; None leaves as many as there are.
        few: how many where the images are large and cannot be cropped.
        variant: another number gives other values.
        lengthen: a list of images grows to `samples`, and with it every list of the same length.
    """
    if lengthen and samples is not None:
        given = _lengthened(given, samples)
    tensors = [x for x in given if isinstance(x, Tensor) and x.ndim]
    shared = samples is not None and len({x.shape[0] for x in tensors}) == 1
    large = any(_is_image(x) and math.prod(_cropped(x, side)) > LARGE for x in tensors)
    numbers = itertools.count()

    def new(x: Tensor, argument: bool) -> Tensor:
        number = next(numbers)
        if not x.ndim or not x.numel():
            return x
        shape = list(x.shape)
        if argument and shared:
            shape[0] = few if large else samples or shape[0]
        if _is_image(x):
            shape[2:] = _cropped(x, side)
        key = f"check inputs {variant}.{number}"
        if x.is_floating_point() and bool(torch.isfinite(x).all()):
            if not argument and x.ndim < 3:
                return x
            return reference_tensor(shape, x.dtype) if number + variant == 0 else _hashed(key, shape).to(x.dtype)
        if x.is_complex():
            return torch.complex(_hashed(key, shape), _hashed(f"{key} i", shape)).to(x.dtype)
        if not argument:
            return x
        chosen = words(0, key, 0, math.prod(shape)) % x.numel()
        return x.flatten()[torch.from_numpy(chosen.astype("int64"))].reshape(shape)

    whole = tuple(new(x, True) if isinstance(x, Tensor) else mapped(x, lambda t: new(t, False)) for x in given)
    return whole, tuple(x[:1] if shared and isinstance(x, Tensor) and x.ndim else x for x in whole)


def varied(given: Inputs, rows: Mapping[int, int]) -> Inputs:
    """The inputs in which no index of a table's rows is the same everywhere.

    An example of zeros is usual for tokens, and of equal tokens a network without positions returns equal outputs: no
    loss falls there, and much looks dead.

    Args:
        rows: number of an input that takes rows of a table → how many rows there are.
    """

    def new(number: int, x: Any) -> Any:
        if number not in rows or not isinstance(x, Tensor) or x.numel() < 2 or not bool((x == x.flatten()[0]).all()):
            return x
        chosen = words(0, f"check rows {number}", 0, x.numel()) % rows[number]
        return torch.from_numpy(chosen.astype("int64")).to(x.dtype).reshape(x.shape)

    return tuple(new(number, x) for number, x in enumerate(given))


def _lengthened(given: Inputs, samples: int) -> Inputs:
    """The same with images (and what belongs to each) repeated, where an argument is a list of images."""
    lengths = {
        len(x) for x in given if isinstance(x, list) and x and all(isinstance(t, Tensor) and t.ndim == 3 for t in x)
    }
    return tuple(
        [x[i % len(x)] for i in range(max(samples, len(x)))] if isinstance(x, list) and len(x) in lengths else x
        for x in given
    )


def _hashed(key: str, shape: list[int]) -> Tensor:
    """Values like the reference values, in [-1.7, 1.7), of their own for each key."""
    fraction = (words(0, key, 0, math.prod(shape)) >> 40).astype(np.float32) / np.float32(2**24)
    return torch.from_numpy((fraction * 2 - 1) * np.float32(1.7)).reshape(shape)


def _is_image(x: Tensor) -> bool:
    return x.is_floating_point() and x.ndim in (4, 5) and min(x.shape[-2:]) > 1


def _cropped(x: Tensor, side: int | None) -> list[int]:
    """The size of an image, or of a clip with its frames, cropped to `side`."""
    *frames, height, width = x.shape[2:]
    return [*frames, height, width] if side is None else [*frames, min(side, height), min(side, width)]


def moved(inputs: Inputs, module: nn.Module, device: str) -> Inputs:
    """Copies of the inputs on the device, floating ones in the module's precision: a forward may write to its input."""
    dtype = next((p.dtype for p in module.parameters() if p.is_floating_point()), torch.float32)
    return tuple(mapped(x, lambda t: t.to(device, dtype if t.is_floating_point() else None, copy=True)) for x in inputs)
