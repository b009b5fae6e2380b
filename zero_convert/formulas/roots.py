"""Roots of whole numbers without the C library's `pow`: integers, and one division at the end.

Knows no torch, no model and no scheme.
"""

from __future__ import annotations

PLACES = 64  # binary places before the division that rounds to float64


def inverse_root(n: int, q: int) -> float:
    """1 / n^(1/q) for n, q ≥ 1: x / 2^64 with the largest x for which x^q · n ≤ 2^(64·q), rounded once to float64."""
    limit = (1 << PLACES * q) // n
    x = 0
    for bit in reversed(range(PLACES + 1)):
        if (x | 1 << bit) ** q <= limit:
            x |= 1 << bit
    return x / (1 << PLACES)
