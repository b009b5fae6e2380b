"""Cuts what a module computes out of a graph: the nodes between its layers become one call of it.

Seeds are the nodes that call or read what lies under the module's path. The body is every node on a way between two
seeds (the convex closure); it must hold no tensors from elsewhere. Functions around it are taken in as long as that
leaves fewer values to hand over.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import fx, nn

from zero_convert.graph.editing import resort
from zero_convert.graph.queries import is_size
from zero_convert.graph.scopes import Scope, Unknown

from .scopes import ChangedError, Mode


class _Order:
    """The nodes of a graph, and which are before and behind which, as bits."""

    def __init__(self, graph: fx.Graph) -> None:
        self.nodes = list(graph.nodes)
        self.at = {node: i for i, node in enumerate(self.nodes)}
        self._before, self._behind = [0] * len(self.nodes), [0] * len(self.nodes)
        for i, node in enumerate(self.nodes):
            for source in node.all_input_nodes:
                self._before[i] |= self._before[self.at[source]] | 1 << self.at[source]
        for i in reversed(range(len(self.nodes))):
            for user in self.nodes[i].users:
                self._behind[i] |= self._behind[self.at[user]] | 1 << self.at[user]

    def closure(self, body: set[fx.Node]) -> set[fx.Node]:
        before = behind = 0
        for node in body:
            before |= self._before[self.at[node]]
            behind |= self._behind[self.at[node]]
        both, closed = before & behind, set(body)
        while both:
            low = both & -both
            closed.add(self.nodes[low.bit_length() - 1])
            both ^= low
        items = {user for node in closed for user in node.users if user.meta.get("item")}
        return closed if items <= closed else self.closure(closed | items)

    def borders(self, body: set[fx.Node]) -> tuple[list[fx.Node], list[fx.Node]]:
        """The values that go in, and those that come out."""
        ordered = sorted(body, key=self.at.__getitem__)
        ins = dict.fromkeys(source for node in ordered for source in node.all_input_nodes if source not in body)
        return list(ins), [node for node in ordered if any(user not in body for user in node.users)]


def under(path: str, node: fx.Node) -> bool:
    return node.op in ("call_module", "get_attr") and str(node.target).startswith(f"{path}.")


def body_of(mode: Mode, path: str, scope: Scope | None) -> tuple[list[fx.Node], list[fx.Node], list[fx.Node]]:
    """The body of a module, in order, what goes in and what comes out.

    Args:
        scope: the call of the module, where there are several.

    Raises:
        ChangedError: there is none.
    """
    order = _Order(mode.graph)

    def ours(node: fx.Node) -> bool:
        return under(path, node) and (scope is None or (node.meta.get("scope") or ())[: len(scope)] == scope)

    def strange(body: Iterable[fx.Node]) -> fx.Node | None:
        for node in body:
            if node.op in ("placeholder", "output") or (owns(mode.root, node) and not ours(node)):
                return node
        return None

    seeds = {node for node in order.nodes if ours(node)}
    if not seeds:
        raise ChangedError("none of its layers is called any more")
    body = order.closure(seeds)
    if (stranger := strange(body)) is not None:
        raise ChangedError(f"{stranger.target} stands between its layers")
    while (wider := _wider(mode, order, path, body, strange)) is not None:
        body = wider
    ins, outs = order.borders(body)
    return sorted(body, key=order.at.__getitem__), ins, outs


def _wider(
    mode: Mode, order: _Order, path: str, body: set[fx.Node], strange: Callable[[Iterable[fx.Node]], fx.Node | None]
) -> set[fx.Node] | None:
    """The body with one more function beside it, if that leaves no more values to hand over."""
    ins, outs = order.borders(body)
    behind = {user for node in outs for user in node.users}
    near = (behind | {node for node in ins if all(user in body for user in node.users)}) - body
    for node in sorted(near, key=order.at.__getitem__):
        trailing = node in behind
        if node.op in ("placeholder", "output") or owns(mode.root, node) or node.meta.get("item"):
            continue
        if node.op == "call_module" and not (trailing and under(path, node)):
            continue  # what stands before belongs to whom it is named after
        more = order.closure(body | {node})
        if strange(more) is not None:
            continue
        sides = sum(map(len, order.borders(more)))
        before = len(ins) + len(outs)
        if sides < before or (sides == before and not trailing and all(user in body for user in node.users)):
            return more
    return None


def owns(root: nn.Module, node: fx.Node) -> bool:
    """Whether the node reads a tensor that lives in the network."""
    if node.op != "call_module":
        return node.op == "get_attr"
    module = root.get_submodule(str(node.target))
    return next(module.parameters(), None) is not None or next(module.buffers(), None) is not None


def text_of(
    path: str, body: Iterable[fx.Node], ins: Iterable[tuple[fx.Node, str]], outs: list[fx.Node]
) -> tuple[fx.Graph, dict[str, str]]:
    """A graph of the body with names of its own, and the modules from elsewhere that it calls: name → path."""
    graph, known, others = fx.Graph(), dict[fx.Node, fx.Node](), dict[str, str]()
    for node, name in ins:
        known[node] = graph.placeholder(name)
    for node in body:
        target = node.target
        if node.op in ("call_module", "get_attr") and path:
            if under(path, node):
                target = str(target)[len(path) + 1 :]
            else:
                name = next((name for name, other in others.items() if other == target), f"outer_{len(others)}")
                others[name] = str(target)
                target = name
        args, kwargs = fx.map_arg((node.args, dict(node.kwargs)), known.__getitem__)
        known[node] = graph.create_node(node.op, target, args, kwargs)
    graph.output(known[outs[0]] if len(outs) == 1 else tuple(known[node] for node in outs))
    return graph, others


def as_call(
    mode: Mode, path: str, scope: Scope, body: Iterable[fx.Node], args: Any, kwargs: Any, outs: Mapping[fx.Node, Any]
) -> None:
    """The body becomes one call of the module; `outs`: node → keys that lead to it in what the module returns."""
    with mode.graph.inserting_before(mode.graph.output_node()):
        call = mode.graph.call_module(path, args, kwargs)
        call.meta["scope"] = scope[:-1]
        for node, keys in outs.items():
            value = call
            for key in keys:
                value = mode.graph.call_function(operator.getitem, (value, key))
                value.meta |= {"scope": scope[:-1], "item": True}
            inner = set(body)
            node.replace_all_uses_with(value, lambda user, inner=inner: user not in inner)  # type: ignore[misc]
            mode.moved(node, value)
    members = set(body)
    for node in [node for node in reversed(mode.graph.nodes) if node in members]:
        if not node.users:
            mode.erase(node)
    resort(mode.graph)


def contract(mode: Mode, scope: Scope) -> None:
    """What a module that keeps its own Python computes becomes a call of it, as it was called.

    Raises:
        ChangedError: its arguments or its value are not to be had from the graph.
    """
    call, inside = mode.calls.get(scope), len(scope)
    if call is None:
        raise ChangedError("how it was called is not known")
    body = [
        node
        for node in mode.graph.nodes
        if node not in mode.inserted and (node.meta.get("scope") or ())[:inside] == scope and node.op != "placeholder"
    ]
    if not body:
        return  # it hands its input on
    exits: dict[fx.Node, tuple[Any, ...]] = {}

    def leave(value: Any, keys: tuple[Any, ...]) -> None:
        if isinstance(value, fx.Node):
            if (node := mode.value(value, scope)) is not None:
                exits.setdefault(node, keys)
        elif isinstance(value, tuple | list | dict):
            for key, item in value.items() if isinstance(value, dict) else enumerate(value):
                leave(item, (*keys, key))

    def enter(value: Any) -> Any:
        if isinstance(value, fx.Node):
            if (node := mode.value(value, scope)) is None:
                raise ChangedError(f"its argument {value.name} is not to be had")
            return node
        if value is Unknown:
            raise ChangedError("an argument is no tensor of the graph")
        if isinstance(value, tuple | list):
            return type(value)(map(enter, value)) if not hasattr(value, "_fields") else enter(tuple(value))
        if isinstance(value, dict):
            return {key: enter(item) for key, item in value.items()}
        return value

    args, kwargs = enter(call.args), enter(call.kwargs)
    leave(call.value, ())
    members, outs = set(body), {}
    for node in body:
        if all(user in members for user in node.users):
            continue
        if node in exits:
            outs[node] = exits[node]
        elif not (node.op == "get_attr" or (is_size(node) and not members.intersection(node.all_input_nodes))):
            raise ChangedError(f"{node.name} is used outside")
    as_call(mode, scope[-1][0], scope, body, args, kwargs, outs)
