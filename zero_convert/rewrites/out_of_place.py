"""In-place operations become out-of-place, and the network computes what it computed before.

    before   b = C(relu_(x)) + x        after   a = relu(x);  b = C(a) + a

Whoever reads the value after the operation reads the operation's result: an in-place activation on the value that a
skip carries is seen on the skip, as in the network as given. Where other views of the value are read later, no single
result stands for all of them, and the operation stays in place.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch import fx, nn

from zero_convert.graph.in_place import FILLS, FUNCTIONS, flagged, make_pure, pure_method
from zero_convert.graph.queries import kind, memory

from ..records import Analyzed, Edit, Option

NAME = "out_of_place"
SAME_MEMORY = ("data", "T", "mT", "H", "mH", "real", "imag")
VIEWS: frozenset[Any] = frozenset(
    {
        *("chunk", "detach", "diagonal", "expand", "expand_as", "flatten", "movedim", "narrow", "permute", "reshape"),
        *("select", "split", "squeeze", "swapaxes", "t", "transpose", "unbind", "unflatten", "unfold", "unsqueeze"),
        *("contiguous", "view", "view_as", operator.getitem, torch.chunk, torch.flatten, torch.movedim, torch.narrow),
        *(torch.permute, torch.reshape, torch.select, torch.split, torch.squeeze, torch.swapaxes, torch.transpose),
        *(torch.unbind, torch.unflatten, torch.unsqueeze),
    }
)


def rewrite(root: nn.Module, graph: fx.Graph, analyzed: Analyzed, options: Mapping[str, Option]) -> list[Edit]:
    order = {node: i for i, node in enumerate(graph.nodes)}
    in_place: dict[str, bool] = memory(root, NAME)  # module path → whether it was before the other graph was rewritten
    count, edits, stay = 0, [], set()
    for node in graph.nodes:
        if not _works_in_place(root, node, in_place):
            continue
        value = node.all_input_nodes[0]
        if _is_state(root, value, in_place):
            continue  # the module changes it
        if any(order[u] > order[node] for other in _other_views(root, value, order[node], order) for u in other.users):
            edits.append(Edit(NAME, node.name, "left in place", False, "other views of its value are read later"))
            stay.add(str(node.target))
            continue
        make_pure(node)
        value.replace_all_uses_with(node, lambda user, at=order[node]: order[user] > at)
        count += 1
    for path in in_place.keys() - stay:
        setattr(root.get_submodule(path), "inplace", False)  # noqa: B010 - not every module class has it
    edit = Edit(NAME, "*", f"{count} in-place operations made out-of-place", source=(str(count),))
    return [edit, *edits] if count else edits


def _is_state(root: nn.Module, node: fx.Node, modules: dict[str, bool]) -> bool:
    """Whether a value has the memory of a parameter or buffer: a view of it, or it again after a change in place."""
    while node.op != "get_attr":
        reads = node.op == "call_function" and node.target is getattr and node.args[1] in SAME_MEMORY
        if not (reads or _is_view(root, node) or _works_in_place(root, node, modules) or _fills(node)):
            return False
        node = node.all_input_nodes[0]
    return True


def _fills(node: fx.Node) -> bool:
    return node.op == "call_method" and node.target in FILLS


def _works_in_place(root: nn.Module, node: fx.Node, modules: dict[str, bool]) -> bool:
    if node.op == "call_module":
        path = str(node.target)
        if getattr(root.get_submodule(path), "inplace", False) is True:
            modules[path] = True
        return path in modules
    if node.op not in ("call_function", "call_method") or not node.all_input_nodes:
        return False
    if node.target in FUNCTIONS:
        return node.meta.get("shape") is not None  # sizes are Python numbers: nobody else sees the change
    return (
        node.kwargs.get("inplace") is True
        or (node.op == "call_method" and pure_method(node.target) != "")
        or flagged(node.target, node.args)
    )


def _other_views(root: nn.Module, value: fx.Node, before: int, order: Mapping[fx.Node, int]) -> list[fx.Node]:
    """Nodes that may share memory with the value when the operation at position `before` runs."""
    views, todo = {value: None}, [value]
    while todo:
        node = todo.pop()
        near = [user for user in node.users if order[user] < before and _is_view(root, user)]
        near += node.all_input_nodes[:1] if _is_view(root, node) else []
        for other in near:
            if other not in views:
                views[other] = None
                todo.append(other)
    return [node for node in views if node is not value]


def _is_view(root: nn.Module, node: fx.Node) -> bool:
    if node.op == "call_module":
        module = root.get_submodule(str(node.target))
        return isinstance(module, nn.Flatten | nn.Identity | nn.Unflatten) or kind(node, root) == "drop"
    return node.op in ("call_function", "call_method") and node.target in VIEWS
