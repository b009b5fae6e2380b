"""Matrices cut from Hadamard matrices: scaled weights, and codes that tell the items of a table apart."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from . import hadamard
from .formula import Floats, Integers, SizedMatrix, indicator, rounded


@dataclass(frozen=True, slots=True)
class Hadamard(SizedMatrix):
    """scale · H[:m, columns], H a normalised Hadamard matrix of an order ≥ max(m, n).  # (m, n)

    Args:
        scale: the magnitude of every value; None is 1/sqrt(order of H), which makes the columns orthonormal when m is
            the order of H.
        columns: "first", 0 … n - 1, or "spanning", n columns that tell all rows apart (`hadamard.columns`).
        order: "sylvester", H of order 2^k with k = ceil(log2 max(m, n)), or "exact", H of order max(m, n), where the
            Paley and Sylvester constructions have none, Sylvester's; `rule` says which it is.
    """

    scale: float | None = None
    columns: str = "first"
    order: str = "sylvester"
    family = "hadamard"

    def __post_init__(self) -> None:
        hadamard.columns(self.m, self.n, self.columns, self.order)  # raises on sizes and options that do not exist

    @property
    def matrix(self) -> hadamard.ExactHadamard:
        """The Hadamard matrix this one is cut from."""
        return hadamard.matrix_for(self.m, self.n, self.order)

    @property
    def magnitude(self) -> float:
        """The absolute value of every entry, in float64."""
        return 1 / math.sqrt(self.matrix.order) if self.scale is None else self.scale

    @property
    def rule(self) -> str:
        fallback = self.order == "exact" and self.matrix.order != max(self.m, self.n)
        note = f" (no Hadamard matrix of order {max(self.m, self.n)} is known here)" if fallback else ""
        chosen = ", spanning columns" if self.columns == "spanning" else ""
        return f"Hadamard {self.m}×{self.n} of {self.matrix.name}{chosen}{note}, times {_spell_scale(self.magnitude)}"

    def write_columns(self, out: Floats, row: int, cols: Integers) -> None:
        chosen = hadamard.columns(self.m, self.n, self.columns, self.order)[cols]
        self.matrix.write(out, row, chosen, rounded(self.magnitude, out.dtype))

    def values(self, i: Integers, j: Integers, dtype: np.dtype[Any]) -> Floats:
        cols = hadamard.columns(self.m, self.n, self.columns, self.order)[j[0]]
        values: Floats = self.matrix.entries(i[:, 0], cols) * rounded(self.magnitude, dtype)
        return values


def _spell_scale(scale: float) -> str:
    """ "1/sqrt(512)" where the scale is one over the root of an integer, else its shortest decimal."""
    root = round(1 / (scale * scale)) if scale > 0 else 0
    return f"1/sqrt({root})" if root > 1 and 1 / math.sqrt(root) == scale else f"{scale:g}"


@dataclass(frozen=True, slots=True)
class Codes(SizedMatrix):
    """Row i: the code of item i, ±1/sqrt(dim) throughout, unit norm; for an embedding table.  # (num, dim)

    Sylvester's matrix of order 2^k ≥ max(num, dim) on spanning columns: all codes differ as soon as
    dim ≥ ceil(log2 num); with fewer columns only 2^dim codes exist. The code of item 0 is constant; `first` = 1 begins
    after it.
    """

    first: int = 0
    family = "hadamard"

    @property
    def matrix(self) -> Hadamard:
        return Hadamard(self.first + self.m, self.n, 1 / math.sqrt(self.n), columns="spanning")

    @property
    def rule(self) -> str:
        begin = f", from row {self.first}" if self.first else ""
        return f"Hadamard codes {self.m}×{self.n} of {self.matrix.matrix.name}{begin}, unit norm"

    def write_columns(self, out: Floats, row: int, cols: Integers) -> None:
        self.matrix.write_columns(out, self.first + row, cols)

    def values(self, i: Integers, j: Integers, dtype: np.dtype[Any]) -> Floats:
        return self.matrix.values(i + self.first, j, dtype)


@dataclass(frozen=True, slots=True)
class BinaryCodes(SizedMatrix):
    """Row i: the code of item i in zeros and ones, (1 + H[i, columns]) / 2.  # (num, dim)

    H is Sylvester's matrix and the columns span, so that all codes differ as soon as dim ≥ ceil(log2 num). No row is 0
    (column 0 is all ones), and every other column has a one in half of the rows of H.
    """

    @property
    def signs(self) -> Hadamard:
        """H[:, columns]."""
        return Hadamard(self.m, self.n, 1.0, columns="spanning")

    @property
    def rule(self) -> str:
        return f"binary codes {self.m}×{self.n}, (1 + Hadamard) / 2"

    def write_columns(self, out: Floats, row: int, cols: Integers) -> None:
        self.signs.write_columns(out, row, cols)
        np.maximum(out, 0, out=out)

    def values(self, i: Integers, j: Integers, dtype: np.dtype[Any]) -> Floats:
        return indicator(self.signs.values(i, j, dtype) > 0, dtype)
