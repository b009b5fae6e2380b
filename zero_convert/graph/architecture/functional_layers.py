"""Layers that a forward applies as a function to tensors of the state dict, described as the modules are.

F.linear(x, self.fc.weight, self.fc.bias)     is     self.fc(x)
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import fx, nn

from zero_convert.records import Geometry

from .leaves import norm_layer, spelled, weight_layer
from .vocabulary import without_defaults

Layer = tuple[str, dict[str, Any], dict[str, Any]]  # name, attributes, other arguments

_CONVOLUTION = re.compile(r"conv(_transpose)?([123])d")
_NORMS = frozenset({"batch_norm", "instance_norm", "group_norm", "layer_norm", "rms_norm"})
_STATE = ("weight", "bias", "running_mean", "running_var")


def functional_layer(
    name: str, arguments: Mapping[str, Any], root: nn.Module, stored: Mapping[str, str]
) -> Layer | None:
    """The layer that a call is; None for any other call, and where its weight is computed."""
    if "input" not in arguments:
        return None
    given = {key: arguments[key] for key in _STATE if arguments.get(key) is not None}
    tensors = {key: stored[str(n.target)] for key, n in given.items() if _is_state(n, stored)}
    if len(tensors) < len(given) or not all(isinstance(n, fx.Node) for n in given.values()):
        return None
    inputs = {"0": arguments["input"]}
    if name in _NORMS:
        return name, _norm(name, arguments, tensors), inputs
    if "weight" not in tensors:
        return None
    weight = _tensor(root, str(given["weight"].target))
    if name == "linear" and weight.ndim == 2:
        return "linear", weight_layer(Geometry(weight.shape[0], weight.shape[1]), tensors), inputs
    if name == "embedding":
        options = {key: arguments.get(key) for key in ("padding_idx", "max_norm")}
        plain = {key: spelled(value) for key, value in options.items() if value is not None}
        geometry = Geometry(weight.shape[1], weight.shape[0])
        return "embedding", {**weight_layer(geometry, tensors), **plain}, inputs
    found = _CONVOLUTION.fullmatch(name)
    if found is None:
        return None
    geometry_of = _convolution(arguments, weight, int(found[2]), transposed=bool(found[1]))
    if geometry_of is None:
        return None
    extra = {"output_padding": _spread(arguments.get("output_padding", 0), int(found[2]))} if found[1] else {}
    plain = {key: spelled(value) for key, value in without_defaults("convolution", extra).items()}
    return "convolution", {**weight_layer(geometry_of, tensors), **plain}, inputs


def _is_state(value: object, stored: Mapping[str, str]) -> bool:
    return isinstance(value, fx.Node) and value.op == "get_attr" and str(value.target) in stored


def _tensor(root: nn.Module, target: str) -> torch.Tensor:
    path, _, name = target.rpartition(".")
    value: torch.Tensor = getattr(root.get_submodule(path), name)
    return value


def _norm(name: str, arguments: Mapping[str, Any], tensors: Mapping[str, str]) -> dict[str, Any]:
    """Options with torch's own defaults, which the modules hold as attributes."""
    options: dict[str, Any] = {"eps": spelled(arguments.get("eps", None if name == "rms_norm" else 1e-5))}
    if name in ("batch_norm", "instance_norm") and "running_mean" in tensors:
        options["momentum"] = spelled(arguments.get("momentum", 0.1))
    if name == "group_norm":
        options["num_groups"] = spelled(arguments.get("num_groups"))
    if options["eps"] == "none":
        del options["eps"]
    if name == "batch_norm":
        batch = bool(arguments.get("training", False)) or "running_mean" not in tensors
        options["statistics"] = "batch" if batch else "running"
    shape = arguments.get("normalized_shape") if name in ("layer_norm", "rms_norm") else None
    found = norm_layer(options, None, tensors)
    return found if shape is None else {**found, "axes": spelled(len(shape))}


def _spread(value: Any, dims: int) -> tuple[int, ...] | None:
    sizes = tuple(value) if isinstance(value, tuple | list) else (value,) * dims
    sizes = sizes * dims if len(sizes) == 1 else sizes
    return sizes if all(isinstance(size, int) for size in sizes) else None


def _convolution(arguments: Mapping[str, Any], weight: torch.Tensor, dims: int, *, transposed: bool) -> Geometry | None:
    """The geometry; None where a size of it is computed in the forward."""
    stride, dilation = (_spread(arguments.get(key, 1), dims) for key in ("stride", "dilation"))
    groups, kernel = arguments.get("groups", 1), tuple(weight.shape[2:])
    if stride is None or dilation is None or not isinstance(groups, int):
        return None
    padding = arguments.get("padding", 0)
    if padding == "same":
        total = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        sides = tuple((t // 2, t - t // 2) for t in total)
    else:
        sizes = _spread(0 if padding == "valid" else padding, dims)
        if sizes is None:
            return None
        sides = tuple((size, size) for size in sizes)
    first, second = weight.shape[0], weight.shape[1] * groups
    out, into = (weight.shape[1] * groups, first) if transposed else (first, second)
    return Geometry(out, into, kernel, stride, sides, dilation, groups, transposed)
