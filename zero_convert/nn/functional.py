"""Functions that rewrites put into graphs; each is one operation to torch's function modes and to tracing."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import handle_torch_function, has_torch_function

Sides = Sequence[tuple[int, int]]


def overridable(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, seen as one operation by torch's function modes and by symbolic tracing."""

    @functools.wraps(function)
    def outer(x: Tensor, *args: Any) -> Any:
        if has_torch_function((x,)):
            return handle_torch_function(outer, (x,), x, *args)
        return function(x, *args)

    return outer


@overridable
def relu0(x: Tensor) -> Tensor:
    """max(x, 0), same shape, with derivative 1 at exactly 0 (torch's is 0 there, and a zero layer would stay dead).

    Source: the authors' first release of ZerO. NaN stays NaN.
    """
    return torch.where(x < 0, 0.0, x)


@overridable
def relu6_0(x: Tensor) -> Tensor:
    """min(max(x, 0), 6), same shape, with derivative 1 at exactly 0."""
    return torch.where(x < 0, 0.0, x).clamp(max=6.0)


@overridable
def subsample(x: Tensor, stride: Sequence[int], sides: Sides) -> Tensor:
    """Every `stride`-th position of the trailing dimensions, after cropping `sides` (left, right; negative pads zeros).

    With `sides` from `centre_sides` it is the convolution of the same geometry whose kernel is 1 at the centre tap.
    """
    if any(left < 0 or right < 0 for left, right in sides):
        pads = [max(0, -side) for pair in reversed(sides) for side in pair]
        x = F.pad(x, pads)
    index = [
        slice(max(0, left), size - max(0, right), step)
        for size, step, (left, right) in zip(x.shape[-len(stride) :], stride, sides, strict=True)
    ]
    return x[(..., *index)]  # type: ignore[index]


@overridable
def pad_channels(x: Tensor, channels: int, trailing: int) -> Tensor:
    """`x` with zero channels appended up to `channels`; the channel axis has `trailing` dimensions after it."""
    return F.pad(x, [0, 0] * trailing + [0, channels - x.shape[-1 - trailing]])


@overridable
def assigned(x: Tensor, index: Any, value: Any) -> Tensor:
    """`x` after `x[index] = value`, which changes it."""
    x[index] = value
    return x


class FunctionCall:
    """Calls an autograd function, so that a graph keeps its backward."""

    def __init__(self, function: type[torch.autograd.Function]) -> None:
        self.function, self.__name__ = function, function.__name__

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function.apply(*args, **kwargs)
