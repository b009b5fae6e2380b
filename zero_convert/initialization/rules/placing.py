"""Rules that schemes share: norms, biases, constants, and placing a matrix in a weight of any geometry."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping

from zero_convert.formulas import Bell, Constant, Formula, Kernel, Matrix, PartialIdentity, Patch
from zero_convert.formulas.parametrized import SpectralNormVector, WeightNormG, WeightNormV
from zero_convert.formulas.placement import Blanked, EinsumWeight, Repeated, Rows, Sections
from zero_convert.initialization.scheme import AsConstructed
from zero_convert.records import Geometry, Layer, Tensor

_NORM = {"weight": 1.0, "bias": 0.0, "running_mean": 0.0, "running_var": 1.0, "num_batches_tracked": 0.0}

MatrixRule = Callable[[int, int], Matrix]


def norm(layer: Layer) -> dict[str, Formula]:
    """Weight 1, bias 0, running mean 0, running variance 1, counter 0; other neutral values where the layer has them.

    A parameter that is no such thing has no rule; another buffer is kept.
    """
    values: dict[str, Formula] = {}
    known = _NORM | dict(layer.neutral)
    for tensor in layer.tensors:
        if tensor.local in known:
            values[tensor.local] = Constant(tensor.shape, known[tensor.local])
        elif tensor.buffer:
            values[tensor.local] = AsConstructed(tensor.shape)
    return values


def zeros(tensor: Tensor) -> Formula:
    return Constant(tensor.shape, 0.0)


def tokens(tensor: Tensor, matrix: MatrixRule = PartialIdentity) -> Formula:
    """Token i is row i of a matrix, of the partial identity: 1 at position i. Shape (…, n, d) or (d,)."""
    shape = tensor.shape
    return Rows(matrix(math.prod(shape[:-1]), shape[-1]), shape) if shape else zeros(tensor)


def buffers(layer: Layer) -> dict[str, Formula]:
    """Buffers of layers that are no norms are tables and constants: kept."""
    return {tensor.local: AsConstructed(tensor.shape) for tensor in layer.tensors if tensor.buffer}


def place(g: Geometry, matrix: MatrixRule) -> Formula:
    """The matrix rule on a layer's weight: per group at the centre tap k // 2; a patchify layer is one matrix on the
    flattened patch, m × (n · k · k)."""
    if g.patchify and g.groups == 1:
        return Patch(matrix(g.out_channels, g.in_channels * math.prod(g.kernel)), g.kernel)
    rule = matrix(g.out_channels // g.groups, g.in_channels // g.groups)
    return Kernel(rule, g.kernel, groups=g.groups, transposed=g.transposed)


def by_section(layer: Layer, columns: int, rules: Mapping[str, MatrixRule], rest: MatrixRule) -> Matrix:
    """The matrix whose rows of each section, in order, are that section's matrix."""
    names = list(dict.fromkeys(what for what, _ in layer.sections))
    rows = [sum(count for what, count in layer.sections if what == name) for name in names]
    matrices = tuple(rules.get(name, rest)(m, columns) for name, m in zip(names, rows, strict=True))
    return Sections(matrices, tuple((names.index(what), count) for what, count in layer.sections))


def recurrent(layer: Layer, matrix: MatrixRule, zero: MatrixRule, still: bool) -> dict[str, Formula]:
    """The candidate of the new state reads the input by the matrix rule and the old state by the partial identity;
    gates start at 0, so that they are all half open; biases are 0. `still`: the candidate of the last of several layers
    (both directions of it) does not read the input, and its state stays 0; below it a layer of 0 would never move,
    unless its own final state is used as well."""
    values: dict[str, Formula] = {}
    depths = {t.local: int(found[1]) for t in layer.tensors if (found := re.search(r"_l(\d+)", t.local))}
    last = max(depths.values(), default=0)
    for tensor in layer.tensors:
        if tensor.buffer:
            continue
        if tensor.local.startswith("weight_hr"):  # the projection of the state
            values[tensor.local] = PartialIdentity(*tensor.shape)
        elif len(tensor.shape) == 1:
            values[tensor.local] = zeros(tensor)
        else:
            reads_state = tensor.local.startswith("weight_hh")
            ends = still and (layer.states or depths.get(tensor.local, last) == last)  # a cell has no number
            rule = PartialIdentity if reads_state else zero if ends else matrix
            values[tensor.local] = by_section(layer, tensor.shape[1], {"candidate": rule}, zero)
    return values


