"""The values of one residual block of mirrored pairs: its layers' and its shortcut's, from sizes and names alone.

Pure functions of the block, without a network: so that a shortcut that depends on the branch can be written by itself,
and the product of a block can be tested as matrices.
"""

from __future__ import annotations

from dataclasses import dataclass

from ...formulas import Matrix, PartialIdentity
from ...formulas.looks_linear import Difference, Mirrored, Orthogonal, Padded, Product, Rotated, Scatter, Selection


@dataclass(frozen=True, slots=True)
class Block:
    """A residual block as Risotto sees it; a layer is a map between channels, at its centre tap.

    Attributes:
        layers: names of the branch's weights, in order.
        widths: channels of the fork and behind each layer; all even.
        halves: whether each layer reads mirrored pairs themselves, with no ReLU before it.
        rectified: the fork is behind a ReLU: an identity shortcut carries r([a; -a]), not [a; -a].
        grouped: layers that let pairs pass as they are, because their groups cannot mix them.
        shortcut: name of the projection's weight; "" for an identity.
        shortcut_half: like `halves`, of the projection.
    """

    layers: tuple[str, ...]
    widths: tuple[int, ...]
    halves: tuple[bool, ...]
    rectified: bool
    grouped: tuple[str, ...] = ()
    shortcut: str = ""
    shortcut_half: bool = False


def block_values(block: Block, seed: int) -> dict[str, Matrix]:
    """Name of each weight of the block → its matrix."""
    if block.shortcut:
        return _projected(block, seed)
    pairs = block.widths[0] // 2
    if not block.rectified and len(set(block.widths)) == 1 and len(block.layers) > 1:
        return _rotated(block, seed)
    carried = min(block.widths) // 2
    some = carried < pairs
    where = Selection(carried, pairs, seed, f"{block.layers[-1]} pairs", signed=False, hashed=some)
    mixed = Orthogonal(carried, carried, seed, block.layers[-1])
    values: dict[str, Matrix] = {}
    if len(block.layers) > 1:
        first = where if carried == block.widths[1] // 2 else Padded(where, block.widths[1] // 2)
        values[block.layers[0]] = Mirrored(first, block.halves[0])
    values |= _passing(block)
    before = block.widths[-2] // 2
    rotated, same = Scatter(mixed, where, before), Scatter(PartialIdentity(carried, carried), where, before)
    if block.rectified:
        values[block.layers[-1]] = Mirrored(rotated, block.halves[-1], rest=same)
    else:
        values[block.layers[-1]] = Mirrored(Difference(rotated, same), block.halves[-1])
    return values


def _projected(block: Block, seed: int) -> dict[str, Matrix]:
    """Type C: L(U_1), …, L(U_k), and the shortcut L(M - U_k · … · U_1)."""
    halves = [width // 2 for width in block.widths]
    first = Orthogonal(halves[1], halves[0], seed, block.layers[0])
    steps = tuple(
        Selection(m, n, seed, name, signed=name not in block.grouped, hashed=name not in block.grouped)
        for m, n, name in zip(halves[2:], halves[1:-1], block.layers[1:], strict=True)
    )
    values: dict[str, Matrix] = {block.layers[0]: Mirrored(first, block.halves[0])}
    for name, step, half in zip(block.layers[1:], steps, block.halves[1:], strict=True):
        values[name] = Mirrored(step, half)
    whole = Orthogonal(halves[-1], halves[0], seed, block.shortcut)
    values[block.shortcut] = Mirrored(Difference(whole, Product(first, steps)), block.shortcut_half)
    return values


def _rotated(block: Block, seed: int) -> dict[str, Matrix]:
    """Type B before a ReLU: L(U), …, L(V - Uᵀ), so that M = V·U."""
    pairs = block.widths[0] // 2
    first = Orthogonal(pairs, pairs, seed, block.layers[0])
    second = Orthogonal(pairs, pairs, seed, block.layers[-1])
    return {
        block.layers[0]: Mirrored(first, block.halves[0]),
        **_passing(block),
        block.layers[-1]: Mirrored(Difference(second, Rotated(first)), block.halves[-1]),
    }


def _passing(block: Block) -> dict[str, Matrix]:
    """Layers between the first and the last of an identity block let the pairs pass."""
    inner = zip(block.layers[1:-1], block.widths[2:-1], block.widths[1:-2], block.halves[1:-1], strict=True)
    return {name: Mirrored(PartialIdentity(m // 2, n // 2), half) for name, m, n, half in inner}
