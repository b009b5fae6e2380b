"""What a module is: convolution, linear, norm, activation, … and the sizes of a weight layer.

Decided from the class of the original module (subclasses count), never from its name in the model. Classes of libraries
are known by their qualified name, so that no library is imported for it; a norm that is no class of torch is known by
its class's name and by having nothing but factors and shifts.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.modules.pooling import _AdaptiveAvgPoolNd, _AdaptiveMaxPoolNd, _AvgPoolNd, _MaxPoolNd

from zero_convert.nn.containers import AugmentedLayer
from zero_convert.nn.layers import HadamardTransform, ScalarBias, ScalarScale
from zero_convert.records import Geometry

from .fixed import departs, fixed_names

NORMS = (_BatchNorm, _InstanceNorm, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm, nn.LocalResponseNorm)
RELUS = (nn.ReLU, nn.ReLU6)
ACTIVATIONS = (
    *RELUS,
    nn.CELU,
    nn.ELU,
    nn.GELU,
    nn.Hardsigmoid,
    nn.Hardswish,
    nn.Hardtanh,
    nn.LeakyReLU,
    nn.LogSigmoid,
    nn.Mish,
    nn.PReLU,
    nn.RReLU,
    nn.SELU,
    nn.SiLU,
    nn.Sigmoid,
    nn.Softplus,
    nn.Softsign,
    nn.Tanh,
)
POOLS = (_MaxPoolNd, _AvgPoolNd, _AdaptiveAvgPoolNd, _AdaptiveMaxPoolNd)
WEIGHT_KINDS = frozenset({"convolution", "linear", "bilinear", "recurrent", "attention", "embedding"})
TRANSPOSED_LINEAR = frozenset({"transformers.pytorch_utils.Conv1D", "transformers.modeling_utils.Conv1D"})
QUANTIZED = ("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized", "torch.nn.quantized", "bitsandbytes.")
STOCHASTIC = frozenset({"torchvision.ops.stochastic_depth.StochasticDepth", "torchvision.ops.drop_block.DropBlock2d"})


FIXED = "fixed"
_TRANSFORMS = ("convolution", "linear", "bilinear")  # with a fixed weight


def kind_of(module: nn.Module) -> str:
    """One of "convolution", "linear", "bilinear", "recurrent", "attention", "embedding", "norm", "activation", "pool",
    "transform", "bias", "scale", "drop", "fixed", or "" for a class that is not known.

    "fixed" is a matrix, kernel or norm whose values the author fixed: a transform of the signal, no layer of weights.
    """
    module = module.layer if isinstance(module, AugmentedLayer) else module
    kind = _kind_of_class(module)
    if fixed_names(module) and (
        (kind in _TRANSFORMS and "weight" in fixed_names(module)) or (kind == "norm" and departs(module))
    ):
        return FIXED
    return kind


def _kind_of_class(module: nn.Module) -> str:
    kinds: tuple[tuple[type[nn.Module] | tuple[type[nn.Module], ...], str], ...] = (
        (_ConvNd, "convolution"),
        (nn.Linear, "linear"),
        (nn.Bilinear, "bilinear"),
        ((nn.RNNBase, nn.RNNCellBase), "recurrent"),
        (NORMS, "norm"),
        (ACTIVATIONS, "activation"),
        (POOLS, "pool"),
        (nn.MultiheadAttention, "attention"),
        ((nn.Embedding, nn.EmbeddingBag), "embedding"),
        (HadamardTransform, "transform"),
        (ScalarBias, "bias"),
        (ScalarScale, "scale"),
        (nn.modules.dropout._DropoutNd, "drop"),
    )
    for classes, kind in kinds:
        if isinstance(module, classes):
            return kind
    names = set(_names(type(module)))
    if names & TRANSPOSED_LINEAR:
        return "linear"
    if _is_norm(module):
        return "norm"
    return "drop" if names & STOCHASTIC else ""


def _names(cls: type) -> Iterator[str]:
    """Qualified names of a class and its bases."""
    return (f"{base.__module__}.{base.__qualname__}" for base in cls.__mro__)


def _is_norm(module: nn.Module) -> bool:
    """Whether this is a norm of no torch class: called so, and owning nothing but values per channel.

    Its children, such as an activation, own nothing.
    """
    if not any("norm" in base.__qualname__.lower() for base in type(module).__mro__):
        return False
    own = [*module._parameters.values(), *module._buffers.values()]
    sizes = [sorted(value.shape) for value in own if value is not None and not nn.parameter.is_lazy(value)]
    channels = {size[-1] for size in sizes if size and size[-1] > 1}
    return (
        bool(sizes)
        and len(channels) <= 1
        and all(side == 1 for size in sizes for side in size[:-1])
        and not any(child.state_dict(keep_vars=True) for child in module.children())
    )


def own_weight(module: nn.Module) -> nn.Parameter | None:
    """The parameter that the module itself has under the name "weight"; a scripted module's dict has no `get`."""
    return dict(module._parameters.items()).get("weight")


