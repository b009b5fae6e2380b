"""In-place operations become out-of-place.

An in-place activation on the value that a skip carries changes the skip; a zero branch would no longer be harmless.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

from ..records import Edit, Option, Structure

OUT_OF_PLACE: dict[Any, Any] = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
    F.relu_: F.relu,
    torch.relu_: torch.relu,
    F.elu_: F.elu,
    F.leaky_relu_: F.leaky_relu,
    **{f"{name}_": name for name in ("add", "sub", "mul", "div", "relu", "sigmoid", "tanh", "clamp")},
}


def rewrite(root: nn.Module, graph: fx.Graph, structure: Structure, options: Mapping[str, Option]) -> list[Edit]:
    count = 0
    for node in graph.nodes:
        if node.op == "call_module":
            module = root.get_submodule(str(node.target))
            if getattr(module, "inplace", False) is True:
                setattr(module, "inplace", False)  # noqa: B010 - not every module class has it
                count += 1
        elif node.op in ("call_function", "call_method"):
            if node.target in OUT_OF_PLACE:
                node.target = OUT_OF_PLACE[node.target]
                count += 1
            if node.kwargs.get("inplace") is True:
                node.kwargs = {**node.kwargs, "inplace": False}
                count += 1
            elif node.target in (F.relu, F.relu6, F.silu, F.hardswish, F.hardsigmoid, F.mish) and True in node.args[1:]:
                node.args = node.args[:1]
                count += 1
    return [Edit("out_of_place", "*", f"{count} in-place operations made out-of-place")] if count else []
