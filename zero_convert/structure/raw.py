"""Raw parameters: what the graph does with a tensor that belongs to no known layer.

The use is what the first operation that meets the parameter with something else does; reshapes, slices and functions of
one argument are followed. A parameter that is multiplied as a matrix, or is the kernel of a convolution, is a weight:
its geometry says which of its axes are outputs and inputs, wherever it is stored transposed or in a stack.
"""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional as F

from ..graphs import is_size, tensors_in
from ..modules import assigned
from ..records import Geometry
from .attentions import arguments, product

INDEXING: frozenset[Any] = frozenset({operator.getitem, torch.index_select, torch.gather, torch.take, "index_select"})
EMBEDDINGS: frozenset[Any] = frozenset({F.embedding, F.embedding_bag, torch.embedding})
ADDITIONS: frozenset[Any] = frozenset({operator.sub, operator.isub, torch.sub, torch.rsub, "sub", "sub_", "rsub"})
FACTORS: frozenset[Any] = frozenset(
    {operator.truediv, operator.itruediv, torch.div, "div", "div_", operator.pow, torch.pow, "pow"}
)
SUMS_OF_PRODUCTS: frozenset[Any] = frozenset(
    {torch.addcmul, "addcmul", "addcmul_", torch.addcdiv, "addcdiv", "addcdiv_"}
)
PLACES: frozenset[Any] = frozenset({torch.where, "where", "masked_fill", "masked_scatter", assigned, operator.setitem})
CONVOLUTIONS: frozenset[Any] = frozenset(
    {F.conv1d, F.conv2d, F.conv3d, F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d}
)
CONVOLUTION_ARGUMENTS = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
TRANSPOSED_ARGUMENTS = ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation")
NORMS: frozenset[Any] = frozenset({F.layer_norm, F.rms_norm, F.group_norm, F.batch_norm, F.instance_norm, F.prelu})
BY_ARGUMENT = {  # of functions, also of libraries' own
    "logit_scale": "temperature",
    "bias": "added",
    "attn_mask": "added",
    **dict.fromkeys(("relative_position_bias_table", "rel_pos_h", "rel_pos_w", "rel_pos_t"), "indexed"),
}
FOLLOWED = ("other", "identity", "activation", "drop", "pool")  # a table of positions may be resampled
RESHAPES = frozenset({"view", "reshape", "unsqueeze", "expand", "to", torch.reshape, torch.unsqueeze, operator.getitem})
USES = {"add": "added", "multiply": "multiplied", "concatenate": "concatenated"}


@dataclass(frozen=True, slots=True)
class Use:
    """How a parameter is used, by which node, and its geometry where the use is "weight"."""

    what: str
    node: fx.Node | None = None
    geometry: Geometry | None = None


def raw_weight(node: fx.Node) -> fx.Node | None:
    """The parameter that a product or convolution of a computed value takes as its weight."""
    operands: tuple[Any, ...] = product(node) or ()
    if operands and _mixed_into(node) is not None:
        return None
    if node.op == "call_function" and node.target in CONVOLUTIONS:
        operands = _convolution(node)["input"], _convolution(node)["weight"]
        if isinstance(operands[1], fx.Node) and (mixed := _mixture(operands[1])) is not None:
            return mixed
    sources = [_source(n) if isinstance(n, fx.Node) else None for n in operands]
    computed = [isinstance(n, fx.Node) and s is None for n, s in zip(operands, sources, strict=True)]
    return next((s for s, other in zip(sources, reversed(computed), strict=True) if s is not None and other), None)


def use_of(node: fx.Node, kinds: dict[fx.Node, str]) -> Use:
    """The use of the parameter that a `get_attr` node reads."""
    labels, source = _labels(node), node.target
    while True:
        user = next((n for n in node.users if not is_size(n)), None)
        if user is None:
            return Use("unused")
        more = [n for n in user.all_input_nodes if n is not node and not is_size(n)]
        joins_parts = kinds[user] == "concatenate"  # of one table, or the biases of several layers in one
        others = [n for n in more if not _made_of(n, None if joins_parts else source)]
        if user.op == "call_module":
            return Use("signal", user)
        if user.target in INDEXING and user.all_input_nodes[0] is node and _looks_up(user):
            return Use("indexed", user)
        if not others and ((joins_parts and more) or (not more and kinds[user] in FOLLOWED and not _folds(user))):
            labels = _followed(user, node, labels)
            node = user
            continue
        return _met(user, node, labels, kinds[user])


def _looks_up(node: fx.Node) -> bool:
    """Whether rows are taken by a tensor of indices, be it made of sizes alone; not by numbers or slices."""
    return any(n.meta.get("shape") for n in node.all_input_nodes[1:])


