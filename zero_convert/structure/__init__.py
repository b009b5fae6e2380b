"""Analyze: from a traced graph to layers with roles, residual joins and gates.

The same analysis runs on the model as given and on the rewritten one. It changes nothing.

    facts          kinds, reach, weight layers, gates
    joins          residual joins: fork, branch, shortcut, order
    layers         every module that owns tensors: kind, role, what its rows and tensors are
    roles          which layers are stem, head, branch or last, and what stands behind the last ones
    raw            what the graph does with parameters that belong to no known layer
    parametrized   layers whose weight is computed from other tensors
    sections       what the rows of an output are: queries, keys and values, or factors of a product
    directions     where the features end in a division by their own norm
    attentions     where queries, keys and values meet
    neutral        values that leave a signal alone
    tables         embeddings that are added to a signal
    hidden         roles of layers that no node of the graph shows
    ways           what signals passed since the last layer or join
"""

from __future__ import annotations

from dataclasses import replace

from torch import fx

from zero_convert.graph.traced import Traced

from ..records import Layer, Structure
from .graph_facts import Facts
from .joins import find_joins
from .layers import find_layers
from .signal_paths import with_signal_paths
from .uncaptured_roles import with_hidden


def analyze(traced: Traced, graph: fx.Graph | None = None) -> Structure:
    """Layers, joins and gates of the training graph, or of another graph over the same modules."""
    facts = Facts(traced.root, traced.train if graph is None else graph, traced.answers)
    joins, notes = find_joins(facts)
    layers = find_layers(facts, joins)
    shown = {path for paths in facts.paths.values() for path in paths}
    if any(layer.role == "trunk" and layer.geometry is not None and layer.name not in shown for layer in layers):
        layers = with_hidden(traced.root, layers, joins, shown, traced.opaque, traced.inside)
    if traced.ends is not None:
        layers = tuple(_placed(layer, *traced.ends) for layer in layers)
    layers, joins = with_signal_paths(facts, layers, joins)
    return Structure(layers, joins, facts.gates, notes)


def _placed(layer: Layer, stems: frozenset[str], heads: frozenset[str]) -> Layer:
    """The layer of a region with its role in the whole model: a region's first layer need not be the model's."""
    if layer.role in ("stem", "head", "trunk"):
        role = "stem" if layer.name in stems else "head" if layer.name in heads else "trunk"
        return replace(layer, role=role)
    return layer
