"""Matrices of ReLU networks that look linear: mirrored pairs of channels, and exact orthogonal matrices for them.

A ReLU loses nothing of a pair (a, -a), since r(a) - r(-a) = a. So with channels in pairs (c, c + C/2),
L(U) = [[U, -U], [-U, U]] reads r([a; -a]) and returns [U·a; -U·a].

The orthogonal matrices are blocks of Sylvester Hadamard matrices of order 4^k, divided by 2^k, with rows and columns in
hashed order and with hashed signs. Every entry is 0 or a power of two, so that they are orthogonal in every floating
format, and sums of them are exact. Everything is index arithmetic: any entry can be had alone. Built on `formulas/formula.py`;
knows no torch, no model and no scheme.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from . import hadamard, hashing
from .formula import Floats, Matrix, PartialIdentity

Integers = npt.NDArray[np.int64]


class Indexed(Matrix):
    """A matrix that is defined by its entries."""


def _indices(indices: hadamard.Indices) -> Integers:
    return np.asarray(indices, dtype=np.int64)


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
class Orthogonal(Indexed):
    """m rows and n columns of an orthogonal matrix of order max(m, n), all entries 0 or ±2^-k.  # (m, n)

    Its columns are orthonormal for m ≥ n, its rows for m ≤ n, exactly. The order is cut into blocks of 4^k, largest
    first: 12 is 4 + 4 + 4.
    """

    m: int
    n: int
    seed: int
    name: str

    @property
    def rule(self) -> str:
        largest = 4 ** int(_blocks(max(self.m, self.n))[1][0])
        return f"orthogonal {self.m}×{self.n} (hashed, blocks of {largest})"

    def entries(self, rows: hadamard.Indices, cols: hadamard.Indices, dtype: npt.DTypeLike = np.float32) -> Floats:
        order = max(self.m, self.n)
        starts, powers = _blocks(order)
        i, j = _indices(rows), _indices(cols)
        r, c = (
            hashing.permutation(self.seed, f"{self.name} {side}", order)[x] for side, x in (("rows", i), ("columns", j))
        )
        s, t = (
            hashing.signs(self.seed, f"{self.name} {side} signs", 0, order)[x]
            for side, x in (("rows", i), ("columns", j))
        )
        signs = hadamard.sylvester(r - starts[r], c - starts[c]) * s[:, None] * t[None, :]
        signs *= np.equal.outer(starts[r], starts[c])
        values: Floats = (signs / (np.int64(1) << powers[r])[:, None]).astype(dtype)
        return values


@dataclass(frozen=True, slots=True)
class Selection(Indexed):
    """At most one ±1 in each row and column, in hashed order; none is left out on the shorter side.  # (m, n)

    With `signed` the signs are hashed, else they are +1. Without `hashed` it is the partial identity.
    """

    m: int
    n: int
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
    def family(self) -> str:  # type: ignore[override]
        return "other" if self.hashed else "identity"

    def columns(self, rows: Integers) -> tuple[Integers, Integers]:
        """The column and the sign of each row; column -1 for a row of zeros."""
        order = max(self.m, self.n)
        column = hashing.permutation(self.seed, f"{self.name} order", order)[rows] if self.hashed else rows
        sign = np.ones(len(rows), np.int64)
        if self.signed:
            sign = hashing.signs(self.seed, f"{self.name} signs", 0, order)[rows].astype(np.int64)
        return np.where(column < self.n, column, -1), sign

    def entries(self, rows: hadamard.Indices, cols: hadamard.Indices, dtype: npt.DTypeLike = np.float32) -> Floats:
        column, sign = self.columns(_indices(rows))
        values: Floats = (np.equal.outer(column, _indices(cols)) * sign[:, None]).astype(dtype)
        return values


@dataclass(frozen=True, slots=True)
class Through(Indexed):
    """Selections after a matrix: S_k · … · S_1 · U, whose rows are rows of U.  # (m, n)"""

    matrix: Matrix
    steps: tuple[Selection, ...]

    @property
    def m(self) -> int:  # type: ignore[override]
        return self.steps[-1].m if self.steps else self.matrix.m

    @property
    def n(self) -> int:  # type: ignore[override]
        return self.matrix.n

    @property
    def rule(self) -> str:
        return " · ".join([*(step.rule for step in reversed(self.steps)), self.matrix.rule])

    def entries(self, rows: hadamard.Indices, cols: hadamard.Indices, dtype: npt.DTypeLike = np.float32) -> Floats:
        at = _indices(rows)
        signs = np.ones(len(at), np.int64)
        for step in reversed(self.steps):
            column, sign = step.columns(np.maximum(at, 0))
            signs = np.where((at < 0) | (column < 0), 0, signs * sign)
            at = np.where(at < 0, -1, column)
        values: Floats = self.matrix.entries(np.maximum(at, 0), cols, dtype) * signs[:, None].astype(dtype)
        return values


