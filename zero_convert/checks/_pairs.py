"""Looking at mirrored pairs: the channel axis cut in two halves, and what a pair says behind a ReLU."""

from __future__ import annotations

from torch import Tensor, fx

from ..records import Join
from .harness.bench import Bench
from .harness.watch import graph_of


def halves(value: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """Both sides of each pair behind a ReLU."""
    half = value.shape[axis] // 2
    return value.narrow(axis, 0, half).relu(), value.narrow(axis, half, half).relu()


def axis_of(bench: Bench, join: Join, dimensions: int) -> int:
    """The axis of the channels at a join."""
    g = bench.subject.structure.layer(join.branch[-1]).geometry
    return dimensions - 1 - (len(g.kernel) if g is not None else 0)


def channels_first(bench: Bench, join: Join, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of a value at a join with the channels moved to the front."""
    axis = axis_of(bench, join, len(shape))
    return (shape[axis], *shape[:axis], *shape[axis + 1 :])


def residual_joins(bench: Bench, mode: str) -> list[tuple[Join, fx.Node, fx.Node]]:
    """Residual joins that the mode's graph shows, with the fork's node and their own."""
    nodes = {node.name: node for node in graph_of(bench, mode).nodes}
    return [
        (join, nodes[join.fork], nodes[join.node])
        for join in bench.subject.structure.joins
        if join.residual and join.fork in nodes and join.node in nodes
    ]
