"""How signals come to weight layers and joins: where each was made, and what it passed since.

For schemes whose values depend on what stands between two layers: a ReLU keeps what a mirrored pair of channels says,
another activation does not; a norm across channels leaves nothing of channels that are all equal.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import fx, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.modules.pooling import _AdaptiveAvgPoolNd, _AdaptiveMaxPoolNd, _AvgPoolNd, _MaxPoolNd

from zero_convert.graph.queries import relu_kind, tensors_in
from zero_convert.nn.functional import relu0, relu6_0, subsample

from ..records import Join, Layer, SignalPath
from .graph_facts import Facts

SILENT = frozenset({"drop", "identity", "output"})  # kinds that leave the signal as it is, on the average
VIEWS = frozenset(
    {
        *("view", "reshape", "flatten", "permute", "transpose", "squeeze", "unsqueeze", "movedim", "t", "swapaxes"),
        *("float", "to", "type", "half", "chunk", "split", "unflatten", "type_as"),
    }
)
MEANS = frozenset({"mean", "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d"})
PER_CHANNEL = (_BatchNorm, _InstanceNorm, nn.GroupNorm, nn.LocalResponseNorm)
PER_CHANNEL_FUNCTIONS = frozenset({F.batch_norm, torch.batch_norm, F.instance_norm, F.group_norm})


def with_signal_paths(
    facts: Facts, layers: tuple[Layer, ...], joins: tuple[Join, ...]
) -> tuple[tuple[Layer, ...], tuple[Join, ...]]:
    """The layers and joins with the ways of their signals."""
    residual = {join.node for join in joins if join.residual}
    nodes = {node.name: node for node in facts.graph.nodes}
    reads: dict[str, SignalPath] = {}
    for node, paths in facts.paths.items():
        sources = tensors_in(node)
        way = _path(facts, sources[0], residual) if sources else SignalPath("other")
        for path in paths:
            reads[path] = way if reads.setdefault(path, way) == way else SignalPath("several")
    return (
        tuple(replace(layer, way=reads[layer.name]) if layer.name in reads else layer for layer in layers),
        tuple(
            replace(
                join,
                shortcut_path=_path(facts, nodes[join.shortcut_node], residual),
                branch_path=_path(facts, nodes[join.branch_node], residual),
            )
            for join in joins
        ),
    )


def _path(facts: Facts, node: fx.Node, joins: set[str]) -> SignalPath:
    """From what made the value of this node to the node, which is passed as well."""
    passed: list[str] = []
    while True:
        sources = tensors_in(node)
        made = _maker(facts, node, len(sources), joins)
        if made is not None:
            return SignalPath(*made, tuple(reversed(passed)))
        if what := _passing(facts, node):
            passed.append(what)
        node = sources[0]


def _maker(facts: Facts, node: fx.Node, sources: int, joins: set[str]) -> tuple[str, str] | None:
    """What a value is made by, and its name; None for a node that a signal only passes."""
    kind = facts.kinds[node]
    if node in facts.paths:
        return "layer", facts.paths[node][-1]
    if node.op == "placeholder":
        return "input", node.name
    if sources == 1:
        return None
    if kind == "add" and sources == 2:
        return ("join" if node.name in joins else "sum"), node.name
    return {"concatenate": "concatenation", "multiply": "product"}.get(kind, "other"), node.name


def _passing(facts: Facts, node: fx.Node) -> str:
    """What a node does to the one signal that passes it; "" where it leaves it as it is."""
    kind = facts.kinds[node]
    name = node.target if node.op == "call_method" else getattr(node.target, "__name__", "")
    module = facts.root.get_submodule(str(node.target)) if node.op == "call_module" else None
    if kind in SILENT or isinstance(module, nn.Flatten | nn.Unflatten):
        return ""
    if kind == "activation" or relu_kind(node, facts.root):
        known: dict[object, str] = {relu0: "relu", relu6_0: "relu6"}
        return relu_kind(node, facts.root) or known.get(node.target, "activation")
    if kind == "norm":
        per_channel = isinstance(module, PER_CHANNEL) or node.target in PER_CHANNEL_FUNCTIONS
        return "norm" if per_channel or "batch" in type(module).__qualname__.lower() else "norm across channels"
    if isinstance(module, _MaxPoolNd | _AdaptiveMaxPoolNd) or "max_pool" in str(name):
        return "max pool"
    if isinstance(module, _AvgPoolNd | _AdaptiveAvgPoolNd) or name in MEANS or "avg_pool" in str(name):
        return "average pool"
    if kind == "pool":
        return "subsampling" if node.target is subsample else "padding"
    if kind in ("transform", "bias", "scale"):
        return kind
    if kind in ("add", "multiply"):
        return "bias" if kind == "add" else "scale"
    return "" if name in VIEWS or name == "getitem" else "other"