# ---------------------------------------------------------------------------------------------------------------------
# Sums and other forms


@dataclass(frozen=True, slots=True)
class Less(Indexed):
    """a - b.  # (m, n)"""

    a: Matrix
    b: Matrix

    @property
    def m(self) -> int:  # type: ignore[override]
        return self.a.m

    @property
    def n(self) -> int:  # type: ignore[override]
        return self.a.n

    @property
    def rule(self) -> str:
        return f"({self.a.rule} - {self.b.rule})"

    def entries(self, rows: hadamard.Indices, cols: hadamard.Indices, dtype: npt.DTypeLike = np.float32) -> Floats:
        exact: Floats = self.a.entries(rows, cols, np.float64) - self.b.entries(rows, cols, np.float64)
        return exact.astype(dtype)


@dataclass(frozen=True, slots=True)
class Turned(Indexed):
    """The transpose.  # (m, n) of an n×m matrix"""

    matrix: Matrix

    @property
    def m(self) -> int:  # type: ignore[override]
        return self.matrix.n

    @property
    def n(self) -> int:  # type: ignore[override]
        return self.matrix.m

    @property
    def rule(self) -> str:
        return f"transpose of {self.matrix.rule}"

    def entries(self, rows: hadamard.Indices, cols: hadamard.Indices, dtype: npt.DTypeLike = np.float32) -> Floats:
        return self.matrix.entries(cols, rows, dtype).T


@dataclass(frozen=True, slots=True)
class Padded(Indexed):
    """A matrix with rows of zeros behind it.  # (m, n)"""

    matrix: Matrix
    m: int

    @property
    def n(self) -> int:  # type: ignore[override]
        return self.matrix.n

    @property
    def rule(self) -> str:
        return f"{self.matrix.rule}, {self.m - self.matrix.m} rows of 0"

    def entries(self, rows: hadamard.Indices, cols: hadamard.Indices, dtype: npt.DTypeLike = np.float32) -> Floats:
        i = _indices(rows)
        values = self.matrix.entries(np.minimum(i, self.matrix.m - 1), cols, dtype)
        return np.where((i < self.matrix.m)[:, None], values, np.zeros((), dtype))


@dataclass(frozen=True, slots=True)
class Scattered(Indexed):
    """A square matrix on chosen rows, Eᵀ·A; other rows and columns are 0.  # (m, n)

    Args:
        matrix: A, k × k.
        where: E, k × m, unsigned: which rows.
        n: columns; those beyond A's are 0.
    """

    matrix: Matrix
    where: Selection
    n: int

    @property
    def m(self) -> int:  # type: ignore[override]
        return self.where.n

    @property
    def rule(self) -> str:
        return (
            self.matrix.rule if self.matrix.m == self.m else f"{self.matrix.rule} on {self.matrix.m} of {self.m} rows"
        )

    def entries(self, rows: hadamard.Indices, cols: hadamard.Indices, dtype: npt.DTypeLike = np.float32) -> Floats:
        i, j, order = _indices(rows), _indices(cols), self.matrix.m
        at = np.full(self.m, -1, np.int64)
        chosen, _ = self.where.columns(np.arange(order))
        at[chosen] = np.arange(order)
        inside = np.logical_and.outer(at[i] >= 0, j < order)
        values = self.matrix.entries(np.maximum(at[i], 0), np.minimum(j, order - 1), dtype)
        return np.where(inside, values, np.zeros((), dtype))


