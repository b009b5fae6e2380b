"""What schemes with random weights share: bell-shaped values from the integer hash, everything else typed.

The publications speak of convolutions and linear layers. [X], ours: queries, keys and values, and whatever no ReLU
follows, have variance 1/n instead of 2/n; recurrent and bilinear layers 1/n over what they sum; rows of embeddings and
tokens 1/width; in a layer with weight norm v is hashed and g is the length that n values of that deviation are expected
to have.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from zero_convert.formulas import Bell, Constant, Formula, Masked, Zeros
from zero_convert.initialization.scheme import AsConstructed, Decline
from zero_convert.records import Geometry, Layer, Option, Structure, Tensor

from .defaults import Rules, fill_by
from .placing import zeros

ATTENTION = ("query", "key", "value")

Weight = Callable[[Tensor, Geometry, str], Formula]  # of a convolution, a linear layer or a raw weight with this role


def fan_in(g: Geometry) -> int:
    """The values that one output sums."""
    return g.in_channels // g.groups * math.prod(g.kernel)


def fan_out(g: Geometry) -> int:
    """The outputs that one input goes into, strides left aside; in a layer that cuts patches each goes into one."""
    return g.out_channels // g.groups * (1 if g.patchify else math.prod(g.kernel))


def he(layer: Layer, fan: int, role: str) -> float:
    """The standard deviation sqrt(2/fan); sqrt(1/fan) where no ReLU follows: attentions and heads."""
    linear = role == "head" or any(map(layer.has, ATTENTION))
    return math.sqrt((1 if linear else 2) * max(1, layer.parts) / fan)


def fill_hashed(
    layer: Layer, options: Mapping[str, Option], weight: Weight, *, still: bool = False, factor: float = 1.0
) -> dict[str, Formula] | None:
    """The formula of each tensor by its local name; None for a layer that is not covered.

    Args:
        weight: the scheme's rule for weights.
        still: the layer starts at 0 as a whole, of the kinds that `weight` does not speak of.
        factor: of the deviation of these kinds.
    """
    seed, g = int(options["seed"]), layer.geometry
    trainable = [t for t in layer.tensors if not t.buffer]
    own = next((t for t in trainable if t.local == "weight"), None)

    def bell(t: Tensor, n: int) -> Bell:
        return Bell(t.shape, math.sqrt(1 / n) * factor, seed, t.name)

    def hashed(t: Tensor, n: int) -> Formula:
        return zeros(t) if still else bell(t, n)

    def of_layer(layer: Layer, g: Geometry) -> Formula | None:
        return None if own is None else weight(own, g, layer.role)

    values = fill_by(Rules(of_layer, Zeros, Zeros), layer)
    if values is None:
        return None
    raw, uses = {name: (g, role) for name, g, role in layer.weights}, dict(layer.uses)
    for t in trainable:
        if t.local in raw and t.trainable:
            values[t.local] = weight(t, *raw[t.local])
        elif layer.kind == "recurrent" and len(t.shape) == 2:
            values[t.local] = _recurrent(layer, t, bell(t, t.shape[1]), still)
        elif layer.kind == "attention" and len(t.shape) == 2:
            values[t.local] = hashed(t, t.shape[1])
        elif layer.kind == "bilinear" and len(t.shape) == 3:
            values[t.local] = hashed(t, math.prod(t.shape[1:]))
        elif layer.kind == "embedding" and not layer.table:
            values[t.local] = _items(t, Bell(t.shape, math.sqrt(1 / t.shape[-1]), seed, t.name), layer.padding_idx)
        elif t.shape and t.trainable and uses.get(t.local) in ("concatenated", "signal", "embedding"):
            values[t.local] = Bell(t.shape, math.sqrt(1 / t.shape[-1]), seed, t.name)
    if g is not None and layer.parametrization and layer.parametrization[0] == "weight_norm":
        values |= _weight_norm(layer, g, weight, seed)
    return values


def _items(table: Tensor, rows: Bell, padding_idx: int | None) -> Formula:
    if padding_idx is None:
        rule: Formula = rows
    else:
        first = padding_idx % table.shape[0]
        rule = Masked(rows, ((first, first + 1),))
    return rule if table.trainable else AsConstructed(table.shape, rule)


def _recurrent(layer: Layer, t: Tensor, rule: Bell, still: bool) -> Formula:
    """Hashed; `still`: the candidate of the new state does not read the input, and the state stays 0."""
    if not still or t.local.startswith(("weight_hh", "weight_hr")):
        return rule
    return Masked(rule, outputs(layer, "candidate"))


def _weight_norm(layer: Layer, g: Geometry, weight: Weight, seed: int) -> dict[str, Formula]:
    """g·v/‖v‖ with v hashed, and g its expected length, or 0 where the scheme has the weight 0."""
    meaning = {what: local for local, what in layer.parameters}
    length, direction = (next(t for t in layer.tensors if t.local == meaning[what]) for what in ("g", "v"))
    rule = weight(direction, g, layer.role)
    n = math.prod(direction.shape) // max(1, math.prod(length.shape))
    if isinstance(rule, Bell):
        return {meaning["g"]: Constant(length.shape, rule.std * math.sqrt(n)), meaning["v"]: rule}
    free = Bell(direction.shape, he(layer, fan_in(g), layer.role), seed, direction.name)
    return {meaning["g"]: zeros(length), meaning["v"]: free}


def outputs(layer: Layer, section: str) -> tuple[tuple[int, int], ...]:
    """Where the rows of a section are: (first, end) of each run."""
    runs, at = [], 0
    for what, count in layer.sections:
        if what == section:
            runs.append((at, at + count))
        at += count
    return tuple(runs)


def no_spectral_norm(structure: Structure) -> Decline | None:
    """Declines weights that are divided by their largest singular value: of hashed values no formula gives it."""
    for layer in structure.layers:
        if layer.divided:
            what = (
                "by its own length, so that it cannot be 0"
                if layer.made
                else ("by its largest singular value (spectral_norm), which hashed values do not state")
            )
            return Decline(
                f"its weight is divided {what}",
                layer.name,
                "Use a plain layer there, or --scheme zero-2022.",
            )
    return None