def _met(user: fx.Node, node: fx.Node, labels: Tensor | None, kind: str) -> Use:
    """The use by an operation that takes the parameter together with something else."""
    operands = product(user) or ()
    if node in operands and (mixed := _mixed_into(user)) is not None:
        convolution, argument = mixed
        geometry = _mixed_kernel(convolution, _stored_shape(node)) if argument == "weight" else None
        what = "weight" if geometry else "added" if argument == "bias" else "read"
        return Use(what, convolution, geometry)
    if node in operands and user.target not in CONVOLUTIONS:
        geometry = _matrix(user, operands, node, labels)
        return Use("weight", user, geometry) if geometry else Use("read", user)
    if user.target in CONVOLUTIONS and _convolution(user)["weight"] is node:
        geometry = _kernel(user, node, labels)
        return Use("weight", user, geometry) if geometry else Use("read", user)
    if user.target in CONVOLUTIONS and _convolution(user)["input"] is node:
        return Use("signal", user)
    if user.target in EMBEDDINGS:
        return Use("embedding", user)
    if user.target in INDEXING and user.all_input_nodes[0] is node:
        return Use("indexed", user)
    if user.target in ADDITIONS:
        return Use("added", user)
    if user.target in FACTORS:
        return Use("multiplied", user)
    if user.target in SUMS_OF_PRODUCTS:
        return Use("added" if user.args[:1] == (node,) else "multiplied", user)
    if user.target in PLACES:
        return Use("concatenated", user)
    name = next((n for n, value in arguments(user).items() if value is node), "")
    if user.op == "call_function" and name in BY_ARGUMENT:
        return Use(BY_ARGUMENT[name], user)
    if user.target in NORMS and name == "weight":
        return Use("multiplied", user)
    if user.target is F.scaled_dot_product_attention:
        return Use("signal", user)
    if kind == "other" and user.op == "call_method" and user.args[0] is node and user.target in ("addmm", "baddbmm"):
        return Use("added", user)
    if user.target in (torch.addmm, torch.baddbmm) and user.args[0] is node:
        return Use("added", user)
    return Use(USES.get(kind, "read"), user)


def _source(node: fx.Node) -> fx.Node | None:
    """The parameter that a value is a view or a function of, alone."""
    while node.op != "get_attr":
        inputs = [n for n in node.all_input_nodes if not is_size(n)]
        if len(inputs) != 1 or node.op == "call_module" or _folds(node):
            return None
        node = inputs[0]
    return node


def _mixture(node: fx.Node) -> fx.Node | None:
    """The table of kernels, one a row, that computed shares mix into the kernel `node` (Yang et al., CondConv)."""
    while node.target in RESHAPES:
        node = node.all_input_nodes[0]
    operands = product(node) or ()
    sources = [_source(n) if isinstance(n, fx.Node) else None for n in operands]
    found = [s for s in sources if s is not None and len(s.meta.get("shape") or ()) == 2]
    return found[0] if len(operands) == 2 and len(found) == 1 and None in sources else None


def _mixed_into(node: fx.Node) -> tuple[fx.Node, str] | None:
    """The convolution that takes a product as its kernel or bias, and which of the two."""
    while True:
        users = [n for n in node.users if not is_size(n)]
        if len(users) != 1:
            return None
        if users[0].op == "call_function" and users[0].target in CONVOLUTIONS:
            given = _convolution(users[0])
            return next(((users[0], name) for name in ("weight", "bias") if given[name] is node), None)
        if users[0].target not in RESHAPES:
            return None
        node = users[0]


def stored(node: fx.Node) -> str:
    """The name of the parameter that a value is, in another shape; "" for a value that was computed."""
    while node.op != "get_attr":
        if node.target not in RESHAPES:
            return ""
        node = node.all_input_nodes[0]
    return str(node.target)


def _made_of(node: fx.Node, parameter: Any) -> bool:
    """Whether a value is made of nothing but this parameter, or with None, of any parameters."""
    todo, seen = [node], set()
    while todo:
        at = todo.pop()
        if at in seen or (at.op == "get_attr" and parameter in (None, at.target)):
            continue
        seen.add(at)
        inputs = [n for n in at.all_input_nodes if not is_size(n)]
        if at.op not in ("call_function", "call_method") or not inputs:
            return False
        todo += inputs
    return True


def _folds(node: fx.Node) -> bool:
    """A product or a sum of a value with itself, or a list of values: no function of one argument."""
    return product(node) is not None or node.op == "output"


# -- geometry ----------------------------------------------------------------------------------------------------------


