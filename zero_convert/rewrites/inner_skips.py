"""Layers inside a residual branch that keep their channels get a skip of their own, so that they can start at zero.

Case 1, pre-activation blocks whose first layer makes the block's whole change of shape while the others keep it (the
basic block): the shortcut joins after the first layer, and every other layer gets an identity skip.

    before   y = C2(p2(C1(p1(x)))) + s(x)
    after    h = C1(p1(x)) + s(x);  y = C2(p2(h)) + h

Case 2, any other branch: each layer but the last that keeps its channels and sees more than one position (a 1×1 layer
is left to the partial identity, as in the authors' bottleneck) gets a skip. In pre-activation order it goes around
the activation and norm as well, otherwise around the layer alone. A strided layer's skip takes the positions under
its centre tap.

    before   g = C2(p2(h))            after   g = C2(p2(h)) + sub_s(h)

[A] for the basic block and the bottleneck, [X] for branches in general.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping

from torch import fx, nn

from zero_convert.graph.editing import insert_after
from zero_convert.graph.kinds import WEIGHT_KINDS, geometry
from zero_convert.graph.queries import kind, made_from, tensors_in
from zero_convert.nn.functional import subsample

from ..records import Analyzed, Edit, Geometry, Join, Option
from ._skips import centre_sides, sampled

NAME = "inner_skips"


def rewrite(root: nn.Module, graph: fx.Graph, analyzed: Analyzed, options: Mapping[str, Option]) -> list[Edit]:
    nodes = {node.name: node for node in graph.nodes}
    edits: list[Edit] = []
    for join in analyzed().joins:
        if not join.residual:
            continue
        chain = [nodes[name] for name in join.chain]
        weights = [n for n in chain if kind(n, root) in WEIGHT_KINDS]
        sizes = [geometry(root.get_submodule(str(n.target))) for n in weights]
        if len(weights) < 2 or None in sizes:
            if len(join.branch) > 1 and not chain:
                edits.append(Edit(NAME, join.node, "no inner skips", False, join.reason))
            continue
        ends = [_end(root, chain, node) for node in weights]
        known = [g for g in sizes if g is not None]
        if (
            join.order == "pre-activation"
            and _first_makes_the_change(join, known)
            and _same_shapes(nodes, join, ends, known)
            and not made_from(nodes[join.shortcut_node], ends[0])  # zeros of the branch's size fill its channels up
        ):
            edits.append(_early_shortcut(graph, nodes, join, weights, ends, known))
        else:
            signal = nodes[join.fork]  # what the layer before left, with the skip around it
            for node, end, g in zip(weights[:-1], ends, known, strict=False):
                before = signal if join.order == "pre-activation" else tensors_in(node)[0]
                joined, edit = _own_skip(graph, before, node, end, g)
                edits += [edit] if edit else []
                signal = joined or end
    return edits


def _end(root: nn.Module, chain: list[fx.Node], node: fx.Node) -> fx.Node:
    """The last of the scalar biases and scales that directly follow the layer, or the layer."""
    at = chain.index(node)
    while at + 1 < len(chain) and kind(chain[at + 1], root) in ("bias", "scale", "transform"):
        at += 1
    return chain[at]


def _keeps(g: Geometry) -> bool:
    return g.in_channels == g.out_channels and not g.transposed


def _first_makes_the_change(join: Join, sizes: list[Geometry]) -> bool:
    return not sizes[0].transposed and all(_keeps(g) and max(g.stride, default=1) == 1 for g in sizes[1:])


def _same_shapes(nodes: Mapping[str, fx.Node], join: Join, ends: list[fx.Node], sizes: list[Geometry]) -> bool:
    """Whether the shortcut fits the first layer's output, and every skip the output of the layer it goes around."""
    values = [nodes[join.shortcut_node], *ends[:-1]]
    shapes = [value.meta.get("shape") for value in values]
    return None not in shapes and len({*shapes, nodes[join.branch_node].meta.get("shape")}) == 1


def _early_shortcut(
    graph: fx.Graph,
    nodes: Mapping[str, fx.Node],
    join: Join,
    weights: list[fx.Node],
    ends: list[fx.Node],
    sizes: list[Geometry],
) -> Edit:
    carried = nodes[join.shortcut_node]
    for end in ends[:-1]:
        skip = carried
        carried = insert_after(graph, end, operator.add, lambda n, skip=skip: (n, skip))  # type: ignore[misc]
        carried.meta["order"] = "pre-activation"
    node = nodes[join.node]
    node.replace_input_with(nodes[join.shortcut_node], carried)
    names = ", ".join(str(n.target) for n in weights[1:])
    what = f"the shortcut joins after {weights[0].target}; identity skips around {names}"
    return Edit(NAME, join.node, what, source=(join.shortcut_node, *(str(n.target) for n in weights)))


def _own_skip(
    graph: fx.Graph, before: fx.Node, node: fx.Node, end: fx.Node, g: Geometry
) -> tuple[fx.Node | None, Edit | None]:
    """A skip from `before` to `end` if the layer keeps its channels and sees more than one position; their sum."""
    if not _keeps(g) or max(g.kernel, default=1) == 1:
        return None, None
    read = tensors_in(node)[0]
    if before is not read and before.meta.get("shape") != read.meta.get("shape"):
        reason = "what stands before the layer changes the shape"
        return None, Edit(NAME, str(node.target), "no skip of its own", False, reason)
    sides = centre_sides(g)
    shape = end.meta.get("shape") or ()
    if shape[len(shape) - len(g.stride) :] != sampled(before.meta.get("shape") or (), g.stride, sides):
        reason = "its output has another size than a convolution with its stride and padding makes"
        return None, Edit(NAME, str(node.target), "no skip of its own", False, reason)
    skip = before
    if max(g.stride) > 1 or any(map(any, sides)):
        with graph.inserting_after(before):
            skip = graph.call_function(subsample, (before, g.stride, sides))
        skip.meta["shape"] = end.meta.get("shape")
    joined = insert_after(graph, end, operator.add, lambda n: (n, skip))
    joined.meta["order"] = "pre-activation"
    what = "identity skip" if skip is before else f"skip that takes every {'×'.join(map(str, g.stride))} position"
    steps = () if skip is before else tuple(map(str, g.stride))
    return joined, Edit(NAME, str(node.target), what, source=(before.name, *steps))