# ---------------------------------------------------------------------------------------------------------------------
# Mirrored pairs


@dataclass(frozen=True, slots=True)
class Mirrored(Indexed):
    """L(U) = [[U, -U], [-U, U]], or half of it where it reads [a; -a] itself and no ReLU of it.  # (2·m', 2·n')

    With `rest`, less a second matrix in both diagonal blocks.
    """

    matrix: Matrix
    half: bool = False
    rest: Matrix | None = None

    @property
    def m(self) -> int:  # type: ignore[override]
        return 2 * self.matrix.m

    @property
    def n(self) -> int:  # type: ignore[override]
        return 2 * self.matrix.n

    @property
    def rule(self) -> str:
        less = f" - [identity {self.rest.m}×{self.rest.n} twice]" if self.rest is not None else ""
        return f"{'half of ' if self.half else ''}L of {self.matrix.rule}{less}"

    def entries(self, rows: hadamard.Indices, cols: hadamard.Indices, dtype: npt.DTypeLike = np.float32) -> Floats:
        i, j = _indices(rows), _indices(cols)
        inner_rows, inner_cols = i % self.matrix.m, j % self.matrix.n
        same = np.equal.outer(i < self.matrix.m, j < self.matrix.n)
        values: npt.NDArray[Any] = self.matrix.entries(inner_rows, inner_cols, np.float64)
        values = np.where(same, values, -values)
        if self.rest is not None:
            values -= np.where(same, self.rest.entries(inner_rows, inner_cols, np.float64), 0)
        return (values / 2 if self.half else values).astype(dtype)


@dataclass(frozen=True, slots=True)
class Paired(Indexed):
    """[U; -U], which makes mirrored pairs of any signal.  # (2·m', n)"""

    matrix: Matrix

    @property
    def m(self) -> int:  # type: ignore[override]
        return 2 * self.matrix.m

    @property
    def n(self) -> int:  # type: ignore[override]
        return self.matrix.n

    @property
    def rule(self) -> str:
        return f"pairs of {self.matrix.rule} and its opposite"

    def entries(self, rows: hadamard.Indices, cols: hadamard.Indices, dtype: npt.DTypeLike = np.float32) -> Floats:
        i = _indices(rows)
        values = self.matrix.entries(i % self.matrix.m, cols, dtype)
        return np.where((i < self.matrix.m)[:, None], values, -values)


@dataclass(frozen=True, slots=True)
class Unpaired(Indexed):
    """[A, -A], which reads mirrored pairs behind a ReLU; half of it where there is none.  # (m, 2·n')"""

    matrix: Matrix
    half: bool = False

    @property
    def m(self) -> int:  # type: ignore[override]
        return self.matrix.m

    @property
    def n(self) -> int:  # type: ignore[override]
        return 2 * self.matrix.n

    @property
    def rule(self) -> str:
        return f"{'half of ' if self.half else ''}difference of pairs by {self.matrix.rule}"

    def entries(self, rows: hadamard.Indices, cols: hadamard.Indices, dtype: npt.DTypeLike = np.float32) -> Floats:
        j = _indices(cols)
        values: Floats = self.matrix.entries(rows, j % self.matrix.n, dtype)
        values = np.where((j < self.matrix.n)[None, :], values, -values)
        return values / values.dtype.type(2) if self.half else values
