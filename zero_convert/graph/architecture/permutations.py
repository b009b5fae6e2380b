"""Permutations of axes, whichever of torch's functions makes them; axes that stay together count as one."""

from __future__ import annotations

import operator
from math import prod
from typing import Any

from torch import fx

from .fixed_sizes import rank_of
from .vocabulary import PERMUTING, name_of


def order_of(node: fx.Node) -> tuple[int, ...] | None:
    """For each axis of a permutation's result the axis of its source; None for another node, or where it is unknown."""
    if node.op not in ("call_function", "call_method"):
        return None
    name = str(node.args[1]) if node.target is getattr else name_of(node.target)
    source = node.args[0] if node.args else None
    rank = rank_of(source) if isinstance(source, fx.Node) else None
    return _axes_of(name, node, rank) if rank is not None and name in PERMUTING else None


def _axes_of(name: str, node: fx.Node, rank: int) -> tuple[int, ...] | None:
    """For each axis of the result the axis of the source, or None where the arguments do not say."""
    axes = list(range(rank))
    if name in ("t", "T", "mT", "adjoint"):
        return tuple(reversed(axes)) if name in ("t", "T") else tuple(axes[:-2] + axes[:-3:-1])
    numbers: list[Any] = [*node.args[1:], *node.kwargs.values()]
    flat: list[Any] = [list(n) if isinstance(n, tuple | list) else n for n in numbers]
    if name == "permute":
        flat = flat[0] if len(flat) == 1 and isinstance(flat[0], list) else flat
        plain = [n % rank for n in flat if isinstance(n, int)]
        return tuple(plain) if sorted(plain) == axes else None
    if len(flat) != 2:
        return None
    one, other = (n if isinstance(n, list) else [n] for n in flat)
    if not all(isinstance(n, int) for n in (*one, *other)) or len(one) != len(other):
        return None
    one, other = [n % rank for n in one], [n % rank for n in other]
    if name in ("movedim", "moveaxis"):
        rest = [axis for axis in axes if axis not in one]
        for source, target in sorted(zip(one, other, strict=True), key=operator.itemgetter(1)):
            rest.insert(target, source)
        return tuple(rest)
    axes[one[0]], axes[other[0]] = other[0], one[0]
    return tuple(axes)


def permutation(order: tuple[int, ...], sizes: tuple[int | None, ...]) -> dict[str, list[str]]:
    """How the description tells an order of axes; empty where they stay as they are.

    Args:
        order: for each axis of the result the axis of the source.
        sizes: of the result's axes, None where the network does not fix it.
    """
    starts = [i for i, axis in enumerate(order) if i == 0 or order[i - 1] + 1 != axis]
    if len(starts) < 2:
        return {}
    blocks = [order[start] for start in starts]
    widths = [sizes[start:end] for start, end in zip(starts, [*starts[1:], len(order)], strict=True)]
    return {
        "order": [str(sorted(blocks).index(axis)) for axis in blocks],
        "sizes": ["free" if None in width else str(prod(size or 0 for size in width)) for width in widths],
    }
