"""What a module that a graph calls is, in words that no library's version changes: its kind, its sizes, its options.

The names of its tensors are those of the state dict; its own name in the model is not told. A module of a class that
is not known here is told by its class and what is inside of it; of a user's own class also by its plain attributes.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.pooling import _AdaptiveAvgPoolNd, _AdaptiveMaxPoolNd

from zero_convert.graph.kinds import geometry, kind_of
from zero_convert.model_ref import LIBRARIES
from zero_convert.nn.layers import HadamardTransform
from zero_convert.records import Geometry

from .vocabulary import snake, without_defaults

Attributes = dict[str, Any]  # plain values; tensors under "tensors" as local name → name in the state dict

_OPTIONS: Mapping[str, tuple[str, ...]] = {  # of a kind: what of its attributes changes the function
    "norm": ("eps", "momentum", "num_groups", "track_running_stats", "size", "alpha", "beta", "k"),
    "embedding": ("padding_idx", "max_norm", "norm_type", "mode", "include_last_offset"),
    "recurrent": ("mode", "hidden_size", "num_layers", "batch_first", "dropout", "bidirectional", "proj_size"),
    "attention": ("num_heads", "dropout", "batch_first", "add_zero_attn", "kdim", "vdim"),
    "bilinear": ("in2_features",),
}
_NO_OPTION = frozenset({"inplace", "training", "name", "recompute_scale_factor", "num_features"})
_LIBRARIES = frozenset({"torch", "zero_convert", *LIBRARIES})
_COUNTER = "num_batches_tracked"
_EXACT = 1 << 12  # of values that are whole multiples of 1/4096, every digit is told
_NORMS: Mapping[type[nn.Module], str] = {
    **dict.fromkeys((nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm), "batch_norm"),
    **dict.fromkeys((nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d), "instance_norm"),
    nn.GroupNorm: "group_norm",
    nn.LayerNorm: "layer_norm",
    nn.RMSNorm: "rms_norm",
    nn.LocalResponseNorm: "local_response_norm",
}


def describe(module: nn.Module, path: str, stored: Mapping[str, str]) -> tuple[str, Attributes]:
    """The name of the operation that the module is, and its attributes.

    Args:
        path: of the module in the model.
        stored: every name of the model's state dict → the name it is stored under.
    """
    kind = kind_of(module)
    if isinstance(module, HadamardTransform):
        return "transform", _transform(module)
    if kind in ("activation", "pool", "drop") or (not kind and _of_torch(module) and not any(module.children())):
        return _function(module, tensors_under(module, path, stored))
    if not kind:
        return "module", _unknown(module, path, stored)
    name, attributes = kind, _layer(module, kind)
    if kind == "norm":
        name = next((each for cls, each in _NORMS.items() if isinstance(module, cls)), "norm")
    if foreign := _foreign(module):
        attributes["class"] = foreign
    tensors = tensors_under(module, path, stored)
    return name, {**attributes, **({"tensors": tensors} if tensors else {})}


def weight_layer(g: Geometry, tensors: Mapping[str, str]) -> Attributes:
    """A convolution or linear layer: its sizes and its tensors."""
    return {**_sizes(g), "tensors": dict(tensors)}


def norm_layer(options: Mapping[str, Any], shape: Sequence[int] | None, tensors: Mapping[str, str]) -> Attributes:
    """A norm of torch: its options, over how many axes at the end, its tensors."""
    axes = {} if shape is None else {"axes": len(shape)}
    return {
        **{k: v for k, v in options.items() if v is not None},
        **axes,
        **({"tensors": dict(tensors)} if tensors else {}),
    }


def tensors_under(module: nn.Module, path: str, stored: Mapping[str, str]) -> dict[str, str]:
    """Local name → name in the state dict of the tensors in a module; not those that only count."""
    prefix = f"{path}." if path else ""
    names = (prefix + name for name, _ in (*module.named_parameters(remove_duplicate=False), *_buffers(module)))
    return {n.removeprefix(prefix): stored[n] for n in sorted(names) if n in stored and not n.endswith(_COUNTER)}


def constant(value: object) -> str:
    """A tensor outside the state dict, by its numbers, so that every version that computes it says the same.

    Whole numbers, truth values and binary fractions are the same everywhere and are hashed. Others (tables of sines)
    may differ in their last digits; of these three figures with three digits are told.
    """
    if not isinstance(value, Tensor):
        return f"{type(value).__name__}"
    shape = "x".join(map(str, value.shape))
    if value.device.type == "meta" or value.layout is not torch.strided or not value.numel():
        return f"tensor {shape}"
    plain = value.detach().cpu()
    plain = torch.view_as_real(plain) if plain.is_complex() else plain
    numbers = plain.to(torch.float64).contiguous().flatten()
    finite = torch.nan_to_num(numbers, nan=0.0, posinf=2.0**60, neginf=-(2.0**60))
    marks = int(torch.isnan(numbers).sum())
    scaled = finite * _EXACT
    if marks == 0 and bool((scaled == scaled.round()).all()):
        exact = hashlib.sha256(scaled.numpy().astype("<f8").tobytes()).hexdigest()
        return f"tensor {shape} {exact}"
    total = float(finite.abs().sum()) or 1.0
    ramp = torch.linspace(0, 1, len(finite), dtype=torch.float64)
    figures = (
        f"{total / len(finite):.3g}",
        f"{_rounded(finite.sum() / total)}",
        f"{_rounded((ramp * finite).sum() / total)}",
    )
    return f"tensor {shape} nan {marks} near {' '.join(figures)}"


def _rounded(value: Tensor) -> str:
    return f"{round(float(value), 3) + 0.0:.3f}"


# ---------------------------------------------------------------------------------------------------------------------


def _function(module: nn.Module, tensors: Mapping[str, str]) -> tuple[str, Attributes]:
    """A module that is a function with options: activations, pooling, dropout, shuffles."""
    cls = _torch_class(module)
    if cls is None:  # a stochastic depth of a library
        named = {name: value for name, value in vars(module).items() if _is_plain(value) and not name.startswith("_")}
        named = {k: v for k, v in named.items() if k not in _NO_OPTION}
        return snake(type(module).__name__), _plain(named)
    names = getattr(cls, "__constants__", ()) or tuple(n for n in vars(module) if not n.startswith("_"))
    options = {name: getattr(module, name, None) for name in names if name not in _NO_OPTION}
    if isinstance(module, nn.modules.dropout._DropoutNd):
        options = {"p": module.p}
    if isinstance(module, nn.Hardtanh) and (module.min_val, module.max_val) == (0.0, 6.0):
        cls, options = nn.ReLU6, {}
    if isinstance(module, _AdaptiveAvgPoolNd | _AdaptiveMaxPoolNd):
        options = {"output_size": module.output_size}
    name = snake(cls.__name__)
    known = without_defaults(name, {"return_indices": getattr(module, "return_indices", False), **options})
    foreign = {"class": found} if (found := _foreign(module)) else {}
    return name, {**_plain(known), **foreign, **({"tensors": dict(tensors)} if tensors else {})}


def _layer(module: nn.Module, kind: str) -> Attributes:
    g = geometry(module)
    found: Attributes = {} if g is None else _sizes(g)
    if isinstance(module, _ConvNd):
        extra = {"padding_mode": module.padding_mode, "output_padding": tuple(module.output_padding)}
        found |= _plain(without_defaults(kind, extra))
    options = {name: getattr(module, name) for name in _OPTIONS.get(kind, ()) if hasattr(module, name)}
    if kind == "norm":
        options = _norm_options(module, options)
    found |= _plain({name: value for name, value in options.items() if value is not None})
    if kind == "embedding" and getattr(module, "max_norm", None) is None:
        found.pop("norm_type", None)
    return found | _parametrized(module)


def _norm_options(module: nn.Module, options: Mapping[str, Any]) -> dict[str, Any]:
    kept = dict(options)
    if isinstance(module, nn.LayerNorm | nn.RMSNorm):
        return {"eps": kept.get("eps"), "axes": len(module.normalized_shape)}
    if isinstance(module, nn.GroupNorm):
        return {"eps": kept["eps"], "num_groups": kept["num_groups"]}
    if not isinstance(module, tuple(_NORMS)):
        own = {n: v for n, v in vars(module).items() if "eps" in n and isinstance(v, float)}
        return {**kept, **own}
    if isinstance(module, nn.LocalResponseNorm):
        return {name: kept[name] for name in ("size", "alpha", "beta", "k")}
    kept["momentum"] = kept.get("momentum") if getattr(module, "running_mean", None) is not None else None
    return {"eps": kept["eps"], "momentum": kept["momentum"]}


def _parametrized(module: nn.Module) -> Attributes:
    """What computes the layer's weight: parametrizations, and hooks before the forward."""
    parts = [m for path, m in module.named_modules() if "parametrizations." in path and not _is_list(m)]
    hooks = [hook for hook in module._forward_pre_hooks.values() if hasattr(hook, "name")]
    said = [[type(part).__name__, getattr(part, "dim", None)] for part in (*parts, *hooks)]
    return {"parametrized": said} if said else {}


