"""Every value of one forward, and what the checks of a scheme's promises compare: mirrored pairs, equal channels."""

from __future__ import annotations

import math
from collections.abc import Callable, Container
from contextlib import nullcontext
from typing import Any, TypeVar

import torch
from torch import Tensor, fx, nn

from zero_convert.graph.kinds import WEIGHT_KINDS
from zero_convert.graph.queries import kind, tensors_in
from zero_convert.records import Join
from zero_convert.runtime import rng

from . import isolation
from .bench import Answer, CheckContext, disable_dropout
from .channels import as_rows
from .inputs import Inputs, moved
from .recorder import first_line, is_float, largest

SPREAD_SIDES = (64, 128, 160)  # of images; 48 and 96 shrink to 3×3 positions, where sums differ between channels

T = TypeVar("T")
See = Callable[[fx.Node, Tensor], None]


class Watcher(fx.Interpreter):
    """Runs a graph and shows every floating value to `see`. Values given by `instead` take the place of a node's."""

    def __init__(self, module: nn.Module, graph: fx.Graph, see: See, instead: dict[str, Tensor] | None = None) -> None:
        super().__init__(module, graph=graph, garbage_collect_values=True)
        self.extra_traceback = False
        self._see, self._instead = see, instead or {}

    def run_node(self, n: fx.Node) -> Any:
        value = self._instead[n.name] if n.name in self._instead else super().run_node(n)
        shown = value[0] if isinstance(value, tuple) and value else value
        if isinstance(shown, Tensor) and is_float(shown):
            self._see(n, shown)
        return value


def watch(
    context: CheckContext,
    mode: str,
    look: Callable[[fx.Node, Tensor], T],
    *,
    nodes: Container[fx.Node] | None = None,
    exact: bool = False,
    inputs: Inputs | None = None,
    module: nn.Module | None = None,
) -> tuple[dict[str, T], str]:
    """Node → what `look` makes of its floating value; and why the run ended early, "" if it did not.

    Args:
        nodes: the only ones to look at.
        exact: in float64 on the CPU.
        inputs: others than the context's for this mode, on the CPU.
        module: another copy on the device than the context's.
    """
    device = "cpu" if exact else context.device
    module = context.exact if exact else context.module if module is None else module
    inputs = context.inputs[mode != "train"] if inputs is None else inputs
    seen: dict[str, T] = {}

    def see(n: fx.Node, value: Tensor) -> None:
        if nodes is None or n in nodes:
            seen[n.name] = look(n, value)

    with isolation.kept(module), torch.no_grad(), isolation.in_float64() if exact else nullcontext():
        disable_dropout(module.train(mode == "train"))
        rng.seed()
        try:
            Watcher(module, context.graph(mode), see).run(*moved(inputs, module, device))
        except Exception as error:  # a recording that other values decide, or a kernel without float64
            if isolation.ran_out(error):
                raise
            return seen, first_line(error)
    return seen, ""


def unseen(context: CheckContext, stopped: str, what: str, otherwise: str) -> Answer:
    """The answer where no `what` was seen: because the recording ended before, or nothing runs, or `otherwise`."""
    why = f"the recording ends before any: {stopped}" if stopped else context.refusal() or otherwise
    return Answer("warn" if stopped else "skip", f"no {what} to look at: {why}")


def halves(value: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """Both sides of each pair behind a ReLU."""
    half = value.shape[axis] // 2
    return value.narrow(axis, 0, half).relu(), value.narrow(axis, half, half).relu()


def axis_of(context: CheckContext, join: Join, dimensions: int) -> int:
    """The axis of the channels at a join."""
    g = context.subject.structure.layer(join.branch[-1]).geometry
    return dimensions - 1 - (len(g.kernel) if g is not None else 0)


def channels_first(context: CheckContext, join: Join, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of a value at a join with the channels moved to the front."""
    axis = axis_of(context, join, len(shape))
    return (shape[axis], *shape[:axis], *shape[axis + 1 :])


def residual_joins(context: CheckContext, mode: str) -> list[tuple[Join, fx.Node, fx.Node]]:
    """Residual joins that the mode's graph shows, with the fork's node and their own."""
    nodes = {node.name: node for node in context.graph(mode).nodes}
    return [
        (join, nodes[join.fork], nodes[join.node])
        for join in context.subject.structure.joins
        if join.residual and join.fork in nodes and join.node in nodes
    ]


def spreads(
    context: CheckContext, mode: str, inputs: Inputs, module: nn.Module | None = None
) -> tuple[dict[str, float], dict[str, float], str]:
    """How far channels are apart that must be identical: behind layers that mix all of them, and what is made of such.

    Returns:
        Node → max |channel - first channel|; node → largest magnitude, of every value; why the run ended early.
    """
    root, structure = context.subject.traced.root, context.subject.structure
    layers = {layer.name: layer for layer in structure.layers}
    joins = {join.node: join for join in structure.joins if join.residual}
    apart: dict[str, float] = {}
    equal: set[str] = set()

    def look(node: fx.Node, value: Tensor) -> float:
        join = joins.get(node.name)
        path = join.branch[-1] if join is not None else str(node.target) if node.op == "call_module" else ""
        layer = layers.get(path)
        if layer and layer.role != "head" and value.ndim > 1 and layer.kind in (*WEIGHT_KINDS, "norm"):
            rows = as_rows(value, layer, root.get_submodule(path))
            apart[node.name] = float((rows - rows[:1]).abs().max()) if rows.numel() else 0.0
            if join is None and layer.geometry is not None and layer.geometry.groups == 1:
                equal.add(node.name)
        return largest(value)

    sizes, stopped = watch(context, mode, look, inputs=inputs, module=module)
    for node in context.graph(mode).nodes:
        sources = tensors_in(node)
        if sources and kind(node, root) != "concatenate" and all(n.name in equal for n in sources):
            equal.add(node.name)
    judged = {name: math.inf if math.isnan(value) else value for name, value in apart.items() if name in equal}
    return judged, sizes, stopped
