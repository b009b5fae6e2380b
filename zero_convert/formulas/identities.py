"""Identities that go on where the partial identity ends, and averages: the matrices of IDInit and ConstNet.

Also `Unfolded`, a matrix on the flattened kernel of a convolution. Built on `formulas/formula.py`; knows no torch, no model and
no scheme. All values are typed constants or one IEEE division.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from zero_convert.errors import UsageError

from . import hadamard
from .formula import Floats, Formula, Matrix, rounded


@dataclass(frozen=True, slots=True)
class Average(Matrix):
    """1/n everywhere: every output is the mean of all inputs.  # (m, n)"""

    m: int
    n: int

    @property
    def rule(self) -> str:
        return f"mean of {self.n} inputs, {self.m}×{self.n} of 1/{self.n}"

    def write(self, out: Floats, start: int) -> None:
        out[...] = rounded(1 / self.n, out.dtype)

    def entries(self, rows: hadamard.Indices, cols: hadamard.Indices, dtype: npt.DTypeLike = np.float32) -> Floats:
        return np.full((len(rows), len(cols)), rounded(1 / self.n, np.dtype(dtype)), dtype)


@dataclass(frozen=True, slots=True)
class CyclicIdentity(Matrix):
    """`value` where i ≡ j (mod n), zeros elsewhere: IDI of value.  # (m, n)

    Every row has one entry. The rows go round: row n is row 0 again.
    """

    m: int
    n: int
    value: float = 1.0

    family = "identity"

    @property
    def rule(self) -> str:
        times = "" if self.value == 1 else f", times {self.value:.6g}"
        return f"cyclic identity {self.m}×{self.n}{times}"

    def write(self, out: Floats, start: int) -> None:
        rows = np.arange(start, start + len(out))
        out[...] = 0
        out[rows - start, rows % self.n] = rounded(self.value, out.dtype)

    def entries(self, rows: hadamard.Indices, cols: hadamard.Indices, dtype: npt.DTypeLike = np.float32) -> Floats:
        hit = np.equal.outer(np.asarray(rows) % self.n, np.asarray(cols))
        values: Floats = hit.astype(dtype) * rounded(self.value, np.dtype(dtype))
        return values


@dataclass(frozen=True, slots=True)
class OpposedIdentity(Matrix):
    """The cyclic identity and its opposite side by side, times `value`: IDIZ. Every row sums to exactly 0.  # (m, n)

    Row i has +value at i mod n and -value at (i + 1) mod n; where m < n the opposite stands in the columns from m on,
    at m + i mod (n - m). With one column nothing is left: 0.
    """

    m: int
    n: int
    value: float = 1.0

    family = "identity"

    @property
    def rule(self) -> str:
        return f"identity and its opposite {self.m}×{self.n}, times {self.value:.6g}"

    def opposite(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """The column of -value in each row."""
        return self.m + rows % (self.n - self.m) if self.m < self.n else (rows + 1) % self.n

    def write(self, out: Floats, start: int) -> None:
        rows = np.arange(start, start + len(out))
        value = rounded(self.value, out.dtype)
        out[...] = 0
        if self.n > 1:
            out[rows - start, rows % self.n] = value
            out[rows - start, self.opposite(rows)] = -value

    def entries(self, rows: hadamard.Indices, cols: hadamard.Indices, dtype: npt.DTypeLike = np.float32) -> Floats:
        i, j = np.asarray(rows, dtype=np.int64), np.asarray(cols)
        value = rounded(self.value, np.dtype(dtype))
        if self.n == 1:
            return np.zeros((len(i), len(j)), dtype)
        plus, minus = np.equal.outer(i % self.n, j), np.equal.outer(self.opposite(i), j)
        values: Floats = plus.astype(dtype) * value - minus.astype(dtype) * value
        return values


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

    def __post_init__(self) -> None:
        if self.matrix.n % math.prod(self.kernel):
            raise UsageError(
                "the matrix does not fit the kernel",
                where=self.matrix.rule,
                got=f"{self.matrix.n} columns",
                expected=f"a multiple of {math.prod(self.kernel)}",
            )

    @property
    def channels(self) -> int:
        """Input channels of a group."""
        return self.matrix.n // math.prod(self.kernel)

    @property
    def shape(self) -> tuple[int, ...]:
        rows, cols = (self.channels, self.matrix.m) if self.transposed else (self.matrix.m, self.channels)
        return (self.groups * rows, cols, *self.kernel)

    @property
    def rule(self) -> str:
        first = "channels" if self.channels_first else "taps"
        groups = f" in each of {self.groups} groups" if self.groups > 1 else ""
        note = f" on flattened kernels, {first} first"
        return f"{self.matrix.rule}{note}{groups}{', adjoint' if self.transposed else ''}"

    def write(self, out: Floats, start: int) -> None:
        m, rows = self.matrix.m, np.arange(start, start + len(out))
        if self.groups == 1 and not self.transposed:
            out[...] = self._unflattened(self.matrix.window(start, start + len(out), out.dtype))
            return
        whole = self._unflattened(self.matrix.window(0, m, out.dtype))  # (m, channels, *kernel)
        out[...] = np.moveaxis(whole, 1, 0)[rows % self.channels] if self.transposed else whole[rows % m]

    def _unflattened(self, rows: Floats) -> Floats:
        if self.channels_first:
            return rows.reshape(len(rows), self.channels, *self.kernel)
        return np.moveaxis(rows.reshape(len(rows), *self.kernel, self.channels), -1, 1)
