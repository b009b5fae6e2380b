"""Weights of convolutions: a matrix at one tap of the kernel, or on flattened kernels, in any number of groups."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from zero_convert.errors import UsageError

from .formula import Floats, Formula, Matrix, block_indices, spell_shape


def _spell_groups(groups: int, transposed: bool) -> str:
    return f"{f' in each of {groups} groups' if groups > 1 else ''}{', adjoint' if transposed else ''}"


@dataclass(frozen=True, slots=True)
class Kernel(Formula):
    """A matrix at one tap of a convolution's kernel, every other tap zero; the same matrix in every group.

    Args:
        matrix: the map of one group, (out / groups) × (in / groups).
        kernel: the kernel's sizes, one per spatial axis; () is a linear layer.
        tap: the position that gets the matrix; None is k // 2 along each axis.
        groups: number of groups.
        transposed: the weight of a transposed convolution, with the layout (in, out / groups, *kernel): the adjoint's,
            weight[i, o, tap] = matrix[o, i]. Otherwise (out, in / groups, *kernel), weight[o, i, tap] = matrix[o, i].
    """

    matrix: Matrix
    kernel: tuple[int, ...]
    tap: tuple[int, ...] | None = None
    groups: int = 1
    transposed: bool = False
    places = True

    def __post_init__(self) -> None:
        inside = len(self.at) == len(self.kernel) and all(0 <= t < k for t, k in zip(self.at, self.kernel, strict=True))
        if not inside or self.groups < 1:
            raise UsageError(
                "no such tap in this kernel",
                where=self.matrix.rule,
                got=f"tap {self.at}, kernel {self.kernel}, groups {self.groups}",
            )

    @property
    def at(self) -> tuple[int, ...]:
        """The tap that gets the matrix."""
        return tuple(k // 2 for k in self.kernel) if self.tap is None else self.tap

    @property
    def shape(self) -> tuple[int, ...]:
        m, n = self.matrix.shape
        rows, cols = (n, m) if self.transposed else (m, n)
        return (self.groups * rows, cols, *self.kernel)

    @property
    def rule(self) -> str:
        tap = f" at tap {self.at}" if math.prod(self.kernel) > 1 else ""
        return f"{self.matrix.rule}{tap}{_spell_groups(self.groups, self.transposed)}"

    def write(self, out: Floats, corner: tuple[int, ...]) -> None:
        if math.prod(self.kernel) > 1:
            out[...] = 0
        tap = tuple(t - start for t, start in zip(self.at, corner[2:], strict=True))
        if not all(0 <= t < size for t, size in zip(tap, out.shape[2:], strict=True)):
            return
        at_tap: tuple[Any, ...] = (slice(None), slice(None), *tap)
        target: Floats = out[at_tap]
        m, n = self.matrix.shape
        rows, cols = (np.arange(start, start + size) for start, size in zip(corner, target.shape, strict=False))
        if self.groups == 1:
            first, second = corner[:2]
            self.matrix.write(
                target.T if self.transposed else target, (second, first) if self.transposed else (first, second)
            )
        elif self.transposed:
            target[...] = self.matrix.entries(cols, rows % n, out.dtype).T
        else:
            target[...] = self.matrix.entries(rows % m, cols, out.dtype)


@dataclass(frozen=True, slots=True)
class Unfolded(Formula):
    """A matrix on flattened kernels, (out / groups) × (taps · in / groups), as a convolution's weight.

    Column tap·n + c is channel c of n at that tap, the taps first; with `channels_first` it is column c·taps + tap. The
    same matrix in every group. Transposed, the weight is the adjoint's, with the layout (in, out / groups, *kernel).
    """

    matrix: Matrix
    kernel: tuple[int, ...]
    groups: int = 1
    transposed: bool = False
    channels_first: bool = False
    places = True

    def __post_init__(self) -> None:
        if self.matrix.n % math.prod(self.kernel):
            raise UsageError(
                "the matrix does not fit the kernel",
                where=self.matrix.rule,
                got=f"{self.matrix.n} columns",
                expected=f"a multiple of {math.prod(self.kernel)}",
            )

    @property
    def shape(self) -> tuple[int, ...]:
        m, channels = self.matrix.m, self.matrix.n // math.prod(self.kernel)
        rows, cols = (channels, m) if self.transposed else (m, channels)
        return (self.groups * rows, cols, *self.kernel)

    @property
    def rule(self) -> str:
        first = "channels" if self.channels_first else "taps"
        return f"{self.matrix.rule} on flattened kernels, {first} first{_spell_groups(self.groups, self.transposed)}"

    def write(self, out: Floats, corner: tuple[int, ...]) -> None:
        taps = math.prod(self.kernel)
        channels = self.matrix.n // taps
        first, second = (np.arange(start, start + size) for start, size in zip(corner[:2], out.shape[:2], strict=True))
        rows, inputs = (second, first % channels) if self.transposed else (first % self.matrix.m, second)
        places = block_indices(self.kernel, out.shape[2:], corner[2:])
        columns = inputs[:, None] * taps + places if self.channels_first else (places[:, None] * channels + inputs)
        values = self.matrix.entries(rows, columns.reshape(-1), out.dtype)
        if self.channels_first:
            values = values.reshape(len(rows), len(inputs), *out.shape[2:])
        else:
            values = np.moveaxis(values.reshape(len(rows), *out.shape[2:], len(inputs)), -1, 1)
        out[...] = np.moveaxis(values, 1, 0) if self.transposed else values


@dataclass(frozen=True, slots=True)
class Patch(Unfolded):
    """A matrix on flattened patches, m × (n·prod(kernel)), as a patchify convolution's weight.  # (m, n, *kernel)"""

    channels_first: bool = True

    @property
    def rule(self) -> str:
        return f"{self.matrix.rule} on flattened patches {spell_shape(self.shape[1:])}"
