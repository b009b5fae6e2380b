"""Counting channels: how many are zero, how many repeat another, how many hardly vary."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from zero_convert.formulas.hashing import words
from zero_convert.records import Layer

# Two channels are the same if they differ by less than this part of the largest value. In float64 rounding noise stays
# below 1e-9 even after batch norms have amplified it (ResNet-50), and what float32 could tell apart is kept apart.
SAME = 1e-7
POSITIONS = 128  # that a rank is taken over; more cost much and say little
FAINT = 1e-6  # a singular value below this part of the largest counts as 0


@dataclass(frozen=True, slots=True)
class Channels:
    """Counts for one signal: all channels, different ones, those that are 0 everywhere, those of low variance."""

    total: int
    distinct: int
    zero: int
    low_variance: int


def as_rows(x: Tensor, layer: Layer, module: nn.Module) -> Tensor:
    """One row per channel, whatever the axis of the channels is.  # (channels, positions)"""
    return x.detach().movedim(_axis(x, layer, module), 0).unsqueeze(-1).flatten(1)


def _axis(x: Tensor, layer: Layer, module: nn.Module) -> int:
    if layer.kind == "convolution" and layer.geometry is not None:
        return x.ndim - 1 - len(layer.geometry.kernel)
    if isinstance(module, nn.LayerNorm | nn.RMSNorm):
        width = module.normalized_shape[-1]
        first = type(module) not in (nn.LayerNorm, nn.RMSNorm) and x.shape[-1] != width and x.shape[1] == width
        return 1 if first else x.ndim - 1
    if layer.kind == "norm":
        return 1
    return x.ndim - 1


def statistics(rows: Tensor, low: float) -> Channels:
    """Counts over the rows; `low` is the variance below which a channel counts as of low variance."""
    return Channels(
        total=len(rows),
        distinct=distinct(rows),
        zero=int((rows == 0).all(1).sum()),
        low_variance=int((rows.var(1, correction=0) < low).sum()),
    )


def distinct(rows: Tensor) -> int:
    """How many rows are different.  # (channels, positions)

    Rows are sorted by their product with a fixed hashed vector, so that equal ones become neighbours, and neighbours
    are compared.
    """
    if len(rows) < 2 or rows.shape[1] == 0:
        return len(rows)
    weights = torch.from_numpy((words(0, "channels", 0, rows.shape[1]) >> 40).astype("int64")).to(rows.device)
    order = (rows * (weights.to(rows.dtype) / 2**24)).sum(1).argsort()
    rows = rows[order]
    apart = (rows[1:] - rows[:-1]).abs().amax(1) > SAME * float(rows.abs().max())
    return 1 + int(apart.sum())


def rank(rows: Tensor) -> tuple[int, int]:
    """The numerical rank of the rows over at most `POSITIONS` positions, and the largest it could be."""
    step = -(-rows.shape[1] // POSITIONS) or 1
    part = rows[:, ::step].cpu().double()
    most = min(part.shape)
    scale = float(part.abs().max()) if part.numel() else 0.0
    if not 0 < scale < math.inf:
        return 0, most
    part = part / scale
    gram = part @ part.T if part.shape[0] <= part.shape[1] else part.T @ part
    values = torch.linalg.eigvalsh(gram)
    return int((values > FAINT**2 * float(values[-1])).sum()), most
