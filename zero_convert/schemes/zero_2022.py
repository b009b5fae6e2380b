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

Paper against code. [2], from the text: the rules above; [A], the authors' notebook: matrix and convolution, c.
[X], ours: groups and depthwise layers per group; even kernels at tap k//2; a layer that cuts patches is one matrix on
the flattened patch n·k·k; transposed convolutions by adjoint; `in_proj_weight` and fused query-key-value layers as
three square parts; separate layers, layers with fewer keys than queries and rows interleaved by head are told apart by
the graph (linear attentions without softmax follow the matrix rule); a branch with convolutions and no attention ends
in 0 also where its last layer is linear (ConvNeXt); embeddings and tokens are Hadamard codes of unit norm, the padding
row 0; positions and tables that are added to a signal 0; layer scale and other constants as constructed. The codes
begin with row 1: of the constant row 0, as of 0, a LayerNorm leaves nothing and multiplies the gradient by up to
1/sqrt(eps), so that the first step of a ViT with a zero token, or of a GPT that reads item 0, overflows at 12 blocks
(measured; with these codes its norm is about 10 at any depth). The last convolution of a branch follows the matrix rule
instead of 0 where a ReLU stands between it and the join (its derivative at 0 is 0: the layer would stay dead), where
its weight is divided by its spectral norm (0/0), and where a factor constructed as 0 makes the branch 0 (ReZero). Of
two factors that are multiplied at the end of a branch only one is 0. An attention outside of branches starts with V =
I, or nothing would be left of the signal; so does one whose output a ReLU takes. Recurrent layers: the candidate of the
new state reads the input by the matrix rule and the old state by I*; gates and biases are 0, half open. Bilinear layers
multiply coordinate k of both inputs. Raw weights (F.linear, einsum, stacks of experts) follow the matrix rule in each
slice; raw inputs of a layer are tokens. Norms of libraries start at their neutral value (0 where they multiply by 1 +
weight). Standardized convolutions standardize this start: a kernel at one tap is nearly itself, 0 stays 0. weight_norm:
v is the weight and g its length, 0 with any direction where it is 0; spectral_norm: u and v are its singular vectors.
Unused parameters are kept if constant, else 0.

Applies to: networks of convolutions, linear and recurrent layers, norms and attention.

Needs: no change of the architecture.

Options [D]. columns=spanning: the first n Sylvester columns see only the low ceil(log2 n) bits of the row, so that
2048×784 has 1024 distinct rows, and the duplicates never part in training; columns whose indices span GF(2)^k make all
rows distinct. order=exact: a crop of a Sylvester matrix is no isometry (768×588: singular values 0.5 … 1); a Hadamard
matrix of order m itself (Paley ⊗ Sylvester, where one is known) has singular values exactly 1.

Exact: c is one IEEE square root and one division, rounded once to float32.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from zero_convert.formulas import Constant, Formula, Hadamard, Matrix, PartialIdentity, Zeros
from zero_convert.formulas.hadamard import matrix_for
from zero_convert.formulas.placement import Stack
from zero_convert.initialization.rules.defaults import Rules, fill_by
from zero_convert.initialization.rules.placing import MatrixRule, by_section, place, recurrent, zeros
from zero_convert.initialization.scheme import OptionSpec, Scheme

from ..records import Geometry, Join, Layer, Option, Structure, Tensor


def matrix_rule(options: Mapping[str, Option]) -> MatrixRule:
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
    if layer.kind in ("bias", "scale"):  # rewrites make them
        return None
    matrix, zero = matrix_rule(options), _ends_convolutional_branch(layer, structure)

    def weight(layer: Layer, g: Geometry) -> Formula:
        return _weight(layer, g, zero, matrix)

    values = fill_by(Rules(weight, matrix, matrix, lambda layer, g: place(g, matrix)), layer)
    if values is None:
        return None
    if layer.kind == "recurrent":
        values |= recurrent(layer, matrix, Zeros, still=zero)
    if layer.kind == "attention":
        values |= {t.local: _attention(layer, t, matrix) for t in layer.tensors if not t.buffer}
    last = [name for name, _, role in layer.weights if zero and role == "branch-last"]
    return values | {t.local: zeros(t) for t in layer.tensors if t.local in last and t.trainable}


def _attention(layer: Layer, t: Tensor, matrix: MatrixRule) -> Formula:
    mixed = _stands_alone(layer)
    if t.local == "in_proj_weight":
        same, zero = PartialIdentity(t.shape[1], t.shape[1]), Constant((t.shape[1], t.shape[1]), 0.0)
        return Stack((same, zero, same if mixed else zero))
    if t.local == "q_proj_weight" or (mixed and t.local == "v_proj_weight"):
        return matrix(*t.shape) if mixed else PartialIdentity(*t.shape)
    return zeros(t)


def _weight(layer: Layer, g: Geometry, zero: bool, matrix: MatrixRule) -> Formula:
    if zero and layer.has("gate"):  # of two factors that are multiplied one is 0
        return place(g, lambda m, n: by_section(layer, n, {"factor": Zeros}, matrix))
    if zero:
        return Constant(place(g, matrix).shape, 0.0)
    if any(layer.has(part) for part in ("query", "key", "value")):
        values: MatrixRule = PartialIdentity if layer.before_relu or _stands_alone(layer) else Zeros
        rules: dict[str, MatrixRule] = {"query": PartialIdentity, "key": Zeros, "value": values}
        if len(layer.sections) == 1 and rules[layer.sections[0][0]] is Zeros:
            return Constant(place(g, matrix).shape, 0.0)
        if len(layer.sections) == 1:
            return place(g, PartialIdentity)
        return place(g, lambda m, n: by_section(layer, n, rules, matrix))
    return place(g, matrix)


def _stands_alone(layer: Layer) -> bool:
    """An attention outside of branches: with V = 0 nothing would be left of the signal."""
    return layer.join is None and layer.role not in ("branch", "branch-last")


def _ends_convolutional_branch(layer: Layer, structure: Structure) -> bool:
    return (
        layer.role == "branch-last"
        and layer.join is not None
        and not _needs_values(layer)
        and not layer.zeroed_by_scale
        and _has_convolutions(structure.joins[layer.join], structure)
    )


def _convolutional(join: Join, structure: Structure) -> bool:
    """Whether a branch adds exactly 0: one with convolutions, unless its last layer would be dead at 0, or shares its
    weight with a layer that is not 0."""
    ends = structure.ends(join)
    sharers = [structure.layer(name) for layer in ends for name in layer.shared]
    shared = not all(_ends_convolutional_branch(layer, structure) for layer in sharers)
    return _has_convolutions(join, structure) and not shared and not any(map(_needs_values, ends))


def _has_convolutions(join: Join, structure: Structure) -> bool:
    """A branch with convolutions ends in 0; not one with attention, whose values V are 0 already."""
    branch = [layer for layer in structure.layers if layer.name in join.branch]
    attention = any(layer.kind == "attention" or layer.fused_qkv or layer.has("value") for layer in branch)
    return not attention and any(
        layer.kind == "convolution" or any(g.kernel for _, g, _ in layer.weights) for layer in branch
    )


def _needs_values(layer: Layer) -> bool:
    """A ReLU with derivative 0 at 0 follows, or the weight is divided by its norm."""
    return layer.before_relu or layer.divided


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