def is_quantized(module: nn.Module) -> bool:
    """Whether the module's weights are packed integers, which no rule can write."""
    names = list(_names(type(module)))
    floating = any(name.endswith(".FloatFunctional") for name in names)  # lives beside the quantized layers
    if not floating and any(name.startswith(QUANTIZED) for name in names):
        return True
    own = [*module._parameters.values(), *module._buffers.values()]
    if any(value is not None and value.is_quantized for value in own):
        return True
    weight = own_weight(module)
    return kind_of(module) in WEIGHT_KINDS and weight is not None and not _has_fractions(weight)


def _has_fractions(tensor: torch.Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def recurrent_gates(module: nn.Module) -> tuple[str, ...]:
    """What the blocks of rows of a recurrent layer's weights are: the candidate for the new state, and its gates."""
    if isinstance(module, nn.LSTM | nn.LSTMCell):
        return ("gate", "gate", "candidate", "gate")  # input, forget, cell, output
    if isinstance(module, nn.GRU | nn.GRUCell):
        return ("gate", "gate", "candidate")  # reset, update, new
    return ("candidate",)


def is_layer(module: nn.Module) -> bool:
    """Whether tracing keeps the module whole: a known layer, or a torch.nn module without children.

    `nn.Identity` and empty containers leave no trace.
    """
    return bool(kind_of(module)) or (
        type(module).__module__.startswith("torch.nn.")
        and next(module.children(), None) is None
        and not isinstance(module, nn.Identity | nn.Sequential)
    )


def geometry(module: nn.Module) -> Geometry | None:
    """Sizes of a layer with weights; None for anything else. A recurrent layer's are those of its signal."""
    module = module.layer if isinstance(module, AugmentedLayer) else module
    if isinstance(module, nn.Linear):
        return Geometry(module.out_features, module.in_features)
    if isinstance(module, nn.Bilinear):
        return Geometry(module.out_features, module.in1_features)
    if isinstance(module, nn.RNNBase):
        width = (module.proj_size or module.hidden_size) * (2 if module.bidirectional else 1)
        return Geometry(width, module.input_size)
    if isinstance(module, nn.RNNCellBase):
        return Geometry(module.hidden_size, module.input_size)
    if isinstance(module, nn.MultiheadAttention):
        return Geometry(module.embed_dim, module.embed_dim)
    if isinstance(module, nn.Embedding | nn.EmbeddingBag):
        return Geometry(module.embedding_dim, module.num_embeddings)
    if not isinstance(module, _ConvNd):
        weight = own_weight(module)
        if weight is None or not set(_names(type(module))) & TRANSPOSED_LINEAR:
            return None
        return Geometry(weight.shape[1], weight.shape[0], transposed=True)
    kernel, dilation = tuple(module.kernel_size), tuple(module.dilation)
    if module.padding == "same":
        total = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        padding = tuple((t // 2, t - t // 2) for t in total)
    elif module.padding == "valid":
        padding = tuple((0, 0) for _ in kernel)
    else:
        padding = tuple((int(p), int(p)) for p in module.padding)
    return Geometry(
        module.out_channels,
        module.in_channels,
        kernel,
        tuple(module.stride),
        padding,
        dilation,
        module.groups,
        isinstance(module, _ConvTransposeNd),
    )


def new_norm(norm: nn.Module, channels: int) -> nn.Module | None:
    """A norm like the given one over another number of channels, on the CPU; None where that cannot be said.

    A group norm keeps its number of groups if that divides `channels`, else takes the largest divisor below it.
    """
    made = copy.deepcopy(norm)
    if isinstance(made, _BatchNorm | _InstanceNorm):
        made.num_features = channels
    elif isinstance(made, nn.GroupNorm):
        made.num_groups = next(g for g in range(made.num_groups, 0, -1) if channels % g == 0)
        made.num_channels = channels
    else:
        return None
    for name, value in (*norm._parameters.items(), *norm._buffers.items()):
        if value is None or not value.ndim:
            continue
        new = torch.full((channels,), float(name in ("weight", "running_var")), dtype=value.dtype)
        if name in made._parameters:
            made._parameters[name] = nn.Parameter(new, value.requires_grad)
        else:
            made._buffers[name] = new
    return made


def kept_whole(module: nn.Module) -> bool:
    """Whether the module is one node. A norm with an activation inside is two layers, and is followed into."""
    if isinstance(module, AugmentedLayer):
        return True
    return is_layer(module) and not (
        isinstance(module, NORMS) and any(not isinstance(child, nn.Identity) for child in module.children())
    )
