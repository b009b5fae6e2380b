"""Every value of one forward, and what the checks of a scheme's promises compare: mirrored pairs, equal channels."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn

from zero_convert.graph.kinds import WEIGHT_KINDS
from zero_convert.graph.queries import kind, tensors_in
from zero_convert.records import Check, Join
from zero_convert.runtime import rng

from . import isolation
from .bench import CheckContext, disable_dropout
from .channels import as_rows
from .inputs import Inputs, moved
from .recorder import first_line, is_float

SPREAD_SIDES = (64, 128, 160)  # of images; 48 and 96 shrink to 3×3 positions, where sums differ between channels

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
    see: See,
    *,
    exact: bool = False,
    inputs: Inputs | None = None,
    module: nn.Module | None = None,
) -> str:
    """Shows every value of a run on the check's inputs; why it could not be followed to its end, "" if it could.

    Args:
        exact: in float64 on the CPU.
        inputs: others than the context's for this mode, on the CPU.
        module: another copy on the device than the context's.
    """
    device = "cpu" if exact else context.device
    module = context.exact if exact else context.module if module is None else module
    given = context.inputs[mode != "train"] if inputs is None else inputs
    with isolation.kept(module), torch.no_grad():
        disable_dropout(module.train(mode == "train"))
        rng.seed(device)
        watcher = Watcher(module, context.graph(mode), see)
        try:
            if exact:
                with isolation.in_float64():
                    watcher.run(*moved(given, module, device))
            else:
                watcher.run(*moved(given, module, device))
        except Exception as error:  # a recording that other values decide, or a kernel without float64
            if isolation.ran_out(error):
                raise
            return first_line(error)
    return ""


def unseen(context: CheckContext, name: str, question: str, stopped: str, what: str, otherwise: str) -> Check:
    """The answer where no `what` was seen: because the recording ended before, or nothing runs, or `otherwise`."""
    why = f"the recording ends before any: {stopped}" if stopped else context.refusal() or otherwise
    return Check(name, "warn" if stopped else "skip", question, f"no {what} to look at: {why}")


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


def spread(rows: Tensor) -> float:
    """max |row - first row|; NaN if there is one.  # (channels, positions)"""
    return float((rows - rows[:1]).abs().max()) if rows.numel() else 0.0


class Spreads:
    """The spread of each signal of a run: shown every value, it knows which of them promise to have none."""

    def __init__(self, context: CheckContext, mode: str) -> None:
        self._root, structure = context.subject.traced.root, context.subject.structure
        self._layers = {layer.name: layer for layer in structure.layers}
        self._graph = context.graph(mode)
        self._joins = {join.node: join for join in structure.joins if join.residual}
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
