"""A loss for any network, without random targets, and its gradients."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zero_convert.formulas.hashing import words


def gradients_of(outputs: Sequence[Tensor], module: nn.Module) -> dict[str, Tensor | None]:
    """The gradient of the loss for each trainable parameter; None for one that no output depends on."""
    named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    dependent = [t for t in outputs if t.requires_grad and t.numel()]
    if not dependent:
        return {name: None for name, _ in named}
    for _, p in named:
        p.grad = None
    loss(dependent).backward()  # type: ignore[no-untyped-call]  # a forward may ask for its parts again: no autograd.grad
    made = {name: p.grad for name, p in named}
    for _, p in named:
        p.grad = None
    return made


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


def _hashed(index: int, shape: tuple[int, ...], below: int, like: Tensor) -> Tensor:
    count = 1
    for size in shape:
        count *= size
    values = (words(index, "check targets", 0, count) >> 32) % below
    return torch.from_numpy(values.astype("int64")).reshape(shape).to(like.device)