def _is_list(module: nn.Module) -> bool:
    return isinstance(module, nn.ModuleDict | nn.ModuleList)


def _transform(module: HadamardTransform) -> Attributes:
    mix = {} if module.mixing == "none" else {module.mixing: constant(module.mix)}
    return {"order": module.order, "channels": module.channels, "axis": -1 - module.trailing, **mix}


def _unknown(module: nn.Module, path: str, stored: Mapping[str, str]) -> Attributes:
    """A module that is kept whole: its class, the layers inside of it, its tensors and constants."""
    inside = []
    for name, child in module.named_modules():
        where = f"{path}.{name}" if path and name else path or name
        if name and (kind_of(child) or (_of_torch(child) and not any(child.children()))):
            what, attributes = describe(child, where, stored)
            inside.append([name, what, attributes])
        else:
            inside.append([name, type(child).__name__, _attributes(child)])
    constants = {name: constant(value) for name, value in _buffers(module) if f"{path}.{name}".strip(".") not in stored}
    return {"inside": inside, "tensors": tensors_under(module, path, stored), "constants": constants}


def _attributes(module: nn.Module) -> Attributes:
    """Plain attributes of a class of the user's own; those of a library's class change with its version."""
    if type(module).__module__.partition(".")[0] in _LIBRARIES:
        return {}
    found = {n: v for n, v in vars(module).items() if not n.startswith("_") and n not in _NO_OPTION and _is_plain(v)}
    return _plain(found)


