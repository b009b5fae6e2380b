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

What is whose. [A], the authors' code: all of the above. [X], ours, for other networks, chosen so that the above are
special cases: in a branch, a layer that keeps its channels and sees more than one position is 0 with a skip of its
own; a layer that shrinks, or a 1×1 layer, is I*; one that grows is I* followed by T; the last is 0. Outside branches
the same without the zeros. In a gate (squeeze-excitation) the last layer is 0, the others I*. Attention: queries, keys
and values are identities, the output projection is 0 where a shortcut covers it. Tables that are added (positions,
relative biases) are 0, factors (layer scale, temperature) and the slopes of PReLUs are 1, tokens that are
concatenated are rows of I* (a class token of zeros would stay 0 through every zero branch, and nothing before the head
would get a gradient). Groups: the rule per group.

Applies to: networks of convolutions, linear layers, norms and attention. The classifier starts at 0, so all logits are
exactly 0 and its own gradient is the only one of the first step.

Known weakness, measured: H·H = n·I, so each Hadamard undoes part of the one before; in ResNet-50 only 5 of 2048
features are distinct at the start. mixing=permute and mixing=signs [X] repair it and keep ±1, orthogonality and
determinism.

Exact: values are typed constants; no rounding anywhere.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..formulas import Constant, Formula, PartialIdentity, Stack
from ..records import Layer, Option, Structure
from ..scheme import Kept, OptionSpec, Scheme
from ._shared import buffers, norm, place, tokens, zeros

ZERO = ("last", "head", "gate-last")  # roles whose weights start at 0: a skip, a constant or the loss covers for them


def fill(layer: Layer, structure: Structure, options: Mapping[str, Option]) -> Mapping[str, Formula] | None:
    values: dict[str, Formula] = buffers(layer)
    trainable = [tensor for tensor in layer.tensors if not tensor.buffer]
    if layer.kind == "norm":
        return norm(layer)
    if layer.kind in ("bias", "scale"):
        return {t.local: Constant(t.shape, 0.0 if layer.kind == "bias" else 1.0) for t in trainable}
    if layer.kind == "activation":  # PReLU: with slope 0 nothing behind a zero layer would get a gradient
        return {t.local: Constant(t.shape, 1.0) for t in trainable}
    if layer.kind in ("convolution", "linear") and layer.geometry is not None:
        for t in trainable:
            if t.local not in ("weight", "bias"):
                return None
            values[t.local] = _weight(layer) if t.local == "weight" and layer.role not in ZERO else zeros(t)
        return values
    if layer.kind == "attention":
        d = layer.geometry.out_channels if layer.geometry else 0
        for t in trainable:
            if t.local == "in_proj_weight":
                values[t.local] = Stack((PartialIdentity(d, d),) * 3)  # q, k, v
            elif t.local in ("q_proj_weight", "k_proj_weight", "v_proj_weight"):
                values[t.local] = PartialIdentity(*t.shape)
            else:
                values[t.local] = zeros(t)
        return values
    if layer.kind in ("parameter", "buffers"):
        for name, use in layer.uses:
            t = next(t for t in layer.tensors if t.local == name)
            if t.buffer:
                continue
            if use in ("added", "indexed"):
                values[name] = zeros(t)
            elif use == "concatenated":
                values[name] = tokens(t)
            elif use in ("multiplied", "temperature"):
                values[name] = Constant(t.shape, 1.0)
            elif not t.trainable:
                values[name] = Kept(t.shape)
            else:
                return None
        return values
    return None


def _weight(layer: Layer) -> Formula:
    assert layer.geometry is not None
    if layer.parts == 3:
        n = layer.geometry.in_channels
        return Stack((PartialIdentity(n, n),) * 3)
    return place(layer.geometry, PartialIdentity)


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
    zero_branch=lambda join, structure: True,
)
