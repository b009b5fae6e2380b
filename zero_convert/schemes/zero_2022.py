"""ZerO, final version: the architecture stays, Algorithms 1 and 2 fill the weights.

Source: Zhao, Schäfer, Anandkumar, "ZerO Initialization: Initializing Neural Networks with only Zeros and Ones", TMLR
2022, arXiv 2110.12661v3, and the authors' notebook.

Mathematics. For a matrix m×n, k = ceil(log2 m):

    m ≤ n    I*, the partial identity: ones at [i, i], zeros elsewhere
    m > n    c · H_k[:m, :n],  H_k[i, j] = (-1)^popcount(i & j)

A convolution with odd kernels has this matrix at its centre tap, zeros at the others. c = 2^(-k/2) in all released
code (default); the printed paper has 2^(-(k-1)/2) (c=paper). The last convolution of each residual branch is 0,
biases are 0, norms 1 and 0, the last linear layer follows the matrix rule. Transformers: W_Q = I, W_K = W_V = 0, output
projection and both MLP matrices by the matrix rule. (V and O both 0 would never get a gradient.)

What is whose. [2], from the text: the rules above; [A], the authors' notebook: matrix and convolution, c. [X], ours:
groups and depthwise layers per group; even kernels at tap k//2; a layer that cuts patches is one matrix on the
flattened patch n·k·k; transposed convolutions by adjoint; `in_proj_weight` and fused query-key-value layers as three
square parts (three separate linear layers follow the matrix rule: the graph does not tell them apart); a branch with
convolutions and no attention ends in 0 also where its last layer is linear (ConvNeXt); embeddings are
Hadamard codes of unit norm; positions and tokens 0; layer scale and other constants as constructed.

Options [D]. columns=spanning: the first n Sylvester columns see only the low ceil(log2 n) bits of the row, so that
2048×784 has 1024 distinct rows, and the duplicates never part in training; columns whose indices span GF(2)^k make all
rows distinct. order=exact: a crop of a Sylvester matrix is no isometry (768×588: singular values 0.5 … 1); a Hadamard
matrix of order m itself (Paley ⊗ Sylvester, where one is known) has singular values exactly 1.

Exact: c is one IEEE square root and one division, rounded once to float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from ..formulas import Codes, Constant, Formula, Hadamard, Matrix, PartialIdentity, Stack
from ..hadamard import matrix_for
from ..records import Join, Layer, Option, Structure, Tensor
from ..scheme import Kept, OptionSpec, Scheme
from ._shared import buffers, norm, place, zeros


def matrix_rule(options: Mapping[str, Option]) -> Callable[[int, int], Matrix]:
    """Algorithm 1: the m×n matrix for given options."""
    columns, order = str(options["columns"]), str(options["order"])

    def matrix(m: int, n: int) -> Matrix:
        if m <= n:
            return PartialIdentity(m, n)
        size = matrix_for(m, n, order).order  # 2^k, or m itself
        scale = 1 / math.sqrt(size if options["c"] == "released" else size / 2)
        return Hadamard(m, n, scale, columns=columns, order=order)

    return matrix


def fill(layer: Layer, structure: Structure, options: Mapping[str, Option]) -> Mapping[str, Formula] | None:
    matrix = matrix_rule(options)
    values: dict[str, Formula] = buffers(layer)
    trainable = [tensor for tensor in layer.tensors if not tensor.buffer]
    g = layer.geometry
    if layer.kind == "norm":
        return norm(layer)
    if layer.kind == "activation":
        return {t.local: Kept(t.shape) for t in trainable}
    if layer.kind in ("convolution", "linear") and g is not None:
        for t in trainable:
            if t.local not in ("weight", "bias"):
                return None
            if t.local == "bias" or _ends_convolutional_branch(layer, structure):
                values[t.local] = zeros(t)
            elif layer.parts == 3:
                values[t.local] = _query_key_value(g.in_channels)
            else:
                values[t.local] = place(g, matrix)
        return values
    if layer.kind == "attention" and g is not None:
        for t in trainable:
            if t.local == "in_proj_weight":
                values[t.local] = _query_key_value(g.out_channels)
            else:
                values[t.local] = PartialIdentity(*t.shape) if t.local == "q_proj_weight" else zeros(t)
        return values
    if layer.kind == "embedding":
        return values | {t.local: Codes(*t.shape) for t in trainable}
    if layer.kind in ("parameter", "buffers"):
        for name, use in layer.uses:
            rule = _raw(next(t for t in layer.tensors if t.local == name), use)
            if rule is None:
                return None
            values[name] = rule
        return values
    return None


def _ends_convolutional_branch(layer: Layer, structure: Structure) -> bool:
    return layer.role == "last" and layer.join is not None and _convolutional(structure.joins[layer.join], structure)


def _convolutional(join: Join, structure: Structure) -> bool:
    """A branch with convolutions ends in 0; not one with attention, whose values V are 0 already."""
    branch = [layer for layer in structure.layers if layer.name in join.branch]
    attention = any(layer.kind == "attention" or layer.parts == 3 for layer in branch)
    return not attention and any(layer.kind == "convolution" for layer in branch)


def _query_key_value(n: int) -> Formula:
    return Stack((PartialIdentity(n, n), Constant((n, n), 0.0), Constant((n, n), 0.0)))


def _raw(tensor: Tensor, use: str) -> Formula | None:
    """A parameter that belongs to no layer, by how the graph uses it."""
    if tensor.buffer or not tensor.trainable or use in ("multiplied", "temperature"):
        return Kept(tensor.shape)
    return zeros(tensor) if use in ("added", "concatenated", "indexed") else None


SCHEME = Scheme(
    name="zero-2022",
    title="ZerO, final version: identity and Hadamard weights, architecture unchanged (arXiv 2110.12661v3)",
    doc=__doc__,
    options=(
        OptionSpec("c", ("released", "paper"), "released", "scale of a Hadamard weight: 2^(-k/2), or 2^(-(k-1)/2)"),
        OptionSpec("columns", ("first", "spanning"), "first", "which Hadamard columns: the first n, or n that span"),
        OptionSpec("order", ("sylvester", "exact"), "sylvester", "crop the next power of two, or order m itself"),
    ),
    rewrites=lambda options: (),
    fill=fill,
    zero_branch=_convolutional,
)