def _sizes(g: Geometry) -> Attributes:
    return {name: value for name, value in asdict(g).items() if value not in ((), 1, False)} | {
        "out_channels": g.out_channels,
        "in_channels": g.in_channels,
    }


def _buffers(module: nn.Module) -> Iterable[tuple[str, Tensor]]:
    return module.named_buffers(remove_duplicate=False)


def _torch_class(module: nn.Module) -> type[nn.Module] | None:
    return (
        next((cls for cls in type(module).__mro__ if cls.__module__.startswith("torch.nn.modules.")), None)
        if (
            _of_torch(module)
            or kind_of(module) in ("activation", "pool")
            or isinstance(module, nn.modules.dropout._DropoutNd)
        )
        else None
    )


def _of_torch(module: nn.Module) -> bool:
    return type(module).__module__.startswith("torch.nn.")


def _foreign(module: nn.Module) -> str:
    """The name of a class that is not torch's: its forward may be another one."""
    return "" if type(module).__module__.partition(".")[0] in ("torch", "zero_convert") else type(module).__name__


def _is_plain(value: object) -> bool:
    if isinstance(value, tuple | list):
        return all(map(_is_plain, value))
    return isinstance(value, bool | int | float | str) or value is None


def _plain(values: Mapping[str, Any]) -> Attributes:
    """The values as the description spells them, see `number`."""
    return {name: spelled(value) for name, value in values.items()}


def spelled(value: Any) -> Any:
    """A plain value as text or lists of text: numbers with nine digits, so that 1 and 1.0 are alike."""
    if isinstance(value, tuple | list):
        return [spelled(item) for item in value]
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    if isinstance(value, int | float):
        return (
            "inf" if math.isinf(value) and value > 0 else f"{value:.9g}" if isinstance(value, float) else _whole(value)
        )
    return f"'{value}'"


def _whole(value: int) -> str:
    return f"{value:.9g}" if abs(value) < 10**9 else str(value)
