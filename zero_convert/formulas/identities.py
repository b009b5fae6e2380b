"""Identities of any size, and averages: the partial identity, those that go on where it ends, means and zeros.

All values are typed constants or one IEEE division.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from .formula import Floats, Integers, SizedMatrix, indicator, rounded


@dataclass(frozen=True, slots=True)
class PartialIdentity(SizedMatrix):
    """Ones at [i, i], zeros elsewhere.  # (m, n)"""

    family = "identity"

    @property
    def rule(self) -> str:
        return f"{'identity' if self.m == self.n else 'partial identity'} {self.m}×{self.n}"

    def write(self, out: Floats, corner: tuple[int, ...]) -> None:
        (row, column), (rows, columns) = corner, out.shape
        out[...] = 0
        first = max(row, column)
        diagonal = np.arange(first, max(first, min(row + rows, column + columns)))
        out[diagonal - row, diagonal - column] = 1

    def values(self, i: Integers, j: Integers, dtype: np.dtype[Any]) -> Floats:
        return indicator(i == j, dtype)


@dataclass(frozen=True, slots=True)
class CyclicIdentity(SizedMatrix):
    """`value` where i ≡ j (mod n), zeros elsewhere: IDI of value.  # (m, n)

    Every row has one entry. The rows go round: row n is row 0 again. With `distinct`, row i = a·n + b has the value at
    b and at (b + a) mod n: the identity, then rows of two entries, which differ as long as m ≤ n·(n + 1) / 2.
    """

    value: float = 1.0
    distinct: bool = False
    family = "identity"

    @property
    def rule(self) -> str:
        times = "" if self.value == 1 else f", times {self.value:.6g}"
        if self.distinct:
            return f"identity {self.m}×{self.n}, wrapped around{times}"
        return f"cyclic identity {self.m}×{self.n}{times}"

    def columns(self, rows: Integers) -> tuple[Integers, ...]:
        """The columns of the entries of each row."""
        first = rows % self.n
        return (first, (first + rows // self.n) % self.n) if self.distinct else (first,)

    def write(self, out: Floats, corner: tuple[int, ...]) -> None:
        rows = np.arange(corner[0], corner[0] + len(out))
        out[...] = 0
        for column in self.columns(rows):
            _put(out, column - corner[1], rounded(self.value, out.dtype))

    def values(self, i: Integers, j: Integers, dtype: np.dtype[Any]) -> Floats:
        return indicator(np.any([column == j for column in self.columns(i)], axis=0), dtype, self.value)


@dataclass(frozen=True, slots=True)
class OpposedIdentity(SizedMatrix):
    """The cyclic identity and its opposite side by side, times `value`: IDIZ. Every row sums to exactly 0.  # (m, n)

    Row i has +value at i mod n and -value at (i + 1) mod n; where m < n the opposite stands in the columns from m on,
    at m + i mod (n - m). With one column nothing is left: 0.
    """

    value: float = 1.0
    family = "identity"

    @property
    def rule(self) -> str:
        return f"identity and its opposite {self.m}×{self.n}, times {self.value:.6g}"

    def opposite(self, rows: Integers) -> Integers:
        """The column of -value in each row."""
        return self.m + rows % (self.n - self.m) if self.m < self.n else (rows + 1) % self.n

    def write(self, out: Floats, corner: tuple[int, ...]) -> None:
        rows = np.arange(corner[0], corner[0] + len(out))
        value = rounded(self.value, out.dtype)
        out[...] = 0
        if self.n > 1:
            _put(out, rows % self.n - corner[1], value)
            _put(out, self.opposite(rows) - corner[1], -value)

    def values(self, i: Integers, j: Integers, dtype: np.dtype[Any]) -> Floats:
        plus, minus = i % self.n == j, self.opposite(i) == j
        return indicator(plus, dtype, self.value) - indicator(minus, dtype, self.value)


@dataclass(frozen=True, slots=True)
class Average(SizedMatrix):
    """1/n everywhere: every output is the mean of all inputs.  # (m, n)"""

    @property
    def rule(self) -> str:
        return f"mean of {self.n} inputs, {self.m}×{self.n} of 1/{self.n}"

    def values(self, i: Integers, j: Integers, dtype: np.dtype[Any]) -> Floats:
        return np.full((1, 1), rounded(1 / self.n, dtype))


@dataclass(frozen=True, slots=True)
class Zeros(SizedMatrix):
    """Zero everywhere.  # (m, n)"""

    @property
    def rule(self) -> str:
        return "constant 0"

    @property
    def is_zero(self) -> bool:
        return True

    def values(self, i: Integers, j: Integers, dtype: np.dtype[Any]) -> Floats:
        return np.zeros((1, 1), dtype)


# ---------------------------------------------------------------------------------------------------------------------


def _put(out: Floats, columns: Integers, value: Any) -> None:
    """One value in each row, where its column is one of the block's."""
    inside = np.flatnonzero((columns >= 0) & (columns < out.shape[1]))
    out[inside, columns[inside]] = value
