"""SkipInit: no norms, and one number at the end of each residual branch that starts at 0.

Source: De, Smith, "Batch Normalization Biases Residual Blocks Towards the Identity Function in Deep Networks",
NeurIPS 2020, arXiv 2002.10444.

Mathematics. With F the branch without its norms and a one trainable number for each branch:

    y = x + a · F(x)          a = 0
    weights                   bell-shaped, standard deviation sqrt(2/n), n = inputs · taps of a group; biases 0

At the start every join returns its shortcut, so that the network is its stem, its projections and its classifier. The
first step moves only the numbers a (and what is outside of branches), the second everything.

Applies to: networks with residual branches, whatever is in them. Without branches it is He's start. Declined:
spectral_norm, and a residual addition outside of what was captured, where no number can be put.

Needs: a scalar on each branch (`branch_scalars`), no norms (`remove_norms`).

Paper against code. [A], from the paper (no code was released): a = 0 at the end of each branch, norms removed, He's
deviation with fan-in. The authors draw normal values and add biases to convolutions; here the values are the sum of 12
uniform integers of the hash of (seed, tensor, index), within 6 standard deviations, and layers keep the biases they
have. [X], ours: the classifier, and queries, keys and values, have deviation sqrt(1/n), since no ReLU follows them; a
branch that a factor constructed as 0 silences already gets no second one; embeddings and tokens have deviation
1/sqrt(width), positions are 0.

Exact: sqrt(2/n) is one division and one square root; a value is an integer times it, rounded once to float32.
"""

from __future__ import annotations

from zero_convert.initialization.rules.gated_branches import declines, fill, zero_branch
from zero_convert.initialization.scheme import SEED, Scheme

SCHEME = Scheme(
    name="skipinit",
    title="SkipInit: no norms, one number of 0 at the end of each branch (arXiv 2002.10444)",
    doc=__doc__,
    options=(SEED,),
    rewrites=lambda options: ("out_of_place", "norm_modules", "branch_scalars", "remove_norms"),
    fill=fill,
    zero_branch=zero_branch,
    declines=declines,
)
