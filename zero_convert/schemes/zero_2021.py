"""ZerO, first version: residual networks from only zeros and ones.

Source: Zhao, Schäfer, Anandkumar, "ZerO Initialization: Initializing Residual Networks with only Zeros and Ones",
arXiv 2110.12661v1, and the network that the authors released with it. Every trainable value is 0 or 1; the
architecture is changed so that this start is alive.

Mathematics. I* is the partial identity: ones at [i, i], zeros elsewhere. r0 is ReLU with derivative 1 at 0, N a norm.
T is a frozen Hadamard transform, H/sqrt(d), no parameter. Inside a branch the order is r0 → N → C.

    stem        t = C0(x) + T(pad(q(x)))                        C0 = 0, then r0, N and the net's own pooling
    basic       a = N1(r0(x));  s = T(P(a)) or x
                h = C1(a) + s;  y = C2(N2(r0(h))) + h           C1 = 0, C2 = 0, P = I*
    bottleneck  a = N1(r0(x));  h = C1(a)                       C1 = I*
                g = C2(N2(r0(h))) + sub_s(h)                    C2 = 0
                y = C3(N3(r0(g))) + (T(P(a)) or x)              C3 = 0
    end         r0, N, global pooling, classifier = 0
    norm=none   N is replaced by scalar biases (0) around each layer of a branch, and a scale (1) on its last one

Paper against code. [A], the authors' code: all of the above. [X], ours, for other networks, chosen so that the above
are special cases: in a branch, a layer that keeps its channels and sees more than one position is 0 with a skip of its
own; a layer that shrinks, or a 1×1 layer, is I*; one that grows is I* followed by T; the last is 0. Outside branches
the same without the zeros. In a gate (squeeze-excitation) the last layer is 0, the others I*. Attention: queries, keys
and values are identities, the output projection is 0 where a shortcut covers it. Tables that are added (positions,
relative biases) are 0, factors (layer scale, temperature) and the slopes of PReLUs are 1, tokens that are
concatenated are rows of I* (a class token of zeros would stay 0 through every zero branch, and nothing before the head
would get a gradient). Groups: the rule per group.

Other layers [X]. Embeddings are binary codes, (1 + H)/2 on columns that tell all rows apart, with the padding row 0;
shared with the classifier they make its logits. A table that is added to another signal (positions, kinds) is 0.
Recurrent layers: the candidate of the new state reads the input by I* and the old state by I*, gates and biases are
0, hence half open. Bilinear layers multiply coordinate k of both inputs. Where rows outnumber columns and no T can
follow (recurrent layers, queries, keys and values, gated halves, raw weights), I* is wrapped around: row a·n + b has
ones at b and (b + a) mod n. Queries, keys and values are told apart by the graph, also where one layer stores them
interleaved by head or with fewer keys than queries; so are the two factors of a gated layer (SwiGLU), each I*. Of two
factors at the end of a branch only the one without activation is 0: with both at 0 nothing would ever move. Raw
weights (of F.linear, einsum, stacks of experts) follow the matrix rule in each slice; raw inputs of layers are
tokens. Norms of libraries start at their neutral value (0 where they multiply by 1 + weight). Standardized
convolutions standardize this start: a kernel at one tap is nearly itself, 0 stays 0. weight_norm: v is the weight, g
its length, 0 with any direction where it is 0; spectral_norm: u and v are its singular vectors, and a weight that would
be 0, hence 0/0, is I*. Unused parameters are 0.

Applies to: networks of convolutions, linear layers, norms and attention. The classifier starts at 0, so all logits are
exactly 0 and its own gradient is the only one of the first step. Features that end divided by their own norm [X] are
no logits: 0 would be 0/0, and their layer follows the matrix rule.

Needs: the rewrites that the plan lists: pre-activation order, skips of their own for inner layers, a skip around the
stem, frozen transforms where channels grow, ReLUs with derivative 1 at 0; with norm=none scalars instead of norms.

Known weakness, measured: H·H = n·I, so each Hadamard undoes part of the one before; in ResNet-50 only 5 of 2048
features are distinct at the start. mixing=permute and mixing=signs [X] repair it and keep ±1, orthogonality and
determinism.

Exact: values are typed constants; no rounding anywhere.
"""

from __future__ import annotations

from collections.abc import Mapping

from zero_convert.formulas import BinaryCodes, Constant, CyclicIdentity, Formula, Matrix, PartialIdentity, Zeros
from zero_convert.initialization.rules.defaults import Rules, fill_by
from zero_convert.initialization.rules.placing import by_section, place, recurrent, stacked, tokens, zeros
from zero_convert.initialization.scheme import OptionSpec, Scheme

from ..records import Geometry, Join, Layer, Option, Structure

