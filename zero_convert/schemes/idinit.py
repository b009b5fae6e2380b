"""IDInit: identities that go on where the matrix does, and branches that start close to zero.

Source: Pan, Wang, Xu, "IDInit: A Universal and Stable Initialization Method for Neural Network Training", ICLR 2025,
arXiv 2503.04626.

Mathematics. For a weight m×n, m outputs and n inputs:

    IDI_t    W[i, j] = t where i ≡ j (mod n), else 0                           every layer but the last of a branch
    IDIZ_e   IDI_e, and in every row one -e more, so that the row sums to 0    the last layer of a residual branch
             m < n   the columns from m on are IDI_(-e), m × (n - m)
             m ≥ n   W[i, (i + 1) mod n] = -e

with e = 1e-6 and t = 1 (tau). A convolution m × n × k × k is a matrix m × (k·k·n). Biases 0, norms 1 and 0.

    order=taps-first      columns (kh, kw, n), the default: square layers read their own channel at tap (0, 0), a shift
                          by k//2 positions; rows beyond n read the same channels at the next tap
    order=channels-first  columns (n, kh, kw): the first m of n·k·k columns, hence ceil(m / k²) channels at all their
                          taps, and none of the others
    order=centre          the m × n matrix at the centre tap: an identity where m = n

A branch adds at most 2·e times the largest value that its last layer reads (times 2/sqrt(eps) for a norm behind it).

Measured [D]: where the first layer of a two-layer branch repeats its input (m = 4·n, a transformer's MLP), the value
and its opposite in IDIZ read the same, and the branch adds 0 up to rounding; it parts in the first step. Where the
picture has shrunk to one position, tap (0, 0) of a padded kernel reads nothing but zeros: there taps-first and
channels-first leave layers dead, and the check `gradients` says so (ResNet-18 below 64×64 pixels).

Applies to: networks of any kind. Without residual branches every layer is IDI_t.

Needs: no change of the architecture.

Paper against code. [2], second hand, from the text: IDI, IDIZ, e, t, and that convolutions are reshaped. The order of
the columns is not settled there and decides what a convolution does; taps-first is this project's choice. [X], ours:
groups have the matrix each, transposed convolutions the adjoint, one-column weights at the end of a branch are 0;
queries, keys and values are IDI each, the output projection is IDIZ. Of two factors that are multiplied at the end of a
branch only one is IDIZ. Three branches end in IDI: one that a factor constructed as 0 silences already, one with a ReLU
before the join (it passes nothing of the 0 that value and opposite add up to), and one whose last weight is divided by
its spectral norm. Embeddings and tokens are Hadamard codes; positions are 0; layer scale stays as constructed.

Exact: three typed constants, each rounded once to float32; tau=sqrt2 is one IEEE square root. A row of IDIZ holds e and
-e, which cancel without rounding.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from zero_convert.formulas import CyclicIdentity, Formula, Matrix, OpposedIdentity, Unfolded
from zero_convert.initialization.rules.defaults import Rules, fill_by
from zero_convert.initialization.rules.placing import MatrixRule, by_section, place
from zero_convert.initialization.scheme import OptionSpec, Scheme

from ..records import Geometry, Layer, Option, Structure

EPSILON = 1e-6


def fill(layer: Layer, structure: Structure, options: Mapping[str, Option]) -> Mapping[str, Formula] | None:
    tau = math.sqrt(2) if options["tau"] == "sqrt2" else 1.0
    order = str(options["order"])

    def identity(m: int, n: int) -> Matrix:
        return CyclicIdentity(m, n, tau)

    def opposed(m: int, n: int) -> Matrix:
        return OpposedIdentity(m, n, EPSILON)

    def weight(layer: Layer, g: Geometry) -> Formula:
        last = layer.role == "branch-last" and not layer.zeroed_by_scale and not layer.before_relu
        if layer.sections:
            rules: dict[str, MatrixRule] = {"factor" if layer.has("gate") else "": opposed} if last else {}
            return _placed(g, lambda m, n: by_section(layer, n, rules, identity), "centre")
        return _placed(g, opposed if last else identity, order)

    def spare(layer: Layer, g: Geometry) -> Formula:
        return _placed(g, identity, order)

    if layer.divided:
        return fill_by(Rules(spare, identity, opposed), layer)
    return fill_by(Rules(weight, identity, opposed, spare), layer)


def _placed(g: Geometry, matrix: MatrixRule, order: str) -> Formula:
    m, n, taps = g.out_channels // g.groups, g.in_channels // g.groups, math.prod(g.kernel)
    if order == "centre" or taps == 1:
        return place(g, matrix)
    return Unfolded(matrix(m, n * taps), g.kernel, g.groups, g.transposed, channels_first=order == "channels-first")


SCHEME = Scheme(
    name="idinit",
    title="IDInit: cyclic identities, branches of 1e-6 whose rows sum to 0 (arXiv 2503.04626)",
    doc=__doc__,
    options=(
        OptionSpec("tau", ("1", "sqrt2"), "1", "the value t of all layers but the last of a branch"),
        OptionSpec(
            "order",
            ("taps-first", "channels-first", "centre"),
            "taps-first",
            "which columns a flattened kernel has first, or no flattening: the matrix at the centre tap",
        ),
    ),
    rewrites=lambda options: (),
    fill=fill,
    checks=lambda options: {"branch_bound": 2 * EPSILON},
)
