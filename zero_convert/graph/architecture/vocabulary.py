"""One name for each operation, whatever a library calls it: what the description of a network is written in.

torch offers most operations as a function, a method, an operator and a module (`F.relu`, `x.relu_()`, `nn.ReLU`), and
libraries change from one to another. Here all of them have one name, arguments have one name each and no default
values, and what changes neither values nor their order (views, casts, sizes) has no name at all.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any

# Values pass through these unchanged and in their order; what they are a view of stands for them.
PASSING = frozenset(
    {
        *("view", "view_as", "reshape", "reshape_as", "flatten", "unflatten", "ravel", "squeeze", "unsqueeze"),
        *("expand", "expand_as", "broadcast_to", "contiguous", "clone", "alias", "to", "type", "type_as", "float"),
        *("half", "double", "bfloat16", "cpu", "cuda", "requires_grad", "identity", "lift_fresh", "positive", "pos"),
        *("atleast_1d", "atleast_2d", "atleast_3d", "refine_names", "as_tensor"),
    }
)
PERMUTING = frozenset(
    {"permute", "transpose", "swapaxes", "swapdims", "movedim", "moveaxis", "t", "T", "mT", "adjoint"}
)
# Tensors made from sizes alone: the sizes follow the input, and only a value that fills them is told.
CREATING = frozenset(
    {
        *("zeros", "ones", "empty", "full", "arange", "eye", "zeros_like", "ones_like", "empty_like", "full_like"),
        *("new_zeros", "new_ones", "new_empty", "new_full", "rand", "randn", "rand_like", "randn_like"),
    }
)
# What these compute depends on how a view has cut their input into axes.
ALONG_AXES = frozenset(
    {
        *("matmul", "einsum", "scaled_dot_product_attention", "softmax", "log_softmax", "mean", "sum", "max", "min"),
        *("amax", "amin", "std", "var", "var_mean", "norm", "normalize", "logsumexp", "argmax", "argmin", "getitem"),
        *("select", "narrow", "chunk", "split", "unbind", "flip", "roll", "cumsum", "cumprod", "topk", "sort"),
        *("baddbmm", "tensordot", "glu", "median", "prod", "index_select", "gather", "unfold"),
    }
)
DROPPING = re.compile(r"(alpha_|feature_alpha_|feature_)?dropout\d?d?|stochastic_depth|drop_path|drop_block\dd")
COMMUTATIVE = frozenset({"add", "mul", "maximum", "minimum", "logical_and", "logical_or", "eq", "ne"})

_IN_PLACE = {f"i{name}": name for name in ("add", "sub", "mul", "matmul", "pow", "mod")} | {"itruediv": "div"}
_ALIASES = {
    **_IN_PLACE,
    "truediv": "div",
    "true_divide": "div",
    "divide": "div",
    "multiply": "mul",
    "subtract": "sub",
    "concat": "cat",
    "concatenate": "cat",
    "bmm": "matmul",
    "mm": "matmul",
    "negative": "neg",
    "absolute": "abs",
    "clip": "clamp",
    "float_power": "pow",
    "split_with_sizes": "split",
    "remainder": "mod",
}
_IGNORED = frozenset(
    {
        *("inplace", "dtype", "device", "layout", "memory_format", "out", "generator", "requires_grad", "pin_memory"),
        *("_stacklevel", "keepdim", "keepdims", "non_blocking", "copy", "size", "names"),
    }
)
_CONVOLUTION = ("input", "weight", "bias", "stride", "padding")
_POOL = ("input", "kernel_size", "stride", "padding")
_REDUCTION = ("input", "dim", "keepdim")
_BY_DIM = ("input", "dim")
_ARGUMENTS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), (*_CONVOLUTION, "dilation", "groups")),
    **dict.fromkeys(
        ("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"),
        (*_CONVOLUTION, "output_padding", "groups", "dilation"),
    ),
    **dict.fromkeys(("max_pool1d", "max_pool2d", "max_pool3d"), (*_POOL, "dilation", "ceil_mode", "return_indices")),
    "avg_pool1d": (*_POOL, "ceil_mode", "count_include_pad"),
    **dict.fromkeys(("avg_pool2d", "avg_pool3d"), (*_POOL, "ceil_mode", "count_include_pad", "divisor_override")),
    **dict.fromkeys(
        ("mean", "sum", "amax", "amin", "logsumexp", "all", "any", "argmax", "argmin", "median"), _REDUCTION
    ),
    **dict.fromkeys(("softmax", "log_softmax", "softmin", "cumsum", "glu", "unbind", "cumprod"), _BY_DIM),
    **dict.fromkeys(("cat", "stack"), ("tensors", "dim")),
    "linear": ("input", "weight", "bias"),
    "layer_norm": ("input", "normalized_shape", "weight", "bias", "eps"),
    "rms_norm": ("input", "normalized_shape", "weight", "eps"),
    "group_norm": ("input", "num_groups", "weight", "bias", "eps"),
    "batch_norm": ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps"),
    "instance_norm": ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps"),
    "embedding": ("input", "weight", "padding_idx", "max_norm", "norm_type", "scale_grad_by_freq", "sparse"),
    "gelu": ("input", "approximate"),
    "softplus": ("input", "beta", "threshold"),
    **dict.fromkeys(("elu", "celu"), ("input", "alpha")),
    "leaky_relu": ("input", "negative_slope"),
    "hardtanh": ("input", "min_val", "max_val"),
    "pixel_shuffle": ("input", "upscale_factor"),
    "pixel_unshuffle": ("input", "downscale_factor"),
    "chunk": ("input", "chunks", "dim"),
    **dict.fromkeys(("split", "tensor_split"), ("input", "parts", "dim")),
    "clamp": ("input", "min", "max"),
    **dict.fromkeys(("dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout"), ("input", "p", "training")),
    "stochastic_depth": ("input", "p", "mode", "training"),
    "drop_path": ("input", "p", "training"),
    **dict.fromkeys(("add", "sub"), ("input", "other", "alpha")),
    **dict.fromkeys(("mul", "div", "matmul", "pow", "maximum", "minimum"), ("input", "other")),
    "getitem": ("input", "index"),
    "getattr": ("input", "name"),
    "pad": ("input", "pad", "mode", "value"),
    "full": ("size", "fill_value"),
    "new_full": ("input", "size", "fill_value"),
    "full_like": ("input", "fill_value"),
    "scaled_dot_product_attention": (
        *("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa"),
    ),
}
_DEFAULTS: dict[str, Any] = {
    "alpha": 1,
    "dim": 0,
    "dropout_p": 0.0,
    "is_causal": False,
    "enable_gqa": False,
    "output_padding": 0,
    "ceil_mode": False,
    "return_indices": False,
    "count_include_pad": True,
    "divisor_override": None,
    "groups": 1,
    "dilation": 1,
    "approximate": "none",
    "scale": None,
    "attn_mask": None,
    "negative_slope": 0.01,
    "beta": 1,
    "threshold": 20,
    "value": 0,
    "bias": None,
    "padding": 0,
    "padding_mode": "zeros",
}
_NO_DEFAULT_DIM = frozenset({"mean", "sum", "amax", "amin", "all", "any", "argmax", "argmin", "median", "logsumexp"})


def name_of(target: Callable[..., Any] | str) -> str:
    """The one name of what a node calls: a function, or a method by its name."""
    found = target if isinstance(target, str) else getattr(target, "__name__", type(target).__name__)
    name = str(found).partition(".")[0]  # `add.Tensor` is an overload of add
    if not name.startswith("__") and name.rstrip("_"):
        name = name.rstrip("_")
    return _ALIASES.get(name, name.strip("_") if name.startswith("__") else name)


def changes_in_place(target: Callable[..., Any] | str, arguments: Mapping[str, Any]) -> bool:
    """Whether the call writes its result into its first argument, so that later readers of that one see the result."""
    name = target if isinstance(target, str) else getattr(target, "__name__", "")
    in_place = name.endswith("_") and not name.endswith("__") and name != "requires_grad_"
    return in_place or arguments.get("inplace") is True or name in _IN_PLACE


def named_arguments(
    target: Callable[..., Any] | str, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    """The arguments of a call by name; those without a known name by position. Nothing is left out yet."""
    name = name_of(target)
    names = _ARGUMENTS.get(name)
    if names is None and not isinstance(target, str):
        names = _signature(target)
    names = names or ()
    spread = args
    if name in ("permute", "view", "reshape") and len(args) > 1:
        spread = (args[0], args[1] if isinstance(args[1], tuple | list) else tuple(args[1:]))
    found = {names[i] if i < len(names) else str(i): value for i, value in enumerate(spread)}
    renamed = {"axis": "dim", "axes": "dim", "self": "input", "x": "input", "drop_prob": "p", "train": "training"}
    renamed |= {"split_size": "parts", "split_sizes": "parts", "split_size_or_sections": "parts"}
    return {renamed.get(key, key): value for key, value in {**found, **kwargs}.items()}


def without_defaults(name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments that say something: no default value, nothing about memory, type or the number of axes."""
    kept = {key: value for key, value in arguments.items() if key not in _IGNORED}
    kept = {
        key: value for key, value in kept.items() if not (key in _DEFAULTS and _same(value, _DEFAULTS[key], key, name))
    }
    if kept.get("stride", 0) is None or kept.get("stride", "") == kept.get("kernel_size"):
        kept.pop("stride", None)
    return {key: value for key, value in kept.items() if value is not None}


