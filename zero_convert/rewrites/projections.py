"""A projection shortcut becomes T(P(·)): a 1×1 layer that starts as a partial identity, then a frozen transform.

The shortcut keeps no norm of its own. T is a Hadamard transform over the block's output channels. [A]
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import fx, nn

from zero_convert.graph.editing import insert_after
from zero_convert.graph.queries import kind, tensors_in

from ..records import Analyzed, Edit, Option
from ._transforms import add_transform

NAME = "projections"


def rewrite(root: nn.Module, graph: fx.Graph, analyzed: Analyzed, options: Mapping[str, Option]) -> list[Edit]:
    nodes = {node.name: node for node in graph.nodes}
    structure = analyzed()
    layers = {layer.name: layer for layer in structure.layers}
    edits = []
    for join in structure.joins:
        if not join.residual or join.shortcut != "projection":
            continue
        path = join.shortcut_layers[0]
        g = layers[path].geometry
        end = nodes[join.shortcut_node]
        while kind(end, root) in ("norm", "drop"):
            above = tensors_in(end)[0]
            if kind(end, root) == "norm":
                end.replace_all_uses_with(above)
                graph.erase_node(end)
            end = above
        if g is None or str(end.target) != path:
            edits.append(Edit(NAME, join.node, "shortcut kept", False, f"{path} is not the last layer of the shortcut"))
            continue
        transform, note = add_transform(root, path, g, options)
        insert_after(graph, end, transform)
        what = f"Hadamard transform over {g.out_channels} channels, no norm{note}"
        edits.append(Edit(NAME, path, what, source=(str(g.out_channels),)))
    return edits
