"""Exact ±1 matrices as index arithmetic: Sylvester and Paley Hadamard matrices, and which columns to take.

Every entry is a function of its row and column index, so any window of rows and any set of columns can be had without
making the rest. Integers only: no dense product, no BLAS or LAPACK, no libm; numpy does the bit operations. Scales and
floating point appear in one place, `ExactHadamard.write`, which flips sign bits. This file knows nothing of layers,
kernels or torch; `formulas/formula.py` turns its matrices into weights.

A Hadamard matrix H of order m has entries ±1 and H·Hᵀ = m·I. All matrices here are normalised: row 0 and column 0 are
+1. The order m is reached when m = r·2^a with r = 1 (Sylvester) or r the order of a Paley matrix:

    Sylvester  2^a        H[i, j] = (-1)^popcount(i & j), natural order
    Paley I    q + 1      q a prime power, q ≡ 3 (mod 4):  I + [[0, 1], [-1, Q]]
    Paley II   2·(q + 1)  q a prime power, q ≡ 1 (mod 4):  C ⊗ [[1, 1], [1, -1]] + I ⊗ [[1, -1], [-1, -1]],
                          C = [[0, 1], [1, Q]]

with Q[x, y] = χ(x - y), χ the quadratic character of the field with q elements (0 at 0, +1 at squares, -1 elsewhere).
Source: R. E. A. C. Paley, "On orthogonal matrices", J. Math. Phys. 12 (1933). The choice among several is fixed:
the smallest r, hence the largest Sylvester factor; Paley I before Paley II. The product is P_r ⊗ H_(2^a), row
i = p·2^a + s being row p of the Paley factor and row s of the Sylvester factor.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from zero_convert.errors import UsageError

Signs = npt.NDArray[np.int8]
Indices = npt.NDArray[np.int64] | range

TILE_BYTES = 1 << 20  # a tile is read once for each copy: it should stay in a cache


def ceil_log2(number: int) -> int:
    """The smallest k with 2^k ≥ number, for number ≥ 1."""
    return (number - 1).bit_length()


def index_array(indices: Indices) -> npt.NDArray[np.int64]:
    """The indices as an array.  # (len(indices),) int64"""
    if isinstance(indices, range):
        return np.arange(indices.start, indices.stop, indices.step, dtype=np.int64)
    return np.asarray(indices, dtype=np.int64)


def _tiles(start: int, stop: int, size: int) -> Iterator[tuple[int, slice, slice]]:
    """Cut rows start:stop at the multiples of `size`: (first row of the tile, rows in the tile, rows in the output)."""
    for first in range(start - start % size, stop, size):
        low, high = max(start, first), min(stop, first + size)
        yield first, slice(low - first, high - first), slice(low - start, high - start)


# ---------------------------------------------------------------------------------------------------------------------
# Sylvester


def sylvester(rows: Indices, cols: Indices) -> Signs:
    """The ±1 window H[rows, cols] with H[i, j] = (-1)^popcount(i & j).  # (len(rows), len(cols)) int8

    Any index sets, in any order, with repetitions. A contiguous `range` of rows is made by copying a tile of 64 rows
    under the signs of its first row: i = t + s with disjoint bits gives H[i] = H[t]·H[s].
    """
    i, j = index_array(rows), index_array(cols)
    if isinstance(rows, range) and rows.step == 1 and len(rows) > 64:
        tile = sylvester(np.arange(64), j)
        out = np.empty((len(rows), len(j)), dtype=np.int8)
        for first, inside, outside in _tiles(rows.start, rows.stop, 64):
            np.multiply(tile[inside], sylvester(np.array([first]), j), out=out[outside])
        return out
    odd = np.bitwise_count(i[:, None] & j[None, :]).view(np.int8) & np.int8(1)
    signs: Signs = np.int8(1) - np.int8(2) * odd
    return signs


# ---------------------------------------------------------------------------------------------------------------------
# Paley


@lru_cache(maxsize=1024)
def _prime_power(q: int) -> tuple[int, int] | None:
    """(p, e) with q = p^e and p an odd prime, or None."""
    if q < 3 or q % 2 == 0:
        return None
    p = next((d for d in range(3, int(q**0.5) + 2, 2) if q % d == 0), q)
    e, rest = 0, q
    while rest % p == 0:
        e, rest = e + 1, rest // p
    return (p, e) if rest == 1 else None


