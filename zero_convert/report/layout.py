"""Where the boxes of a block go: ranks from fork to join, one column for each parallel way. Pure numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .blocks import Block


@dataclass(frozen=True, slots=True)
class Layout:
    """Attributes:
    places: (rank, column) of each box.
    edges: (source, target, column to pass the ranks in between, or None for neighbours).
    ranks, columns: how many.
    boxed: whether a column holds boxes, or only lines.
    """

    places: tuple[tuple[int, int], ...]
    edges: tuple[tuple[int, int, int | None], ...]
    ranks: int
    columns: int
    boxed: tuple[bool, ...]


def layout(block: Block) -> Layout:
    """Longest ways give the ranks; a box stays in the column of its source where it is free; lines pass on the right.

    Boxes are in order of execution, so that a source stands before what reads it.
    """
    rank = [0] * len(block)
    for index, box in enumerate(block):
        rank[index] = 1 + max((rank[source] for source in box.sources), default=-1)
    column = [0] * len(block)
    taken: set[tuple[int, int]] = set()
    for index in sorted(range(len(block)), key=lambda i: (rank[i], -_reach(block, i), i)):
        wished = min((column[source] for source in block[index].sources), default=0)
        column[index] = _free(taken, (rank[index],), wished)
        taken.add((rank[index], column[index]))
    boxed = {column[index] for index in range(len(block))}
    edges: list[tuple[int, int, int | None]] = []
    for target, box in enumerate(block):
        for source in box.sources:
            between = tuple(range(rank[source] + 1, rank[target]))
            if not between:
                edges.append((source, target, None))
                continue
            lane = _free(taken, between, column[source])
            taken |= {(at, lane) for at in between}
            edges.append((source, target, lane))
    columns = 1 + max(at for _, at in taken)
    places = tuple(zip(rank, column, strict=True))
    return Layout(places, tuple(edges), 1 + max(rank), columns, tuple(at in boxed for at in range(columns)))


def _free(taken: set[tuple[int, int]], ranks: Sequence[int], wished: int) -> int:
    column = wished
    while any((rank, column) in taken for rank in ranks):
        column += 1
    return column


def _reach(block: Block, index: int) -> int:
    """The longest way on from a box: the branch goes straight down, and shorter ways beside it."""
    reach = [0] * len(block)
    for at in range(len(block) - 1, -1, -1):
        for source in block[at].sources:
            reach[source] = max(reach[source], 1 + reach[at])
    return reach[index]
