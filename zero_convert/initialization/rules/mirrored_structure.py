"""What mirrored pairs need to know of a network, from its records: what each layer reads, and what stands against them.

Pure functions of `Structure`; the matrices are made in `_mirrored.py`.
"""

from __future__ import annotations

from itertools import pairwise

from zero_convert.initialization.scheme import Decline
from zero_convert.records import Geometry, Join, Layer, SignalPath, Structure

from .mirrored_blocks import Block

HARMLESS = frozenset(
    {"relu", "average pool", "subsampling", "padding"}
)  # linear, or a ReLU, and for each channel alone
MIXED = {  # `SignalPath.source` → what of several signals a layer reads
    "concatenation": "a concatenation of signals",
    "product": "a product of signals",
    "sum": "a sum of signals",
    "several": "several signals",
    "other": "what no known operation makes of a signal",
}
OTHER = "--scheme zero-2022 and --scheme idinit start networks of any kind."


def is_raw(layer: Layer) -> bool:
    """Whether the layer reads the network's input, not pairs."""
    return layer.way is not None and layer.way.source == "input"


def reads_pairs(layer: Layer) -> bool:
    """Whether no ReLU stands before the layer: it reads [a; -a] itself."""
    return layer.way is not None and "relu" not in layer.way.passed


def block_of(join: Join, structure: Structure) -> Block:
    """The block of a residual join that `decline_of` has nothing against."""
    branch = [structure.layer(name) for name in join.branch]
    sizes = [g for layer in branch if (g := layer.geometry) is not None]
    shortcut = structure.layer(join.shortcut_layers[0]) if join.shortcut_layers else None
    return Block(
        layers=tuple(f"{name}.weight" for name in join.branch),
        widths=(sizes[0].in_channels, *(g.out_channels for g in sizes)),
        halves=tuple(map(reads_pairs, branch)),
        rectified=join.shortcut_path is not None and "relu" in join.shortcut_path.passed,
        grouped=tuple(f"{layer.name}.weight" for layer in branch if layer.geometry and layer.geometry.groups > 1),
        shortcut=f"{shortcut.name}.weight" if shortcut is not None else "",
        shortcut_half=shortcut is not None and reads_pairs(shortcut),
    )


def decline_of(structure: Structure) -> Decline | None:
    """What stands against mirrored pairs, first in order of execution."""
    for layer in structure.layers:
        if found := _of_layer(layer, structure):
            return Decline(found[0], layer.name, found[1])
    for join in structure.joins:
        if found := _of_join(join, structure):
            return Decline(found[0], join.node, found[1])
    return None


def fits(layer: Layer, structure: Structure) -> bool:
    """Whether there is nothing against the layer, nor against the block it belongs to."""
    join = structure.joins[layer.join] if layer.join is not None else None
    return _of_layer(layer, structure) is None and (join is None or _of_join(join, structure) is None)


def _of_layer(layer: Layer, structure: Structure) -> tuple[str, str] | None:
    g, way = layer.geometry, layer.way
    if layer.kind in ("norm", "buffers") or (layer.kind == "activation" and not layer.tensors):
        return None
    if (
        layer.kind not in ("convolution", "linear")
        or g is None
        or way is None
        or layer.parametrization
        or layer.made
        or g.transposed
    ):
        what = f"a layer of kind {layer.kind or layer.cls}" if g is None or way is None else f"{layer.cls}"
        return f"{what} has no form with mirrored pairs", OTHER
    if way.source in MIXED:
        return f"it reads {MIXED[way.source]}, which are no mirrored pairs", OTHER
    if layer.sections:
        return "its output is taken apart into parts that are no mirrored pairs", OTHER
    if (against := _against(way)) is not None:
        return against
    odd = "an odd number of channels makes no pairs"
    if (g.in_channels % 2 and way.source != "input") or (g.out_channels % 2 and layer.role != "head"):
        return f"{odd}: {g.in_channels} in, {g.out_channels} out", f"Change the widths to even ones. {OTHER}"
    if g.groups > 1 and not _passes(layer, g, structure):
        return (
            "its groups do not let pairs pass: it has to keep its channels and stand between two ReLUs of a branch",
            OTHER,
        )
    if way.source == "input" and "relu" in way.passed:
        return "a ReLU of the network's input loses what is below 0", OTHER
    return None