def stacked(tensor: Tensor, g: Geometry, matrix: MatrixRule) -> Formula:
    """The rule on a raw weight: axes before those of the geometry are a stack of equal weights, maybe flat."""
    if g.axes:
        return EinsumWeight(matrix(g.out_channels, g.in_channels), tensor.shape, g.axes)
    weight = place(g, matrix)
    lead = tensor.shape[: max(0, len(tensor.shape) - len(weight.shape))]
    if tensor.shape[len(lead) :] != weight.shape:
        return Repeated(weight, tensor.shape[:-1], flat=True)
    return Repeated(weight, lead) if lead else weight


def parametrized(layer: Layer, weight: Formula, spare: Formula, *, binary: bool) -> dict[str, Formula] | None:
    """The tensors that a layer's weight is computed from, so that it is `weight`; None where it cannot be.

    A weight divided by its spectral norm cannot be 0: 0/0. Then it is `spare`, if that is another.
    """
    kind, axis = layer.parametrization or ("", 0)
    if kind == "weight_norm":
        made: dict[str, Formula] = {"g": WeightNormG(weight, axis, unit=binary), "v": WeightNormV(weight, axis)}
    else:
        if weight.is_zero and spare is weight:
            return None
        weight = spare if weight.is_zero else weight
        u, v = (SpectralNormVector(weight, side, axis) for side in ("u", "v"))
        made = {"weight": weight, "u": u, "right": v}
    return {local: made[meaning] for local, meaning in layer.parameters}


def with_lengths(layer: Layer, values: Mapping[str, Formula], *, binary: bool) -> Mapping[str, Formula]:
    """The formulas with those of weights that a forward computes from a direction: the direction has no slice of 0,
    and lengths are those of the rule's slices."""
    own = {t.local: t for t in layer.tensors}
    changed = dict(values)
    for local, _, axis, length in layer.made:
        if not isinstance(rule := values.get(local), Formula) or isinstance(rule, AsConstructed):
            continue
        if isinstance(rule, Bell):
            n = math.prod(own[local].shape) // math.prod(own[length].shape) if length else 1
            changed |= {length: Constant(own[length].shape, rule.std * math.sqrt(n))} if length else {}
            continue
        if axis >= 0 or rule.is_zero:
            changed[local] = WeightNormV(rule, max(axis, 0))
        if length:
            changed[length] = WeightNormG(rule, axis, unit=binary, like=own[length].shape)
    return changed


def weighted(layer: Layer, weight: Formula | None, spare: Formula | None, *, binary: bool) -> dict[str, Formula]:
    """The tensors of a convolution or linear layer: its weight, or what that is computed from, and biases of 0.

    Without `weight` none for those; `spare` (None: `weight`) and `binary` as for `parametrized`.
    """
    own, known = [t for t in layer.tensors if not t.buffer], dict(layer.neutral) | {"bias": 0.0}
    values: dict[str, Formula] = {t.local: Constant(t.shape, known[t.local]) for t in own if t.local in known}
    if weight is not None:
        values |= {t.local: weight for t in own if t.local == "weight"}
        values |= (parametrized(layer, weight, spare or weight, binary=binary) or {}) if layer.parametrization else {}
    return values


def codes(layer: Layer, table: Tensor, code: Callable[[int, int], Matrix]) -> Formula:
    """An embedding's rows: the code's; 0 for the blank row, and in a table that is added to another signal."""
    if layer.table:
        return zeros(table)
    rows = code(*table.shape)
    rule = rows if layer.padding_idx is None else Blanked(rows, layer.padding_idx)
    return rule if table.trainable else AsConstructed(table.shape, rule)
