"""Matrices placed in larger weights: stacks, sections, slices, more axes; and weights with outputs set to 0."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from zero_convert.errors import UsageError

from .formula import Floats, Formula, Integers, Matrix, block_indices, spell_shape

# ---------------------------------------------------------------------------------------------------------------------
# One after the other


def _overlaps(lengths: Sequence[int], start: int, count: int) -> Iterator[tuple[int, slice, int]]:
    """The parts, of these lengths, that a window meets: (which part, its rows in the window, its first row there)."""
    first = 0
    for index, length in enumerate(lengths):
        low, high = max(start, first), min(start + count, first + length)
        if low < high:
            yield index, slice(low - start, high - start), low - first
        first += length


@dataclass(frozen=True, slots=True)
class Stack(Formula):
    """Formulas one after the other along the first axis."""

    parts: tuple[Formula, ...] = field()
    places = True

    def __post_init__(self) -> None:
        if not self.parts or any(p.shape[1:] != self.parts[0].shape[1:] or not p.shape for p in self.parts):
            raise UsageError(
                "these parts do not stack",
                got=", ".join(str(p.shape) for p in self.parts),
                expected="equal shapes but for the first axis",
            )

    @property
    def shape(self) -> tuple[int, ...]:
        return (sum(part.shape[0] for part in self.parts), *self.parts[0].shape[1:])

    @property
    def rule(self) -> str:
        return "stack of " + "; ".join(part.rule for part in self.parts)

    def write(self, out: Floats, corner: tuple[int, ...]) -> None:
        for index, rows, first in _overlaps([part.shape[0] for part in self.parts], corner[0], len(out)):
            self.parts[index].write(out[rows], (first, *corner[1:]))


@dataclass(frozen=True, slots=True)
class Sections(Matrix):
    """Rows that belong to several matrices: queries, keys and values; the gates of a recurrent layer.  # (m, n)

    Args:
        matrices: all with the same number of columns.
        runs: (which matrix, how many of its next rows), in the order of the weight's rows.
    """

    matrices: tuple[Matrix, ...]
    runs: tuple[tuple[int, int], ...]
    places = True

    def __post_init__(self) -> None:
        used = [sum(count for which, count in self.runs if which == k) for k in range(len(self.matrices))]
        if used != [matrix.m for matrix in self.matrices] or len({matrix.n for matrix in self.matrices}) != 1:
            raise UsageError(
                "these sections do not make a matrix",
                got=", ".join(f"{matrix.m}×{matrix.n}" for matrix in self.matrices),
                expected=f"equal columns, and the rows {used}",
            )

    @property
    def shape(self) -> tuple[int, int]:
        return (sum(matrix.m for matrix in self.matrices), self.matrices[0].n)

    @property
    def parts(self) -> tuple[Formula, ...]:
        return self.matrices

    @property
    def rule(self) -> str:
        turns = len(self.runs) // len(self.matrices)
        return f"stack {f'in {turns} turns ' if turns > 1 else ''}of " + "; ".join(m.rule for m in self.matrices)

    def write(self, out: Floats, corner: tuple[int, ...]) -> None:
        _, inner = self._sources()
        for run, rows, _ in _overlaps([count for _, count in self.runs], corner[0], len(out)):
            self.matrices[self.runs[run][0]].write(out[rows], (int(inner[corner[0] + rows.start]), corner[1]))

    def values(self, i: Integers, j: Integers, dtype: np.dtype[Any]) -> Floats:
        which, inner = self._sources()
        values: Floats = np.empty((len(i), j.shape[1]), dtype)
        for k, matrix in enumerate(self.matrices):
            here = which[i[:, 0]] == k
            values[here] = matrix.values(inner[i[here]], j, dtype)
        return values

    def _sources(self) -> tuple[Integers, Integers]:
        """For each row, which matrix it comes from, and which of its rows it is.  # (m,), (m,)"""
        which = np.repeat(*np.array(self.runs, np.int64).T)
        inner = np.empty_like(which)
        for k, matrix in enumerate(self.matrices):
            inner[which == k] = np.arange(matrix.m)
        return which, inner


# ---------------------------------------------------------------------------------------------------------------------
# More axes


@dataclass(frozen=True, slots=True)
class Rows(Formula):
    """A matrix whose rows are spread over all axes but the last: tokens, tables.  # (…, n) with … of product m"""

    matrix: Matrix
    shape: tuple[int, ...] = field()
    places = True

    def __post_init__(self) -> None:
        if (math.prod(self.shape[:-1]), self.shape[-1]) != self.matrix.shape:
            raise UsageError(
                "the matrix does not have these rows",
                where=self.matrix.rule,
                got=f"{self.matrix.m} rows of {self.matrix.n}",
                expected=spell_shape(self.shape),
            )

    @property
    def rule(self) -> str:
        return f"rows of {self.matrix.rule}"

    def write(self, out: Floats, corner: tuple[int, ...]) -> None:
        rows = block_indices(self.shape[:-1], out.shape[:-1], corner[:-1])
        cols = range(corner[-1], corner[-1] + out.shape[-1])
        out[...] = self.matrix.entries(rows, cols, out.dtype).reshape(out.shape)


