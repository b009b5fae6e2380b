"""Norms taken out, and the scalar biases around layers that take their place."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Sequence

from torch import fx, nn

from zero_convert.graph.editing import add_module, insert_after
from zero_convert.graph.queries import kind, tensors_in
from zero_convert.nn.layers import ScalarBias, ScalarScale

from ..records import Edit, Join


def remove(
    root: nn.Module, graph: fx.Graph, name: str, chosen: Callable[[fx.Node], bool] = lambda node: True
) -> list[Edit]:
    """Removes the chosen norms of the graph; the edits are those of the rewrite `name`."""
    count, kept = 0, []
    for node in list(graph.nodes):
        if kind(node, root) != "norm" or not chosen(node):
            continue
        if reason := _needed(root, node):
            target = str(node.target) if node.op == "call_module" else node.name
            kept.append(Edit(name, target, "norm kept", False, reason))
            continue
        node.replace_all_uses_with(tensors_in(node)[0])
        graph.erase_node(node)
        count += 1
    for node in reversed(list(graph.nodes)):
        if node.op == "get_attr" and not node.users:  # factors of norms that were applied as functions
            graph.erase_node(node)
    return [*kept, Edit(name, "*", f"{count} norms removed", source=(str(count),))] if count else kept


def surround(
    root: nn.Module,
    graph: fx.Graph,
    join: Join,
    weights: list[fx.Node],
    name: str,
    shared: Iterable[fx.Node] = (),
) -> Edit:
    """Biases around these layers of the join's branch and the scale on the last; the edit is of the rewrite `name`.

    Args:
        shared: other nodes that read what the first layer reads, and so get the same bias.
    """
    for node in weights:
        users = [node, *(shared if node is weights[0] else ())]
        _biases(root, graph, node, users, join.chain, last=node is weights[-1])
    what = f"{2 * len(weights)} scalar biases and a scale around {', '.join(join.branch)}"
    return Edit(name, join.node, what, source=tuple(str(node.target) for node in weights))


def _needed(root: nn.Module, node: fx.Node) -> str:
    """Why the norm has to stay; "" where its input can take its place."""
    signals = tensors_in(node)
    if len(signals) != 1:
        return f"it reads {len(signals)} signals: one decides how the other is normalized"
    if node.op == "call_module":
        module = root.get_submodule(str(node.target))
        plain = type(module).__module__.partition(".")[0] == "torch"  # torch's norms run nothing of what lies in them
        parts = () if plain else module.children()
        if inner := [type(m).__name__ for m in parts if not isinstance(m, nn.Identity)]:
            return f"it holds {', '.join(inner)} besides the norm"
    if node.meta.get("shape") != signals[0].meta.get("shape"):
        return "it changes the shape of its signal"
    return ""


def _biases(
    root: nn.Module, graph: fx.Graph, node: fx.Node, users: list[fx.Node], chain: Sequence[str], *, last: bool
) -> None:
    """A bias before the layer, a bias after it, and before that the scale if it is the branch's last layer."""
    path = str(node.target)

    def put(after: fx.Node, suffix: str, make: Callable[[], nn.Module], users: list[fx.Node] | None) -> fx.Node:
        return insert_after(graph, after, add_module(root, path + suffix, make()), users=users)

    put(tensors_in(node)[0], "_bias_in", ScalarBias, users)
    parts = [user for user in node.users if user.target is operator.getitem]  # (output, weights), (output, state)
    if parts:
        node = next((part for part in parts if part.name in chain), parts[0])
    elif kind(node, root) == "attention":
        node = next(iter(node.users))
    if last:
        node = put(node, "_scale", ScalarScale, None)
    put(node, "_bias_out", ScalarBias, None)
