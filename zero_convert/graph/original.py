"""The network as it was given, kept beside the rewritten one so that the checks can compare the two.

A rewrite uses up what it is given, so a copy of modules and graphs is made before it; large parameters are left out of
the copy. Whoever wants to run it asks for `filled`: the same network with weights that say what is usual, He's.
"""

from __future__ import annotations

import copy
import functools
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from zero_convert.formulas.hashing import key, words

from .copies import copy_of
from .traced import Original, Traced

SMALL = 1 << 16  # values; what is smaller is copied, since a constant of the constructor may be in it
_PERIOD = 65_521


def keep(traced: Traced) -> Traced | None:
    """A copy of the modules and graphs, without large parameters. None where they cannot be copied.

    Buffers are shared with the given network: nothing writes to them before the copy is copied again.
    """
    memo: dict[int, Any] = {id(buffer): buffer for buffer in traced.root.buffers()}
    for parameter in traced.root.parameters():
        held = parameter.detach()
        value = held.clone() if held.numel() <= SMALL else torch.empty_like(held, device="meta")
        memo[id(parameter)] = nn.Parameter(value, parameter.requires_grad)
    try:
        train = copy.deepcopy(traced.train)
        evaluate = train if traced.evaluate is traced.train else copy.deepcopy(traced.evaluate)
        root = copy_of(traced.root, memo)
    except Exception:  # a module that cannot be copied is converted all the same
        return None
    for old, new in zip(traced.graphs, dict.fromkeys((train, evaluate)), strict=True):
        _named_alike(old, new)
    return Traced(
        root, train, evaluate, traced.capture, traced.failed, traced.opaque, traced.keywords, traced.whole,
        decisions=traced.decisions, inside=traced.inside,
    )  # fmt: skip


def filled(given: Original, seed: int = 0, sd: float = math.sqrt(2)) -> nn.Module:
    """A copy of the original's modules on the CPU with other weights.

    Parameters of two or more dimensions get hashed values, uniform, of standard deviation `sd` / sqrt(fan-in), which
    for sqrt(2) is He's (arXiv 1502.01852); one that held the same value everywhere keeps it, as do factors and shifts;
    a shift that a generator would have drawn is 0. Tensors outside the parameters are the original's.
    """
    root = given.traced.root
    shared: dict[int, Any] = {}
    for name, parameter in root.named_parameters():
        shared[id(parameter)] = nn.Parameter(_value(name, parameter.detach(), seed, sd), parameter.requires_grad)
    return copy_of(root, shared)


def hashed(name: str, shape: tuple[int, ...], seed: int = 0) -> Tensor:
    """Hashed values of variance 1, uniform in ±sqrt(3): 65,521 of them again and again, from a start of the name's own.

    The period is a prime, so that rows of a weight are different stretches.
    """
    count, start = math.prod(shape), key(seed, name) % _PERIOD
    turns = -(-(start + count) // _PERIOD)
    return _block().repeat(turns)[start : start + count].reshape(shape)


@functools.cache
def _block() -> Tensor:
    drawn = (words(0, "original", 0, _PERIOD) >> 40).astype(np.float32)
    return torch.from_numpy((drawn / np.float32(2**23) - 1) * np.float32(math.sqrt(3)))


def _value(name: str, held: Tensor, seed: int, sd: float) -> Tensor:
    if not held.is_floating_point():
        return torch.zeros_like(held, device="cpu") if held.device.type == "meta" else held.clone()
    if held.device.type != "meta" and (held == held.reshape(-1)[:1]).all():
        return held.clone()
    if held.ndim < 2:
        drawn = held.device.type == "meta" or bool(torch.isnan(held).any())
        return torch.zeros(held.shape, dtype=held.dtype) if drawn else held.clone()
    fan = max(1, held.numel() // max(1, held.shape[0]))
    return hashed(name, tuple(held.shape), seed).mul_(sd / math.sqrt(fan)).to(held.dtype)


def _named_alike(old: fx.Graph, new: fx.Graph) -> None:
    """The copy's nodes have the names of the given graph's, by which joins are known."""
    for before, after in zip(old.nodes, new.nodes, strict=True):
        after.name = before.name
