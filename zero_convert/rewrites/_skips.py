"""Skips around a layer with a stride: which positions they take."""

from __future__ import annotations

from ..records import Geometry


def centre_sides(g: Geometry) -> tuple[tuple[int, int], ...]:
    """What a subsampling by the layer's stride has to crop, (left, right) each, to read under the tap k // 2."""
    sides = []
    for k, d, (left, right) in zip(g.kernel, g.dilation, g.padding, strict=True):
        centre = d * (k // 2)
        sides.append((centre - left, d * (k - 1) - centre - right))
    return tuple(sides)


def sampled(shape: tuple[int, ...], stride: tuple[int, ...], sides: tuple[tuple[int, int], ...]) -> tuple[int, ...]:
    """Sizes of the trailing dimensions after `modules.subsample`."""
    trailing = shape[len(shape) - len(stride) :]
    return tuple(
        max(0, -(-(n - left - right) // s)) for n, s, (left, right) in zip(trailing, stride, sides, strict=True)
    )