def _against(way: SignalPath) -> tuple[str, str] | None:
    for what in way.passed:
        if what in ("norm", "norm across channels"):
            continue  # judged at the join: norms outside of identity branches may stay
        if what == "max pool":
            return "a max-pool before it could not be made an average pool", OTHER
        if what not in HARMLESS:
            return f"before it stands another function than a ReLU ({what}), which loses part of a mirrored pair", OTHER
    return None


def _passes(layer: Layer, g: Geometry, structure: Structure) -> bool:
    """Whether a grouped layer stands between two ReLUs of a branch and keeps its channels."""
    if layer.join is None or g.in_channels != g.out_channels or reads_pairs(layer):
        return False
    branch = structure.joins[layer.join].branch
    at = branch.index(layer.name) if layer.name in branch else 0
    return 0 < at < len(branch) - 1 and not reads_pairs(structure.layer(branch[at + 1]))


def _of_join(join: Join, structure: Structure) -> tuple[str, str] | None:
    if not join.residual:
        return f"an addition of two signals, neither of which is a shortcut: {join.reason}", OTHER
    added, carried = join.branch_path or SignalPath("other"), join.shortcut_path or SignalPath("other")
    branch = [structure.layer(name) for name in join.branch]
    inside = [layer.way.passed for layer in branch if layer.way is not None]
    if any("norm" in step for passed in (*inside, added.passed) for step in passed):
        return (
            "a norm stands in its branch, which undoes the isometry",
            "Leave it to --set norm=none to remove the norms.",
        )
    if not join.chain or added.source != "layer" or added.passed:
        what = "; ".join(added.passed) or join.reason or added.source
        return f"its branch is not one chain of layers up to the join ({what})", OTHER
    if join.shortcut not in ("identity", "projection") or len(join.shortcut_layers) > 1:
        return f"its shortcut is no identity and no single projection but {join.shortcut}", OTHER
    if any(passed != ("relu",) for passed in inside[1:]):
        return "between two layers of its branch stands something else than one ReLU", OTHER
    return _of_shape(join, branch, carried, structure)


def _follow(join: Join, sides: list[Layer]) -> bool:
    """Whether each layer of the branch reads as many channels as the one before it returns, and the sides meet."""
    sizes = [layer.geometry for layer in sides]
    known = [g for g in sizes if g is not None]
    branch, other = known[: len(join.branch)], known[len(join.branch) :]
    inside = all(b.in_channels == a.out_channels for a, b in pairwise(branch))
    ends = {(branch[0].in_channels, branch[-1].out_channels)}
    ends |= {(g.in_channels, g.out_channels) for g in other} or {(branch[0].in_channels,) * 2}
    return len(known) == len(sizes) and inside and len(ends) == 1


def _of_shape(join: Join, branch: list[Layer], carried: SignalPath, structure: Structure) -> tuple[str, str] | None:
    sides = [*branch, *(structure.layer(name) for name in join.shortcut_layers)]
    if not _follow(join, sides):
        return "the widths of its layers do not follow on each other", OTHER
    if not all(_centred(layer.geometry) for layer in sides):
        return "the centre taps of its layers do not meet the shortcut's positions", OTHER
    if join.shortcut == "projection":
        ways = {structure.layer(join.shortcut_layers[0]).way, branch[0].way}
        pooled = any("pool" in step or step == "padding" for way in ways if way is not None for step in way.passed)
        if len(ways) > 1 and pooled:
            return "its shortcut pools and its branch does not", OTHER
        return None
    extra = [step for step in carried.passed if step != "relu"]
    behind_pool = "relu" in carried.passed and extra and carried.passed.index("relu") < carried.passed.index(extra[0])
    if behind_pool or join.stride > 1:
        return "its identity shortcut does not carry pairs: a pool stands behind the ReLU, or the branch strides", OTHER
    widths = [g.out_channels for layer in branch if (g := layer.geometry) is not None]
    if min(widths) < widths[-1] and "relu" in carried.passed and not join.activation:
        return "its branch narrows, its fork is behind a ReLU, and no ReLU follows the join", OTHER
    return None


def _centred(g: Geometry | None) -> bool:
    """Whether the centre tap reads position 0 of the padded input's own first position."""
    if g is None:
        return False
    sizes = zip(g.kernel, g.padding, g.dilation, strict=True)
    return not g.patchify and all(left == dilation * (k // 2) for k, (left, _), dilation in sizes)
