"""Risotto: residual networks of ReLUs that are exactly linear and isometric at the start.

Source: Gadhikar, Burkholz, "Dynamical Isometry for Residual Networks", 2022, arXiv 2210.02411.

Mathematics. Channels come in mirrored pairs (c, c + C/2). Of a pair (a, -a) a ReLU r loses nothing: r(a) - r(-a) = a.
L(U) = [[U, -U], [-U, U]] reads r([a; -a]) and returns [U·a; -U·a]. All kernels are 0 but at the centre tap.

    first layer                    [U; -U]                                                   UᵀU = I
    projection block (type C)      W1 = L(U1), W2 = L(U2), shortcut L(M - U2·U1)             MᵀM = I
    identity block (type B)        W1 = L(I),  W2 = L(M) - I                                 the fork behind a ReLU
    identity block                 W1 = L(U1), W2 = L(V - U1ᵀ), so that M = V·U1             the fork before it
    bottleneck, identity           W1 picks pairs (L of a selection E), the middle lets them pass (L(I)), W3 = L(M') - I
                                   on those pairs (L(M' - I) where the fork is before the ReLU)
    other layers                   L(U)
    head                           [A, -A], rows of A orthonormal; head=zero: 0

A block multiplies a by M: M is orthogonal, or an isometry where channels are added. The values of a block depend on
each other (the shortcut on the branch); each is a function of the block's sizes and names. A layer that reads [a; -a]
with no ReLU before it has half of its L(U). Orthogonal matrices are Hadamard blocks of order 4^k over 2^k, with rows,
columns and signs in hashed order; U2 and later layers of a projection block, signed selections of rows, so that the
product is one as well. Everything is hashed from seed=N.

Invariants: the length of a is the same at every depth, all singular values of the Jacobian are 0 or 1, r(z) of a pair
is 0 on one side at every join, and the network is linear. Strides drop positions; average pools average a.

Applies to: networks of ReLUs, convolutions and linear layers, with residual blocks whose branch is one chain, and plain
ones. Declined, with the place: odd numbers of channels, other activations, norms that stay (norm=keep in an identity
branch), gates, concatenations, attention, groups other than between two ReLUs of a branch that keep their channels, and
branches whose centre taps do not meet the shortcut's positions.

Needs: no norms (`remove_norms`; norm=keep leaves them and declines where one stands in a branch), average pools before
the ReLU instead of max-pools (`average_pools`).

Paper against code. [2]: type B and C blocks, L(U), the shortcut that depends on the branch. [D], derived and checked in
this project: the values above, the bottleneck, pre-activation blocks. [X]: the paper draws orthogonal matrices with a
generator and a decomposition, here they are hashed and exact; single layers, chains without blocks, grouped layers in
the middle of a branch (identities, behind a ReLU), the head.

Exact: every entry is a sum of at most two powers of two, or 0, without rounding in float32.
"""

from __future__ import annotations

from collections.abc import Mapping

from zero_convert.formulas import Constant, Formula, Matrix, PartialIdentity
from zero_convert.formulas.looks_linear import MergePairs, Mirrored, Orthogonal, PairInput
from zero_convert.initialization.rules.mirrored_blocks import block_values
from zero_convert.initialization.rules.mirrored_structure import block_of, decline_of, fits, is_raw, reads_pairs
from zero_convert.initialization.rules.placing import buffers, norm, place, zeros
from zero_convert.initialization.scheme import SEED, Decline, OptionSpec, Scheme

from ..records import Geometry, Layer, Option, Structure


def fill(layer: Layer, structure: Structure, options: Mapping[str, Option]) -> Mapping[str, Formula] | None:
    if layer.kind == "norm":
        return norm(layer)
    g = layer.geometry
    if g is None or not fits(layer, structure):
        return buffers(layer) or None
    values: dict[str, Formula] = buffers(layer)
    for t in (tensor for tensor in layer.tensors if not tensor.buffer):
        if t.local == "weight":
            values["weight"] = _weight(layer, g, structure, options)
        elif t.local == "bias":
            values["bias"] = zeros(t)
    return values


def _weight(layer: Layer, g: Geometry, structure: Structure, options: Mapping[str, Option]) -> Formula:
    seed, name = int(options["seed"]), f"{layer.name}.weight"
    join = structure.joins[layer.join] if layer.join is not None else None
    if g.groups > 1:
        return place(g, PartialIdentity)
    if join is not None and join.residual and layer.name in (*join.branch, *join.shortcut_layers):
        made = block_values(block_of(join, structure), seed)[name]
        return place(g, lambda m, n: made)
    half, head = reads_pairs(layer), layer.role == "head"

    def matrix(m: int, n: int) -> Matrix:
        if is_raw(layer):
            return Orthogonal(m, n, seed, name) if head else PairInput(Orthogonal(m // 2, n, seed, name))
        if head:
            return MergePairs(Orthogonal(m, n // 2, seed, name), half)
        return Mirrored(Orthogonal(m // 2, n // 2, seed, name), half)

    weight = place(g, matrix)
    return Constant(weight.shape, 0.0) if head and options["head"] == "zero" else weight


def declines(structure: Structure, options: Mapping[str, Option]) -> Decline | None:
    return decline_of(structure)


def _rewrites(options: Mapping[str, Option]) -> tuple[str, ...]:
    removal = ("remove_norms",) if options["norm"] == "none" else ()
    return ("out_of_place", "norm_modules", *removal, "average_pools")


def _checks(options: Mapping[str, Option]) -> Mapping[str, float]:
    isometric = {"norm_per_depth": 1e-5, "jacobian": 1e-5}
    return {**isometric, "linearity": 1e-5} if options["norm"] == "none" else isometric


SCHEME = Scheme(
    name="risotto",
    title="Risotto: mirrored pairs of channels, exactly linear and isometric (arXiv 2210.02411)",
    doc=__doc__,
    options=(
        SEED,
        OptionSpec("norm", ("none", "keep"), "none", "remove the norms, or decline where one stands in a branch"),
        OptionSpec("head", ("pairs", "zero"), "pairs", "the head reads differences of pairs, [A, -A], or is 0"),
    ),
    rewrites=_rewrites,
    fill=fill,
    checks=_checks,
    declines=declines,
)
