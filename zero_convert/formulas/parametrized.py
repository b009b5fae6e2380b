"""The tensors from which a parametrized layer computes its weight: weight norm's g and v, spectral norm's u and v.

Typed constants, or one IEEE square root and one division. Each value depends on a whole slice of the weight, so that
these formulas are `whole`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from .formula import Floats, Formula, rounded


def _slices(weight: Formula, axis: int) -> Floats:
    """The weight as a matrix whose rows are its slices along an axis, or with -1 it itself.  # (slices, …) float64"""
    whole = weight.window(0, weight.shape[0], np.float64)
    if axis < 0:
        return whole.reshape(1, -1)
    return np.moveaxis(whole, axis, 0).reshape(weight.shape[axis], -1)


def _part(out: Floats, corner: tuple[int, ...]) -> tuple[slice, ...]:
    return tuple(slice(start, start + size) for start, size in zip(corner, out.shape, strict=True))


@dataclass(frozen=True, slots=True)
class WeightNormV(Formula):
    """v of the weight g·v/‖v‖: the weight itself, and ones in its slices that are 0, whose direction is free.

    A slice k along axis 0 that is 0 gets a one at input k mod n, of a kernel at its centre tap: another tap may read
    nothing but padding. Along another axis it gets ones at [i, i mod n], of a matrix one at row k mod m.
    """

    weight: Formula
    axis: int = 0
    whole = True

    @property
    def shape(self) -> tuple[int, ...]:
        return self.weight.shape

    @property
    def rule(self) -> str:
        return f"direction of {self.weight.rule}"

    def write(self, out: Floats, corner: tuple[int, ...]) -> None:
        whole = self.weight.window(0, self.shape[0], out.dtype)
        for k, piece in enumerate(np.moveaxis(whole, self.axis, 0)):
            if piece.any():
                continue
            if piece.ndim == 1:
                piece[k % len(piece)] = 1
            elif self.axis == 0:
                piece[(k % piece.shape[0], *(size // 2 for size in piece.shape[1:]))] = 1
            else:
                i = np.arange(len(piece))
                piece[i, i % piece.shape[1]] = 1
        out[...] = whole[_part(out, corner)]


@dataclass(frozen=True, slots=True)
class WeightNormG(Formula):
    """g of the weight g·v/‖v‖: the length of each slice along an axis, the other axes of size 1 (or `like`).

    The nonzero values of a slice all have one magnitude c, so that k of them have the length c·sqrt(k): no sum of
    rounded squares. With `unit`, 1 for every slice that is not 0.
    """

    weight: Formula
    axis: int = 0
    unit: bool = False
    whole = True
    like: tuple[int, ...] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        if self.like is not None:
            return self.like
        return tuple(n if i == self.axis else 1 for i, n in enumerate(self.weight.shape))

    @property
    def rule(self) -> str:
        return f"{'1 where not 0 is' if self.unit else 'lengths of'} {self.weight.rule}"

    def write(self, out: Floats, corner: tuple[int, ...]) -> None:
        slices = np.abs(_slices(self.weight, self.axis))
        pairs = zip(slices.max(1), np.count_nonzero(slices, axis=1), strict=True)
        lengths = [float(k > 0) if self.unit else float(c) * math.sqrt(int(k)) for c, k in pairs]
        values = np.array([rounded(length, out.dtype) for length in lengths], out.dtype).reshape(self.shape)
        out[...] = values[_part(out, corner)]


@dataclass(frozen=True, slots=True)
class SpectralNormVector(Formula):
    """u or v of the weight divided by its norm uᵀ·W·v: a column of the flattened W, and the unit vector at its place.

    W is the weight as a matrix, rows along an axis. The column is the first that is not 0; where the columns are
    orthonormal, u and v are a pair of singular vectors and the norm is 1.
    """

    weight: Formula
    side: str  # "u", a value for each row, or "v", a value for each column
    axis: int = 0
    whole = True

    @property
    def shape(self) -> tuple[int, ...]:
        rows = self.weight.shape[self.axis]
        return (rows,) if self.side == "u" else (math.prod(self.weight.shape) // rows,)

    @property
    def rule(self) -> str:
        return f"singular vector {self.side} of {self.weight.rule}"

    def write(self, out: Floats, corner: tuple[int, ...]) -> None:
        slices = _slices(self.weight, self.axis)
        position = int(np.flatnonzero(slices.any(axis=0))[0])
        if self.side == "v":
            out[...] = np.arange(corner[0], corner[0] + len(out)) == position
            return
        column = slices[:, position]
        length = math.sqrt(int(np.count_nonzero(column)))
        out[...] = np.sign(column[_part(out, corner)]) * rounded(1 / length, out.dtype)
