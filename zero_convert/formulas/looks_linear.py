"""Matrices of ReLU networks that look linear: mirrored pairs of channels, and exact orthogonal matrices for them.

A ReLU loses nothing of a pair (a, -a), since r(a) - r(-a) = a. So with channels in pairs (c, c + C/2),
L(U) = [[U, -U], [-U, U]] reads r([a; -a]) and returns [U·a; -U·a].

The orthogonal matrices are blocks of Sylvester Hadamard matrices of order 4^k, divided by 2^k, with rows and columns in
hashed order and with hashed signs. Every entry is 0 or a power of two, so that they are orthogonal in every floating
format, and sums of them are exact. Everything is index arithmetic: any entry can be had alone.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np

from . import hadamard, hashing
from .formula import Floats, Integers, Matrix, SizedMatrix
from .identities import PartialIdentity

_FLOAT64 = np.dtype(np.float64)

# ---------------------------------------------------------------------------------------------------------------------
# Orthogonal matrices


@lru_cache(maxsize=64)
def _blocks(order: int) -> tuple[Integers, Integers]:
    """For each index below `order`: where its block begins, and log2 of the block's 2^k; the largest blocks first."""
    starts, powers = np.empty(order, np.int64), np.empty(order, np.int64)
    begin = 0
    while begin < order:
        power = ((order - begin).bit_length() - 1) // 2
        end = begin + 4**power
        starts[begin:end], powers[begin:end] = begin, power
        begin = end
    return starts, powers


@dataclass(frozen=True, slots=True)
class Orthogonal(SizedMatrix):
    """m rows and n columns of an orthogonal matrix of order max(m, n), all entries 0 or ±2^-k.  # (m, n)

    Its columns are orthonormal for m ≥ n, its rows for m ≤ n, exactly. The order is cut into blocks of 4^k, largest
    first: 12 is 4 + 4 + 4.
    """

    seed: int
    name: str

    @property
    def rule(self) -> str:
        largest = 4 ** int(_blocks(max(self.shape))[1][0])
        return f"orthogonal {self.m}×{self.n} (hashed, blocks of {largest})"

    def values(self, i: Integers, j: Integers, dtype: np.dtype[Any]) -> Floats:
        order = max(self.shape)
        starts, powers = _blocks(order)
        r = hashing.permutation(self.seed, f"{self.name} rows", order)[i]
        c = hashing.permutation(self.seed, f"{self.name} columns", order)[j]
        signs = hadamard.sylvester((r - starts[r])[:, 0], (c - starts[c])[0])
        signs *= hashing.signs(self.seed, f"{self.name} rows signs", 0, order)[i]
        signs *= hashing.signs(self.seed, f"{self.name} columns signs", 0, order)[j]
        signs *= starts[r] == starts[c]
        return (signs / (1 << powers[r])).astype(dtype)


@dataclass(frozen=True, slots=True)
class Selection(SizedMatrix):
    """At most one ±1 in each row and column, in hashed order; none is left out on the shorter side.  # (m, n)

    With `signed` the signs are hashed, else they are +1. Without `hashed` it is the partial identity.
    """

    seed: int
    name: str
    signed: bool = True
    hashed: bool = True

    @property
    def rule(self) -> str:
        if not self.hashed:
            return PartialIdentity(self.m, self.n).rule
        return f"{'signed ' if self.signed else ''}selection {self.m}×{self.n} (hashed)"

    @property
    def family(self) -> str:
        return "other" if self.hashed else "identity"

    def columns(self, rows: Integers) -> tuple[Integers, Integers]:
        """The column and the sign of each row; column -1 for a row of zeros."""
        order = max(self.shape)
        column = hashing.permutation(self.seed, f"{self.name} order", order)[rows] if self.hashed else rows
        sign = np.ones_like(rows)
        if self.signed:
            sign = hashing.signs(self.seed, f"{self.name} signs", 0, order)[rows].astype(np.int64)
        return np.where(column < self.n, column, -1), sign

    def values(self, i: Integers, j: Integers, dtype: np.dtype[Any]) -> Floats:
        column, sign = self.columns(i)
        return np.where(column == j, sign, 0).astype(dtype)


@dataclass(frozen=True, slots=True)
class Product(Matrix):
    """Selections after a matrix: S_k · … · S_1 · U, whose rows are rows of U.  # (m, n)"""

    matrix: Matrix
    steps: tuple[Selection, ...]

    @property
    def shape(self) -> tuple[int, int]:
        return ([self.matrix, *self.steps][-1].m, self.matrix.n)

    @property
    def rule(self) -> str:
        return " · ".join([*(step.rule for step in reversed(self.steps)), self.matrix.rule])

    def values(self, i: Integers, j: Integers, dtype: np.dtype[Any]) -> Floats:
        signs = np.ones_like(i)
        for step in reversed(self.steps):
            column, sign = step.columns(np.maximum(i, 0))
            signs = np.where((i < 0) | (column < 0), 0, signs * sign)
            i = np.where(i < 0, -1, column)
        values: Floats = self.matrix.values(np.maximum(i, 0), j, dtype) * signs.astype(dtype)
        return values


# ---------------------------------------------------------------------------------------------------------------------
# Sums and other forms


