"""Outside residual branches a scalar bias stands in the place of each norm, and one before the classifier.

    before   N(C(x)),  W(z)        after   N(C(x)) + b,  W(z + b)

b is a trainable number of shape (1,). The norm itself is left to `remove_norms`. The norm of a projection shortcut gets
no bias: the shortcut reads the branch's first one.
Source: the code of Fixup's authors (arXiv 1901.09321), `bias1` and `bias2` of their ResNets. [A]; any other place [X].
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import fx, nn

from zero_convert.graph.editing import add_module, insert_after
from zero_convert.graph.queries import Reach, kind, tensors_in
from zero_convert.nn.layers import ScalarBias

from ..records import Analyzed, Edit, Option

NAME = "outer_biases"


def rewrite(root: nn.Module, graph: fx.Graph, analyzed: Analyzed, options: Mapping[str, Option]) -> list[Edit]:
    structure = analyzed()
    nodes = {node.name: node for node in graph.nodes}
    reach = Reach(graph)
    inside: set[fx.Node] = set()
    for join in structure.joins:
        if join.residual:
            inside |= set(reach.between(nodes[join.fork], nodes[join.node]))
    heads = {
        layer.name for layer in structure.layers if layer.role == "head" and layer.kind in ("convolution", "linear")
    }
    edits = []
    for node in list(graph.nodes):
        if kind(node, root) == "norm" and node not in inside:
            path = str(node.target) if node.op == "call_module" else node.name
            insert_after(graph, node, add_module(root, f"{path}_bias", ScalarBias()))
            edits.append(Edit(NAME, path, "a scalar bias in its place"))
        elif node.op == "call_module" and node.target in heads:
            source = tensors_in(node)[0]
            if kind(source, root) != "bias":
                insert_after(graph, source, add_module(root, f"{node.target}_bias_in", ScalarBias()), users=[node])
                edits.append(Edit(NAME, str(node.target), "a scalar bias before it"))
    return edits
