"""The closed form of one tensor's values: what a scheme gives and an exporter writes.

A `Formula` knows its shape, fills an array with its values, and gives any window of rows without making the others.
It knows no torch, no model and no scheme. Matrices (`PartialIdentity`, `Hadamard`, `Codes`) are rules for an m×n map
from n inputs to m outputs; `Kernel` and `Patch` place a matrix in a convolution's weight; `Stack` piles formulas up.

Rounding: a scale is computed in float64 with one square root and one division and rounded once to float32; float16
values are that float32 rounded to float16. A float64 array holds the unrounded float64 scale. Windows equal the same
rows of `fill` bit for bit, because both come from the same `write`.
"""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from zero_convert.errors import UsageError

from . import hadamard

Floats = npt.NDArray[np.floating[Any]]


class Formula(ABC):
    """The values of one tensor. Subclasses are frozen dataclasses that define `shape`, `rule` and `write`.

    Nothing is decided by the words of `rule`: what a formula is, its class and the properties here say.
    """

    places: ClassVar[bool] = False  # its values are those of its operands at other places, and zeros
    family: ClassVar[str] = "other"  # or "identity", or "hadamard"

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

    def leaves(self) -> Iterator[Formula]:
        """The innermost formulas that this one is made of, in their order; itself where it is made of no others."""
        for operand in self.operands:
            yield from operand.leaves()
        if not self.operands:
            yield self

    @abstractmethod
    def write(self, out: Floats, start: int) -> None:
        """Set out to the rows start … start + len(out) - 1 of the first axis; any float type, any strides."""

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
        self.write(out, 0)

    def window(self, start: int, stop: int, dtype: npt.DTypeLike = np.float32) -> Floats:
        """Rows start … stop - 1 of the first axis, bit-equal to the same rows of `fill`; a scalar is given whole.

        Raises:
            UsageError: the rows do not exist.
        """
        if not self.shape:
            start, stop = 0, 0
        elif not 0 <= start <= stop <= self.shape[0]:
            raise UsageError(
                "these rows do not exist", where=self.rule, got=f"{start}:{stop}", expected=f"within 0:{self.shape[0]}"
            )
        out: Floats = np.empty((stop - start, *self.shape[1:]) if self.shape else (), dtype=dtype)
        self.write(out, start)
        return out


def rounded(value: float, dtype: np.dtype[Any]) -> Any:
    """The value as the array will hold it: float64 → float32 → float16, as far as asked."""
    return np.float64(value) if dtype == np.float64 else np.float32(value).astype(dtype)


def spell_shape(sizes: Sequence[int]) -> str:
    return "×".join(map(str, sizes)) or "scalar"


def _spell_scale(scale: float) -> str:
    """ "1/sqrt(512)" where the scale is one over the root of an integer, else its shortest decimal."""
    root = round(1 / (scale * scale)) if scale > 0 else 0
    return f"1/sqrt({root})" if root > 1 and 1 / math.sqrt(root) == scale else f"{scale:g}"


@dataclass(frozen=True, slots=True)
class Constant(Formula):
    """One value everywhere."""

    shape: tuple[int, ...] = field()  # field(): without it the inherited property would be taken for a default
    value: float = field()

    @property
    def rule(self) -> str:
        return f"constant {self.value:g}"

    @property
    def is_zero(self) -> bool:
        return self.value == 0

    def write(self, out: Floats, start: int) -> None:
        out[...] = rounded(self.value, out.dtype)


# ---------------------------------------------------------------------------------------------------------------------
# Matrices: m outputs × n inputs


class Matrix(Formula):
    """A formula with two axes that also gives any choice of rows and columns."""

    m: int
    n: int

    @property
    def shape(self) -> tuple[int, int]:
        return (self.m, self.n)

    def write(self, out: Floats, start: int) -> None:
        out[...] = self.entries(range(start, start + len(out)), range(self.n), out.dtype)

    @abstractmethod
    def entries(self, rows: hadamard.Indices, cols: hadamard.Indices, dtype: npt.DTypeLike = np.float32) -> Floats:
        """The values at rows × cols, any index sets.  # (len(rows), len(cols))"""


@dataclass(frozen=True, slots=True)
class PartialIdentity(Matrix):
    """Ones at [i, i], zeros elsewhere.  # (m, n)"""

    m: int
    n: int

    family = "identity"

    @property
    def rule(self) -> str:
        return f"{'identity' if self.m == self.n else 'partial identity'} {self.m}×{self.n}"

    def write(self, out: Floats, start: int) -> None:
        out[...] = 0
        diagonal = np.arange(start, max(start, min(start + len(out), self.n)))
        out[diagonal - start, diagonal] = 1

    def entries(self, rows: hadamard.Indices, cols: hadamard.Indices, dtype: npt.DTypeLike = np.float32) -> Floats:
        values: Floats = np.equal.outer(np.asarray(rows), np.asarray(cols)).astype(dtype)
        return values


