"""Raw parameters: what the graph does with a tensor that belongs to no known layer.

The use is what the first operation that meets the parameter with something else does; reshapes, slices and functions of
one argument are followed. A parameter that is multiplied as a matrix, or is the kernel of a convolution, is a weight:
its geometry says which of its axes are outputs and inputs, wherever it is stored transposed or in a stack.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional as F

from zero_convert.graph.queries import is_size, tensors_in
from zero_convert.nn.functional import assigned

from ..records import Geometry
from .attentions import arguments, product
from .raw_geometry import (
    CONVOLUTIONS,
    MOVED,
    RESHAPES,
    convolved,
    folds,
    followed,
    kernel,
    labels_of,
    matrix,
    mixed_kernel,
    source_of,
    stored_shape,
)
from .scaled_weights import scaled_source, scaled_weight, weight_of

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
INVERSIONS: frozenset[Any] = frozenset(
    {
        *(torch.det, torch.logdet, torch.slogdet, torch.inverse, "det", "logdet", "slogdet", "inverse"),
        *(torch.linalg.det, torch.linalg.slogdet, torch.linalg.inv, torch.linalg.solve),
    }
)
NORMS: frozenset[Any] = frozenset({F.layer_norm, F.rms_norm, F.group_norm, F.batch_norm, F.instance_norm, F.prelu})
BY_ARGUMENT = {  # of functions, also of libraries' own
    "logit_scale": "temperature",
    "bias": "added",
    "attn_mask": "added",
    **dict.fromkeys(("relative_position_bias_table", "rel_pos_h", "rel_pos_w", "rel_pos_t"), "indexed"),
}
FOLLOWED = ("other", "identity", "activation", "drop", "pool")  # a table of positions may be resampled
STARTS = frozenset({"linear", "convolution", "norm", "activation", "recurrent"})  # kinds of nodes that read a signal
USES = {"add": "added", "multiply": "multiplied", "concatenate": "concatenated"}


@dataclass(frozen=True, slots=True)
class Use:
    """How a parameter is used, by which node, and its geometry where the use is "weight"."""

    what: str
    node: fx.Node | None = None
    geometry: Geometry | None = None


def raw_weight(node: fx.Node, owned: Callable[[fx.Node], bool]) -> fx.Node | None:
    """The parameter, one that is `owned`, that a product or convolution of a computed value takes as its weight."""
    operands: tuple[Any, ...] = product(node) or ()
    if operands and _mixed_into(node) is not None:
        return None
    if node.op == "call_function" and node.target in CONVOLUTIONS:
        operands = convolved(node)["input"], convolved(node)["weight"]
        if isinstance(operands[1], fx.Node) and (mixed := _mixture(operands[1])) is not None:
            return mixed
    sources = [source_of(n) if isinstance(n, fx.Node) else None for n in operands]
    if isinstance(weight := weight_of(node), fx.Node) and len(sources) == 2 and sources[1] is None:
        factors = dict.fromkeys(n for n in scaled_source(weight) if owned(n))
        sources[1] = next(iter(factors)) if len(factors) == 1 else None
    computed = [isinstance(n, fx.Node) and s is None for n, s in zip(operands, sources, strict=True)]
    return next((s for s, other in zip(sources, reversed(computed), strict=True) if s is not None and other), None)


def use_of(node: fx.Node, kinds: dict[fx.Node, str]) -> Use:
    """The use of the parameter that a `get_attr` node reads: the first, but where that says little, as a weight."""
    users = [n for n in node.users if not is_size(n) and not _is_model_for(n, node)]
    uses = [_use_by(user, node, kinds) for user in users]
    first = uses[0] if uses else Use("unused")
    vague = first.what in ("read", "multiplied")  # Glow: log|det W| first, then the convolution
    return next((use for use in uses if vague and use.what == "weight"), first)


def _use_by(user: fx.Node | None, node: fx.Node, kinds: dict[fx.Node, str]) -> Use:
    """The use by one of the nodes that read the parameter."""
    labels, source = labels_of(node), node.target
    while True:
        if user is None:
            return Use("unused")
        more = [n for n in user.all_input_nodes if n is not node and not is_size(n)]
        joins_parts = kinds[user] == "concatenate"  # of one table, or the biases of several layers in one
        others = [n for n in more if not _made_of(n, None if joins_parts else source)]
        if user.op == "call_module":
            return Use("signal", user)
        if user.target in INDEXING and user.all_input_nodes[0] is node and _looks_up(user):
            return Use("indexed", user)
        if not others and ((joins_parts and more) or (not more and kinds[user] in FOLLOWED and not folds(user))):
            labels = followed(user, node, labels)
            node = user
            user = next((n for n in node.users if not is_size(n) and not _is_model_for(n, node)), None)
            continue
        if not more and (factor := _shifted_factor(user, kinds)) is not None:
            return Use("added", factor)
        met = _met(user, node, labels, kinds[user])
        found = scaled_weight(user, node, labels, stored_shape(node)) if met.what == "multiplied" else None
        return Use("weight", *found) if found else met


def _shifted_factor(node: fx.Node, kinds: dict[fx.Node, str]) -> fx.Node | None:
    """The product of a signal with a parameter to which a number was added, `(1 + eps) * x`: 0 leaves the number."""
    numbers = [a for a in node.args if isinstance(a, (int, float)) and a != 0]
    products = [n for n in node.users if kinds[n] == "multiply"]
    shifts = kinds[node] == "add" and numbers and products and len(products) == len(node.users)
    return products[0] if shifts else None


def _is_model_for(user: fx.Node, node: fx.Node) -> bool:
    """Whether another value takes only the precision or shape of this one."""
    return (
        user.op == "call_method"
        and user.target in ("to", "type_as", "expand_as", "view_as")
        and user.args[0] is not node
    )


def _looks_up(node: fx.Node) -> bool:
    """Whether rows are taken by a tensor of indices, be it made of sizes alone; not by numbers or slices."""
    return any(n.meta.get("shape") for n in node.all_input_nodes[1:])


def _met(user: fx.Node, node: fx.Node, labels: Tensor | None, kind: str) -> Use:
    """The use by an operation that takes the parameter together with something else."""
    operands = product(user) or ()
    if node in operands and (mixed := _mixed_into(user)) is not None:
        convolution, argument = mixed
        geometry = mixed_kernel(convolution, stored_shape(node)) if argument == "weight" else None
        what = "weight" if geometry else "added" if argument == "bias" else "read"
        return Use(what, convolution, geometry)
    if node in operands and any(_one_hot(n) for n in operands if n is not node):
        return Use("indexed", user)
    if node in operands and user.target not in CONVOLUTIONS:
        geometry = matrix(user, operands, node, labels)
        return Use("weight", user, geometry) if geometry else Use("read", user)
    if user.target in CONVOLUTIONS and convolved(user)["weight"] is node:
        geometry = kernel(user, node, labels)
        return Use("weight", user, geometry) if geometry else Use("read", user)
    if user.target in CONVOLUTIONS and convolved(user)["input"] is node:
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


def _one_hot(node: Any) -> bool:
    """Whether a value is rows with a single one each: a product with them takes rows of the other operand."""
    while isinstance(node, fx.Node) and node.op in ("call_function", "call_method"):
        name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
        if name == "one_hot":
            return True
        sources = [n for n in node.all_input_nodes[:1] if name in MOVED]
        node = sources[0] if sources else None
    return False


def _mixture(node: fx.Node) -> fx.Node | None:
    """The table of kernels, one a row, that computed shares mix into the kernel `node` (Yang et al., CondConv)."""
    while node.target in RESHAPES:
        node = node.all_input_nodes[0]
    operands = product(node) or ()
    sources = [source_of(n) if isinstance(n, fx.Node) else None for n in operands]
    found = [s for s in sources if s is not None and len(s.meta.get("shape") or ()) == 2]
    return found[0] if len(operands) == 2 and len(found) == 1 and None in sources else None


def _mixed_into(node: fx.Node) -> tuple[fx.Node, str] | None:
    """The convolution that takes a product as its kernel or bias, and which of the two."""
    while True:
        users = [n for n in node.users if not is_size(n)]
        if len(users) != 1:
            return None
        if users[0].op == "call_function" and users[0].target in CONVOLUTIONS:
            given = convolved(users[0])
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


def is_inverted(node: fx.Node) -> bool:
    """Whether a determinant, an inverse or a solution of the parameter as a matrix is taken, which 0 has not."""
    return any(user.target in INVERSIONS for user in node.users)


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


def are_the_signal(rows: fx.Node, kinds: dict[fx.Node, str]) -> bool:
    """Whether looked-up rows reach a layer without being added to another signal: they are items, no positions."""
    node = rows
    while True:
        users = [n for n in node.users if not is_size(n)]
        if any(kinds[n] in STARTS for n in users):
            return True
        if len(users) != 1 or kinds[users[0]] == "multiply" or product(users[0]) is not None:
            return False
        others = [n for n in tensors_in(users[0]) if n is not node]
        if not all(_made_of(n, None) for n in others):
            return False
        node = users[0]