def _same(value: Any, default: Any, key: str, name: str) -> bool:
    if key == "dim" and name in _NO_DEFAULT_DIM:
        return False
    if isinstance(value, tuple | list) and not isinstance(default, tuple | list):
        return bool(value) and all(type(item) in (int, float, bool) and item == default for item in value)
    return type(value) in (int, float, bool, str, type(None)) and bool(value == default)


def _signature(target: Callable[..., Any]) -> tuple[str, ...] | None:
    try:
        parameters = inspect.signature(target).parameters.values()
    except (TypeError, ValueError):
        return None
    plain = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return tuple(parameter.name for parameter in parameters if parameter.kind in plain)


def snake(cls: str) -> str:
    """A module's class as the function of the same meaning is called: "MaxPool2d" → "max_pool2d"."""
    if cls in _MODULES:
        return _MODULES[cls]
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", cls).lower()


_MODULES = {
    "ReLU": "relu",
    "ReLU6": "relu6",
    "LeakyReLU": "leaky_relu",
    "PReLU": "prelu",
    "RReLU": "rrelu",
    "GELU": "gelu",
    "SiLU": "silu",
    "ELU": "elu",
    "CELU": "celu",
    "SELU": "selu",
    "GLU": "glu",
    "LogSigmoid": "logsigmoid",
    "Upsample": "interpolate",
    "Softmax": "softmax",
    "LogSoftmax": "log_softmax",
}
