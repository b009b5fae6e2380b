"""A loss for any network, without random targets, its gradients, and steps against them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.instancenorm import _InstanceNorm

from zero_convert.formulas.hashing import words
from zero_convert.graph.queries import only_user

from ..subject import Subject
from .recorder import largest


def gradients_of(outputs: Sequence[Tensor], module: nn.Module) -> dict[str, Tensor | None]:
    """The gradient of the loss for each trainable parameter; None for one that no output depends on."""
    named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    dependent = [t for t in outputs if t.requires_grad and t.numel()]
    if not dependent:
        return {name: None for name, _ in named}
    for _, p in named:
        p.grad = None
    loss(dependent).backward()  # type: ignore[no-untyped-call]  # a forward may ask for its parts again: no autograd.grad
    gradients = {name: p.grad for name, p in named}
    for _, p in named:
        p.grad = None
    return gradients


def loss(outputs: Sequence[Tensor]) -> Tensor:
    """The sum over the outputs, none of them empty, of the cross entropy along dimension 1 with hashed classes.

    Of an output with three dimensions nobody knows which are the classes, 1 (a signal's channels) or 2 (scores of
    tokens); the two are added. Along the wrong one a bias has a gradient of 0, or of what rounding leaves of it.
    An output with fewer than two dimensions or classes gets half the mean squared distance to hashed signs.
    """
    parts = []
    for index, output in enumerate(outputs):
        ways = [output, output.transpose(1, 2)] if output.ndim == 3 else [output] if output.ndim > 1 else []
        scores = [way for way in ways if way.shape[1] > 1]
        if scores:
            for way in scores:
                shape = (way.shape[0], *way.shape[2:])
                parts.append(F.cross_entropy(way, _hashed(index, shape, way.shape[1], way)))
        else:
            signs = _hashed(index, tuple(output.shape), 2, output).to(output.dtype) * 2 - 1
            parts.append((output - signs).square().mean() / 2)
    return torch.stack([part.to(parts[0].dtype) for part in parts]).sum()


def step(outputs: Sequence[Tensor], module: nn.Module, size: float) -> dict[str, float | None]:
    """Moves every trainable parameter by `size`, in the Euclidean norm, against its gradient of the loss.

    Returns:
        Parameter → the largest magnitude of its gradient; None if no output depends on it. One whose gradient is 0 or
        not finite stays where it is.
    """
    magnitudes: dict[str, float | None] = {}
    gradients = gradients_of(outputs, module)
    for name, parameter in module.named_parameters():
        if name not in gradients:
            continue
        gradient = gradients[name]
        magnitudes[name] = magnitude = None if gradient is None else largest(gradient)
        if gradient is not None and magnitude is not None and 0 < magnitude < math.inf:
            if not 1e-15 < magnitude < 1e15:  # else squares could under- or overflow
                gradient = gradient / magnitude
            with torch.no_grad():
                parameter.sub_(gradient, alpha=size / float(torch.linalg.vector_norm(gradient)))
    return magnitudes


def cancelled_biases(subject: Subject) -> set[str]:
    """Biases whose layer is read by a batch or instance norm alone, which subtracts the mean again."""
    root, biases = subject.traced.root, set()
    for node in subject.traced.train.nodes:
        user = only_user(node) if node.op == "call_module" else None
        if user is None or user.op != "call_module":
            continue
        module, norm = root.get_submodule(str(node.target)), root.get_submodule(str(user.target))
        bias = getattr(module, "bias", None)
        if not isinstance(norm, _BatchNorm | _InstanceNorm) or not isinstance(module, _ConvNd | nn.Linear):
            continue
        if isinstance(bias, nn.Parameter) and bias.requires_grad:
            biases.add(f"{node.target}.bias")
    return biases


def _hashed(index: int, shape: tuple[int, ...], below: int, like: Tensor) -> Tensor:
    values = (words(index, "check targets", 0, math.prod(shape)) >> 32) % below
    return torch.from_numpy(values.astype("int64")).reshape(shape).to(like.device)
