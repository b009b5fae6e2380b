"""Dropout where residual branches have been added, so that channels that start equal can part.

    before   y = act(join)            after   y = dropout(act(join))

Behind every residual join and the activation that follows it; where there is no join, before the head. In evaluation
mode it does nothing. That dropout of 0.01 breaks the symmetry is the paper's finding [A]; the places are ours [X].
Source: Blumenfeld, Gilboa, Soudry, "Beyond Signal Propagation: Is Feature Diversity Necessary in Deep Neural Network
Initialization?", ICML 2020, arXiv 2007.01038.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import fx, nn

from zero_convert.graph.editing import add_module, insert_after
from zero_convert.graph.queries import kind, tensors_in

from ..records import Analyzed, Edit, Option

NAME = "symmetry_dropout"


def rewrite(root: nn.Module, graph: fx.Graph, analyzed: Analyzed, options: Mapping[str, Option]) -> list[Edit]:
    rate = float(str(options["break_symmetry"]).partition(":")[2])
    nodes = {node.name: node for node in graph.nodes}
    structure = analyzed()
    places: list[tuple[fx.Node, str]] = []
    for join in structure.joins:
        if join.residual:
            places.append((nodes[join.activation or join.node], f"{join.branch[-1]}_dropout"))
    if not places:
        heads = {layer.name for layer in structure.layers if layer.role == "head"}
        calls = [n for n in graph.nodes if n.op == "call_module" and n.target in heads and kind(n, root) != "embedding"]
        places = [(tensors_in(n)[0], f"{n.target}_dropout") for n in calls]
    edits = []
    for node, path in places:
        insert_after(graph, node, add_module(root, path, nn.Dropout(rate)))
        edits.append(Edit(NAME, node.name, f"dropout of {rate:g} behind it", source=(path, f"{rate:g}")))
    return edits
