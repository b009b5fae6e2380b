"""ReLU and ReLU6 get the derivative 1 at exactly 0.

Behind a zero layer every activation sits at 0. With torch's derivative of 0 there, the layer would never move.
Source: the authors' first release of ZerO. [A]
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import fx, nn

from zero_convert.graph.queries import relu_kind
from zero_convert.nn.functional import relu0, relu6_0

from ..records import Analyzed, Edit, Option

NAME = "relu_derivative"


def rewrite(root: nn.Module, graph: fx.Graph, analyzed: Analyzed, options: Mapping[str, Option]) -> list[Edit]:
    count = 0
    for node in list(graph.nodes):
        which = relu_kind(node, root)
        if which:
            with graph.inserting_before(node):
                relu = graph.call_function(relu0 if which == "relu" else relu6_0, (node.all_input_nodes[0],))
            relu.meta |= {"shape": node.meta.get("shape"), "scope": node.meta.get("scope"), "anchor": node}
            node.replace_all_uses_with(relu)
            graph.erase_node(node)
            count += 1
    edit = Edit(NAME, "*", f"{count} ReLUs with derivative 1 at 0", source=(str(count),))
    return [edit] if count else []
