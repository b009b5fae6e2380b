"""Which axes of a raw weight are outputs and inputs, wherever it is stored transposed, cut, split or in a stack.

Positions of the stored tensor are numbered and followed through reshapes; a matrix product or convolution then says
which of its axes is which. It decides no use and no role.
"""

from __future__ import annotations

import math
import operator
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional as F

from zero_convert.graph.queries import is_size

from ..records import Geometry
from .attentions import product

CONVOLUTIONS: frozenset[Any] = frozenset(
    {F.conv1d, F.conv2d, F.conv3d, F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d}
)
CONVOLUTION_ARGUMENTS = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
TRANSPOSED_ARGUMENTS = ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation")
RESHAPES = frozenset({"view", "reshape", "unsqueeze", "expand", "to", torch.reshape, torch.unsqueeze, operator.getitem})
MOVED = frozenset(
    {"permute", "transpose", "to", "float", "half", "type", "type_as", "reshape", "view", "unsqueeze", "squeeze"}
)


def source_of(node: fx.Node) -> fx.Node | None:
    """The parameter that a value is a view or a function of, alone."""
    while node.op != "get_attr":
        inputs = [n for n in node.all_input_nodes if not is_size(n)]
        if len(inputs) != 1 or node.op == "call_module" or folds(node):
            return None
        node = inputs[0]
    return node


def folds(node: fx.Node) -> bool:
    """A product or a sum of a value with itself, or a list of values: no function of one argument."""
    return product(node) is not None or node.op == "output"


def labels_of(node: fx.Node) -> Tensor | None:
    """Numbers that tell the positions of the parameter apart, to be followed through reshapes."""
    shape = node.meta.get("shape")
    if not shape or torch.Size(shape).numel() >= 1 << 26:
        return None
    return torch.arange(torch.Size(shape).numel(), dtype=torch.int64).reshape(shape)


def followed(user: fx.Node, node: fx.Node, labels: Tensor | None) -> Tensor | None:
    if labels is None:
        return None

    def value(n: fx.Node) -> Any:
        return labels if n is node else _size(n)

    try:
        args: Any = fx.map_arg(user.args, value)
        kwargs: Any = fx.map_arg(user.kwargs, value)
        if user.op == "call_method":
            made = getattr(args[0], str(user.target))(*args[1:], **kwargs)
        else:
            made = user.target(*args, **kwargs)  # type: ignore[operator]
    except Exception:  # whatever a function raises on integers, or for want of a size
        return labels if user.meta.get("shape") == node.meta.get("shape") else None
    same = isinstance(made, Tensor) and tuple(made.shape) == user.meta.get("shape")
    if same and not made.is_floating_point() and made.dtype is torch.int64:
        return made if bool(((made >= 0) & (made < labels.max() + 1)).all()) else labels
    return labels if user.meta.get("shape") == node.meta.get("shape") else None


def _size(node: fx.Node) -> Any:
    """A size that the graph reads from a tensor of known shape."""
    if node.meta.get("shape") is not None:
        return torch.empty(()).expand(node.meta["shape"])
    args, kwargs = fx.map_arg(node.args, _size), fx.map_arg(node.kwargs, _size)
    if node.op == "call_method":
        return getattr(args[0], str(node.target))(*args[1:], **kwargs)
    return node.target(*args, **kwargs)  # type: ignore[operator]


def matrix(
    user: fx.Node, operands: tuple[Any, ...], node: fx.Node, labels: Tensor | None, shape: tuple[int, ...] = ()
) -> Geometry | None:
    """The geometry of a matrix, or of each matrix of a stack, in a product; `shape` as stored, where known."""
    shape = shape or stored_shape(node)
    right = operands[1] is node
    if user.target is torch.einsum:
        axes = _einsum_axes(str(user.args[0]), right)
    elif user.target is F.linear:
        axes = (-2, -1)
    else:
        axes = (-1, -2) if right else (-2, -1)
    if labels is not None and user.target is torch.einsum and tuple(labels.shape) == shape:
        several = _einsum_kinds(str(user.args[0]), right, tuple(labels.shape))
        if axes is None and several is not None:
            return several
    if axes is None or labels is None or labels.ndim < 2:
        return None
    rank = len(shape)
    stored = [_stored_axis(labels, axis, shape) for axis in axes]
    if None in stored or {rank - 2, rank - 1} != set(stored):
        return None
    out_axis, in_axis = stored[0] or 0, stored[1] or 0
    return Geometry(shape[out_axis], shape[in_axis], transposed=out_axis == rank - 1)


def stored_shape(node: fx.Node) -> tuple[int, ...]:
    source = source_of(node)
    return tuple(source.meta["shape"]) if source is not None else ()


