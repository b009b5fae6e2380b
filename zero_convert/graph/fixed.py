"""What an author fixed: tensors that are frozen and hold values, which no generator drew.

A network is marked once, before it is traced and long before a value is written, so that a layer is the same thing at
every later step. The mark is a plain attribute of the module that owns the tensors; copies of the module keep it.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from zero_convert.nn.tree import FIXED_MARK

NEUTRAL = {"weight": 1.0, "bias": 0.0, "running_mean": 0.0, "running_var": 1.0}  # of a norm


def fixed_names(module: nn.Module) -> frozenset[str]:
    """Local names of the module's own tensors that its author fixed; empty where nothing was marked."""
    names: frozenset[str] = module.__dict__.get(FIXED_MARK, frozenset())
    return names


def mark(root: nn.Module) -> None:
    """Every module that owns fixed tensors is marked with their names."""
    for module in root.modules():
        names = frozenset((*_frozen(module), *_statistics(module)))
        if names:
            module.__dict__[FIXED_MARK] = names


def frozen_names(root: nn.Module) -> list[str]:
    """Full names of the frozen floating parameters, and of the statistics of norms that stand still, each once."""
    found: dict[int, str] = {}
    for path, module in root.named_modules():
        own = {name: value for name, value in module._parameters.items() if value is not None and _freezes(value)}
        buffers = dict(module._buffers.items())
        for name, value in {**own, **{name: buffers[name] for name in _statistics(module)}}.items():
            found.setdefault(id(value), f"{path}.{name}" if path else name)
    return sorted(found.values())


def is_set(value: Tensor) -> bool:
    """Whether a floating tensor holds values, and no NaN, which a construction without random numbers draws."""
    if value.is_meta or nn.parameter.is_lazy(value) or value.layout != torch.strided or not value.numel():
        return False
    value = value.detach().float() if value.element_size() == 1 else value.detach()  # 8-bit floats have no arithmetic
    first = value[(0,) * value.dim()].item()
    return first == first and not bool(torch.isnan(value).any())


def _freezes(value: Tensor) -> bool:
    return not value.requires_grad and (value.is_floating_point() or value.is_complex())


def _frozen(module: nn.Module) -> Iterator[str]:
    for name, value in module._parameters.items():
        if value is not None and _freezes(value) and is_set(value):
            yield name


def _statistics(module: nn.Module) -> Iterator[str]:
    """Buffers of a norm that nothing trains and no forward counted, if one of them is not what a new norm has."""
    buffers = dict(module._buffers.items())  # a scripted module's has no `get`
    own = {name: b for name, b in buffers.items() if b is not None and name in NEUTRAL}
    counted = buffers.get("num_batches_tracked")
    if "running_var" not in own or any(p is not None and p.requires_grad for p in module._parameters.values()):
        return
    if counted is not None and not counted.is_meta and bool(counted):
        return
    if all(map(is_set, own.values())) and any(bool((b != NEUTRAL[name]).any()) for name, b in own.items()):
        yield from own


def departs(module: nn.Module) -> bool:
    """Whether something fixed in a norm is not what a new norm has there: then the norm is a transform of its own."""
    own = dict((*module._parameters.items(), *module._buffers.items()))
    values = {name: value for name in fixed_names(module) if (value := own.get(name)) is not None}
    return any(name not in NEUTRAL or bool((value != NEUTRAL[name]).any()) for name, value in values.items())
