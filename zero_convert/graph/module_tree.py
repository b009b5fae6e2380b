"""What became of the modules of a network that was rewritten."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import nn


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
