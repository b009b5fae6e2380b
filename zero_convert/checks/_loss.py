"""A loss for any network, without random targets."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ..hashing import words


def loss(outputs: Sequence[Tensor]) -> Tensor:
    """The sum over the outputs of the cross entropy along dimension 1 with hashed classes.

    An output with fewer than two dimensions or classes gets half the mean squared distance to hashed signs.
    """
    parts = []
    for index, output in enumerate(outputs):
        if not output.numel():
            continue
        if output.ndim > 1 and output.shape[1] > 1:
            shape = (output.shape[0], *output.shape[2:])
            parts.append(F.cross_entropy(output, _hashed(index, shape, output.shape[1], output)))
        else:
            signs = _hashed(index, tuple(output.shape), 2, output).to(output.dtype) * 2 - 1
            parts.append((output - signs).square().mean() / 2)
    if not parts:
        raise ValueError("the network returns no floating tensor, so there is nothing to take a loss of")
    return torch.stack(parts).sum()


def _hashed(index: int, shape: tuple[int, ...], below: int, like: Tensor) -> Tensor:
    count = 1
    for size in shape:
        count *= size
    values = (words(index, "check targets", 0, count) >> 32) % below
    return torch.from_numpy(values.astype("int64")).reshape(shape).to(like.device)
