"""The closed form of one tensor's values: what a scheme gives and an exporter writes.

A `Formula` knows its shape, fills an array with its values, and gives any block of them without making the others.
It knows no torch, no model and no scheme. A `Matrix` is a rule for an m×n map from n inputs to m outputs, defined by
its value at row i and column j; other formulas place it in a weight of more axes.

Rounding: a scale is computed in float64 with one square root and one division and rounded once to float32; float16
values are that float32 rounded to float16. A float64 array holds the unrounded float64 scale. Blocks equal the same
part of `fill` bit for bit, because both come from the same `write`.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from zero_convert.errors import UsageError

from .hadamard import Indices, index_array

Floats = npt.NDArray[np.floating[Any]]
Integers = npt.NDArray[np.int64]
SHORT = 64  # rows in a run that are made one by one
FAMILIES = ("hadamard", "identity", "other")  # of matrices; the first of those that a formula is made of is its own


class Formula(ABC):
    """The values of one tensor. Subclasses are frozen dataclasses that define `shape`, `rule` and `write`.

    Nothing is decided by the words of `rule`: what a formula is, its class and the properties here say.
    """

    places: ClassVar[bool] = False  # its values are those of its operands at other places, and zeros
    whole: ClassVar[bool] = False  # a block costs as much as all values, because each one depends on many others

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """The tensor's shape as torch lays it out."""

    @property
    @abstractmethod
    def rule(self) -> str:
        """The formula in words, for the plan: "partial identity 64×256 at tap (1, 1)"."""

    @property
    def kind(self) -> str:
        """The rule up to its first sizes, for people: "partial identity"."""
        return re.split(r" \d+×", self.rule, maxsplit=1)[0]

    @property
    def operands(self) -> tuple[Formula, ...]:
        """The formulas that this one is made of: those in its fields, in their order."""
        values = [getattr(self, name) for name in getattr(self, "__dataclass_fields__", ())]
        inside = (part for value in values for part in (value if isinstance(value, tuple) else (value,)))
        return tuple(part for part in inside if isinstance(part, Formula))

    @property
    def is_zero(self) -> bool:
        """Whether every value is 0, as far as the formula says by itself."""
        return self.places and all(operand.is_zero for operand in self.operands)

    @property
    def parts(self) -> tuple[Formula, ...]:
        """The formulas of its sections of rows, in their order; itself where it has no sections."""
        within = self.operands[0] if self.places else self
        return (self,) if within is self or within.parts[0] is within else within.parts

    @property
    def family(self) -> str:
        """ "hadamard", "identity" or "other": what kind of matrix it is made of."""
        return min((operand.family for operand in self.operands), key=FAMILIES.index, default="other")

    @abstractmethod
    def write(self, out: Floats, corner: tuple[int, ...]) -> None:
        """Set out to the block of its shape whose first value has these indices; any float type, any strides."""

    def fill(self, out: Floats) -> None:
        """Set all values.  # out: shape, float16, float32 or float64

        Raises:
            UsageError: `out` has another shape, or is no float array.
        """
        if out.shape != self.shape or out.dtype.type not in (np.float16, np.float32, np.float64):
            raise UsageError(
                "this array cannot hold the formula",
                where=self.rule,
                got=f"{out.dtype} {out.shape}",
                expected=f"float16, float32 or float64 {self.shape}",
            )
        self.write(out, (0,) * len(self.shape))

    def block(self, ranges: Sequence[tuple[int, int]], dtype: npt.DTypeLike = np.float32) -> Floats:
        """The values within (start, stop) of the first axes, bit-equal to that part of `fill`; later axes are whole.

        Raises:
            UsageError: the block is not within the tensor.
        """
        limits = [*ranges, *((0, size) for size in self.shape[len(ranges) :])]
        pairs = list(zip(limits, self.shape, strict=False))
        if len(limits) != len(self.shape) or not all(0 <= start <= stop <= size for (start, stop), size in pairs):
            raise UsageError(
                "this block does not exist",
                where=self.rule,
                got=", ".join(f"{start}:{stop}" for start, stop in ranges),
                expected=f"within {spell_shape(self.shape)}",
            )
        out: Floats = np.empty([stop - start for start, stop in limits], dtype=dtype)
        if out.size:
            self.write(out, tuple(start for start, _ in limits))
        return out

    def window(self, start: int, stop: int, dtype: npt.DTypeLike = np.float32) -> Floats:
        """Rows start … stop - 1 of the first axis, as `block` gives them; a scalar is given whole."""
        return self.block([(start, stop)] if self.shape else [], dtype)


