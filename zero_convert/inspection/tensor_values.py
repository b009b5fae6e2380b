"""What the values of a tensor are: zero, ones, identity, Hadamard, constant, NaN, or numbers with a mean and a spread.

Reads a stream of bytes once, in bounded memory. A kernel with one tap that is not 0 is named by the matrix at that tap.
Knows dtypes, and no file format.

    identity           1 where row = column of a square matrix, else 0      partial identity: of one that is not square
    Hadamard ±c        c · (-1)^popcount(row & column): a piece of Sylvester's matrix
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from zero_convert.formats.dtypes import DTYPES

Floats = npt.NDArray[np.float64]
_STEP = 1 << 18  # elements looked at together


@dataclass(frozen=True, slots=True)
class Values:
    """What a tensor's values are.

    Attributes:
        kind: "empty", "zero", "ones", "constant", "identity", "partial identity", "hadamard", "signs" (±c in another
            order), "other", or "unknown" for a type whose numbers are not read.
        detail: the constant, the c, the tap of a kernel.
        nan, inf, zeros: how many. The numbers below leave out NaN and infinities, and are None if nothing is left.
        equal_to: the first tensor, by name, with the same type, shape and bits, if the values are no constant.
    """

    kind: str
    detail: str = ""
    nan: int = 0
    inf: int = 0
    zeros: int = 0
    min: float | None = None
    max: float | None = None
    mean: float | None = None
    std: float | None = None
    equal_to: str = ""

    def __str__(self) -> str:
        """ "hadamard ±0.5 at tap (1, 1)", "mean 0.01, std 0.5, -2 to 2; 3 NaN"."""
        if self.kind == "other" and self.mean is not None and self.std is not None:
            text = f"mean {self.mean:.3g}, std {self.std:.3g}, {self.min:.3g} to {self.max:.3g}"
        else:
            text = f"{self.kind} {self.detail}".rstrip() if self.kind != "other" else ""
        bad = [f"{count:,} {name}" for count, name in ((self.nan, "NaN"), (self.inf, "infinite")) if count]
        equal = [f"= {self.equal_to}"] if self.equal_to else []
        return "; ".join([part for part in (text, *bad, *equal) if part])


class Describer:
    """Takes in a tensor's bytes, in pieces of whole elements, and says what they are."""

    def __init__(self, dtype: str, shape: tuple[int, ...]) -> None:
        row = DTYPES.get(dtype)
        self._numbers = None if row is None else row.parts
        self._sums = _Sums()
        self._first: float | None = None
        self._constant = True
        self._size = prod(shape)
        real = row is not None and row.kind in ("float", "int", "uint")
        self._matrix = _Matrix(shape) if len(shape) >= 2 and real else None
        self._seen = 0

    def take(self, piece: bytes | memoryview) -> None:
        """The next bytes."""
        if self._numbers is None:
            return
        values = np.frombuffer(piece, self._numbers)
        for start in range(0, len(values), _STEP):
            self._take(np.asarray(values[start : start + _STEP], np.float64))

    def _take(self, part: Floats) -> None:
        self._sums.take(part)
        if self._first is None and len(part):
            self._first = float(part[0])
        if self._constant and self._first is not None:
            self._constant = bool((part == self._first).all())
        if self._matrix is not None and not self._matrix.take(part, self._seen):
            self._matrix = None
        self._seen += len(part)

    def values(self) -> Values:
        """What they were."""
        if not self._size:
            return Values("empty")
        if self._numbers is None:
            return Values("unknown")
        kind, detail = self._kind()
        s = self._sums
        std = math.sqrt(s.spread / s.count) if s.count else None
        return Values(kind, detail, s.nan, s.inf, s.zeros, s.low, s.high, s.mean if s.count else None, std)

    def _kind(self) -> tuple[str, str]:
        matrix = self._matrix.kind() if self._matrix is not None else None
        if self._constant and self._first is not None and not (matrix and matrix[0].endswith("identity")):
            if self._first == 0:
                return "zero", ""
            return ("ones", "") if self._first == 1 else ("constant", f"{self._first:.9g}")
        return matrix or ("other", "")


class _Sums:
    """Count, extremes, mean and sum of squared distances from it, merged piece by piece (Chan et al., 1979)."""

    def __init__(self) -> None:
        self.nan = self.inf = self.zeros = self.count = 0
        self.low: float | None = None
        self.high: float | None = None
        self.mean = self.spread = 0.0

    def take(self, part: Floats) -> None:
        finite = np.isfinite(part)
        if not finite.all():
            nan = int(np.isnan(part).sum())
            self.nan += nan
            self.inf += int(len(part) - finite.sum()) - nan
            part = part[finite]
        if not len(part):
            return
        self.zeros += int((part == 0).sum())
        low, high = float(part.min()), float(part.max())
        self.low = low if self.low is None else min(low, self.low)
        self.high = high if self.high is None else max(high, self.high)
        with np.errstate(over="ignore", invalid="ignore"):
            mean = float(part.mean())
            spread = float(np.square(part - mean).sum())
        total = self.count + len(part)
        step = mean - self.mean
        self.mean += step * len(part) / total
        self.spread += spread + step * step * self.count * len(part) / total
        self.count = total


class _Matrix:
    """Whether a weight is an identity or a piece of a Hadamard matrix, at one tap of its kernel."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self._rows, self._columns, self._kernel = shape[0], shape[1], shape[2:]
        self._taps = prod(self._kernel)
        self._tap: int | None = None
        self._identity = self._hadamard = self._signs = True
        self._scale: float | None = None

    def take(self, part: Floats, start: int) -> bool:
        """The elements from number `start` on; False once it is neither."""
        if not self._taps or not self._rows or not self._columns:
            return False
        index = np.arange(start, start + len(part))
        if self._taps > 1:
            if not self._one_tap(part, index):
                return False
            keep = index % self._taps == (self._tap if self._tap is not None else 0)
            part, index = part[keep], index[keep] // self._taps
        row, column = index // self._columns, index % self._columns
        if self._identity:
            self._identity = bool((part == (row == column)).all())
        if self._signs and len(part):
            if self._scale is None:
                self._scale = abs(float(part[0]))
            self._signs = self._scale != 0 and bool((np.abs(part) == self._scale).all())
            if self._signs and self._hadamard:
                odd = np.bitwise_count(row & column) & 1
                self._hadamard = bool((np.signbit(part) == (odd == 1)).all())
        return self._identity or self._signs

    def _one_tap(self, part: Floats, index: npt.NDArray[Any]) -> bool:
        taps = index[part != 0] % self._taps
        if len(taps):
            if self._tap is None:
                self._tap = int(taps[0])
            return bool((taps == self._tap).all())
        return True

    def kind(self) -> tuple[str, str]:
        at = ""
        if self._taps > 1:
            place = [int(n) for n in np.unravel_index(self._tap or 0, self._kernel)]
            at = f" at tap ({', '.join(map(str, place))})"
        if self._identity:
            return ("identity" if self._rows == self._columns else "partial identity"), at.strip()
        return ("hadamard" if self._hadamard else "signs"), f"±{self._scale:.9g}{at}"


def describe(dtype: str, shape: tuple[int, ...], pieces: Iterable[bytes | memoryview]) -> Values:
    """What the values in `pieces` are."""
    describer = Describer(dtype, shape)
    for piece in pieces:
        describer.take(piece)
    return describer.values()
