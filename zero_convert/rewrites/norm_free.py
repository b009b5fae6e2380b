"""Norms are removed; a residual branch gets scalar biases around each weight layer and one scale on its last.

    C1(x + b1a) + b1b → … → Ck(· + bka) · s + bkb

b = 0 and s = 1 are trainable numbers of shape (1,). The first bias is shared with a projection shortcut that reads the
same value. Branches without norms stay as they are, and norms outside residual branches go without replacement. [A]
for bottlenecks; the same for any branch [X].
Source: the authors' first release of ZerO (`no_bn`), after Fixup (arXiv 1901.09321).
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import fx, nn

from zero_convert.graph.kinds import WEIGHT_KINDS
from zero_convert.graph.queries import kind

from ..records import Analyzed, Edit, Option
from ._norms import remove, surround

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
            shared = list(fork.users) if leads and weights[0] is chain[0] else []
            edits.append(surround(root, graph, join, weights, NAME, shared))
            done |= set(weights)
    return [*edits, *remove(root, graph, NAME)]
