"""ConstNet: all channels of every layer are identical at the start.

Source: Blumenfeld, Gilboa, Soudry, "Beyond Signal Propagation: Is Feature Diversity Necessary in Deep Neural Network
Initialization?", ICML 2020, arXiv 2007.01038, and the authors' code.

Mathematics. n is the number of inputs of a layer (of a group):

    stem         1/n at the centre tap for every pair of output and input
    branch       1/n at the centre tap, the last layer of the branch 0
    projection   1/n everywhere (1×1)
    norm         1 and 0
    classifier   0

Every nonzero weight has rank 1, the difference between any channel and the first is exactly 0 at every layer, and so
are all logits.

Training needs something that breaks the symmetry, or all channels stay equal for ever. The paper's finding: kernels of
a GPU that add in no fixed order do, and so does dropout of 0.01. break_symmetry=dropout:P inserts it behind every
residual join; the check `symmetry` trains a few steps and says when and whether the channels part. On one CPU thread
they never do without dropout, and do from the second step on with it.

Applies to: networks of convolutions and linear layers with norms of each channel by itself, or without norms.

Needs: no change of the architecture, but for the dropout where it is asked for. Declined are networks that normalize
across channels (LayerNorm, RMSNorm): of equal channels nothing is left, or a sign. Item tables and tokens have no rule:
items would differ by one number only.

Paper against code. [A]: stem, projections, norms, classifier, and all convolutions of a branch 0. [D]: of several
layers in a branch only the last is 0, since two layers of 0 in series never get a gradient. [X]: groups, transposed
layers, gates and recurrent candidates are averages as well; a layer that cuts patches averages the patch; a last layer
or a classifier behind which a ReLU, or a factor constructed as 0, stands is an average, not 0, or it would stay dead.

Exact: 1/n is one IEEE division, rounded once to float32. Equal inputs and equal weights give equal sums wherever a
kernel adds up every output channel in the same order; the check `channel_spread` measures it.
"""

from __future__ import annotations

from collections.abc import Mapping

from zero_convert.formulas import Average, Constant, Formula, Zeros
from zero_convert.initialization.rules.defaults import Rules, fill_by
from zero_convert.initialization.rules.placing import place
from zero_convert.initialization.scheme import Decline, OptionSpec, Rates, Scheme

from ..records import Geometry, Join, Layer, Option, Structure

ACROSS = "norm across channels"


def fill(layer: Layer, structure: Structure, options: Mapping[str, Option]) -> Mapping[str, Formula] | None:
    def spare(layer: Layer, g: Geometry) -> Formula:
        return place(g, Average)

    def weight(layer: Layer, g: Geometry) -> Formula:
        average = place(g, Average)
        return Constant(average.shape, 0.0) if _zero(layer) else average

    return fill_by(Rules(weight, Average, Zeros, spare, items=None), layer)


def _zero(layer: Layer) -> bool:
    return layer.role in ("head", "branch-last") and not layer.before_relu and not layer.zeroed_by_scale


def _zero_branch(join: Join, structure: Structure) -> bool:
    """Every branch whose last layers start at 0."""
    ends = [layer for layer in structure.layers if layer.role == "branch-last" and layer.join == join.index]
    divided = any(layer.divided for layer in ends)
    sharers = [structure.layer(name) for layer in ends for name in layer.shared]
    return bool(ends) and not divided and all(map(_zero, (*ends, *sharers)))


def declines(structure: Structure, options: Mapping[str, Option]) -> Decline | None:
    for layer in structure.layers:
        if layer.way is not None and ACROSS in layer.way.passed:
            return Decline(
                "what it reads is normalized across channels, and of channels that are all equal that leaves nothing",
                layer.name,
                "ConstNet is for networks with batch, instance or group norms, or none; --scheme idinit and --scheme "
                "zero-2022 start this one.",
            )
    return None


SCHEME = Scheme(
    name="constnet",
    title="ConstNet: all channels identical, averages and zeros (arXiv 2007.01038)",
    doc=__doc__,
    options=(
        OptionSpec(
            "break_symmetry", ("none",), "none", "what lets equal channels part: nothing, or dropout", Rates("dropout")
        ),
    ),
    rewrites=lambda options: () if options["break_symmetry"] == "none" else ("symmetry_dropout",),
    fill=fill,
    zero_branch=_zero_branch,
    checks=lambda options: {"channel_spread": 0.0, "symmetry": 5 if options["break_symmetry"] == "none" else 50},
    declines=declines,
)
