"""Where a network's features end in a division by their own norm: of them only the direction is left, and 0 has none.

Found by asking the graph: with its input made 1024 times smaller such a division returns the same. So a norm with an
epsilon worth the name, a softmax and a gate are none, however they are spelled.
"""

from __future__ import annotations

import torch
from torch import fx
from torch.nn import functional as F

from zero_convert.graph.queries import DIVISIONS, tensors_in

from .graph_facts import Facts
from .sections import LIMIT, Part

SMALLER = 2.0**-10  # exact in every precision


def find_directions(facts: Facts) -> tuple[fx.Node, ...]:
    """The divisions, in order of execution, behind which stands no weight layer."""
    return tuple(
        node
        for node in facts.graph.nodes
        if (value := _divided(facts, node)) is not None
        and not any(facts.reach.reaches(node, layer) for layer in facts.weights)
        and _forgets_length(facts, value, node)
    )


def _divided(facts: Facts, node: fx.Node) -> fx.Node | None:
    """The value that is normalized, multiplied by or divided by what is computed from it without a weight."""
    operands = tensors_in(node)
    if node.target is F.normalize and len(operands) == 1:
        return operands[0]
    if len(operands) != 2 or (node.target not in DIVISIONS and facts.kinds[node] != "multiply"):
        return None
    for value, factor in (operands, operands[::-1]):
        if facts.reach.reaches(value, factor):
            between = facts.reach.between(value, factor)
            return None if any(n in facts.weights for n in between) else value
    return None


def _forgets_length(facts: Facts, value: fx.Node, end: fx.Node) -> bool:
    shape = value.meta.get("shape")
    if not shape or torch.Size(shape).numel() > LIMIT:
        return False
    made = torch.sin(torch.arange(torch.Size(shape).numel(), dtype=torch.float32) * 0.7 + 1).reshape(shape)
    try:
        with torch.no_grad():
            full, small = (Part(facts, value, made * scale).value(end) for scale in (1.0, SMALLER))
    except Exception:  # whatever a model's own functions raise on made-up numbers
        return False
    return bool(full.isfinite().all()) and torch.allclose(full, small, rtol=1e-4, atol=1e-6)