ZERO = (
    "branch-last",
    "head",
    "gate-last",
)  # roles whose weights start at 0: a skip, a constant or the loss covers for them


def fill(layer: Layer, structure: Structure, options: Mapping[str, Option]) -> Mapping[str, Formula] | None:
    rules = Rules(_weight, _tall, _tall, lambda layer, g: place(g, _tall), BinaryCodes, binary=True)
    values, zero = fill_by(rules, layer), layer.role in ZERO
    if values is None:
        return None
    weights = {name: role for name, _, role in layer.weights}
    for t in (tensor for tensor in layer.tensors if not tensor.buffer):
        use = dict(layer.uses).get(t.local, "")
        if weights.get(t.local) in ZERO or (layer.kind == "bilinear" and zero):
            values[t.local] = zeros(t)
        elif t.local in weights:
            values[t.local] = stacked(t, next(g for name, g, _ in layer.weights if name == t.local), _tall)
        elif layer.kind == "activation" or use in ("multiplied", "temperature"):
            values[t.local] = Constant(t.shape, 1.0)  # a PReLU of slope 0 passes no gradient to what is behind it
        elif use in ("added", "indexed", "unused"):
            values[t.local] = zeros(t)
        elif use in ("concatenated", "signal"):
            values[t.local] = tokens(t)
        elif use == "embedding" and len(t.shape) == 2:
            values[t.local] = BinaryCodes(*t.shape)
    if layer.kind == "recurrent":
        values |= recurrent(layer, _tall, Zeros, still=zero and not layer.before_relu)
    return values


def _tall(m: int, n: int) -> Matrix:
    """I*, wrapped around where it has more rows than columns and no transform follows: no row is 0."""
    return PartialIdentity(m, n) if m <= n else CyclicIdentity(m, n, distinct=True)


def _dead_at_zero(layer: Layer) -> bool:
    """The last layer of a branch or head before a ReLU that no rewrite could reach, with its derivative of 0 at 0."""
    return layer.role in ("branch-last", "head") and layer.before_relu and layer.kind in ("convolution", "linear")


def _weight(layer: Layer, g: Geometry) -> Formula:
    zero = layer.role in ZERO and not _dead_at_zero(layer)
    if layer.has("gate") and layer.role == "branch-last":  # the other factor is 0
        return place(g, lambda m, n: by_section(layer, n, {"factor": Zeros}, _tall))
    if zero and layer.has("value") and len(layer.sections) > 1:  # with queries and keys at 0 neither would ever move
        return place(g, lambda m, n: by_section(layer, n, {"value": Zeros}, _tall))
    if zero:
        shape = place(g, PartialIdentity).shape
        return Constant(shape, 0.0)
    if layer.parametrization and layer.parametrization[0] == "weight_norm":
        return place(g, PartialIdentity)
    if len(layer.sections) == 1:
        return place(g, _tall)
    return place(g, (lambda m, n: by_section(layer, n, {}, _tall)) if layer.sections else PartialIdentity)


def rewrites(options: Mapping[str, Option]) -> tuple[str, ...]:
    norm_free = ("norm_free",) if options["norm"] == "none" else ()
    return (
        "out_of_place",
        "norm_modules",
        "relu_derivative",
        "preactivation",
        *norm_free,
        "inner_skips",
        "stem_skip",
        "projections",
        "growth_transforms",
    )


def _zero_branch(join: Join, structure: Structure) -> bool:
    """Every branch, but for one that ends in a layer before a ReLU, which 0 would leave dead, in one that cannot be 0,
    or in a layer that shares its weight with one that is not 0; or that calls a stem again."""
    called = {layer.name for layer in structure.layers if layer.role == "stem"}
    ends = structure.ends(join)
    sharers = [structure.layer(name) for layer in ends for name in layer.shared]
    free = any(layer.before_relu or layer.divided for layer in ends)
    return not free and all(layer.role in ZERO for layer in sharers) and not called.intersection(join.branch)


SCHEME = Scheme(
    name="zero-2021",
    aliases=("zero",),
    title="ZerO, first version: only zeros and ones, extra skips, Hadamard transforms (arXiv 2110.12661v1)",
    doc=__doc__,
    options=(
        OptionSpec("norm", ("keep", "none"), "keep", "keep the norms, or replace them by scalar biases and scales"),
        OptionSpec(
            "mixing",
            ("none", "permute", "signs"),
            "none",
            "what a frozen transform does to its input channels first: nothing (the publication), a fixed permutation, "
            "or fixed signs, both from the hash of the layer's name",
        ),
    ),
    rewrites=rewrites,
    fill=fill,
    binary=True,
    zero_branch=_zero_branch,
)
