"""What SkipInit and ReZero share: branches gated by a number that is 0, and hashed weights of He's deviation."""

from __future__ import annotations

from collections.abc import Mapping

from zero_convert.formulas import Bell, Formula
from zero_convert.initialization.scheme import Decline
from zero_convert.records import Geometry, Join, Layer, Option, Structure, Tensor

from .placing import zeros
from .random_weights import fan_in, fill_hashed, he, no_spectral_norm


def fill(layer: Layer, structure: Structure, options: Mapping[str, Option]) -> Mapping[str, Formula] | None:
    if layer.kind == "scale":
        return {t.local: zeros(t) for t in layer.tensors}

    def weight(t: Tensor, g: Geometry, role: str) -> Formula:
        return Bell(t.shape, he(layer, fan_in(g), role), int(options["seed"]), t.name)

    return fill_hashed(layer, options, weight)


def zero_branch(join: Join, structure: Structure) -> bool:
    return bool(join.scale)


def declines(structure: Structure, options: Mapping[str, Option]) -> Decline | None:
    zeroed_by_scale = {layer.join for layer in structure.layers if layer.zeroed_by_scale}
    for join in structure.joins:
        if join.residual and not join.scale and join.index not in zeroed_by_scale:
            return Decline(
                "no number can be put on the branch of this residual addition, which is outside of what was captured",
                join.node,
                "`inspect` says what was captured and why not more; --scheme zero-2022 changes no architecture.",
            )
    return no_spectral_norm(structure)
