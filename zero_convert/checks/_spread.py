"""Where in a graph channels are to be compared, and the largest difference between one of them and the first."""

from __future__ import annotations

import math

from torch import Tensor, fx

from zero_convert.graph.kinds import WEIGHT_KINDS
from zero_convert.graph.queries import kind, tensors_in

from .harness.bench import Bench
from .harness.channels import as_rows
from .harness.watch import graph_of

SIDES = (64, 128, 160)  # of pictures; 48 and 96 shrink to 3×3 positions, where torch's sums differ between channels


def spread(rows: Tensor) -> float:
    """max |row - first row|; NaN if there is one.  # (channels, positions)"""
    return float((rows - rows[:1]).abs().max()) if rows.numel() else 0.0


class Spreads:
    """The spread of each signal of a run: shown every value, it knows which of them promise to have none."""

    def __init__(self, bench: Bench, mode: str) -> None:
        self._root, structure = bench.subject.traced.root, bench.subject.structure
        self._layers = {layer.name: layer for layer in structure.layers}
        self._graph = graph_of(bench, mode)
        self._joins = {join.node: join for join in structure.joins if join.residual}
        self._axis: dict[str, tuple[str, str]] = {}
        self._found: dict[str, float] = {}
        self._mixes: set[str] = set()

    def see(self, node: fx.Node, value: Tensor) -> None:
        path = str(node.target) if node.op == "call_module" else ""
        join = self._joins.get(node.name)
        layer = self._layers.get(join.branch[-1] if join is not None else path)
        if layer is None or layer.role == "head" or value.ndim < 2:
            return
        if layer.kind not in (*WEIGHT_KINDS, "norm"):
            return
        if join is None and layer.geometry is not None and layer.geometry.groups == 1:
            self._mixes.add(node.name)
        self._found[node.name] = spread(as_rows(value, layer, self._root.get_submodule(layer.name)))

    def judged(self) -> dict[str, float]:
        """Node → spread, for the signals that must have none: those of layers that mix all channels, and those made
        from such alone."""
        equal: dict[fx.Node, bool] = {}
        for node in self._graph.nodes:
            sources = tensors_in(node)
            concatenated = kind(node, self._root) == "concatenate"
            equal[node] = node.name in self._mixes or (
                bool(sources) and not concatenated and all(equal[n] for n in sources)
            )
        names = {node.name for node, same in equal.items() if same}
        return {name: math.inf if math.isnan(value) else value for name, value in self._found.items() if name in names}
