"""The signal and its gradient at every depth: one forward and one backward of a graph, looked at where layers read.

What goes back is no loss but a fixed hashed direction at what the heads read (at the outputs, where there is no head),
of unit length in the root mean square: a head that starts at 0 would let nothing back, and says nothing of the rest.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, fx, nn

from zero_convert.graph.kinds import WEIGHT_KINDS
from zero_convert.graph.original import filled, hashed
from zero_convert.records import Layer, Structure
from zero_convert.runtime import rng

from . import isolation
from .bench import CheckContext, disable_dropout
from .channels import Channels, as_rows, rank, statistics
from .inputs import Inputs, floats, mapped, moved
from .recorder import LOW_VARIANCE, first_line, is_float, owner_of


@dataclass
class Depths:
    """What was seen, in order of execution: one item each time a weight layer reads, and one for each residual join.

    Attributes:
        names: of the layers, and of the joins' nodes.
        kinds: "layer" or "join".
        activation: root mean square of what the layer reads, or of the join's sum.
        gradient: root mean square of the gradient there; None where none arrives.
        channels: counts over it, where asked for.
        rank: numerical rank of it, channels × at most 128 positions, and the largest that could be, where asked for.
        weights: parameter → Euclidean norm of its gradient.
        backward: parameter → its gradient, where asked for.
        stopped: why the graph could not be followed to its end; "" if it could.
    """

    names: list[str] = field(default_factory=list)
    kinds: list[str] = field(default_factory=list)
    activation: list[float] = field(default_factory=list)
    gradient: list[float | None] = field(default_factory=list)
    channels: list[Channels] = field(default_factory=list)
    rank: list[tuple[int, int]] = field(default_factory=list)
    weights: dict[str, float] = field(default_factory=dict)
    backward: dict[str, Tensor] = field(default_factory=dict)
    stopped: str = ""


def depths(context: CheckContext, which: str) -> Depths | None:
    """The signal in training mode of "own" (the model's precision), "exact" (float64 on the CPU) or "original".

    None where the exact one or the original does not run so. Measured once for all checks that ask.
    """
    key = f"depths {which}"
    if key not in context.measured:
        context.measured[key] = context.depths(which) if context.session else _measured(context, which)
    seen: Depths | None = context.measured[key]
    return seen


def _measured(context: CheckContext, which: str) -> Depths | None:
    traced, structure, device = context.subject.traced, context.subject.structure, context.device
    try:
        if which == "original":
            given = context.subject.original
            if given is None or not given.traced.whole:
                return None
            traced, structure = given.traced, given.structure
            module = filled(given).to(device)
        else:
            module = context.module if which == "own" else context.exact
        if which == "exact":
            device = "cpu"
        asked = "signal, channels" if which == "original" else "signal, weights"
        asked += ", gradients" if context.level == "full" else ""
        with isolation.in_float64() if which == "exact" else nullcontext():
            return run(module, traced.train, structure, context.small_inputs[0], device, asked)
    except Exception as error:  # the original may refuse what its rewritten form takes, a kernel may know no float64
        if isolation.ran_out(error) or which == "own":
            raise
        return None


def run(
    module: nn.Module,
    graph: fx.Graph,
    structure: Structure,
    inputs: Inputs,
    device: str,
    asked: str,
    mode: str = "train",
    instead: Mapping[str, Any] = MappingProxyType({}),
) -> Depths:
    """One forward and backward in a mode; the module is left as it was.

    Args:
        instead: node → what takes the place of what torch would compute.
        asked: words: "channels" to count them, "signal" for the gradient that comes back to each depth, "weights" for
            the lengths of those of the parameters as well, "gradients" for these themselves.
    """
    parameters = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    with isolation.kept(module), _gradients_of(parameters, asked), torch.set_grad_enabled("signal" in asked):
        disable_dropout(module.train(mode == "train"))
        for _, parameter in parameters:
            parameter.grad = None
        rng.seed()
        given = tuple(mapped(x, _traceable) for x in moved(inputs, module, device))
        seer = _Seer(module, graph, structure, "channels" in asked, instead)
        try:
            returned: Any = seer.run(*given)
        except Exception as error:
            if isolation.ran_out(error):
                raise
            seer.seen.stopped, returned = first_line(error), ()
        ends = [t for t in (seer.heads or floats(returned)) if t.requires_grad and t.numel()]
        if ends:
            # Of a single number, because torch loads sympy, most of a second, to look at given gradients.
            value = torch.stack([(t * _direction(t, index)).sum().cpu() for index, t in enumerate(ends)]).sum()
            value.backward()  # type: ignore[no-untyped-call]
        depths = seer.finished()
        for name, parameter in parameters:
            if parameter.grad is not None:
                depths.weights[name] = length(parameter.grad)
                if "gradients" in asked:
                    depths.backward[name] = parameter.grad.detach()
    return depths


@contextmanager
def _gradients_of(parameters: Iterable[tuple[str, nn.Parameter]], asked: str) -> Iterator[None]:
    """Inside: no parameter wants a gradient, unless those of the weights are asked for."""
    for _, parameter in () if "weights" in asked else parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for _, parameter in parameters:
            parameter.requires_grad_(True)


def length(values: Tensor) -> float:
    """The Euclidean norm."""
    return float(torch.linalg.vector_norm(isolation.wide(values.detach()))) if values.numel() else 0.0


def _traceable(x: Tensor) -> Tensor:
    """A gradient comes back to an input too; the clone may be written to in place."""
    return x.requires_grad_().clone() if x.is_floating_point() and torch.is_grad_enabled() else x


def _direction(t: Tensor, index: int) -> Tensor:
    return hashed(f"direction {index}", tuple(t.shape)).to(t.device, t.dtype)


class _Seer(fx.Interpreter):
    """Looks at what each weight layer reads, and at the gradient that comes back there."""

    def __init__(
        self, module: nn.Module, graph: fx.Graph, structure: Structure, count: bool, instead: Mapping[str, Any]
    ) -> None:
        super().__init__(module, graph=graph, garbage_collect_values=True)
        self._instead = instead
        self.extra_traceback = False
        self.seen, self.heads, self._count = Depths(), list[Tensor](), count
        self._root = module
        self._layers: Mapping[str, Layer] = {layer.name: layer for layer in structure.layers}
        self._ends = {join.node: structure.ends(join) for join in structure.joins if join.residual}
        self._back: dict[int, float] = {}

    def run_node(self, n: fx.Node) -> Any:
        layer = self._layers.get(owner_of(n) or "")
        if layer is not None and layer.kind in WEIGHT_KINDS:
            read = next((self.env[i] for i in n.all_input_nodes if i.op != "get_attr"), None)
            if isinstance(read, Tensor) and is_float(read) and read.numel():
                self._look(layer.name, "layer", layer, read)
                if layer.role == "head" and read.requires_grad:
                    self.heads.append(read)
        value = self._instead[n.name] if n.name in self._instead else super().run_node(n)
        ends = self._ends.get(n.name)
        if ends and isinstance(value, Tensor) and is_float(value) and value.numel():
            self._look(n.name, "join", ends[-1], value)
        return value

    def finished(self) -> Depths:
        self.seen.gradient = [self._back.get(index) for index in range(len(self.seen.names))]
        return self.seen

    def _look(self, name: str, kind: str, layer: Layer, seen: Tensor) -> None:
        """Args: `layer`: the one whose channels these are."""
        index, values = len(self.seen.names), seen.detach()
        self.seen.names.append(name)
        self.seen.kinds.append(kind)
        self.seen.activation.append(_rms(values))
        if self._count:
            rows = as_rows(values, layer, self._root.get_submodule(layer.name))
            self.seen.channels.append(statistics(rows, LOW_VARIANCE))
            self.seen.rank.append(rank(rows))
        if seen.requires_grad:
            back = self._back  # and not `self`: a hook that knows its own graph would keep it alive for ever

            def note(gradient: Tensor) -> None:
                back[index] = _rms(gradient.detach())

            seen.register_hook(note)  # type: ignore[no-untyped-call]


def _rms(values: Tensor) -> float:
    return length(values) / math.sqrt(values.numel())


def rounded(values: Iterable[float | None]) -> list[float | None]:
    """Six digits, as much as anybody plots."""
    return [None if value is None else float(f"{value:.6g}") for value in values]