@dataclass(frozen=True, slots=True)
class Difference(Matrix):
    """a - b.  # (m, n)"""

    a: Matrix
    b: Matrix

    @property
    def shape(self) -> tuple[int, int]:
        return self.a.shape

    @property
    def rule(self) -> str:
        return f"({self.a.rule} - {self.b.rule})"

    def values(self, i: Integers, j: Integers, dtype: np.dtype[Any]) -> Floats:
        return (self.a.values(i, j, _FLOAT64) - self.b.values(i, j, _FLOAT64)).astype(dtype)


@dataclass(frozen=True, slots=True)
class Rotated(Matrix):
    """The transpose.  # (m, n) of an n×m matrix"""

    matrix: Matrix

    @property
    def shape(self) -> tuple[int, int]:
        return (self.matrix.n, self.matrix.m)

    @property
    def rule(self) -> str:
        return f"transpose of {self.matrix.rule}"

    def values(self, i: Integers, j: Integers, dtype: np.dtype[Any]) -> Floats:
        return self.matrix.values(j.T, i.T, dtype).T


@dataclass(frozen=True, slots=True)
class Padded(Matrix):
    """A matrix with rows of zeros behind it.  # (m, n)"""

    matrix: Matrix
    m: int = field()

    @property
    def shape(self) -> tuple[int, int]:
        return (self.m, self.matrix.n)

    @property
    def rule(self) -> str:
        return f"{self.matrix.rule}, {self.m - self.matrix.m} rows of 0"

    def values(self, i: Integers, j: Integers, dtype: np.dtype[Any]) -> Floats:
        values = self.matrix.values(np.minimum(i, self.matrix.m - 1), j, dtype)
        return np.where(i < self.matrix.m, values, dtype.type(0))


@dataclass(frozen=True, slots=True)
class Scatter(Matrix):
    """A square matrix on chosen rows, Eᵀ·A; other rows and columns are 0.  # (m, n)

    Args:
        matrix: A, k × k.
        where: E, k × m, unsigned: which rows.
        n: columns; those beyond A's are 0.
    """

    matrix: Matrix
    where: Selection
    n: int = field()

    @property
    def shape(self) -> tuple[int, int]:
        return (self.where.n, self.n)

    @property
    def rule(self) -> str:
        some = f" on {self.matrix.m} of {self.m} rows" if self.matrix.m != self.m else ""
        return f"{self.matrix.rule}{some}"

    def values(self, i: Integers, j: Integers, dtype: np.dtype[Any]) -> Floats:
        order = self.matrix.m
        row = np.full(self.m, -1, np.int64)
        row[self.where.columns(np.arange(order))[0]] = np.arange(order)
        values = self.matrix.values(np.maximum(row[i], 0), np.minimum(j, order - 1), dtype)
        return np.where((row[i] >= 0) & (j < order), values, dtype.type(0))


# ---------------------------------------------------------------------------------------------------------------------
# Mirrored pairs


@dataclass(frozen=True, slots=True)
class Mirrored(Matrix):
    """L(U) = [[U, -U], [-U, U]], or half of it where it reads [a; -a] itself and no ReLU of it.  # (2·m', 2·n')

    With `rest`, less a second matrix in both diagonal blocks.
    """

    matrix: Matrix
    half: bool = False
    rest: Matrix | None = None

    @property
    def shape(self) -> tuple[int, int]:
        return (2 * self.matrix.m, 2 * self.matrix.n)

    @property
    def rule(self) -> str:
        less = f" - [identity {self.rest.m}×{self.rest.n} twice]" if self.rest is not None else ""
        return f"{'half of ' if self.half else ''}L of {self.matrix.rule}{less}"

    def values(self, i: Integers, j: Integers, dtype: np.dtype[Any]) -> Floats:
        m, n = self.matrix.shape
        same = (i < m) == (j < n)
        values: Floats = self.matrix.values(i % m, j % n, _FLOAT64)
        values = np.where(same, values, -values)
        if self.rest is not None:
            values -= np.where(same, self.rest.values(i % m, j % n, _FLOAT64), 0)
        return (values / 2 if self.half else values).astype(dtype)


@dataclass(frozen=True, slots=True)
class PairInput(Matrix):
    """[U; -U], which makes mirrored pairs of any signal.  # (2·m', n)"""

    matrix: Matrix

    @property
    def shape(self) -> tuple[int, int]:
        return (2 * self.matrix.m, self.matrix.n)

    @property
    def rule(self) -> str:
        return f"pairs of {self.matrix.rule} and its opposite"

    def values(self, i: Integers, j: Integers, dtype: np.dtype[Any]) -> Floats:
        values = self.matrix.values(i % self.matrix.m, j, dtype)
        return np.where(i < self.matrix.m, values, -values)


@dataclass(frozen=True, slots=True)
class MergePairs(Matrix):
    """[A, -A], which reads mirrored pairs behind a ReLU; half of it where there is none.  # (m, 2·n')"""

    matrix: Matrix
    half: bool = False

    @property
    def shape(self) -> tuple[int, int]:
        return (self.matrix.m, 2 * self.matrix.n)

    @property
    def rule(self) -> str:
        return f"{'half of ' if self.half else ''}difference of pairs by {self.matrix.rule}"

    def values(self, i: Integers, j: Integers, dtype: np.dtype[Any]) -> Floats:
        values = self.matrix.values(i, j % self.matrix.n, dtype)
        values = np.where(j < self.matrix.n, values, -values)
        return values / dtype.type(2) if self.half else values
