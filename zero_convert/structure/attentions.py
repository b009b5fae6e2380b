"""Attentions in a graph: where queries, keys and values meet, whatever spells it.

An attention is a function that names its arguments query, key and value, or a product of two values, a softmax, and a
product with a third. The key is the operand that gives the axis over which the softmax runs.
"""

from __future__ import annotations

import functools
import inspect
import operator
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

from zero_convert.graph.queries import Reach, tensors_in

SOFTMAX: frozenset[Any] = frozenset({F.softmax, torch.softmax, torch._softmax, "softmax"})
GROUPED = tuple(
    f for owner in (torch, F) for name in ("_grouped_mm", "grouped_mm") if (f := getattr(owner, name, None))
)
PRODUCTS: frozenset[Any] = frozenset(
    {operator.matmul, torch.matmul, torch.bmm, torch.mm, *GROUPED, "matmul", "bmm", "mm"}
)
ADDED_PRODUCTS: frozenset[Any] = frozenset({torch.baddbmm, torch.addmm, "baddbmm", "addmm", "baddbmm_", "addmm_"})
NAMED = {"query": "query", "q": "query", "key": "key", "k": "key", "value": "value", "v": "value"}


@dataclass(frozen=True, slots=True)
class Attention:
    """The values that are compared and mixed; None where the graph does not show one."""

    query: fx.Node | None
    key: fx.Node | None
    value: fx.Node | None

    def items(self) -> tuple[tuple[str, fx.Node], ...]:
        found = (("query", self.query), ("key", self.key), ("value", self.value))
        return tuple((what, node) for what, node in found if node is not None)


def find_attentions(
    graph: fx.Graph, root: nn.Module, reach: Reach, weights: Collection[fx.Node]
) -> tuple[Attention, ...]:
    """Every attention whose queries, keys and values are computed in the graph, in order of execution."""
    found = []
    for node in graph.nodes:
        if node.op == "call_function" and (named := _named(node)):
            found.append(named)
        elif (dim := _softmax_axis(node, root)) is not None:
            made = _spelled_out(node, dim, reach, weights)
            if made is not None:
                found.append(made)
    return tuple(found)


def product(node: fx.Node) -> tuple[Any, Any] | None:
    """The two operands of a matrix product; an einsum of two counts."""
    if node.op not in ("call_function", "call_method"):
        return None
    if node.target in PRODUCTS:
        operands = (*node.args, *node.kwargs.values())[:2]
    elif node.target in ADDED_PRODUCTS:
        operands = (*node.args, *node.kwargs.values())[1:3]
    elif node.target in (torch.einsum, F.linear):
        operands = node.args[1:] if node.target is torch.einsum else node.args[:2]
        if len(operands) == 1 and isinstance(operands[0], list | tuple):
            operands = tuple(operands[0])
    else:
        return None
    return (operands[0], operands[1]) if len(operands) == 2 else None


def arguments(node: fx.Node) -> dict[str, Any]:
    """The arguments of a called function by name, as far as its signature tells."""
    if node.target is F.scaled_dot_product_attention:
        names: tuple[str, ...] = ("query", "key", "value")
    elif node.target is F.linear:
        names = ("input", "weight", "bias")
    else:
        names = _parameters(node.target)
    return dict(zip(names, node.args, strict=False)) | dict(node.kwargs)


@functools.cache
def _parameters(target: Any) -> tuple[str, ...]:
    try:
        return tuple(inspect.signature(target).parameters)
    except (TypeError, ValueError):
        return ()


def _named(node: fx.Node) -> Attention | None:
    given = {NAMED[k]: v for k, v in arguments(node).items() if k in NAMED and isinstance(v, fx.Node)}
    return Attention(given["query"], given["key"], given["value"]) if len(given) == 3 else None


def _softmax_axis(node: fx.Node, root: nn.Module) -> int | None:
    """The axis that a softmax runs over, counted from the end; None for any other node."""
    if node.op == "call_module":
        module = root.get_submodule(str(node.target))
        dim: Any = module.dim if isinstance(module, nn.Softmax) else None
        if not isinstance(module, nn.Softmax):
            return None
    elif node.target in SOFTMAX:
        dim = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else None)
    else:
        return None
    rank = len(node.meta.get("shape") or ())
    if not isinstance(dim, int) or not rank:
        return -1
    return dim if dim < 0 else dim - rank


def _spelled_out(softmax: fx.Node, dim: int, reach: Reach, weights: Collection[fx.Node]) -> Attention | None:
    scores = _scores(softmax, weights)
    if scores is None:
        return None
    left, right = product(scores) or (None, None)
    if not isinstance(left, fx.Node) or not isinstance(right, fx.Node):
        return None
    swapped = dim == -2
    if scores.target is torch.einsum:
        swapped = _einsum_swapped(str(scores.args[0]), dim)
    return Attention(*((right, left) if swapped else (left, right)), _value(softmax, reach, weights))


def _einsum_swapped(equation: str, dim: int) -> bool:
    """Whether the axis of the softmax comes from the first operand."""
    operands, _, result = equation.replace(" ", "").partition("->")
    first, _, second = operands.partition(",")
    letter = result[dim] if -len(result) <= dim < 0 else ""
    return bool(letter) and letter in first and letter not in second


def _scores(softmax: fx.Node, weights: Collection[fx.Node]) -> fx.Node | None:
    """The nearest product of two computed values before a softmax, through scales, masks and added biases."""
    todo, seen = [n for n in softmax.all_input_nodes if n.op != "get_attr"], set()
    while todo:
        node = todo.pop(0)
        if node in seen or node in weights:
            continue
        seen.add(node)
        operands = product(node)
        if operands and all(isinstance(n, fx.Node) and _from_weights(n, weights) for n in operands):
            return node
        todo += tensors_in(node)
    return None


def _from_weights(node: fx.Node, weights: Collection[fx.Node]) -> bool:
    todo, seen = [node], set()
    while todo:
        at = todo.pop()
        if at in weights:
            return True
        if at not in seen:
            seen.add(at)
            todo += tensors_in(at)
    return False


def _value(softmax: fx.Node, reach: Reach, weights: Collection[fx.Node]) -> fx.Node | None:
    """The other operand of the first product that the softmax goes into."""
    todo, seen = [softmax], set()
    while todo:
        node = todo.pop(0)
        for user in node.users:
            if user in seen or user in weights:
                continue
            seen.add(user)
            operands = product(user)
            if operands:
                other = [n for n in operands if isinstance(n, fx.Node) and not reach.reaches(softmax, n)]
                if len(other) == 1:
                    return other[0]
            elif user.op != "output":
                todo.append(user)
    return None