def _stored_axis(labels: Tensor, axis: int, shape: tuple[int, ...]) -> int | None:
    """The axis of the stored parameter that one walks along on an axis of what was made of it."""
    if labels.shape[axis] == 1:
        sizes = [i for i in range(len(shape)) if shape[i] == 1]
        return sizes[0] if len(sizes) == 1 else None
    step = int((labels.select(axis, 1) - labels.select(axis, 0)).reshape(-1)[0])
    strides = [torch.Size(shape[i + 1 :]).numel() for i in range(len(shape))]
    along = [i for i, stride in enumerate(strides) if stride == step]
    fits = [i for i in along if shape[i] == labels.shape[axis]]
    fits = fits or [i for i in along if shape[i] > labels.shape[axis]]  # a part of the rows or columns
    return fits[0] if len(fits) == 1 else None


def _einsum_axes(equation: str, right: bool) -> tuple[int, int] | None:
    """(output, input) axes of one operand of an einsum, from the end."""
    inputs, arrow, result = equation.replace(" ", "").partition("->")
    terms = inputs.split(",")
    if len(terms) != 2 or not arrow or "..." in terms[right]:
        return None
    own, other = terms[right], terms[not right]
    outs = [c for c in own[-2:] if c in result and c not in other]  # one before them counts the stack's slices
    ins = [c for c in own if c not in result and c in other]
    return (own.index(outs[0]) - len(own), own.index(ins[0]) - len(own)) if len(outs) == len(ins) == 1 else None


def _einsum_kinds(equation: str, right: bool, shape: tuple[int, ...]) -> Geometry | None:
    """The geometry of an operand with any number of outputs, inputs and slices of a stack; None for a sum over it."""
    inputs, arrow, result = equation.replace(" ", "").partition("->")
    terms = inputs.split(",")
    if len(terms) != 2 or not arrow or len(terms[right]) != len(shape) or len(set(terms[right])) != len(shape):
        return None
    own, other = terms[right], terms[not right]
    kinds = {(False, True): "out", (True, False): "in", (True, True): "stack"}
    axes = tuple(kinds.get((c in other, c in result), "") for c in own)
    if "" in axes or "in" not in axes:
        return None
    outs, ins = (math.prod(n for n, a in zip(shape, axes, strict=True) if a == what) for what in ("out", "in"))
    return Geometry(outs, ins, axes=axes)


def convolved(node: fx.Node) -> dict[str, Any]:
    transposed = "transpose" in node.target.__name__  # type: ignore[union-attr]
    names = TRANSPOSED_ARGUMENTS if transposed else CONVOLUTION_ARGUMENTS
    given = dict.fromkeys(names) | dict(zip(names, node.args, strict=False)) | dict(node.kwargs)
    return {**given, "transposed": transposed}


def kernel(user: fx.Node, node: fx.Node, labels: Tensor | None, shape: tuple[int, ...] = ()) -> Geometry | None:
    """The geometry of a convolution's kernel; None where it is made of more than the stored parameter, whose shape
    is `shape`, where known."""
    given, shape = convolved(user), shape or stored_shape(node)
    groups = given["groups"] if isinstance(given["groups"], int) else 1
    if labels is not None and len(shape) == 2 and groups == 1 and not given["transposed"]:
        as_stored = torch.equal(labels.flatten(), torch.arange(labels.numel()))  # W[:, :, None, None]
        return Geometry(*shape) if as_stored and labels.numel() == math.prod(labels.shape[:2]) else None
    if labels is None or tuple(labels.shape) != shape or len(shape) < 3:
        return None
    first, second = (shape[1] * groups, shape[0]) if given["transposed"] else (shape[0], shape[1] * groups)
    return windows(given, first, second, shape[2:], groups)


def windows(given: dict[str, Any], outs: int, ins: int, kernel: tuple[int, ...], groups: int) -> Geometry:
    """The geometry with the strides, paddings and dilations that a convolution is given."""

    def each(value: Any, default: int) -> tuple[int, ...]:
        items = tuple(value) if isinstance(value, list | tuple) else (default if value is None else value,)
        items = items * len(kernel) if len(items) == 1 else items
        return tuple(i if isinstance(i, int) else default for i in items)

    dilation, padding = each(given["dilation"], 1), given["padding"]
    if padding == "same":
        total = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        sides = tuple((t // 2, t - t // 2) for t in total)
    else:
        sides = tuple((p, p) for p in each(None if padding == "valid" else padding, 0))
    return Geometry(outs, ins, kernel, each(given["stride"], 1), sides, dilation, groups, given["transposed"])


def mixed_kernel(node: fx.Node, stored: tuple[int, ...]) -> Geometry | None:
    """The geometry of a convolution whose kernels, one for each sample, are flat rows of a stored table, mixed.

    The samples of a batch are groups of one convolution (or the batch has one sample), so channels and groups are
    those of one sample.
    """
    given = convolved(node)
    weight, signal = given["weight"].meta.get("shape"), given["input"].meta.get("shape")
    if given["transposed"] or not weight or not signal or len(stored) != 2:
        return None
    out, rest = divmod(stored[1], math.prod(weight[1:]))
    samples = weight[0] // max(1, out)
    groups = signal[1] // (weight[1] * max(1, samples))
    if rest or not out or weight[0] % out or groups < 1 or out % groups:
        return None
    return windows(given, out, weight[1] * groups, tuple(weight[2:]), groups)
