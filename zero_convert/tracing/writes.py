"""Writes into parts of a tensor: `out.index_add_(0, rows, values)` and its like, on whose result nobody calls.

The method returns the tensor it wrote to. Whoever reads that tensor afterwards reads, in the graph, the method's
result; so a graph shows what the values became (experts that add their rows to the output of a mixture). The
computation is the same.
"""

from __future__ import annotations

from torch import fx

WRITES = frozenset(
    {
        *("index_add_", "index_copy_", "index_put_", "index_reduce_", "index_fill_"),
        *("scatter_", "scatter_add_", "scatter_reduce_", "masked_scatter_"),
    }
)


def follow_writes(graph: fx.Graph) -> None:
    """Lets what comes after a write, and reads the tensor written to, read the result of the write."""
    place = {node: i for i, node in enumerate(graph.nodes)}
    for node in graph.nodes:
        base = node.args[0] if node.op == "call_method" and node.target in WRITES and node.args else None
        if isinstance(base, fx.Node):
            for user in list(base.users):
                if place[user] > place[node]:
                    user.replace_input_with(base, node)
