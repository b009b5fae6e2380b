"""ReZero: one number at the end of each residual branch that starts at 0; Transformers lose their norms.

Source: Bachlechner, Majumder, Mao, Cottrell, McAuley, "ReZero is All You Need: Fast Convergence at Large Depth",
UAI 2021, arXiv 2003.04887, and the authors' code.

Mathematics. With F a branch and a one trainable number for each branch:

    x + F(LN(x)), LN(x + F(x))    become    x + a · F(x)          a = 0
    weights                       bell-shaped, standard deviation sqrt(2/n), n = inputs · taps of a group; biases 0

At the start every join returns its shortcut. The first step moves only the numbers a (and what is outside of branches),
the second everything.

Applies to: networks with residual branches. LayerNorm and RMSNorm go, batch and group norms stay (norm=none removes
them as well). Declined: spectral_norm, and a residual addition outside of what was captured, where no number can be
put.

Needs: a scalar on each branch (`branch_scalars`), no norms over channels (`remove_layer_norms`).

Paper against code. [A]: a = 0, no LayerNorm in Transformers, batch norm inside the branches of residual networks, as in
the authors' examples; those put the block's activation inside the branch, here it stays behind the join. Their weights
are torch's defaults; here they have He's deviation, as the sum of 12 uniform integers of the hash of (seed, tensor,
index), within 6 standard deviations. [X], ours: the classifier, and queries, keys and values, have deviation sqrt(1/n);
a branch that a factor constructed as 0 silences already gets no second one; embeddings and tokens have deviation
1/sqrt(width), positions are 0.

Exact: sqrt(2/n) is one division and one square root; a value is an integer times it, rounded once to float32.
"""

from __future__ import annotations

from zero_convert.initialization.rules.gated_branches import declines, fill, zero_branch
from zero_convert.initialization.scheme import SEED, OptionSpec, Scheme

SCHEME = Scheme(
    name="rezero",
    title="ReZero: one number of 0 at the end of each branch, no LayerNorm (arXiv 2003.04887)",
    doc=__doc__,
    options=(
        SEED,
        OptionSpec("norm", ("batch", "none"), "batch", "keep batch and group norms, as the authors do, or remove all"),
    ),
    rewrites=lambda options: (
        "out_of_place",
        "norm_modules",
        "branch_scalars",
        "remove_norms" if options["norm"] == "none" else "remove_layer_norms",
    ),
    fill=fill,
    zero_branch=zero_branch,
    declines=declines,
)
