"""Raw weights that are multiplied elementwise before they are used: by a constant, a mask, or a computed factor.

Equalized learning rates (Karras et al., arXiv 1710.10196) multiply each weight by a number, masked layers (van den
Oord et al., arXiv 1601.06759; Germain et al., arXiv 1502.03509) by zeros and ones, modulated convolutions (Karras et
al., arXiv 1912.04958) by what a layer makes of a style, with one kernel for each sample. In all of them the parameter
is the weight of a layer, and no factor of a signal. It looks at the graph alone.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional as F

from zero_convert.graph.queries import DIVISIONS, MULTIPLIES, is_size

from ..records import Geometry
from .attentions import product
from .raw_geometry import CONVOLUTIONS, MOVED, RESHAPES, convolved, followed, kernel, matrix, windows

TURNS: frozenset[Any] = frozenset({torch.transpose, torch.permute, "t", "T", "flatten", torch.flatten, "contiguous"})
PASSED = RESHAPES | MOVED | TURNS
SCALINGS = MULTIPLIES | DIVISIONS
LIMIT = 32  # nodes that are followed from a parameter to its use


def weight_of(node: fx.Node) -> Any:
    """What a linear map or convolution takes as its weight; None for another node."""
    if node.op != "call_function":
        return None
    if node.target in CONVOLUTIONS:
        return convolved(node)["weight"]
    operands = product(node) if node.target is F.linear else None
    return operands[1] if operands else None


def scaled_source(node: fx.Node) -> tuple[fx.Node, ...]:
    """What a weight is a product of: the tensors of the modules, of two or more axes, that stand in it as they are."""
    if node.op == "get_attr":
        return (node,) if len(node.meta.get("shape") or ()) > 1 else ()
    inputs = [n for n in node.all_input_nodes if not is_size(n)]
    if node.target in PASSED:
        return scaled_source(inputs[0]) if inputs else ()
    return tuple(s for n in inputs for s in scaled_source(n)) if node.target in SCALINGS else ()


def scaled_weight(
    user: fx.Node, node: fx.Node, labels: Tensor | None, shape: tuple[int, ...]
) -> tuple[fx.Node, Geometry] | None:
    """The linear map or convolution whose weight is the parameter times something, and its geometry.

    Args:
        user: the elementwise product that `node`, the parameter or a view of it, goes into.
        labels: numbers of the positions of `node`, or None.
        shape: of the parameter.
    """
    todo, seen = [(user, node, labels)], 0
    while todo and seen < LIMIT:
        at, before, known = todo.pop(0)
        seen += 1
        if weight_of(at) is before:
            geometry = _geometry(at, before, known, shape)
            if geometry is not None:
                return at, geometry
        elif at.target in SCALINGS:
            same = at.meta.get("shape") == before.meta.get("shape")
            todo += [(n, at, known if same else None) for n in at.users if not is_size(n)]
        elif at.target in PASSED and at.all_input_nodes[0] is before:
            todo += [(n, at, followed(at, before, known)) for n in at.users if not is_size(n)]
    return None


def _geometry(user: fx.Node, node: fx.Node, labels: Tensor | None, shape: tuple[int, ...]) -> Geometry | None:
    if user.target is F.linear:
        return matrix(user, product(user) or (), node, labels, shape)
    return kernel(user, node, labels, shape) or _of_each_sample(user, shape)


def _of_each_sample(node: fx.Node, shape: tuple[int, ...]) -> Geometry | None:
    """The geometry of one sample's kernel in a convolution that has the samples of a batch as its groups."""
    given = convolved(node)
    made, signal = given["weight"].meta.get("shape"), given["input"].meta.get("shape")
    if given["transposed"] or not made or not signal or len(shape) < len(made):
        return None
    out, ins, *taps = shape[len(shape) - len(made) :]
    samples, rest = divmod(made[0], max(1, out))
    if rest or not samples or math.prod(shape[: len(shape) - len(made)]) != 1 or tuple(made[1:]) != (ins, *taps):
        return None
    groups = signal[1] // (ins * samples)
    return windows(given, out, ins * groups, tuple(taps), groups) if groups and out % groups == 0 else None
