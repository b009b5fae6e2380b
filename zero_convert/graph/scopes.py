"""Whose forward made a node of a graph, and how each module was called there.

`node.meta["scope"]` is the stack of modules that ran when the node was made, the innermost last: path and number of the
call, `()` in the model's own forward. `meta["calls"]` of the output node has the call of each scope.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch import fx
from torch.utils import _pytree as pytree

Scope = tuple[tuple[str, int], ...]


class Unknown:
    """Stands for a value that no node makes."""


@dataclass(frozen=True)
class ScopeCall:
    """One call of a module: its arguments and its value, with nodes in the place of tensors, and `Unknown` for what is
    neither a tensor with a node nor plain."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    value: Any = Unknown

    @classmethod
    def of(cls, given: tuple[Any, Any], tensor: type, node_of: Callable[[Any], fx.Node | None]) -> ScopeCall:
        """The call with these arguments, by position and by name.

        Args:
            tensor: the type of the values that may have nodes.
            node_of: the node of such a value, if it has one.
        """
        args, kwargs = _with_nodes((tuple(given[0]), dict(given[1])), tensor, node_of)
        return cls(args, kwargs)

    def returning(self, value: Any, tensor: type, node_of: Callable[[Any], fx.Node | None]) -> ScopeCall:
        """The call with what it returned; arguments as of `of`."""
        return replace(self, value=_with_nodes(value, tensor, node_of))


class ScopedGraph(fx.Graph):
    """A graph whose nodes know the scope that they are made in."""

    scope: Scope = ()

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        node = super().create_node(*args, **kwargs)
        node.meta["scope"] = self.scope
        return node


def _with_nodes(value: Any, tensor: type, node_of: Callable[[Any], fx.Node | None]) -> Any:
    def stand_in(leaf: Any) -> Any:
        if isinstance(leaf, tensor):
            node = node_of(leaf)
            return Unknown if node is None else node
        return leaf if leaf is None or type(leaf) in (bool, int, float, str) else Unknown

    return pytree.tree_map(stand_in, value)
