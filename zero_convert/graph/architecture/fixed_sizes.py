"""Which axes of a value have a size that the network fixes, whatever the input's: channels, heads, groups.

An axis is fixed where a layer makes it (channels), where a view is given a number for it (heads), or where a view cuts
or joins fixed axes. Sizes that come with the input, such as batch and height, are not. Two ways to write the same view
(`view(b, n, heads, -1)` and `view(b, n, heads, width)`) fix the same axes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from math import prod
from typing import Any

from torch import fx, nn

from zero_convert.graph.kinds import geometry, kind_of

from .vocabulary import PASSING, PERMUTING, name_of

Fixed = tuple[bool, ...]
_CONVOLUTION = re.compile(r"conv(?:_transpose)?([123])d")
_VIEWS = frozenset({"view", "reshape", "unflatten"})


class FixedSizes:
    """Asked for each node of a graph, in order.

    Args:
        literal: numbers that a view is given are the network's own. In a recording on real values they are not.
    """

    def __init__(self, root: nn.Module, *, literal: bool) -> None:
        self._root, self._literal = root, literal
        self._known: dict[fx.Node, Fixed] = {}

    def learn(self, node: fx.Node, order: tuple[int, ...] | None = None) -> None:
        """Takes in the next node; `order` is that of a permutation's axes."""
        shape = shape_of(node)
        if shape is not None:
            found = self._find(node, shape, order)
            self._known[node] = found if len(found) == len(shape) else (False,) * len(shape)

    def of(self, node: fx.Node) -> tuple[int | None, ...]:
        """The size of each axis, None where it is not fixed."""
        shape, fixed = shape_of(node) or (), self._known.get(node, ())
        return tuple(size if known else None for size, known in zip(shape, fixed, strict=False))

    def _find(self, node: fx.Node, shape: tuple[int, ...], order: tuple[int, ...] | None) -> Fixed:
        inputs = [n for n in node.all_input_nodes if n in self._known and n.op != "get_attr"]
        if node.op == "get_attr":
            return (True,) * len(shape)
        if not inputs:
            return ()
        first = self._known[inputs[0]]
        if node.op == "call_module":
            return self._module(str(node.target), inputs[0], shape)
        name = name_of(node.target)
        if order is not None:
            return tuple(first[axis] for axis in order)
        if name in PASSING and name not in ("expand", "expand_as", "broadcast_to"):
            return self._view(node, name, inputs[0], shape)
        if name in PERMUTING:
            return ()
        if name in ("linear", "embedding"):
            return (*first[: len(shape) - 1], True)
        if found := _CONVOLUTION.fullmatch(name):
            return tuple(axis == len(shape) - 1 - int(found[1]) for axis in range(len(shape)))
        if name == "matmul" and len(inputs) > 1:
            return (*first[:-1], self._known[inputs[-1]][-1]) if len(first) == len(shape) else ()
        return self._elementwise(inputs, shape)

    def _module(self, path: str, source: fx.Node, shape: tuple[int, ...]) -> Fixed:
        module, first = self._root.get_submodule(path), self._known[source]
        kind, g = kind_of(module), geometry(module)
        if kind == "linear":
            return (*first[:-1], True)
        if kind == "embedding":
            return (*first, True)
        if kind == "convolution" and g is not None:
            return tuple(axis == len(shape) - 1 - len(g.kernel) for axis in range(len(shape)))
        return self._elementwise([source], shape)

    def _elementwise(self, inputs: list[fx.Node], shape: tuple[int, ...]) -> Fixed:
        """Axes that keep their place and size, as in a sum, a norm, a pooling over other axes, a part or a whole."""
        same = [n for n in inputs if len(shape_of(n) or ()) == len(shape)]
        if not same:
            return ()
        sizes = [shape_of(n) or () for n in same]
        return tuple(
            any(self._known[n][axis] and (sizes[i][axis] == shape[axis] or i == 0) for i, n in enumerate(same))
            for axis in range(len(shape))
        )

    def _view(self, node: fx.Node, name: str, source: fx.Node, shape: tuple[int, ...]) -> Fixed:
        before, fixed = shape_of(source) or (), self._known[source]
        given = _numbers(node, name, len(before)) if self._literal else {}
        found = [given.get(axis) == size and size != -1 for axis, size in enumerate(shape)]
        for left, right in _groups(before, shape):
            for axis in right:
                found[axis] = found[axis] or all(fixed[a] for a in left)
        return tuple(found)


def _groups(before: tuple[int, ...], after: tuple[int, ...]) -> list[tuple[list[int], list[int]]]:
    """The smallest groups of neighbouring axes with as many values before and after a view."""
    groups: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while j < len(after):
        if groups and i < len(before) and before[i] == 1 != after[j]:  # it was joined to the one before it
            groups[-1][0].append(i)
            i += 1
            continue
        left, right = ([i] if i < len(before) else []), [j]
        while prod(before[a] for a in left) != prod(after[a] for a in right):
            one, other = prod(before[a] for a in left), prod(after[a] for a in right)
            side, end = (left, len(before)) if one < other else (right, len(after))
            if not side or side[-1] + 1 >= end:
                return groups
            side.append(side[-1] + 1)
        groups.append((left, right))
        i, j = i + len(left), right[-1] + 1
    if groups:
        groups[-1][0].extend(range(i, len(before)))
    return groups


def shape_of(node: fx.Node) -> tuple[int, ...] | None:
    """The shape of the node's value, where it is one tensor."""
    shape = node.meta.get("shape")
    return tuple(int(size) for size in shape) if isinstance(shape, tuple) else None


def rank_of(node: fx.Node) -> int | None:
    shape = shape_of(node)
    return None if shape is None else len(shape)


def _numbers(node: fx.Node, name: str, rank: int) -> Mapping[int, int]:
    """Axis of the result → the number that the view was given for it."""
    if name not in _VIEWS:
        return {}
    args: list[Any] = [*node.args[1:], *node.kwargs.values()]
    start = 0
    if name == "unflatten" and args and isinstance(args[0], int):
        start, args = args[0] % max(rank, 1), args[1:]
    flat = list(args[0]) if len(args) == 1 and isinstance(args[0], tuple | list) else args
    return {start + axis: size for axis, size in enumerate(flat) if isinstance(size, int)}
