"""Fixup: residual networks without norms, whose branches start at 0 and whose other layers shrink with depth.

Source: Zhang, Dauphin, Ma, "Fixup Initialization: Residual Learning Without Normalization", ICLR 2019,
arXiv 1901.09321, and the authors' code.

Mathematics. L residual branches, p weight layers in a branch, fan-out n = outputs · taps:

    last layer of each branch, classifier        0
    other layers of a branch                     bell-shaped, standard deviation sqrt(2/n) · L^(-1/(2p-2))
    all other layers                             bell-shaped, standard deviation sqrt(2/n)
    y = C2(r(C1(x + b1a) + b1b) + b2a) · s + b2b + x          b = 0, s = 1: one trainable number each

A projection shortcut reads x + b1a too; the stem's norm and the classifier get one scalar bias each. Logits are exactly
0, and a block with an identity shortcut returns its input.

Applies to: residual networks of convolutions and linear layers, with or without norms; Transformers as well, whose
LayerNorms go. Networks without branches get He's deviation and a classifier of 0. Declined: spectral_norm, since the
largest singular value of hashed weights is no formula.

Needs: no norms (`remove_norms`), scalar biases and scales in branches (`scalar_biases`) and outside (`outer_biases`).

Paper against code. [A], the authors' code for ResNets: all of the above, with normal values from a library's generator;
the bell here is the sum of 12 uniform integers of the hash of (seed, tensor, index), within 6 standard deviations. The
paper also wants biases before activations; as in the code, the one behind the convolution is that. [A] leaves the stem
to torch's default; here it has sqrt(2/n). [X], ours: p is the longest way through the branch, an attention's values and
output are two; queries, keys and values have 1/width instead of 2/n; groups count their own outputs; a layer that cuts
patches has fan-out = outputs; a branch that is no chain gets a scale and a bias at its end only (the plan says so); its
last layer is not 0 where a ReLU stands between it and the join, where it shares its weight with another layer, or where
a factor constructed as 0 silences the branch: then all p layers have L^(-1/(2p)). Of two factors at the end of a branch
one is 0. Embeddings and tokens have deviation 1/sqrt(width), positions are 0, gates and recurrent layers hashed.

Exact: L^(-1/q) is an integer root and one division, sqrt(2/n) one division and one square root; a value is an integer
times their product, rounded once to float32.
"""

from __future__ import annotations

from collections.abc import Mapping

from zero_convert.formulas import Bell, Formula, Masked, inverse_root
from zero_convert.initialization.rules.placing import zeros
from zero_convert.initialization.rules.random_weights import fan_out, fill_hashed, he, no_spectral_norm, outputs
from zero_convert.initialization.scheme import SEED, Scheme

from ..records import Geometry, Join, Layer, Option, Structure, Tensor


def fill(layer: Layer, structure: Structure, options: Mapping[str, Option]) -> Mapping[str, Formula] | None:
    def weight(t: Tensor, g: Geometry, role: str) -> Formula:
        if role == "head":
            return zeros(t)
        hashed = Bell(
            t.shape, he(layer, fan_out(g), role) * _shrink(layer, role, structure), int(options["seed"]), t.name
        )
        if role != "branch-last" or not _may_be_zero(layer, structure):
            return hashed
        silent = "factor" if layer.has("gate") else "value" if len(layer.sections) > 1 else ""
        return Masked(hashed, outputs(layer, silent), int(g.transposed)) if layer.has(silent) else zeros(t)

    still = layer.role == "head" or (layer.role == "branch-last" and _may_be_zero(layer, structure))
    return fill_hashed(layer, options, weight, still=still, factor=_shrink(layer, layer.role, structure))


def _shrink(layer: Layer, role: str, structure: Structure) -> float:
    """L^(-1/(2p-2)) for the layers of a branch, L^(-1/(2p)) if its last layer is not 0; 1 outside of branches."""
    if role not in ("branch", "branch-last"):
        return 1.0
    branches = sum(join.residual for join in structure.joins)
    p, zero = 2, True  # of a layer whose branch no graph shows
    if layer.join is not None:
        own = [each for each in structure.layers if each.join == layer.join and each.role in ("branch", "branch-last")]
        p = min(structure.joins[layer.join].depth, len(own))
        zero = all(_may_be_zero(each, structure) for each in own if each.role == "branch-last")
    return inverse_root(max(1, branches), max(1, 2 * p - 2 if zero else 2 * p))


def _may_be_zero(layer: Layer, structure: Structure) -> bool:
    """Whether the last layer of a branch would get a gradient from 0, and is its own."""
    sharers = [structure.layer(name) for name in layer.shared]
    return (
        not layer.before_relu
        and not layer.zeroed_by_scale
        and all(each.role in ("branch-last", "head") for each in sharers)
    )


def _zero_branch(join: Join, structure: Structure) -> bool:
    last = [layer for layer in structure.layers if layer.join == join.index and layer.role == "branch-last"]
    return bool(last) and all(_may_be_zero(layer, structure) for layer in last)


SCHEME = Scheme(
    name="fixup",
    title="Fixup: no norms, branches that end in 0, other layers shrunk by depth (arXiv 1901.09321)",
    doc=__doc__,
    options=(SEED,),
    rewrites=lambda options: ("out_of_place", "norm_modules", "scalar_biases", "outer_biases", "remove_norms"),
    fill=fill,
    zero_branch=_zero_branch,
    declines=lambda structure, options: no_spectral_norm(structure),
)
