"""Every residual branch gets scalar biases around each of its weight layers, and one scale on its last.

    before   y = Ck(… C1(x)) + s(x)
    after    y = (Ck(· + bka) · s + bkb) + s(x),  with C1(x + b1a) + b1b → … inside

b and s are trainable numbers of shape (1,). The first bias is shared with a projection shortcut that reads the same
value. A branch that is no single chain of layers gets a scale and a bias at its end only, and the plan says why.
Source: Fixup (arXiv 1901.09321) and its authors' code. [A] for two and three convolutions, any other branch [X].
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import fx, nn

from zero_convert.graph.editing import add_module, insert_after
from zero_convert.graph.kinds import WEIGHT_KINDS
from zero_convert.graph.queries import Reach, kind
from zero_convert.nn.layers import ScalarBias, ScalarScale

from ..records import Analyzed, Edit, Join, Option
from ._norms import surround

NAME = "scalar_biases"


def rewrite(root: nn.Module, graph: fx.Graph, analyzed: Analyzed, options: Mapping[str, Option]) -> list[Edit]:
    nodes = {node.name: node for node in graph.nodes}
    joins = [join for join in analyzed().joins if join.residual]
    reach = Reach(graph)
    shared = {join.node: _readers(reach, nodes, join) for join in joins}
    edits: list[Edit] = []
    done: set[fx.Node] = set()
    for join in joins:
        weights = [n for name in join.chain if kind(n := nodes[name], root) in WEIGHT_KINDS and n not in done]
        if weights:
            done |= set(weights)
            edits.append(surround(root, graph, join, weights, NAME, shared[join.node]))
        elif not join.chain:
            end = insert_after(graph, nodes[join.branch_node], _scale(root, join), users=[nodes[join.node]])
            insert_after(graph, end, add_module(root, f"{join.branch[-1]}_bias_out", ScalarBias()))
            what = "a scale and a scalar bias at the end of the branch"
            edits.append(Edit(NAME, join.node, what, source=join.branch))
            edits.append(Edit(NAME, join.node, "no scalar biases inside the branch", False, join.reason))
    return edits


def _readers(reach: Reach, nodes: Mapping[str, fx.Node], join: Join) -> list[fx.Node]:
    """The nodes on a projection shortcut that read what the branch's first layer reads."""
    if join.shortcut != "projection" or not join.chain:
        return []
    fork, end = nodes[join.fork], nodes[join.shortcut_node]
    starts_with_layer = join.chain[0] in {node.name for node in fork.users}
    return [user for user in fork.users if starts_with_layer and reach.reaches(user, end)]


def _scale(root: nn.Module, join: Join) -> str:
    return add_module(root, f"{join.branch[-1]}_scale", ScalarScale())
