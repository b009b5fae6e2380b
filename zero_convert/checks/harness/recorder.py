"""One forward of a graph, looked at on the way: what is seen at joins, heads, weight layers and norms.

Runs on whatever device the module lies; copies and inputs are made in `bench.py`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, fx, nn

from zero_convert.graph.kinds import WEIGHT_KINDS
from zero_convert.records import Join, Layer

from ..subject import Subject
from . import isolation
from .channels import Channels, as_rows, rank, statistics

LOW_VARIANCE = 1e-6  # a batch norm adds 1e-5 to the variance: below a tenth of that the channel carries no signal
RETURNED, READ = "returned", "read"  # what norms return; what weight layers read and residual joins return


@dataclass
class Run:
    """What was seen in one forward of a graph.

    Attributes:
        outputs: floating output tensors, on the CPU.
        branches: join index → largest magnitude of the branch operand at the moment it is added.
        heads: name of a head layer → what it read, on the CPU.
        logits: name of a head layer → largest magnitude of what it returned.
        reads: name of a weight layer → the channels it read.
        returns: name of a norm → the channels it returned.
        signal: name of a weight layer that reads, or node of a residual join that returns → channels, and their rank.
        random: random numbers were drawn.
        stopped: why a graph that is only a recording could not be followed to its end; "" if it could.
    """

    outputs: tuple[Tensor, ...] = ()
    branches: dict[int, float] = field(default_factory=dict)
    heads: dict[str, Tensor] = field(default_factory=dict)
    logits: dict[str, float] = field(default_factory=dict)
    reads: dict[str, Channels] = field(default_factory=dict)
    returns: dict[str, Channels] = field(default_factory=dict)
    signal: dict[str, tuple[Channels, tuple[int, int]]] = field(default_factory=dict)
    random: bool = False
    stopped: str = ""


class Recorder(fx.Interpreter):
    """Runs a graph and looks at joins, heads, weight layers and norms.

    Args:
        instead: node → what takes the place of what torch would compute.
    """

    def __init__(
        self,
        module: nn.Module,
        graph: fx.Graph,
        subject: Subject,
        counts: str,
        instead: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        super().__init__(module, graph=graph, garbage_collect_values=True)
        self._instead = instead
        self.extra_traceback = False
        self.seen, self._counts = Run(), counts
        self._root = subject.traced.root
        self._joins: dict[str, Join] = {join.node: join for join in subject.structure.joins if join.residual}
        self._layers: dict[str, Layer] = {layer.name: layer for layer in subject.structure.layers}
        self._nodes = {node.name: node for node in graph.nodes}
        self._ends = {join.node: subject.structure.ends(join) for join in self._joins.values()}

    def follow(self, *inputs: Any) -> None:
        """Run as far as the graph can be followed: it may be a recording of what other values decided."""
        try:
            self.run(*inputs)
        except Exception as error:
            if isolation.ran_out(error):
                raise
            self.seen.stopped = first_line(error)

    def run_node(self, n: fx.Node) -> Any:
        join = self._joins.get(n.name)
        if join is not None:
            operand, carried = self._nodes.get(join.branch_node), self._nodes.get(join.shortcut_node)
            # The other mode's graph may have other names.
            if operand is not None and {operand, carried} == set(n.all_input_nodes):
                self.seen.branches[join.index] = largest(self.env[operand])
        owner = owner_of(n)
        layer = None if owner is None else self._layers.get(owner)
        if layer is not None:
            read = next((self.env[i] for i in n.all_input_nodes if i.op != "get_attr"), None)
            if isinstance(read, Tensor) and read.is_floating_point():
                self._before(layer, read)
        value = self._instead[n.name] if n.name in self._instead else super().run_node(n)
        if self._counts == READ and join is not None and is_float(value) and (ends := self._ends[join.node]):
            rows = as_rows(value, ends[-1], self._module(ends[-1]))
            self.seen.signal[n.name] = statistics(rows, LOW_VARIANCE), rank(rows)
        if layer is not None:
            returned = value[0] if isinstance(value, tuple) else value  # attention returns its weights as well
            if isinstance(returned, Tensor) and returned.is_complex():
                returned = returned.abs()
            if is_float(returned):
                self._after(layer, returned)
        return value

    def _before(self, layer: Layer, read: Tensor) -> None:
        """Before, because the layer may work in place, and before the interpreter forgets the value."""
        if self._counts == READ and layer.kind in WEIGHT_KINDS:
            rows = as_rows(read, layer, self._module(layer))
            self.seen.reads[layer.name] = statistics(rows, LOW_VARIANCE)
            self.seen.signal[layer.name] = self.seen.reads[layer.name], rank(rows)
        if layer.role == "head":
            self.seen.heads[layer.name] = read.detach().cpu().double()

    def _after(self, layer: Layer, returned: Tensor) -> None:
        if self._counts == RETURNED and layer.kind == "norm":
            self.seen.returns[layer.name] = statistics(as_rows(returned, layer, self._module(layer)), LOW_VARIANCE)
        if layer.role == "head":
            self.seen.logits[layer.name] = most((largest(returned), self.seen.logits.get(layer.name, 0.0)))

    def _module(self, layer: Layer) -> nn.Module:
        return self._root.get_submodule(layer.name)


def owner_of(n: fx.Node) -> str | None:
    """Path of the module the node applies: the called one, or the owner of the weights that a function is given."""
    if n.op == "call_module":
        return str(n.target)
    if n.op in ("call_function", "call_method"):
        for i in n.all_input_nodes:
            if i.op == "get_attr":
                return str(i.target).rpartition(".")[0]
    return None


def first_line(error: BaseException) -> str:
    """The error's class and the first line of what it says."""
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"[:200]


def is_float(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def largest(value: Tensor) -> float:
    """The largest magnitude; NaN if there is one; 0 for an empty tensor."""
    value = value.detach() if value.layout is torch.strided else value.detach().coalesce().values()
    if not value.numel():
        return 0.0
    if value.is_complex():
        return float(torch.linalg.vector_norm(value, float("inf")))
    low, high = torch.aminmax(value)  # a tenth of the time of an infinity norm
    return float(torch.maximum(-low, high))


def most(values: Iterable[float]) -> float:
    """The largest of numbers that are not negative; NaN if there is one, which `max` may pass over; 0 for none."""
    magnitudes = list(values)
    return math.nan if any(map(math.isnan, magnitudes)) else max(magnitudes, default=0.0)


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether shape and bits are the same: a NaN is like itself, and 0 is not like -0."""
    return a.shape == b.shape and torch.equal(_bytes(a), _bytes(b))


def _bytes(t: Tensor) -> Tensor:
    return t.contiguous().reshape(-1).view(torch.uint8)