@dataclass(frozen=True, slots=True)
class Repeated(Formula):
    """The same weight for every index of leading axes, as in a stack of experts.  # (*lead, *shape of the weight)

    The weight's own axes may be flattened into one (`flat`).
    """

    weight: Formula
    lead: tuple[int, ...]
    flat: bool = False
    places = True

    @property
    def shape(self) -> tuple[int, ...]:
        inner = self.weight.shape
        return (*self.lead, math.prod(inner)) if self.flat else (*self.lead, *inner)

    @property
    def rule(self) -> str:
        return f"{self.weight.rule}, in each of {math.prod(self.lead)} slices"

    def write(self, out: Floats, corner: tuple[int, ...]) -> None:
        axes = len(self.lead)
        ranges = [(start, start + size) for start, size in zip(corner[axes:], out.shape[axes:], strict=True)]
        if not self.flat:
            out[...] = self.weight.block(ranges, out.dtype)
            return
        (start, stop), inner = ranges[0], math.prod(self.weight.shape[1:])
        first = start // inner
        rows = self.weight.window(first, -(-stop // inner), out.dtype).reshape(-1)
        out[...] = rows[start - first * inner : stop - first * inner]


@dataclass(frozen=True, slots=True)
class EinsumWeight(Formula):
    """A matrix whose outputs and inputs are several axes each, in any order, as in einsum("bi,ihd->bhd", x, weight).

    Args:
        matrix: its rows count the axes that are "out", the last one fastest, its columns those that are "in".
        shape: of the weight.
        axes: "out", "in" or "stack" for each of them; along the last kind all slices are equal.
    """

    matrix: Matrix
    shape: tuple[int, ...] = field()
    axes: tuple[str, ...] = field()
    places = True

    @property
    def rule(self) -> str:
        slices = math.prod(size for size, axis in zip(self.shape, self.axes, strict=True) if axis == "stack")
        note = f", in each of {slices} slices" if "stack" in self.axes else ""
        return f"{self.matrix.rule} on the axes ({', '.join(self.axes)}){note}"

    def write(self, out: Floats, corner: tuple[int, ...]) -> None:
        order = [k for kind in ("out", "in") for k, axis in enumerate(self.axes) if axis == kind]
        rows, cols = (self._along(kind, out.shape, corner) for kind in ("out", "in"))
        values = self.matrix.entries(rows, cols, out.dtype)
        values = values.reshape([out.shape[k] for k in order]).transpose([order.index(k) for k in sorted(order)])
        out[...] = values.reshape([1 if axis == "stack" else out.shape[k] for k, axis in enumerate(self.axes)])

    def _along(self, kind: str, block: tuple[int, ...], corner: tuple[int, ...]) -> Integers:
        """The rows ("out") or columns ("in") of the matrix that a block needs."""
        sizes, inside, first = (
            [size for size, axis in zip(all_sizes, self.axes, strict=True) if axis == kind]
            for all_sizes in (self.shape, block, corner)
        )
        return block_indices(sizes, inside, first)


@dataclass(frozen=True, slots=True)
class BilinearDiagonal(Formula):
    """A bilinear layer's weight: output k is the product of coordinate k of one input and of the other.  # (m, p, q)

    weight[k, i, j] = 1 where i = k mod p and j = (k + k // p) mod q, else 0.
    """

    shape: tuple[int, ...] = field()

    @property
    def rule(self) -> str:
        return f"products of coordinates {spell_shape(self.shape)}"

    def write(self, out: Floats, corner: tuple[int, ...]) -> None:
        _, p, q = self.shape
        k = np.arange(corner[0], corner[0] + len(out))
        i, j = k % p - corner[1], (k + k // p) % q - corner[2]
        inside = (i >= 0) & (i < out.shape[1]) & (j >= 0) & (j < out.shape[2])
        out[...] = 0
        out[np.flatnonzero(inside), i[inside], j[inside]] = 1


# ---------------------------------------------------------------------------------------------------------------------
# Parts set to 0


@dataclass(frozen=True, slots=True)
class Blanked(Matrix):
    """A matrix with one row set to 0: the padding item of an embedding.  # (m, n)"""

    matrix: Matrix
    row: int

    @property
    def shape(self) -> tuple[int, int]:
        return self.matrix.shape

    @property
    def rule(self) -> str:
        return f"{self.matrix.rule}, row {self.row} is 0"

    def write_columns(self, out: Floats, row: int, cols: Integers) -> None:
        self.matrix.write_columns(out, row, cols)
        if 0 <= self.row - row < len(out):
            out[self.row - row] = 0

    def values(self, i: Integers, j: Integers, dtype: np.dtype[Any]) -> Floats:
        return np.where(i == self.row, dtype.type(0), self.matrix.values(i, j, dtype))


@dataclass(frozen=True, slots=True)
class Masked(Formula):
    """A weight with some of its outputs set to 0: the values of an attention, one of two factors.

    Args:
        runs: (first, end) of the outputs that are 0, along `axis`: 0, or 1 for a weight stored as (in, out).
    """

    weight: Formula
    runs: tuple[tuple[int, int], ...]
    axis: int = 0

    @property
    def shape(self) -> tuple[int, ...]:
        return self.weight.shape

    @property
    def rule(self) -> str:
        where = ", ".join(f"{first}…{end - 1}" for first, end in self.runs)
        return f"{self.weight.rule}, 0 for the outputs {where}"

    def write(self, out: Floats, corner: tuple[int, ...]) -> None:
        self.weight.write(out, corner)
        outputs, start = np.moveaxis(out, self.axis, 0), corner[self.axis]
        for first, end in self.runs:
            outputs[max(0, first - start) : max(0, end - start)] = 0
