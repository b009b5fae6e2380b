"""Formulas whose values come from the integer hash, keyed by (seed, name of the tensor, index of the element).

The index counts the elements in row-major order, so that a window of rows has the same bits as in the whole tensor. A
value is an integer of `hashing.py` times one float64 factor (made by one square root and one division), rounded once
to float32, and to float16 from there.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from . import hashing
from .formula import Floats, Formula, spell_shape

CHUNK = 1 << 18  # elements made at once: the hash words of more would be larger than the tensor


class Hashed(Formula):
    """A formula with an integer for each element and one factor. Subclasses define `factor` and `integers`."""

    seed: int
    name: str
    integers: Callable[[int, str, int, int], npt.NDArray[np.signedinteger[Any]]]  # of (seed, name, start, stop)

    @property
    @abstractmethod
    def factor(self) -> float:
        """What the integers are multiplied by, in float64."""

    def write(self, out: Floats, start: int) -> None:
        first, count = start * math.prod(self.shape[1:]), out.size
        flat = out.reshape(-1) if out.flags.c_contiguous else np.empty(count, out.dtype)
        for at in range(0, count, CHUNK):
            integers = self.integers(self.seed, self.name, first + at, first + min(at + CHUNK, count))
            values = integers * self.factor  # exact integers, one float64 rounding
            flat[at : at + CHUNK] = values if out.dtype == np.float64 else values.astype(np.float32)
        if not out.flags.c_contiguous:
            out[...] = flat.reshape(out.shape)


@dataclass(frozen=True, slots=True)
class Bell(Hashed):
    """Bell-shaped with mean 0: `hashing.bell`, the Irwin–Hall sum of 12 uniform integers, times std/sqrt(2^32 - 1)."""

    shape: tuple[int, ...] = field()
    std: float = field()
    seed: int = field()
    name: str = field()

    integers = staticmethod(hashing.bell)

    @property
    def factor(self) -> float:
        return self.std / math.sqrt(hashing.BELL_VARIANCE)

    @property
    def rule(self) -> str:
        return f"bell-shaped {spell_shape(self.shape)}, standard deviation {self.std:g}, seed {self.seed}"


@dataclass(frozen=True, slots=True)
class Uniform(Hashed):
    """Uniform between -bound and bound: the odd integers of `hashing.uniform` times bound/2^53."""

    shape: tuple[int, ...] = field()
    bound: float = field()
    seed: int = field()
    name: str = field()

    integers = staticmethod(hashing.uniform)

    @property
    def factor(self) -> float:
        return self.bound / hashing.UNIFORM_BOUND

    @property
    def rule(self) -> str:
        return f"uniform {spell_shape(self.shape)} within ±{self.bound:g}, seed {self.seed}"


@dataclass(frozen=True, slots=True)
class Signs(Hashed):
    """+magnitude or -magnitude, each as likely."""

    shape: tuple[int, ...] = field()
    magnitude: float = field()
    seed: int = field()
    name: str = field()

    integers = staticmethod(hashing.signs)

    @property
    def factor(self) -> float:
        return self.magnitude

    @property
    def rule(self) -> str:
        return f"±{self.magnitude:g} {spell_shape(self.shape)}, seed {self.seed}"
