"""The first part of a network in which float32 computes without rounding, so that any two runtimes have to agree.

With weights of 0 and ±1, integers as inputs and norms that divide by 1, convolutions, linear layers, tables, additions,
ReLUs, max-pools and transforms over 4ᵏ channels (scaled by 2⁻ᵏ) give exact numbers, as long as these stay below 2²⁴.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import fx, nn

from zero_convert.graph.queries import kind
from zero_convert.nn.layers import HadamardTransform

KINDS = {"convolution", "linear", "embedding", "add", "activation", "pool", "concatenate", "parameter", "identity"}
KINDS |= {"placeholder", "drop"}
ROUNDING = {"gelu", "silu", "sigmoid", "tanh", "softplus", "mish", "hardswish", "hardsigmoid", "elu", "celu", "selu"}
ROUNDING |= {"avg_pool1d", "avg_pool2d", "avg_pool3d", "adaptive_avg_pool1d", "adaptive_avg_pool2d", "interpolate"}
MOVING = {"reshape", "view", "flatten", "permute", "transpose", "expand", "size", "getattr", "getitem", "unsqueeze"}
LIMIT = 1 << 24


def exact_part(root: nn.Module, graph: fx.Graph, inputs: Any) -> tuple[fx.GraphModule, int]:
    """The largest exact part of a network in evaluation mode, with numbers of its own, and how many layers it has.

    Args:
        root: of the graph; it stays as it is.
        inputs: of the forward, in order.
    """
    own, graph = copy.deepcopy(root).eval(), copy.deepcopy(graph)
    layers: dict[fx.Node, frozenset[str]] = {}  # of the exact nodes: the weight layers before each
    for node in graph.nodes:
        if node.op != "output" and _exact(node, own) and all(each in layers for each in node.all_input_nodes):
            before = frozenset[str]().union(*(layers[each] for each in node.all_input_nodes))
            weighs = node.op == "call_module" and kind(node, own) in ("convolution", "linear", "embedding")
            layers[node] = before | {str(node.target)} if weighs else before
    tensors = [node for node in layers if isinstance(node.meta.get("shape"), tuple)]
    last = max(reversed(tensors), key=lambda node: len(layers[node]))
    (output,) = graph.find_nodes(op="output")
    output.args = (last,)
    for node in reversed(graph.nodes):
        if not node.users and node.op not in ("placeholder", "output"):
            graph.erase_node(node)
    part = fx.GraphModule(own, graph)
    _renumber(part)
    with torch.no_grad():
        largest = float(part(*inputs).abs().max())
    assert 0 < largest < LIMIT, f"an exact part gives numbers up to {largest}"
    return part, len(layers[last])


def _exact(node: fx.Node, root: nn.Module) -> bool:
    name = getattr(node.target, "__name__", str(node.target))
    if node.op == "call_module":
        module = root.get_submodule(str(node.target))
        if isinstance(module, HadamardTransform):
            return math.log2(module.order) % 2 == 0
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            return True
        name = type(module).__name__.lower()
        if isinstance(module, nn.Identity | nn.Flatten):
            return True
    return name in MOVING or (kind(node, root) in KINDS and not any(each == name.replace("_", "") for each in _PLAIN))


_PLAIN = {name.replace("_", "") for name in ROUNDING}


def _renumber(part: nn.Module) -> None:
    """One ±1 in each row of a weight, or in each row of a table ±1 everywhere; other parameters 0 and ±1; norms that
    divide by 1."""
    generator = torch.Generator().manual_seed(0)

    def signs(*shape: int) -> torch.Tensor:
        return torch.randint(0, 2, shape, generator=generator).float() * 2 - 1

    with torch.no_grad():
        for module in part.modules():
            table = isinstance(module, nn.Embedding)
            for parameter in module.parameters(recurse=False):
                if parameter.ndim > 1 and not table:
                    rows = torch.zeros(len(parameter), parameter[0].numel())
                    places = torch.randint(0, rows.shape[1], (len(rows), 1), generator=generator)
                    parameter.copy_(rows.scatter_(1, places, signs(len(rows), 1)).reshape(parameter.shape))
                elif parameter.is_floating_point():
                    parameter.copy_(signs(*parameter.shape))
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.weight.abs_()
                module.running_var.fill_(1 - module.eps)
                assert bool((module.running_var + module.eps == 1).all())
