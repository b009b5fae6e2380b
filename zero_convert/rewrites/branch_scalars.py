"""Every residual branch ends in one trainable number: a gate that a scheme starts at 0.

    before   y = F(x) + s(x)        after   y = g · F(x) + s(x),  g of shape (1,)

The number is the last thing on the branch, behind dropout and stochastic depth. What stands behind the join stays
there. A branch that a factor of the model's own silences already keeps that one: with both at 0 neither would move.
Source: SkipInit (arXiv 2002.10444) and ReZero (arXiv 2003.04887). [A]
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from torch import fx, nn

from zero_convert.graph.editing import add_module, insert_after
from zero_convert.nn.layers import ScalarScale

from ..records import Analyzed, Edit, Option

NAME = "branch_scalars"


def rewrite(root: nn.Module, graph: fx.Graph, analyzed: Analyzed, options: Mapping[str, Option]) -> list[Edit]:
    structure = analyzed()
    nodes = {node.name: node for node in graph.nodes}
    zeroed_by_scale = {layer.join for layer in structure.layers if layer.zeroed_by_scale}
    edits: list[Edit] = []
    placed: Counter[str] = Counter()  # a layer may end the branches of several joins: each has its own number
    for join in structure.joins:
        if not join.residual:
            continue
        if join.index in zeroed_by_scale:
            edits.append(Edit(NAME, join.node, "no scalar", False, "a factor constructed as 0 ends the branch already"))
            continue
        path = f"{join.branch[-1]}_scale"
        placed[path] += 1
        name = add_module(root, path if placed[path] == 1 else f"{path}_{placed[path]}", ScalarScale())
        insert_after(graph, nodes[join.branch_node], name, users=[nodes[join.node]])
        what = f"scalar {name} at the end of the branch {', '.join(join.branch)}"
        edits.append(Edit(NAME, join.node, what, source=(name, *join.branch)))
    return edits