@lru_cache(maxsize=64)
def _character(p: int, e: int) -> Signs:
    """χ on the field with p^e elements: 0 at 0, +1 at the squares, -1 elsewhere.  # (p^e,) int8

    The element with coefficients c_0 … c_(e-1) over the integers mod p has the index Σ c_d·p^d. The field is the
    polynomials modulo x^e - (f_0 + … + f_(e-1)·x^(e-1)) for the first (f_0, …) in order of their index for which x
    generates all q - 1 nonzero elements; the squares are then the even powers of x.
    """
    q = p**e
    chi = np.full(q, -1, dtype=np.int8)
    chi[0] = 0
    if e == 1:
        chi[np.arange(1, q, dtype=np.int64) ** 2 % q] = 1
        return chi
    for index in range(q):
        reduction = [index // p**d % p for d in range(e)]
        element, powers = [1] + [0] * (e - 1), [1]
        while len(powers) < q:
            carry = element[-1]
            element = [(c + carry * f) % p for c, f in zip([0, *element[:-1]], reduction, strict=True)]
            code = sum(c * p**d for d, c in enumerate(element))
            if code <= 1:
                break
            powers.append(code)
        if code == 1 and len(powers) == q - 1:
            chi[powers[::2]] = 1
            return chi
    raise AssertionError(f"every finite field has a primitive element: {p}^{e}")


@dataclass(frozen=True, slots=True)
class Paley:
    """The normalised Paley matrix of kind 1, order q + 1, or 2, order 2(q + 1), q = p^e; kind 0 is the matrix [1]."""

    kind: int
    p: int = 1
    e: int = 0

    @property
    def order(self) -> int:
        return (1, self.p**self.e + 1, 2 * (self.p**self.e + 1))[self.kind]

    def entries(self, rows: Indices, cols: Indices) -> Signs:
        """The ±1 window [rows, cols].  # (len(rows), len(cols)) int8"""
        i, j = index_array(rows), index_array(cols)
        if self.kind == 0:
            return np.ones((len(i), len(j)), dtype=np.int8)
        zero = np.zeros(1, dtype=np.int64)
        window = self._unsigned(i, j)
        window *= self._unsigned(i, zero)  # column 0 becomes +1
        window *= self._unsigned(zero, j) * self._unsigned(zero, zero)  # and row 0
        return window

    def _unsigned(self, i: npt.NDArray[np.int64], j: npt.NDArray[np.int64]) -> Signs:
        """The window of the matrix as the head of this file defines it, before row 0 and column 0 are made +1."""
        if self.kind == 1:
            window = self._bordered(i, j, below=-1)
            window += i[:, None] == j[None, :]
            return window
        diagonal = (i // 2)[:, None] == (j // 2)[None, :]
        odd_i, odd_j = (i % 2).astype(np.int8)[:, None], (j % 2).astype(np.int8)[None, :]
        two = np.int8(2)
        off = self._bordered(i // 2, j // 2, below=1) * (1 - two * (odd_i & odd_j))
        return np.where(diagonal, 1 - two * (odd_i | odd_j), off)

    def _bordered(self, i: npt.NDArray[np.int64], j: npt.NDArray[np.int64], below: int) -> Signs:
        """The window of [[0, 1], [below, Q]].  # int8 in {-1, 0, 1}"""
        p, e = self.p, self.e
        x, y = np.maximum(i - 1, 0)[:, None], np.maximum(j - 1, 0)[None, :]  # anything will do on the border
        # A prime field's difference may stay negative: indices wrap round at p.
        difference = x - y if e == 1 else sum((x // p**d - y // p**d) % p * p**d for d in range(e))
        window: Signs = _character(p, e)[difference]
        window[:, j == 0] = below
        window[i == 0] = 1
        window[np.ix_(i == 0, j == 0)] = 0
        return window


# ---------------------------------------------------------------------------------------------------------------------
# Paley ⊗ Sylvester


@dataclass(frozen=True, slots=True)
class ExactHadamard:
    """The normalised Hadamard matrix P ⊗ H_(2^power) of order `order`; P is [1] for Sylvester's own."""

    paley: Paley
    power: int

    @property
    def order(self) -> int:
        return self.paley.order << self.power

    @property
    def name(self) -> str:
        """How it is built: "Sylvester 2^8", "Paley I (q=11) ⊗ Sylvester 2^6"."""
        sylvester_name = f"Sylvester 2^{self.power}"
        if self.paley.kind == 0:
            return sylvester_name
        q = f"{self.paley.p}^{self.paley.e}" if self.paley.e > 1 else f"{self.paley.p}"
        return f"Paley {'I' * self.paley.kind} (q={q})" + (f" ⊗ {sylvester_name}" if self.power else "")

    def entries(self, rows: Indices, cols: Indices) -> Signs:
        """The ±1 window H[rows, cols], any index sets below `order`.  # (len(rows), len(cols)) int8"""
        if self.paley.kind == 0:
            return sylvester(rows, cols)
        i, j = index_array(rows), index_array(cols)
        mask = (1 << self.power) - 1
        return self.paley.entries(i >> self.power, j >> self.power) * sylvester(i & mask, j & mask)

    def write(self, out: npt.NDArray[np.floating], start: int, cols: Indices, magnitude: float) -> None:
        """Set out to magnitude·H[start : start + len(out), cols].  # out: (rows, len(cols)) any float type, any strides

        Rows t + s with t a multiple of B and s < B, B a power of two dividing 2^power, satisfy H[t + s] = H[t]·H[s]
        because row 0 of the Paley factor is +1. So B rows are made once and copied under the sign bits of H[t].
        """
        fitting = max(1, min(len(out), TILE_BYTES // (len(cols) * out.itemsize)))
        tile_rows = 1 << min(self.power, fitting.bit_length() - 1)
        bits = np.dtype(f"u{out.itemsize}")
        j, mask = index_array(cols), (1 << self.power) - 1
        # Columns p·2^power + s share the Paley factor's column p: few of its columns occur, each many times.
        high, place = np.unique(j >> self.power, return_inverse=True)
        tile = (self.entries(range(tile_rows), j) * out.dtype.type(magnitude)).astype(out.dtype, copy=False).view(bits)
        target = out.view(bits)
        last = (start + len(out) - 1) >> self.power
        batch, factor = range(0), np.empty((0, len(high)), dtype=np.int8)
        for first, inside, outside in _tiles(start, start + len(out), tile_rows):
            row = first >> self.power
            if row not in batch:
                batch = range(row, min(row + max(1, TILE_BYTES // len(high)), last + 1))
                factor = self.paley.entries(batch, high)
            signs = sylvester(np.array([first & mask]), j & mask)
            signs *= factor[row - batch.start, place]
            sign_bits = (signs < 0).astype(bits) << bits.type(8 * bits.itemsize - 1)
            np.bitwise_xor(tile[inside], sign_bits, out=target[outside])


def sylvester_order(k: int) -> ExactHadamard:
    """Sylvester's Hadamard matrix of order 2^k."""
    return ExactHadamard(Paley(0), k)


@lru_cache(maxsize=1024)
def exact_order(m: int) -> ExactHadamard | None:
    """The Hadamard matrix of order m, or None where Paley ⊗ Sylvester has none; smallest Paley factor first."""
    if m < 1:
        return None
    twos = (m & -m).bit_length() - 1
    if m == 1 << twos:
        return sylvester_order(twos)
    for power in range(twos, -1, -1):
        r = m >> power
        if r % 4:
            continue
        if (r - 1) % 4 == 3 and (field := _prime_power(r - 1)):
            return ExactHadamard(Paley(1, *field), power)
        if (r // 2 - 1) % 4 == 1 and (field := _prime_power(r // 2 - 1)):
            return ExactHadamard(Paley(2, *field), power)
    return None


def matrix_for(m: int, n: int, order: str = "sylvester") -> ExactHadamard:
    """The Hadamard matrix that an m×n weight is cut from: order 2^ceil(log2 max(m, n)), or max(m, n) where one exists.

    `order="exact"` falls back to Sylvester where `exact_order` has nothing; `.order` of the result tells.
    """
    if order not in ("sylvester", "exact"):
        raise UsageError("unknown Hadamard order", got=repr(order), expected="'sylvester' or 'exact'")
    if m < 1 or n < 1:
        raise UsageError("a Hadamard weight needs at least one row and one column", got=f"{m}×{n}")
    size = max(m, n)
    return (exact_order(size) if order == "exact" else None) or sylvester_order(ceil_log2(size))


def kronecker_factors(m: int) -> tuple[Signs, ...]:
    """One or two ±1 matrices of balanced size whose Kronecker product is the Hadamard matrix of order m.

    A ⊗ B with A = P_r ⊗ H_(2^b) and B = H_(2^(a-b)), b the smallest that minimises the sum of the two sizes, which is
    the cost per element of a transform with x.reshape(size(A), size(B)): A·x·Bᵀ. Factors of size 1 are left out.

    Raises:
        UsageError: no Hadamard matrix of order m can be built; ask `exact_order` first.
    """
    matrix = exact_order(m)
    if matrix is None:
        raise UsageError(
            "no Hadamard matrix of this order can be built", got=str(m), expected="2^a · (1 or a Paley order)"
        )
    r, a = matrix.paley.order, matrix.power
    b = min(range(a + 1), key=lambda split: (r << split) + (1 << (a - split)))
    parts = (ExactHadamard(matrix.paley, b), sylvester_order(a - b))
    kept = [part for part in parts if part.order > 1] or [parts[0]]
    return tuple(part.entries(range(part.order), range(part.order)) for part in kept)


# ---------------------------------------------------------------------------------------------------------------------
# Columns


@lru_cache(maxsize=1024)
def columns(m: int, n: int, kind: str = "first", order: str = "sylvester") -> npt.NDArray[np.int64]:
    """The n column indices that an m×n weight takes from `matrix_for(m, n, order)`, ascending.  # (n,) int64, read-only

    "first" is 0 … n - 1. "spanning" makes all m rows, restricted to the n columns, distinct: first the columns that
    tell rows apart (see `_separating`), as many as fit; then the smallest unused ones. For Sylvester's matrix those are
    1, 2, 4, … below m, one per bit of the row index, so n ≥ ceil(log2 m) is enough and no n columns of ±1 can do with
    fewer; with less, 2^n rows differ.
    """
    if kind not in ("first", "spanning"):
        raise UsageError("unknown choice of columns", got=repr(kind), expected="'first' or 'spanning'")
    matrix = matrix_for(m, n, order)
    chosen = np.array(_separating(matrix, m)[:n] if kind == "spanning" else [], dtype=np.int64)
    unused = np.setdiff1d(np.arange(min(n + len(chosen), matrix.order), dtype=np.int64), chosen, assume_unique=True)
    result = np.sort(np.concatenate([chosen, unused[: n - len(chosen)]]))
    result.flags.writeable = False
    return result


def _refine(labels: npt.NDArray[np.int64], signs: Signs) -> npt.NDArray[np.int64]:
    """Labels 0, 1, … that tell apart rows with other labels or other signs.  # (rows,), (rows, columns) → (rows,)"""
    for column in range(signs.shape[1]):
        if int(labels.max()) + 1 == len(labels):
            break
        labels = np.unique(labels * 2 + (signs[:, column] < 0), return_inverse=True)[1].reshape(-1)
    return labels


@lru_cache(maxsize=256)
def _separating(matrix: ExactHadamard, m: int) -> tuple[int, ...]:
    """Columns that tell rows 0 … m - 1 apart, the most useful first.

    Column 2^b is (-1)^(bit b of the row), for each b below the matrix's power of two. Column p·2^power repeats column p
    of the Paley factor: greedily the one that leaves the most classes of equal rows, the smallest of equals, among the
    first 64 (a Paley matrix' columns look random, so a dozen of them tell thousands of rows apart).
    """
    chosen = [1 << bit for bit in range(min(matrix.power, ceil_log2(m)))]
    needed = -(-m >> matrix.power)  # rows of the Paley factor that occur
    candidates = matrix.paley.entries(range(needed), range(min(64, matrix.paley.order)))
    labels = np.zeros(needed, dtype=np.int64)
    while (classes := int(labels.max()) + 1) < needed:
        size = np.bincount(labels)
        counts = []
        for column in candidates.T:
            plus = np.bincount(labels[column > 0], minlength=classes)
            counts.append(int(np.count_nonzero((plus > 0) & (plus < size))))
        best = int(np.argmax(counts))
        if counts[best] == 0:
            break
        chosen.append(best << matrix.power)
        labels = _refine(labels, candidates[:, best : best + 1])
    return tuple(chosen)