@dataclass(frozen=True, slots=True)
class Hadamard(Matrix):
    """scale · H[:m, columns], H a normalised Hadamard matrix of an order ≥ max(m, n).  # (m, n)

    Args:
        scale: the magnitude of every value; None is 1/sqrt(order of H), which makes the columns orthonormal when m is
            the order of H.
        columns: "first", 0 … n - 1, or "spanning", n columns that tell all rows apart (`hadamard.columns`).
        order: "sylvester", H of order 2^k with k = ceil(log2 max(m, n)), or "exact", H of order max(m, n), where the
            Paley and Sylvester constructions have none, Sylvester's; `rule` says which it is.
    """

    m: int
    n: int
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

    def write(self, out: Floats, start: int) -> None:
        cols = hadamard.columns(self.m, self.n, self.columns, self.order)
        self.matrix.write(out, start, cols, rounded(self.magnitude, out.dtype))

    def entries(self, rows: hadamard.Indices, cols: hadamard.Indices, dtype: npt.DTypeLike = np.float32) -> Floats:
        chosen = hadamard.columns(self.m, self.n, self.columns, self.order)[np.asarray(cols)]
        values: Floats = self.matrix.entries(rows, chosen) * rounded(self.magnitude, np.dtype(dtype))
        return values


@dataclass(frozen=True, slots=True)
class Codes(Matrix):
    """Row i: the code of item i, ±1/sqrt(dim) throughout, unit norm; for an embedding table.  # (num, dim)

    Sylvester's matrix of order 2^k ≥ max(num, dim) on spanning columns: all codes differ as soon as
    dim ≥ ceil(log2 num); with fewer columns only 2^dim codes exist. The code of item 0 is constant; `first` = 1 begins
    after it.
    """

    m: int
    n: int
    first: int = 0

    family = "hadamard"

    @property
    def matrix(self) -> Hadamard:
        return Hadamard(self.first + self.m, self.n, 1 / math.sqrt(self.n), columns="spanning")

    @property
    def rule(self) -> str:
        begin = f", from row {self.first}" if self.first else ""
        return f"Hadamard codes {self.m}×{self.n} of {self.matrix.matrix.name}{begin}, unit norm"

    def write(self, out: Floats, start: int) -> None:
        self.matrix.write(out, self.first + start)

    def entries(self, rows: hadamard.Indices, cols: hadamard.Indices, dtype: npt.DTypeLike = np.float32) -> Floats:
        return self.matrix.entries(np.asarray(rows) + self.first, cols, dtype)


# ---------------------------------------------------------------------------------------------------------------------
# Weights of convolutions, and piles


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
        groups = f" in each of {self.groups} groups" if self.groups > 1 else ""
        return f"{self.matrix.rule}{tap}{groups}{', adjoint' if self.transposed else ''}"

    def write(self, out: Floats, start: int) -> None:
        if math.prod(self.kernel) > 1:
            out[...] = 0
        at_tap: tuple[Any, ...] = (slice(None), slice(None), *self.at)
        target: Floats = out[at_tap]
        if self.groups == 1 and not self.transposed:
            self.matrix.write(target, start)
            return
        m, n = self.matrix.shape
        rows = np.arange(start, start + len(out))
        if self.transposed:
            target[...] = self.matrix.entries(range(m), rows % n, out.dtype).T
        else:
            target[...] = self.matrix.window(0, m, out.dtype)[rows % m]


@dataclass(frozen=True, slots=True)
class Patch(Formula):
    """A matrix on flattened patches, m × (n·prod(kernel)), as a patchify convolution's weight.  # (m, n, *kernel)"""

    matrix: Matrix
    kernel: tuple[int, ...]

    places = True

    def __post_init__(self) -> None:
        if self.matrix.n % math.prod(self.kernel):
            raise UsageError(
                "the matrix does not fit the patch",
                where=self.matrix.rule,
                got=f"{self.matrix.n} columns",
                expected=f"a multiple of {math.prod(self.kernel)}",
            )

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.matrix.m, self.matrix.n // math.prod(self.kernel), *self.kernel)

    @property
    def rule(self) -> str:
        return f"{self.matrix.rule} on flattened patches {spell_shape(self.shape[1:])}"

    def write(self, out: Floats, start: int) -> None:
        out[...] = self.matrix.window(start, start + len(out), out.dtype).reshape(out.shape)


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

    def write(self, out: Floats, start: int) -> None:
        if len(self.shape) == 1:
            out[...] = self.matrix.window(0, 1, out.dtype)[0, start : start + len(out)]
            return
        each = math.prod(self.shape[1:-1])
        out[...] = self.matrix.window(start * each, (start + len(out)) * each, out.dtype).reshape(out.shape)


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

    def write(self, out: Floats, start: int) -> None:
        stop, first = start + len(out), 0
        for part in self.parts:
            low, high = max(start, first), min(stop, first + part.shape[0])
            if low < high:
                part.write(out[low - start : high - start], low - first)
            first += part.shape[0]
