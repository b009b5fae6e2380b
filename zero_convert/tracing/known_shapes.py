"""What well-known layers return, by shape alone.

Torch spells a layer out in many operations to find its output's size, and on fake or meta tensors some of them load the
machinery for symbolic sizes first. Only layers whose forward is torch's own, or ours, are known here. And a batch norm
refuses a single value per channel in training mode, which an example input of one image may well have behind a global
pooling: its shape is known all the same.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from zero_convert.nn.functional import pad_channels, relu0, relu6_0
from zero_convert.nn.layers import HadamardTransform, ScalarBias, ScalarScale

Shape = tuple[int, ...]
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
POOLS = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)
ADAPTIVE = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)
SAME = (
    *(nn.ReLU, nn.ReLU6, nn.GELU, nn.SiLU, nn.Sigmoid, nn.Hardswish, nn.Hardsigmoid, nn.LeakyReLU, nn.Dropout),
    *(HadamardTransform, ScalarBias, ScalarScale),
)
ARITHMETIC = frozenset({operator.add, operator.iadd, operator.mul, operator.imul, torch.add, torch.mul})
SAME_FUNCTIONS = frozenset(
    {F.batch_norm, F.relu, F.relu6, F.gelu, F.silu, F.hardswish, F.dropout, torch.relu, relu0, relu6_0}
)


def known_output(module: Any, x: Any = None, *more: Any) -> Tensor | None:
    """An empty tensor like the one that the module returns; None if the module is not known or x does not fit it."""
    if not isinstance(x, Tensor) or more or not x.is_floating_point():
        return None
    if not isinstance(x, FakeTensor) and x.device.type != "meta":
        return None  # it has values, and they count
    shape = _shape(module, tuple(x.shape), x.dtype)
    return None if shape is None else x.new_empty(shape)


def known_value(function: Any, args: tuple[Any, ...]) -> Tensor | None:
    """The same for functions: sums and products of equal shapes, activations, and ours."""
    x: Any = args[0] if args else None
    if not isinstance(x, Tensor) or not (x.is_meta or isinstance(x, FakeTensor)) or not x.is_floating_point():
        return None
    rest = args[1:]
    if function in ARITHMETIC and len(args) == 2:
        same = type(rest[0]) is type(x) and (rest[0].shape, rest[0].dtype) == (x.shape, x.dtype)
        return x.new_empty(x.shape) if same else None
    if function is pad_channels:
        channels, trailing = rest
        at = x.ndim - 1 - trailing
        return x.new_empty((*x.shape[:at], channels, *x.shape[at + 1 :]))
    return x.new_empty(x.shape) if function in SAME_FUNCTIONS else None


def _shape(module: Any, x: Shape, dtype: torch.dtype) -> Shape | None:
    forward = type(module).forward
    if forward is nn.Linear.forward:
        fits = len(x) > 0 and x[-1] == module.in_features and dtype == module.weight.dtype
        return (*x[:-1], module.out_features) if fits else None
    if any(forward is cls.forward for cls in CONVOLUTIONS):
        return _convolution(module, x, dtype)
    if forward is _BatchNorm.forward:
        return x if isinstance(module, _dimensions(len(x))) and x[1] == module.num_features else None
    if forward is nn.LayerNorm.forward or forward is nn.RMSNorm.forward:
        own = tuple(module.normalized_shape)
        return x if x[len(x) - len(own) :] == own else None
    if forward is nn.GroupNorm.forward:
        return x if len(x) > 1 and x[1] == module.num_channels else None
    if any(forward is cls.forward for cls in POOLS):
        return _pool(module, x)
    if any(forward is cls.forward for cls in ADAPTIVE):
        return _adaptive(module, x)
    return x if any(forward is cls.forward for cls in SAME) else None


def _dimensions(count: int) -> tuple[type[nn.Module], ...]:
    """The batch norms that take so many dimensions."""
    kinds: dict[int, tuple[type[nn.Module], ...]] = {
        2: (nn.BatchNorm1d,),
        3: (nn.BatchNorm1d,),
        4: (nn.BatchNorm2d,),
        5: (nn.BatchNorm3d,),
    }
    return kinds.get(count, ())


def _convolution(module: Any, x: Shape, dtype: torch.dtype) -> Shape | None:
    kernel = module.kernel_size
    if len(x) != len(kernel) + 2 or x[1] != module.in_channels or dtype != module.weight.dtype:
        return None
    if isinstance(module.padding, str):
        total = [d * (k - 1) if module.padding == "same" else 0 for k, d in zip(kernel, module.dilation, strict=True)]
    else:
        total = [2 * p for p in module.padding]
    sizes = [
        (n + p - d * (k - 1) - 1) // s + 1
        for n, p, k, s, d in zip(x[2:], total, kernel, module.stride, module.dilation, strict=True)
    ]
    return (x[0], module.out_channels, *sizes) if min(sizes) > 0 else None


def _pool(module: Any, x: Shape) -> Shape | None:
    dims = 1 if isinstance(module, nn.MaxPool1d | nn.AvgPool1d) else 2
    dims = 3 if isinstance(module, nn.MaxPool3d | nn.AvgPool3d) else dims
    if module.ceil_mode or getattr(module, "return_indices", False) or len(x) != dims + 2:
        return None

    def each(value: Any) -> tuple[int, ...]:
        return tuple(value) if isinstance(value, tuple | list) else (value,) * dims

    kernel, padding, dilation = each(module.kernel_size), each(module.padding), each(getattr(module, "dilation", 1))
    stride = each(module.stride if module.stride is not None else module.kernel_size)
    sizes = [
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, p, k, s, d in zip(x[2:], padding, kernel, stride, dilation, strict=True)
    ]
    return (*x[:2], *sizes) if min(sizes) > 0 else None


def _adaptive(module: Any, x: Shape) -> Shape | None:
    dims = 1 + ADAPTIVE.index(next(cls for cls in ADAPTIVE if isinstance(module, cls)))
    size = module.output_size
    sizes = tuple(size) if isinstance(size, tuple | list) else (size,) * dims
    if len(x) < dims + 1:
        return None
    return (*x[:-dims], *(n if s is None else s for n, s in zip(x[-dims:], sizes, strict=True)))
