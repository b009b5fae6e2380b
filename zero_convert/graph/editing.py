"""Edits of an fx graph and of the modules that it calls."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import fx, nn

from zero_convert.graph.queries import memory


def insert_after(
    graph: fx.Graph,
    node: fx.Node,
    target: Callable[..., Any] | str,
    args: Callable[[fx.Node], tuple[Any, ...]] = lambda n: (n,),
    *,
    users: Iterable[fx.Node] | None = None,
) -> fx.Node:
    """A new call of `target` (a function, or a module's path) on `node`; its `users` (default all) now use it.

    Where all users of the node do, the new call belongs to it: its `meta["anchor"]` is the node.
    """
    chosen = list(node.users) if users is None else list(users)
    anchor = node.meta.get("anchor", node) if len(chosen) == len(node.users) else None
    with graph.inserting_after(node):
        made = call(graph, target, args(node))
    for user in chosen:
        user.replace_input_with(node, made)
    made.meta |= {"shape": node.meta.get("shape"), "scope": node.meta.get("scope"), "anchor": anchor}
    return made


def call(graph: fx.Graph, target: Callable[..., Any] | str, args: tuple[Any, ...]) -> fx.Node:
    """A new call at the graph's insertion point, of a function or of a module given by its path."""
    return graph.call_module(target, args) if isinstance(target, str) else graph.call_function(target, args)


def add_module(root: nn.Module, path: str, module: nn.Module) -> str:
    """The path that the module is registered at: `path`, or with underscores added where the model uses that name.

    Where the other graph has put such a module already, that one stays.
    """
    placed: dict[str, str] = memory(root, "placed")
    if path not in placed:
        parent, _, name = path.rpartition(".")
        owner = root.get_submodule(parent)
        while hasattr(owner, name):
            name += "_"
        owner.add_module(name, module)
        placed[path] = f"{parent}.{name}" if parent else name
    return placed[path]


def replace_module(root: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(root.get_submodule(parent), name, module)


def resort(graph: fx.Graph) -> None:
    """Orders the nodes so that every value exists before it is used; keeps the present order where it can.

    Raises:
        ValueError: a value would be computed from itself.
    """
    order = {node: i for i, node in enumerate(graph.nodes)}
    done: dict[fx.Node, None] = {}
    for start in list(graph.nodes):
        stack, way = [start], set()
        while stack:
            node = stack[-1]
            missing = sorted((n for n in node.all_input_nodes if n not in done), key=order.__getitem__, reverse=True)
            if node in done:
                stack.pop()
            elif missing:
                way.add(node)
                if circle := way.intersection(missing):
                    raise ValueError(f"{', '.join(sorted(n.name for n in circle))} would be computed from itself")
                stack += missing
            else:
                done[node] = None
                stack.pop()
    last: fx.Node | None = None
    for node in done:
        if last is not None:
            last.append(node)
        last = node
