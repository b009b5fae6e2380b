"""Norms are removed; a residual branch gets scalar biases around each weight layer and one scale on its last.

    C1(x + b1a) + b1b → … → Ck(· + bka) · s + bkb

b = 0 and s = 1 are trainable numbers of shape (1,). The first bias is shared with a projection shortcut that reads the
same value. Norms outside residual branches go without replacement. [A] for bottlenecks; the same for any branch [X].
Source: the authors' first release of ZerO (`no_bn`), after Fixup (arXiv 1901.09321).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import fx, nn

from ..graphs import add_module, insert_after, kind, tensors_in
from ..layers import WEIGHT_KINDS
from ..modules import ScalarBias, ScalarScale
from ..records import Analyzed, Edit, Join, Option

NAME = "norm_free"


def rewrite(root: nn.Module, graph: fx.Graph, analyzed: Analyzed, options: Mapping[str, Option]) -> list[Edit]:
    nodes = {node.name: node for node in graph.nodes}
    edits = []
    done: set[fx.Node] = set()
    for join in analyzed().joins:
        if not join.residual:
            continue
        chain = [nodes[name] for name in join.chain]
        fork = nodes[join.fork]
        owned = [n for n in chain if kind(n, root) == "norm"]
        leads = kind(fork, root) == "norm" and join.shortcut == "projection" and join.order == "pre-activation"
        weights = [n for n in chain if kind(n, root) in WEIGHT_KINDS and n not in done]
        if weights and (owned or leads):
            for node in weights:
                _biases(root, graph, node, shared=leads and node is chain[0], last=node is weights[-1])
            done |= set(weights)
            edits.append(_edit(join, len(weights)))
    removed = 0
    for node in list(graph.nodes):
        if kind(node, root) == "norm":
            node.replace_all_uses_with(tensors_in(node)[0])
            graph.erase_node(node)
            removed += 1
    return [*edits, Edit(NAME, "*", f"{removed} norms removed")] if removed else edits


def _edit(join: Join, layers: int) -> Edit:
    return Edit(NAME, join.node, f"{2 * layers} scalar biases and a scale around {', '.join(join.branch)}")


def _biases(root: nn.Module, graph: fx.Graph, node: fx.Node, *, shared: bool, last: bool) -> None:
    """A bias before the layer, a bias after it, and before that the scale if it is the branch's last layer.

    `shared`: the projection shortcut reads what the first layer reads, and so gets the same bias.
    """
    path = str(node.target)

    def put(after: fx.Node, suffix: str, make: Callable[[], nn.Module], users: list[fx.Node] | None) -> fx.Node:
        return insert_after(graph, after, add_module(root, path + suffix, make()), users=users)

    source = tensors_in(node)[0]
    put(source, "_bias_in", ScalarBias, None if shared else [node])
    if kind(node, root) == "attention":  # (output, weights)
        node = next(iter(node.users))
    if last:
        node = put(node, "_scale", ScalarScale, None)
    put(node, "_bias_out", ScalarBias, None)
