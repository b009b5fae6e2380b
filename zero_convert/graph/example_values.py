"""Deterministic example values: integers from a hash, scaled, the same on every machine."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch


def reference_values(shape: Sequence[int]) -> np.ndarray:
    """Float32 array of `shape` with values in [-1.7, 1.7); element i in row-major order depends on i alone.

    The values are splitmix64's finalizer (Steele, Lea, Flood, OOPSLA 2014) of (i + 1) times the golden-ratio odd
    constant: its upper 24 bits as a fraction u, then (2u - 1) * 1.7 in float32.
    """
    fraction = (_hash(math.prod(shape)) >> np.uint64(40)).astype(np.float32) / np.float32(2**24)
    return ((fraction * 2 - 1) * np.float32(1.7)).reshape(tuple(shape))


def reference_tensor(shape: Sequence[int], dtype: torch.dtype = torch.float32, below: int = 2) -> torch.Tensor:
    """Tensor of `shape` with the reference values; integers and bools are hash bits modulo `below` (0 … below - 1)."""
    if dtype.is_floating_point or dtype.is_complex:
        return torch.from_numpy(reference_values(shape)).to(dtype)
    whole = ((_hash(math.prod(shape)) >> np.uint64(40)) % np.uint64(below)).astype(np.int64)
    return torch.from_numpy(whole.reshape(tuple(shape))).to(dtype)


def _hash(count: int) -> np.ndarray:
    with np.errstate(over="ignore"):
        z = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            z ^= z >> np.uint64(shift)
            z *= np.uint64(factor)
        return z ^ (z >> np.uint64(31))
