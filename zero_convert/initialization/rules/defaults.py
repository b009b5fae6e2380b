"""What a scheme does with every kind of layer, once it has said what it does with a weight.

For schemes that speak of weight matrices and residual branches only. The rest is this project's: norms start neutral,
biases and what is added at 0, factors and slopes as constructed, items and tokens as Hadamard codes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from zero_convert.formulas import BilinearDiagonal, Codes, Constant, Formula, Matrix, Stack, Zeros
from zero_convert.initialization.scheme import AsConstructed
from zero_convert.records import Geometry, Layer, Tensor

from .placing import MatrixRule, buffers, codes, norm, recurrent, stacked, tokens, weighted, zeros

Weight = Callable[[Layer, Geometry], Formula | None]


def item_codes(m: int, n: int) -> Matrix:
    """Codes without the constant one, of which a LayerNorm leaves nothing."""
    return Codes(m, n, first=1)


@dataclass(frozen=True, slots=True)
class Rules:
    """What one scheme says.

    Attributes:
        weight: the weight of a convolution or linear layer; None where the scheme has none.
        matrix: any other map from n inputs to m outputs: of recurrent layers, attentions and raw weights.
        last: the same for raw weights that end a residual branch.
        spare: instead of a weight of 0 where 0 cannot be (divided by its own norm); None where nothing can.
        items: rows of an embedding, and tokens; None where the scheme has none.
        binary: as for `placing.parametrized`.
    """

    weight: Weight
    matrix: MatrixRule
    last: MatrixRule
    spare: Weight = lambda layer, g: None
    items: MatrixRule | None = item_codes
    binary: bool = False


def fill_by(rules: Rules, layer: Layer) -> dict[str, Formula] | None:
    """The formula of each tensor of the layer by its local name, or None for a kind that the rules do not cover."""
    if layer.refusal:
        return None
    if layer.kind == "norm":
        return norm(layer)
    values, g = buffers(layer), layer.geometry
    if layer.kind in ("convolution", "linear") and g is not None:
        values |= weighted(layer, rules.weight(layer, g), rules.spare(layer, g), binary=rules.binary)
        beside = {t.local: _raw(rules, layer, t) for t in layer.tensors if t.local in dict(layer.uses)}
        return values | {name: rule for name, rule in beside.items() if rule is not None}
    for t in (tensor for tensor in layer.tensors if not tensor.buffer):
        if (rule := _rule(rules, layer, t)) is not None:
            values[t.local] = rule
    if layer.kind == "recurrent":
        values |= recurrent(layer, rules.matrix, Zeros, still=layer.role == "branch-last" and not layer.before_relu)
    return values


def _rule(rules: Rules, layer: Layer, t: Tensor) -> Formula | None:
    if layer.kind in ("bias", "scale"):
        return Constant(t.shape, 0.0 if layer.kind == "bias" else 1.0)
    if layer.kind == "activation":
        return AsConstructed(t.shape)
    if layer.kind == "bilinear":
        return BilinearDiagonal(t.shape) if t.local == "weight" else zeros(t)
    if layer.kind == "embedding":
        return codes(layer, t, rules.items) if rules.items is not None else None
    if layer.kind == "attention":
        if t.local == "in_proj_weight":
            d = t.shape[1]
            return Stack((rules.matrix(d, d),) * 3)
        return rules.matrix(*t.shape) if t.local.endswith("_proj_weight") else zeros(t)
    return _raw(rules, layer, t) if layer.kind in ("parameter", "buffers") else None


def _raw(rules: Rules, layer: Layer, t: Tensor) -> Formula | None:
    """A parameter that belongs to no known layer, by how the graph uses it."""
    use = dict(layer.uses).get(t.local, "")
    for name, g, role in layer.weights:
        if name == t.local and t.trainable:
            return stacked(t, g, rules.last if role == "branch-last" else rules.matrix)
    if not t.trainable or use in ("multiplied", "temperature"):
        return AsConstructed(t.shape, Constant(t.shape, 1.0) if t.trainable else None)
    if use == "unused":
        return AsConstructed(t.shape, zeros(t))
    if use == "embedding" and len(t.shape) == 2:
        return rules.items(*t.shape) if rules.items is not None else None
    if use in ("concatenated", "signal"):
        return tokens(t, rules.items) if rules.items is not None else None
    return zeros(t) if use in ("added", "indexed") else None
