"""What a module is: convolution, linear, norm, activation, … and the sizes of a weight layer.

Decided from the class of the original module (subclasses count), never from its name in the model.
"""

from __future__ import annotations

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.modules.pooling import _AdaptiveAvgPoolNd, _AdaptiveMaxPoolNd, _AvgPoolNd, _MaxPoolNd

from .modules import HadamardTransform, ScalarBias, ScalarScale
from .records import Geometry

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
WEIGHT_KINDS = frozenset({"convolution", "linear", "attention", "embedding"})
STOCHASTIC = frozenset({"torchvision.ops.stochastic_depth.StochasticDepth", "torchvision.ops.drop_block.DropBlock2d"})


def kind_of(module: nn.Module) -> str:
    """One of "convolution", "linear", "attention", "embedding", "norm", "activation", "pool", "transform", "bias",
    "scale", "drop", or "" for a class that is not known."""
    kinds: tuple[tuple[type[nn.Module] | tuple[type[nn.Module], ...], str], ...] = (
        (_ConvNd, "convolution"),
        (nn.Linear, "linear"),
        (NORMS, "norm"),
        (ACTIVATIONS, "activation"),
        (POOLS, "pool"),
        (nn.MultiheadAttention, "attention"),
        (nn.Embedding, "embedding"),
        (HadamardTransform, "transform"),
        (ScalarBias, "bias"),
        (ScalarScale, "scale"),
        (nn.modules.dropout._DropoutNd, "drop"),
    )
    for classes, kind in kinds:
        if isinstance(module, classes):
            return kind
    cls = type(module)
    name = f"{cls.__module__}.{cls.__qualname__}"
    if name == "torchvision.ops.misc.FrozenBatchNorm2d":
        return "norm"
    return "drop" if name in STOCHASTIC else ""


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
    """Sizes of a convolution, linear or attention layer; None for anything else."""
    if isinstance(module, nn.Linear):
        return Geometry(module.out_features, module.in_features)
    if isinstance(module, nn.MultiheadAttention):
        return Geometry(module.embed_dim, module.embed_dim)
    if isinstance(module, nn.Embedding):
        return Geometry(module.embedding_dim, module.num_embeddings)
    if not isinstance(module, _ConvNd):
        return None
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
    if isinstance(norm, _BatchNorm | _InstanceNorm):
        made: nn.Module = type(norm)(
            channels,
            eps=norm.eps,
            momentum=norm.momentum,  # type: ignore[arg-type]
            affine=norm.affine,
            track_running_stats=norm.track_running_stats,
        )
    elif isinstance(norm, nn.GroupNorm):
        groups = next(g for g in range(norm.num_groups, 0, -1) if channels % g == 0)
        made = type(norm)(groups, channels, norm.eps, norm.affine)
    else:
        return None
    made.train(norm.training)
    for name, parameter in made.named_parameters():
        parameter.requires_grad_(norm.get_parameter(name).requires_grad)
    return made