class Matrix(Formula):
    """A map from n inputs to m outputs, which also gives any choice of rows and columns.

    Subclasses define `shape` from that of their parts (`SizedMatrix` has m and n as fields), `rule` and `values`; and
    `write` where there is a faster way to whole rows.
    """

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int]:
        """(m, n)"""

    @property
    def m(self) -> int:
        """Outputs, the rows."""
        return self.shape[0]

    @property
    def n(self) -> int:
        """Inputs, the columns."""
        return self.shape[1]

    @abstractmethod
    def values(self, i: Integers, j: Integers, dtype: np.dtype[Any]) -> Floats:
        """The values of this float type at rows i and columns j.  # (r, 1), (1, c) → what broadcasts to (r, c)"""

    def write(self, out: Floats, corner: tuple[int, ...]) -> None:
        self.write_columns(out, corner[0], np.arange(corner[1], corner[1] + out.shape[1]))

    def write_columns(self, out: Floats, row: int, cols: Integers) -> None:
        """Set out to the rows from `row` on, at any columns.  # (rows, len(cols))"""
        out[...] = self.values(np.arange(row, row + len(out))[:, None], cols[None], out.dtype)

    def entries(self, rows: Indices, cols: Indices, dtype: npt.DTypeLike = np.float32) -> Floats:
        """The values at rows × cols, any index sets.  # (len(rows), len(cols))

        Rows that come again are made once, and long runs of rows as `write` makes them.
        """
        i, j = index_array(rows), index_array(cols)
        out: Floats = np.empty((len(i), len(j)), dtype)
        if not out.size:
            return out
        distinct, place = np.unique(i, return_inverse=True)
        if len(distinct) < len(i):
            return self.entries(distinct, j, dtype)[place]
        begins = np.flatnonzero(np.diff(i, prepend=i[0] - 2) != 1)
        if len(begins) * SHORT > len(i):
            out[...] = self.values(i[:, None], j[None], out.dtype)
            return out
        together = bool((np.diff(j) == 1).all())
        for begin, end in zip(begins, [*begins[1:], len(i)], strict=True):
            if together:
                self.write(out[begin:end], (int(i[begin]), int(j[0])))
            else:
                self.write_columns(out[begin:end], int(i[begin]), j)
        return out


@dataclass(frozen=True, slots=True)
class SizedMatrix(Matrix):
    """A matrix that is given its sizes."""

    m: int = field()  # field(): without it the inherited property would be taken for a default
    n: int = field()

    @property
    def shape(self) -> tuple[int, int]:
        return (self.m, self.n)


@dataclass(frozen=True, slots=True)
class Constant(Formula):
    """One value everywhere."""

    shape: tuple[int, ...] = field()
    value: float = field()

    @property
    def rule(self) -> str:
        return f"constant {self.value:g}"

    @property
    def is_zero(self) -> bool:
        return self.value == 0

    def write(self, out: Floats, corner: tuple[int, ...]) -> None:
        out[...] = rounded(self.value, out.dtype)


# ---------------------------------------------------------------------------------------------------------------------


def rounded(value: float, dtype: np.dtype[Any]) -> Any:
    """The value as the array will hold it: float64 → float32 → float16, as far as asked."""
    return np.float64(value) if dtype == np.float64 else np.float32(value).astype(dtype)


def block_indices(shape: Sequence[int], block: Sequence[int], corner: Sequence[int]) -> Integers:
    """Row-major indices, in the whole array of this shape, of the entries of a block.  # (prod(block),)"""
    if not shape:
        return np.zeros(1, np.int64)
    axes = np.ix_(*(np.arange(start, start + size) for start, size in zip(corner, block, strict=True)))
    return np.ravel_multi_index(axes, tuple(shape)).reshape(-1)


def indicator(where: npt.NDArray[np.bool_], dtype: np.dtype[Any], value: float = 1.0) -> Floats:
    """The value, rounded, where a condition holds, and 0 elsewhere.  # of the condition's shape"""
    values: Floats = np.where(where, rounded(value, dtype), dtype.type(0))
    return values


def spell_shape(sizes: Sequence[int]) -> str:
    """ "64×3×7×7", or "scalar" without axes."""
    return "×".join(map(str, sizes)) or "scalar"
