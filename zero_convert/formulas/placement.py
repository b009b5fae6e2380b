"""Formulas for weights that are more than one matrix at one place: rows with several meanings, stacks, codes of zeros
and ones, and the tensors from which a parametrized layer computes its weight.

Built on `formulas/formula.py` and, like it, knows no torch, no model and no scheme. All values are typed constants, or
one IEEE square root and one division.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import accumulate

import numpy as np
import numpy.typing as npt

from zero_convert.errors import UsageError

from . import hadamard
from .formula import Floats, Formula, Matrix, rounded, spell_shape

# ---------------------------------------------------------------------------------------------------------------------
# Matrices


@dataclass(frozen=True, slots=True)
class Zeros(Matrix):
    """Zero everywhere.  # (m, n)"""

    m: int
    n: int

    @property
    def rule(self) -> str:
        return "constant 0"

    @property
    def is_zero(self) -> bool:
        return True

    def write(self, out: Floats, start: int) -> None:
        out[...] = 0

    def entries(self, rows: hadamard.Indices, cols: hadamard.Indices, dtype: npt.DTypeLike = np.float32) -> Floats:
        return np.zeros((len(rows), len(cols)), dtype)


@dataclass(frozen=True, slots=True)
class Wrapped(Matrix):
    """Row i = a·n + b has ones at b and (b + a) mod n: the identity, then rows of two ones. No row is 0.  # (m, n)

    The rows differ as long as m ≤ n·(n + 1) / 2.
    """

    m: int
    n: int

    family = "identity"

    @property
    def rule(self) -> str:
        return f"identity {self.m}×{self.n}, wrapped around"

    def entries(self, rows: hadamard.Indices, cols: hadamard.Indices, dtype: npt.DTypeLike = np.float32) -> Floats:
        i, j = np.asarray(rows)[:, None], np.asarray(cols)[None, :]
        first = i % self.n
        values: Floats = ((j == first) | (j == (first + i // self.n) % self.n)).astype(dtype)
        return values


@dataclass(frozen=True, slots=True)
class BinaryCodes(Matrix):
    """Row i: the code of item i in zeros and ones, (1 + H[i, columns]) / 2.  # (num, dim)

    H is Sylvester's matrix and the columns span, so that all codes differ as soon as dim ≥ ceil(log2 num). No row is 0
    (column 0 is all ones), and every other column has a one in half of the rows of H.
    """

    m: int
    n: int

    @property
    def rule(self) -> str:
        return f"binary codes {self.m}×{self.n}, (1 + Hadamard) / 2"

    def entries(self, rows: hadamard.Indices, cols: hadamard.Indices, dtype: npt.DTypeLike = np.float32) -> Floats:
        chosen = hadamard.columns(self.m, self.n, "spanning", "sylvester")[np.asarray(cols)]
        values: Floats = (hadamard.sylvester(rows, chosen) > 0).astype(dtype)
        return values


@dataclass(frozen=True, slots=True)
class Blanked(Matrix):
    """A matrix with one row set to 0: the padding item of an embedding.  # (m, n)"""

    matrix: Matrix
    row: int

    @property
    def m(self) -> int:  # type: ignore[override]
        return self.matrix.m

    @property
    def n(self) -> int:  # type: ignore[override]
        return self.matrix.n

    @property
    def rule(self) -> str:
        return f"{self.matrix.rule}, row {self.row} is 0"

    def write(self, out: Floats, start: int) -> None:
        self.matrix.write(out, start)
        if start <= self.row < start + len(out):
            out[self.row - start] = 0

    def entries(self, rows: hadamard.Indices, cols: hadamard.Indices, dtype: npt.DTypeLike = np.float32) -> Floats:
        values = self.matrix.entries(rows, cols, dtype)
        values[np.asarray(rows) == self.row] = 0
        return values


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
    def parts(self) -> tuple[Formula, ...]:
        return self.matrices

    @property
    def m(self) -> int:  # type: ignore[override]
        return sum(matrix.m for matrix in self.matrices)

    @property
    def n(self) -> int:  # type: ignore[override]
        return self.matrices[0].n

    @property
    def rule(self) -> str:
        turns = len(self.runs) // len(self.matrices)
        return f"stack {f'in {turns} turns ' if turns > 1 else ''}of " + "; ".join(m.rule for m in self.matrices)

    def write(self, out: Floats, start: int) -> None:
        stop, first = start + len(out), 0
        done = [0] * len(self.matrices)
        for which, count in self.runs:
            low, high = max(start, first), min(stop, first + count)
            if low < high:
                self.matrices[which].write(out[low - start : high - start], done[which] + low - first)
            first += count
            done[which] += count

    def entries(self, rows: hadamard.Indices, cols: hadamard.Indices, dtype: npt.DTypeLike = np.float32) -> Floats:
        rows = np.asarray(rows)
        ends = list(accumulate(count for _, count in self.runs))
        done = [0] * len(self.matrices)
        values: Floats = np.empty((len(rows), len(cols)), dtype)
        for (which, count), end in zip(self.runs, ends, strict=True):
            here = np.flatnonzero((rows >= end - count) & (rows < end))
            if len(here):
                inside = rows[here] - (end - count) + done[which]
                values[here] = self.matrices[which].entries(inside, cols, dtype)
            done[which] += count
        return values


# ---------------------------------------------------------------------------------------------------------------------
# Weights


@dataclass(frozen=True, slots=True)
class Products(Formula):
    """A bilinear layer's weight: output k is the product of coordinate k of one input and of the other.  # (m, p, q)

    weight[k, i, j] = 1 where i = k mod p and j = (k + k // p) mod q, else 0.
    """

    shape: tuple[int, ...] = field()

    @property
    def rule(self) -> str:
        return f"products of coordinates {spell_shape(self.shape)}"

    def write(self, out: Floats, start: int) -> None:
        _, p, q = self.shape
        k = np.arange(start, start + len(out))
        out[...] = 0
        out[k - start, k % p, (k + k // p) % q] = 1


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

    def write(self, out: Floats, start: int) -> None:
        inner = self.weight.shape
        one = self.weight.window(0, inner[0], out.dtype)
        out[...] = one.reshape(-1) if self.flat else one


@dataclass(frozen=True, slots=True)
class Spread(Formula):
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
        slices = math.prod(size for size, what in zip(self.shape, self.axes, strict=True) if what == "stack")
        told = f"{self.matrix.rule} on the axes ({', '.join(self.axes)})"
        return f"{told}, in each of {slices} slices" if "stack" in self.axes else told

    def write(self, out: Floats, start: int) -> None:
        order = [i for what in ("out", "in") for i, own in enumerate(self.axes) if own == what]
        values = self.matrix.entries(self._along("out", start, len(out)), self._along("in", start, len(out)), out.dtype)
        values = values.reshape([out.shape[i] for i in order]).transpose([order.index(i) for i in sorted(order)])
        out[...] = values.reshape([1 if own == "stack" else out.shape[i] for i, own in enumerate(self.axes)])

    def _along(self, what: str, start: int, count: int) -> npt.NDArray[np.int64]:
        sizes = [size for size, own in zip(self.shape, self.axes, strict=True) if own == what]
        if self.axes[0] != what:
            return np.arange(math.prod(sizes))
        inner = math.prod(sizes[1:])
        return np.arange(start * inner, (start + count) * inner)


@dataclass(frozen=True, slots=True)
class Silenced(Formula):
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

    def write(self, out: Floats, start: int) -> None:
        self.weight.write(out, start)
        for first, end in self.runs:
            if self.axis:
                out[:, first:end] = 0
            else:
                out[max(0, first - start) : max(0, end - start)] = 0


# ---------------------------------------------------------------------------------------------------------------------
# Parametrized weights


@dataclass(frozen=True, slots=True)
class Direction(Formula):
    """v of the weight g·v/‖v‖: the weight itself, and ones in its slices that are 0, whose direction is free.

    A slice k along axis 0 that is 0 gets a one at input k mod n, of a kernel at its centre tap: another tap may read
    nothing but padding. Along another axis it gets ones at [i, i mod n].
    """

    weight: Formula
    axis: int = 0

    @property
    def shape(self) -> tuple[int, ...]:
        return self.weight.shape

    @property
    def rule(self) -> str:
        return f"direction of {self.weight.rule}"

    def write(self, out: Floats, start: int) -> None:
        whole = self.weight.window(0, self.shape[0], out.dtype)
        slices = np.moveaxis(whole, self.axis, 0)
        for k, piece in enumerate(slices):
            if piece.any():
                continue
            if self.axis == 0:
                piece[(k % piece.shape[0], *(size // 2 for size in piece.shape[1:]))] = 1
            else:
                i = np.arange(len(piece))
                piece[i, i % piece.shape[1]] = 1
        out[...] = whole[start : start + len(out)]


@dataclass(frozen=True, slots=True)
class Lengths(Formula):
    """g of the weight g·v/‖v‖: the length of each slice along an axis, the other axes of size 1.

    The nonzero values of a slice all have one magnitude c, so that k of them have the length c·sqrt(k): no sum of
    rounded squares. With `unit`, 1 for every slice that is not 0.
    """

    weight: Formula
    axis: int = 0
    unit: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(n if i == self.axis else 1 for i, n in enumerate(self.weight.shape))

    @property
    def rule(self) -> str:
        return f"{'1 where not 0 is' if self.unit else 'lengths of'} {self.weight.rule}"

    def write(self, out: Floats, start: int) -> None:
        whole = np.abs(self.weight.window(0, self.weight.shape[0], np.float64))
        slices = np.moveaxis(whole, self.axis, 0).reshape(self.weight.shape[self.axis], -1)
        counts, largest = np.count_nonzero(slices, axis=1), slices.max(1)
        pairs = zip(largest, counts, strict=True)
        found = [float(k > 0) if self.unit else float(c) * math.sqrt(int(k)) for c, k in pairs]
        values = np.array([rounded(value, out.dtype) for value in found], out.dtype).reshape(self.shape)
        out[...] = values[start : start + len(out)]


@dataclass(frozen=True, slots=True)
class Singular(Formula):
    """u or v of the weight divided by its norm uᵀ·W·v: a column of the flattened W, and the unit vector at its place.

    W is the weight as a matrix, rows along an axis. The column is the first that is not 0; where the columns are
    orthonormal, u and v are a pair of singular vectors and the norm is 1.
    """

    weight: Formula
    side: str  # "u", a value for each row, or "v", a value for each column
    axis: int = 0

    @property
    def shape(self) -> tuple[int, ...]:
        rows = self.weight.shape[self.axis]
        return (rows,) if self.side == "u" else (math.prod(self.weight.shape) // rows,)

    @property
    def rule(self) -> str:
        return f"singular vector {self.side} of {self.weight.rule}"

    def write(self, out: Floats, start: int) -> None:
        whole = self.weight.window(0, self.weight.shape[0], np.float64)
        flat = np.moveaxis(whole, self.axis, 0).reshape(self.weight.shape[self.axis], -1)
        position = int(np.flatnonzero(flat.any(axis=0))[0])
        if self.side == "v":
            out[...] = np.arange(start, start + len(out)) == position
            return
        column = flat[:, position]
        length = math.sqrt(int(np.count_nonzero(column)))
        out[...] = np.sign(column[start : start + len(out)]) * rounded(1 / length, out.dtype)
