"""Norms are removed: what reads a norm reads the norm's input instead.

    before   y = f(N(x))        after   y = f(x)

Wherever they stand: in residual branches, on shortcuts, behind joins, at the stem, before the head. Their factors,
shifts and running statistics leave the state dict with them. What takes their place, if anything, is another rewrite's.
A norm stays, with the reason in the plan, where it does more than normalize one signal: it reads a second one, or
its own forward holds an activation or another module that `norm_modules` could not take apart.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import fx, nn

from zero_convert.graph.queries import kind, tensors_in

from ..records import Analyzed, Edit, Option

NAME = "remove_norms"


def rewrite(root: nn.Module, graph: fx.Graph, analyzed: Analyzed, options: Mapping[str, Option]) -> list[Edit]:
    return removed(root, graph, NAME)


def removed(
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