def _labels(node: fx.Node) -> Tensor | None:
    """Numbers that tell the positions of the parameter apart, to be followed through reshapes."""
    shape = node.meta.get("shape")
    if not shape or torch.Size(shape).numel() >= 1 << 26:
        return None
    return torch.arange(torch.Size(shape).numel(), dtype=torch.int64).reshape(shape)


def _followed(user: fx.Node, node: fx.Node, labels: Tensor | None) -> Tensor | None:
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


def _matrix(user: fx.Node, operands: tuple[Any, ...], node: fx.Node, labels: Tensor | None) -> Geometry | None:
    """The geometry of a matrix, or of each matrix of a stack, in a product."""
    right = operands[1] is node
    if user.target is torch.einsum:
        axes = _einsum_axes(str(user.args[0]), right)
    elif user.target is F.linear:
        axes = (-2, -1)
    else:
        axes = (-1, -2) if right else (-2, -1)
    if labels is not None and user.target is torch.einsum and tuple(labels.shape) == _stored_shape(node):
        several = _einsum_kinds(str(user.args[0]), right, tuple(labels.shape))
        if axes is None and several is not None:
            return several
    if axes is None or labels is None or labels.ndim < 2:
        return None
    shape, rank = _stored_shape(node), len(_stored_shape(node))
    stored = [_stored_axis(labels, axis, shape) for axis in axes]
    if None in stored or {rank - 2, rank - 1} != set(stored):
        return None
    out_axis, in_axis = stored[0] or 0, stored[1] or 0
    return Geometry(shape[out_axis], shape[in_axis], transposed=out_axis == rank - 1)


def _stored_shape(node: fx.Node) -> tuple[int, ...]:
    source = _source(node)
    return tuple(source.meta["shape"]) if source is not None else ()


def _stored_axis(labels: Tensor, axis: int, shape: tuple[int, ...]) -> int | None:
    """The axis of the stored parameter that one walks along on an axis of what was made of it."""
    if labels.shape[axis] == 1:
        sizes = [i for i in range(len(shape)) if shape[i] == 1]
        return sizes[0] if len(sizes) == 1 else None
    step = int((labels.select(axis, 1) - labels.select(axis, 0)).reshape(-1)[0])
    strides = [torch.Size(shape[i + 1 :]).numel() for i in range(len(shape))]
    fits = [i for i, stride in enumerate(strides) if stride == step and shape[i] == labels.shape[axis]]
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


def _convolution(node: fx.Node) -> dict[str, Any]:
    transposed = "transpose" in node.target.__name__  # type: ignore[union-attr]
    names = TRANSPOSED_ARGUMENTS if transposed else CONVOLUTION_ARGUMENTS
    given = dict.fromkeys(names) | dict(zip(names, node.args, strict=False)) | dict(node.kwargs)
    return {**given, "transposed": transposed}


def _kernel(user: fx.Node, node: fx.Node, labels: Tensor | None) -> Geometry | None:
    """The geometry of a convolution's kernel; None where it is made of more than the stored parameter."""
    given, shape = _convolution(user), _stored_shape(node)
    groups = given["groups"] if isinstance(given["groups"], int) else 1
    if labels is None or tuple(labels.shape) != shape or len(shape) < 3:
        return None
    first, second = (shape[1] * groups, shape[0]) if given["transposed"] else (shape[0], shape[1] * groups)
    return _windows(given, first, second, shape[2:], groups)


def _windows(given: dict[str, Any], outs: int, ins: int, kernel: tuple[int, ...], groups: int) -> Geometry:
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


def _mixed_kernel(node: fx.Node, stored: tuple[int, ...]) -> Geometry | None:
    """The geometry of a convolution whose kernels, one for each sample, are flat rows of a stored table, mixed.

    The samples of a batch are groups of one convolution (or the batch has one sample), so channels and groups are
    those of one sample.
    """
    given = _convolution(node)
    weight, signal = given["weight"].meta.get("shape"), given["input"].meta.get("shape")
    if given["transposed"] or not weight or not signal or len(stored) != 2:
        return None
    out, rest = divmod(stored[1], math.prod(weight[1:]))
    samples = weight[0] // max(1, out)
    groups = signal[1] // (weight[1] * max(1, samples))
    if rest or not out or weight[0] % out or groups < 1 or out % groups:
        return None
    return _windows(given, out, weight[1] * groups, tuple(weight[2:]), groups)


def feeds_nothing_else(node: fx.Node, weights: Any) -> bool:
    """Whether the other operand of a sum comes from no weight layer and no input: the parameter is the signal."""
    todo, seen = list(tensors_in(node)), set()
    while todo:
        at = todo.pop()
        if at in seen:
            continue
        seen.add(at)
        if at in weights or at.op == "placeholder":
            return False
        todo += tensors_in(at)
    return True
