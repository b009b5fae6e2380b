"""A layer that grows and has no skip is followed by a frozen Hadamard transform, so that no new channel is empty.

    before   C: n → d            after   T(C(·)), C = I*: the n channels are spread over all d

For layers inside a residual branch and on the trunk; not for the last layer of a branch, for gates, heads and
projections (which have transforms or zeros of their own), nor for a layer that makes queries, keys and values. [X]
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import fx, nn

from zero_convert.graph.editing import insert_after
from zero_convert.graph.queries import SEVERAL, signal_of

from ..records import Analyzed, Edit, Layer, Option
from ._transforms import add_transform

NAME = "growth_transforms"


def rewrite(root: nn.Module, graph: fx.Graph, analyzed: Analyzed, options: Mapping[str, Option]) -> list[Edit]:
    growing = {layer.name: layer for layer in analyzed().layers if _grows(layer)}
    edits = []
    for node in list(graph.nodes):
        layer = growing.get(str(node.target)) if node.op == "call_module" else None
        if layer is None or layer.geometry is None:
            continue
        signal = signal_of(node)
        if signal is None:
            edits.append(Edit(NAME, layer.name, "no Hadamard transform", False, SEVERAL))
            continue
        transform, note = add_transform(root, layer.name, layer.geometry, options)
        insert_after(graph, signal, transform)
        channels = layer.geometry.out_channels
        what = f"Hadamard transform over {channels} channels{note}"
        edits.append(Edit(NAME, layer.name, what, source=(str(channels),)))
    return edits


def _grows(layer: Layer) -> bool:
    g = layer.geometry
    if g is None or layer.kind not in ("convolution", "linear") or layer.role not in ("branch", "trunk", "stem"):
        return False
    inputs = g.in_channels * (math.prod(g.kernel) if g.patchify else 1)
    return g.out_channels > inputs and not any(map(layer.has, ("query", "key", "value")))
