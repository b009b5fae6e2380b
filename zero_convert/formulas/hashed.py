"""Formulas whose values come from the integer hash, keyed by (seed, name of the tensor, index of the element).

The index counts the elements in row-major order, so that a block has the same bits as in the whole tensor. A
value is an integer of `hashing.py` times one float64 factor (made by one square root and one division), rounded once
to float32, and to float16 from there.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from . import hashing
from .formula import Floats, Formula, block_indices, spell_shape

CHUNK = 1 << 18  # elements made at once: the hash words of more would be larger than the tensor


class Hashed(Formula):
    """A formula with an integer for each element and one factor. Subclasses define `factor` and `integers`."""

    seed: int
    name: str
    integers: Callable[[int, str, hashing.Words], npt.NDArray[np.signedinteger[Any]]]  # of (seed, name, indices)

    @property
    @abstractmethod
    def factor(self) -> float:
        """What the integers are multiplied by, in float64."""

    def write(self, out: Floats, corner: tuple[int, ...]) -> None:
        flat = out.reshape(-1) if out.flags.c_contiguous else np.empty(out.size, out.dtype)
        done = 0
        for indices in self._indices(out.shape, corner):
            values = self.integers(self.seed, self.name, indices) * self.factor  # exact integers, one float64 rounding
            flat[done : done + len(indices)] = values if out.dtype == np.float64 else values.astype(np.float32)
            done += len(indices)
        if not out.flags.c_contiguous:
            out[...] = flat.reshape(out.shape)

    def _indices(self, block: tuple[int, ...], corner: tuple[int, ...]) -> Iterator[hashing.Words]:
        """Of the block's elements in the whole tensor, a chunk at a time: whole rows of the block, or parts of one."""
        if block[1:] == self.shape[1:]:
            first, count = corner[0] * math.prod(block[1:]) if corner else 0, math.prod(block)
            for at in range(first, first + count, CHUNK):
                yield np.arange(at, min(at + CHUNK, first + count), dtype=np.uint64)
            return
        inner = block_indices(self.shape[1:], block[1:], corner[1:]).astype(np.uint64)
        step, at_once = math.prod(self.shape[1:]), max(1, CHUNK // len(inner))
        for row in range(corner[0], corner[0] + block[0], at_once):
            rows = np.arange(row, min(row + at_once, corner[0] + block[0]), dtype=np.uint64) * np.uint64(step)
            yield (rows[:, None] + inner).reshape(-1)


@dataclass(frozen=True, slots=True)
class Bell(Hashed):
    """Bell-shaped with mean 0: `hashing.bell`, the Irwin–Hall sum of 12 uniform integers, times std/sqrt(2^32 - 1)."""

    shape: tuple[int, ...] = field()
    std: float = field()
    seed: int = field()
    name: str = field()

    integers = staticmethod(hashing.bell_at)

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

    integers = staticmethod(hashing.uniform_at)

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

    integers = staticmethod(hashing.signs_at)

    @property
    def factor(self) -> float:
        return self.magnitude

    @property
    def rule(self) -> str:
        return f"±{self.magnitude:g} {spell_shape(self.shape)}, seed {self.seed}"
