"""What the analysis knows of a graph before it looks for joins: kinds, reach, weight layers, gates."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable
from typing import Any

from torch import fx, nn

from zero_convert.graph.fixed import fixed_names
from zero_convert.graph.kinds import WEIGHT_KINDS, geometry, kind_of
from zero_convert.graph.queries import Reach, is_size, kind, signals_in, tensors_in

from ..records import Gate, Geometry
from .made_weights import Made, made_weight
from .raw_parameters import raw_weight


class Facts:
    """A graph, read once.

    Attributes:
        kinds: node → what it does, as `graphs.kind` says.
        paths: node → paths of the weight layers it applies; `weights` are its keys.
        gates: products of a signal with what weight layers compute from it.
        factors: a gate's product → the signal, and the factor computed from it.
        gate_of: node of a weight layer inside a gate → the gate's product.
        made: node → how its weight is computed from parameters, where it is.
        answers: what parts of graphs did when they were run; shared by the analyses of one model.
    """

    def __init__(self, root: nn.Module, graph: fx.Graph, answers: dict[Hashable, Any]) -> None:
        self.root, self.graph, self.answers = root, graph, answers
        self.reach = Reach(graph)
        self.kinds = {node: kind(node, root) for node in graph.nodes}
        self.made: dict[fx.Node, Made] = {}
        self.paths = {node: paths for node in graph.nodes if (paths := self._weight_layers(node))}
        self.weights = self.paths.keys()
        self.factors: dict[fx.Node, tuple[fx.Node, fx.Node]] = {}
        self.gates, self.gate_of = self._find_gates()

    def _weight_layers(self, node: fx.Node) -> tuple[str, ...]:
        """Paths of the weight layers a node applies: the module it calls, or the owners of the weights it is given."""
        if self.kinds[node] in WEIGHT_KINDS or self.kinds[node] == "opaque":
            return (str(node.target),)
        if is_size(node):  # a question for the weight's dtype or device
            return ()
        owners = dict.fromkeys(
            str(n.target).rpartition(".")[0] for n in node.all_input_nodes if n.op == "get_attr" and node.op != "output"
        )
        known = tuple(path for path in owners if kind_of(self.root.get_submodule(path)) in WEIGHT_KINDS)
        if (made := made_weight(self.root, node, self._is_parameter, self.answers)) is not None:
            self.made[node] = made
            return known or (made.weight.rpartition(".")[0],)
        raw = None if known else raw_weight(node, self._is_parameter)
        return (str(raw.target).rpartition(".")[0],) if raw is not None and self._is_parameter(raw) else known

    def _is_parameter(self, node: fx.Node) -> bool:
        """Whether the node reads a parameter that is a scheme's to fill: none that its author fixed."""
        path, _, name = str(node.target).rpartition(".")
        owner = self.root.get_submodule(path)
        return name in owner._parameters and name not in fixed_names(owner)

    def _find_gates(self) -> tuple[tuple[Gate, ...], dict[fx.Node, fx.Node]]:
        """Products of a signal with what weight layers compute from it; and the product of each gate layer's node."""
        gates: list[Gate] = []
        owner: dict[fx.Node, fx.Node] = {}
        for node in self.graph.nodes:
            if self.kinds[node] != "multiply" or len(tensors_in(node)) != 2:
                continue
            for signal, factor in (tensors_in(node), tensors_in(node)[::-1]):
                source = self._ungated(signal)
                if not self.reach.reaches(source, factor) or self._spread_over(signal, factor):
                    continue
                layers = [n for n in self.reach.between(source, factor) if n in self.weights]
                if layers:
                    gates.append(Gate(node.name, self.names(layers)))
                    owner |= dict.fromkeys(layers, node)
                    self.factors[node] = (signal, factor)
                break
        return tuple(gates), owner

    def _spread_over(self, value: fx.Node, other: fx.Node) -> bool:
        """Whether a value that no weight layer made is repeated over the other: the angles of positions, which every
        block takes, and the spread of the input, which the output gets back, are no signal with a gate."""
        sizes = [math.prod(n.meta.get("shape") or (0,)) for n in (value, other)]
        return 0 < sizes[0] < sizes[1] and not any(self.reach.reaches(n, value) for n in self.weights)

    def _ungated(self, signal: fx.Node) -> fx.Node:
        """The signal before the gates that it passed last: coordinate attention multiplies by one for each axis."""
        while signal in self.factors:
            signal = self.factors[signal][0]
        return signal

    def pointwise(self, node: fx.Node) -> bool:
        g = self.geometry(node)
        return g is not None and self.kinds[node] in ("convolution", "linear") and all(k == 1 for k in g.kernel)

    def counts(self, node: fx.Node, end: fx.Node) -> bool:
        """Whether the node is a weight layer on the ways to `end`; those of a gate on the way there are not, but inside
        a gate they are."""
        return node in self.weights and (node not in self.gate_of or not self.reach.reaches(self.gate_of[node], end))

    def fewest_layers(self, fork: fx.Node, end: fx.Node) -> int:
        """The least number of weight layers on a path from fork to end; gates do not count."""
        if end is fork:
            return 0
        count: dict[fx.Node, int] = {fork: 0}
        for node in self.reach.between(fork, end):
            ways = [count[n] for n in tensors_in(node) if n in count]
            if ways:
                count[node] = min(ways) + self.counts(node, end)
        return count[end]

    def most_layers(self, fork: fx.Node, end: fx.Node) -> int:
        """The largest number of weight layers on a path from fork to end; gates do not count, an attention is two."""
        count: dict[fx.Node, int] = {fork: 0}
        for node in self.reach.between(fork, end):
            own = max(len(self.paths[node]), 1 + (self.kinds[node] == "attention")) if self.counts(node, end) else 0
            count[node] = own + max((count[n] for n in tensors_in(node) if n in count), default=0)
        return count[end]

    def finals(self, fork: fx.Node, end: fx.Node) -> dict[fx.Node, None]:
        """The weight layers with no other behind them on some way from fork to end: all 0, the value at end is 0."""
        finals: dict[fx.Node, None] = {}
        seen, todo = {fork}, [end]
        while todo:
            node = todo.pop()
            if node in seen:
                continue
            seen.add(node)
            if self.counts(node, end):
                finals[node] = None
            else:
                todo += [n for n in signals_in(node) if self.reach.reaches(fork, n)]
        return finals

    def geometry(self, node: fx.Node) -> Geometry | None:
        return self.geometry_of(self.paths[node][-1])

    def geometry_of(self, path: str) -> Geometry | None:
        return geometry(self.root.get_submodule(path))

    def names(self, nodes: Iterable[fx.Node]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(path for node in nodes for path in self.paths[node]))

    def makers_of(self, ends: Iterable[fx.Node]) -> tuple[fx.Node, ...]:
        """The weight layers with no other between them and one of the ends, on some way."""
        found: dict[fx.Node, None] = {}
        todo, seen = list(ends), set()
        while todo:
            node = todo.pop()
            if node in seen:
                continue
            seen.add(node)
            if node in self.weights:
                found[node] = None
            else:
                todo += tensors_in(node)
        return tuple(found)
