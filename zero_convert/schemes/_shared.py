"""Rules that schemes share: norms, biases, constants, and placing a matrix in a weight of any geometry."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from ..formulas import Constant, Formula, Kernel, Matrix, PartialIdentity, Patch, Rows
from ..records import Geometry, Layer, Tensor
from ..scheme import Kept

_NORM = {"weight": 1.0, "bias": 0.0, "running_mean": 0.0, "running_var": 1.0, "num_batches_tracked": 0.0}


def norm(layer: Layer) -> Mapping[str, Formula] | None:
    """Weight 1, bias 0, running mean 0, running variance 1, counter 0; None for any other tensor."""
    if any(tensor.local not in _NORM for tensor in layer.tensors):
        return None
    return {tensor.local: Constant(tensor.shape, _NORM[tensor.local]) for tensor in layer.tensors}


def zeros(tensor: Tensor) -> Formula:
    return Constant(tensor.shape, 0.0)


def tokens(tensor: Tensor) -> Formula:
    """Token i is row i of the partial identity: 1 at position i. Shape (…, n, d) or (d,)."""
    shape = tensor.shape
    return Rows(PartialIdentity(math.prod(shape[:-1]), shape[-1]), shape) if shape else zeros(tensor)


def buffers(layer: Layer) -> dict[str, Formula]:
    """Buffers of layers that are no norms are tables and constants: kept."""
    return {tensor.local: Kept(tensor.shape) for tensor in layer.tensors if tensor.buffer}


def place(g: Geometry, matrix: Callable[[int, int], Matrix]) -> Formula:
    """The matrix rule on a layer's weight: per group at the centre tap k // 2; a patchify layer is one matrix on the
    flattened patch, m × (n · k · k)."""
    if g.patchify and g.groups == 1:
        return Patch(matrix(g.out_channels, g.in_channels * math.prod(g.kernel)), g.kernel)
    rule = matrix(g.out_channels // g.groups, g.in_channels // g.groups)
    return Kernel(rule, g.kernel, groups=g.groups, transposed=g.transposed)
