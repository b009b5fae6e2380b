"""Layers of every kind and shape, as the analysis would describe them: what a scheme is tried on without a network.

Facts only; no torch here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from zero_convert.records import Geometry, Join, Layer, SignalPath, Structure, Tensor

ROLES = ("stem", "branch", "branch-last", "shortcut", "gate", "gate-last", "head", "trunk")


def tensor(name: str, *shape: int, buffer: bool = False) -> Tensor:
    return Tensor(name, shape, "F32", not buffer, buffer)


def conv(
    outputs: int,
    inputs: int,
    kernel: tuple[int, ...],
    *,
    stride: int = 1,
    dilation: int = 1,
    padding: int = 0,
    groups: int = 1,
    transposed: bool = False,
    bias: bool = False,
) -> Layer:
    """A convolution on the trunk with 1 to 3 axes."""
    each = len(kernel)
    g = Geometry(
        outputs, inputs, kernel, (stride,) * each, ((padding,) * 2,) * each, (dilation,) * each, groups, transposed
    )
    shape = (inputs, outputs // groups) if transposed else (outputs, inputs // groups)
    tensors = (tensor("a.weight", *shape, *kernel), *((tensor("a.bias", outputs),) if bias else ()))
    return Layer("a", "convolution", f"Conv{each}d", "trunk", tensors, g)


def linear(outputs: int, inputs: int, *, transposed: bool = False) -> Layer:
    shape = (inputs, outputs) if transposed else (outputs, inputs)
    g = Geometry(outputs, inputs, transposed=transposed)
    return Layer("a", "linear", "Linear", "trunk", (tensor("a.weight", *shape), tensor("a.bias", outputs)), g)


def weights() -> dict[str, Layer]:
    """Convolutions and linear layers that differ in what a formula has to know."""
    attention = (("query", 8), ("key", 8), ("value", 8))
    return {
        "square 3×3 convolution": conv(8, 8, (3, 3), padding=1),
        "growing 3×3 convolution with a bias": conv(12, 5, (3, 3), padding=1, bias=True),
        "shrinking 1×1 convolution": conv(3, 10, (1, 1)),
        "strided convolution with a large kernel": conv(6, 3, (7, 7), stride=2, padding=3),
        "convolution with an even, non-square kernel": conv(6, 4, (2, 4)),
        "dilated convolution": conv(6, 6, (3, 3), dilation=2, padding=2),
        "grouped convolution": conv(12, 6, (3, 3), groups=3, padding=1),
        "depthwise convolution": conv(7, 7, (3, 3), groups=7, padding=1),
        "convolution over one axis": conv(5, 4, (3,), padding=1),
        "convolution over three axes": conv(4, 6, (3, 1, 3)),
        "transposed convolution": conv(6, 4, (3, 3), stride=2, transposed=True),
        "layer that cuts patches": conv(12, 3, (4, 4), stride=4),
        "convolution of one channel": conv(1, 1, (3, 3), padding=1),
        "wide linear layer": linear(3, 7),
        "tall linear layer": linear(11, 4),
        "square linear layer": linear(6, 6),
        "linear layer that stores (in, out)": linear(6, 4, transposed=True),
        "linear layer for queries, keys and values": replace(linear(24, 8), sections=attention, parts=3),
        "linear layer for two factors": replace(linear(8, 4), sections=(("gate", 4), ("factor", 4))),
    }


def others() -> dict[str, Layer]:
    """One layer of every other kind that may hold parameters."""
    recurrent = (tensor("a.weight_ih_l0", 12, 5), tensor("a.weight_hh_l0", 12, 4), tensor("a.bias_ih_l0", 12))
    gates = (("gate", 4), ("gate", 4), ("candidate", 4))
    norm = (tensor("a.weight", 6), tensor("a.bias", 6), tensor("a.running_mean", 6, buffer=True))
    joint = (tensor("a.in_proj_weight", 24, 8), tensor("a.in_proj_bias", 24))
    apart = (tensor("a.q_proj_weight", 8, 8), tensor("a.k_proj_weight", 8, 5), tensor("a.v_proj_weight", 8, 5))
    raw = {
        "parameter that is added": (tensor("a.p", 1, 5, 6), "added"),
        "parameter that is multiplied": (tensor("a.p", 6), "multiplied"),
        "token that is concatenated": (tensor("a.p", 1, 1, 6), "concatenated"),
        "table of positions": (tensor("a.p", 9, 2), "indexed"),
        "unused parameter": (tensor("a.p", 6), "unused"),
    }
    found = {
        "norm": Layer("a", "norm", "BatchNorm2d", "trunk", norm),
        "scalar bias": Layer("a", "bias", "ScalarBias", "trunk", (tensor("a.bias", 1),)),
        "scalar factor": Layer("a", "scale", "ScalarScale", "trunk", (tensor("a.scale", 1),)),
        "activation with slopes": Layer("a", "activation", "PReLU", "trunk", (tensor("a.weight", 6),)),
        "embedding": Layer("a", "embedding", "Embedding", "stem", (tensor("a.weight", 20, 6),), Geometry(6, 20)),
        "recurrent layer": Layer("a", "recurrent", "GRU", "trunk", recurrent, Geometry(4, 5), sections=gates),
        "bilinear layer": Layer("a", "bilinear", "Bilinear", "trunk", (tensor("a.weight", 3, 4, 5),), Geometry(3, 4)),
        "attention": Layer("a", "attention", "MultiheadAttention", "branch", joint, Geometry(8, 8)),
        "attention of two widths": Layer("a", "attention", "MultiheadAttention", "branch", apart, Geometry(8, 8)),
        "raw weight": Layer(
            "a", "parameter", "Net", "trunk", (tensor("a.p", 5, 3),), uses=(("p", "weight"),),
            weights=(("p", Geometry(5, 3), "trunk"),),
        ),
    }  # fmt: skip
    return found | {
        what: Layer("a", "parameter", "Net", "trunk", (p,), uses=(("p", use),)) for what, (p, use) in raw.items()
    }


def alone(layer: Layer) -> Structure:
    """A network of one layer."""
    return Structure((layer,), ())


def in_block(layer: Layer, role: str) -> tuple[Layer, Structure]:
    """The layer with a role in a network: a stem, one residual block of two layers, and a head."""
    block = ("branch", "branch-last", "shortcut")
    way = SignalPath("input", "x") if role == "stem" else SignalPath("layer", "b", ("relu",))
    placed = replace(layer, role=role, join=0 if role in block else None, way=way)
    companion = replace(conv(8, 8, (3, 3), padding=1), name="b", tensors=(tensor("b.weight", 8, 8, 3, 3),))
    companion = replace(companion, way=SignalPath("layer", "a", ("relu",)))
    branch = {
        "branch": ((placed, replace(companion, role="branch-last", join=0)), ("a", "b")),
        "branch-last": ((replace(companion, role="branch", join=0), placed), ("b", "a")),
    }
    layers, names = branch.get(role, ((placed, replace(companion, role="branch-last", join=0)), ("b",)))
    side = "projection" if role == "shortcut" else "identity"
    own = ("a",) if role == "shortcut" else ()
    join = Join(0, "add", "x", "y", "x", side, names, own, "plain", names, "", 8, 8, 1, depth=len(names))
    join = replace(
        join, shortcut_path=SignalPath("layer", "a" if own else "c"), branch_path=SignalPath("layer", names[-1])
    )
    return placed, Structure(layers, (join,))


def situations() -> Iterator[tuple[str, Layer, Structure]]:
    """Every specimen: what it is, the layer, and the network it is in; weights in every role."""
    for what, layer in weights().items():
        for role in ROLES:
            yield f"{what}, {role}", *in_block(layer, role)
    for what, layer in others().items():
        yield what, layer, alone(layer)
