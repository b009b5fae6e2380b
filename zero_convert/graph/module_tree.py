"""What became of the modules of a network that was rewritten."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import fx, nn

Content = Sequence[tuple[fx.Node, str, Any, Any, Any]]  # node, op, target, args, kwargs: a graph as it was


@dataclass(frozen=True)
class Given:
    """The network before the rewrites: its modules, what each graph computed, and the children of its lists."""

    root: nn.Module
    contents: Mapping[fx.Graph, Content]
    children: Mapping[str, tuple[str, ...]]


@dataclass
class Tree:
    """The network as its user gets it.

    Attributes:
        module: a module of the class that was converted, wherever that was possible.
        kept: paths of the modules whose own Python runs, "" for the network itself.
        written: paths of those with a forward from a graph.
        refused: path → why the module cannot be called.
        layers: paths of the layers with nodes of a rewrite around them.
    """

    module: nn.Module
    kept: tuple[str, ...] = ()
    written: tuple[str, ...] = ()
    refused: Mapping[str, str] = field(default_factory=dict)
    layers: tuple[str, ...] = ()


def without_scopes(graphs: Iterable[fx.Graph]) -> None:
    """Takes what the tracers noted for a module tree out of the graphs, which may be pickled with a module."""
    for graph in graphs:
        for node in graph.nodes:
            for name in ("scope", "anchor", "calls"):
                node.meta.pop(name, None)
