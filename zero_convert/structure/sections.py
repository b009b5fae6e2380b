"""What the rows of a layer's output are: queries, keys and values of an attention, or two factors of a product.

Found by asking the graph: the part between the layer and the place where its output is used is run backwards on numbers
without symmetry, and the rows that get a gradient are the rows that are used there. So it does not matter how the
output is cut, turned or rotated on the way, and in which order heads and parts are stored.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, fx, nn

from zero_convert.graph.queries import tensors_in

from .attentions import arguments, find_attentions
from .graph_facts import Facts

PASSED = frozenset({"norm", "drop", "activation"})  # modules on the way that mix no rows of two parts
LIMIT = 1 << 24  # values of a layer's output above which a section is not asked for

Sections = tuple[tuple[str, int], ...]


def find_sections(facts: Facts) -> dict[str, Sections]:
    """Weight layer → its sections, where all of its uses agree."""
    wanted: dict[fx.Node, dict[fx.Node, str]] = {}  # layer's node → where it is used → as what
    for attention in find_attentions(facts.graph, facts.root, facts.reach, facts.weights):
        for what, node in attention.items():
            for layer in _makers(facts, node):
                wanted.setdefault(layer, {})[node] = what if wanted.get(layer, {}).get(node, what) == what else ""
    for node in facts.graph.nodes:
        if facts.kinds[node] == "multiply" and len(operands := tensors_in(node)) == 2:
            first, second = (_makers(facts, n) for n in operands)
            if len(first) == 1 and first == second and first[0] not in wanted:
                active = [_activated(facts, first[0], n) for n in operands]
                gate = 1 if active == [False, True] else 0
                wanted[first[0]] = {operands[gate]: "gate", operands[1 - gate]: "factor"}
    found: dict[str, Sections] = {}
    for layer, uses in wanted.items():
        path = facts.paths[layer][-1]
        sections = _sections(facts, layer, uses)
        found[path] = sections if found.get(path, sections) == sections else ()
    for node in facts.weights:
        if node.op == "call_function" and any(name.startswith("qkv") for name in arguments(node)):
            g = facts.geometry_of(facts.paths[node][0])
            if g is not None and g.out_channels % 3 == 0:
                found[facts.paths[node][0]] = tuple((w, g.out_channels // 3) for w in ("query", "key", "value"))
    return {path: sections for path, sections in found.items() if sections}


def _makers(facts: Facts, node: fx.Node) -> list[fx.Node]:
    """The weight layers that make a value, none of them behind another and no activation or join on the way."""
    makers = facts.makers_of([node])
    if len(makers) > 3 or any(a is not b and facts.reach.reaches(a, b) for a in makers for b in makers):
        return []
    return [n for n in makers if facts.kinds[n] in ("convolution", "linear") or n.op == "call_function"]


def _activated(facts: Facts, layer: fx.Node, end: fx.Node) -> bool:
    return any(facts.kinds[n] == "activation" for n in facts.reach.between(layer, end))


def _sections(facts: Facts, layer: fx.Node, uses: Mapping[fx.Node, str]) -> Sections:
    g = facts.geometry_of(facts.paths[layer][-1])
    shape = layer.meta.get("shape")
    if g is None or g.groups > 1 or g.patchify or (g.transposed and g.kernel) or not shape or "" in uses.values():
        return ()
    axis = 1 if g.kernel else -1
    if len(shape) < 2 or shape[axis] != g.out_channels or torch.Size(shape).numel() > LIMIT:
        return ()
    labels = [""] * g.out_channels
    for end, what in uses.items():
        rows = _rows(facts, layer, end, axis)
        if rows is None:
            return ()
        for row in rows:
            if labels[row] not in ("", what):
                return ()  # the same rows are used twice
            labels[row] = what
    return tuple((what, len(list(run))) for what, run in groupby(labels)) if any(labels) else ()


def _rows(facts: Facts, layer: fx.Node, end: fx.Node, axis: int) -> list[int] | None:
    """The rows of the layer's output that the value at `end` depends on; None where that cannot be run.

    Blocks of one kind ask the same, and a rewritten graph asks what the graph before it did: answers are kept.
    """
    question = _question(facts, layer, end)
    if question is None:
        return _asked(facts, layer, end, axis)
    key = (axis, *question)
    if key not in facts.answers:
        facts.answers[key] = _asked(facts, layer, end, axis)
    rows: list[int] | None = facts.answers[key]
    return rows


def _question(facts: Facts, layer: fx.Node, end: fx.Node) -> tuple[Hashable, ...] | None:
    """All that `Part` would run for the value at `end`, spelled so that equal parts are equal; None for a part with a
    module in it that is run."""
    numbers: dict[fx.Node, int] = {layer: 0}
    steps: list[Hashable] = [tuple(layer.meta["shape"])]

    def spelled(value: Any) -> Hashable:
        if isinstance(value, fx.Node):
            if value not in numbers:
                add(value)
            return ("node", numbers[value])
        if isinstance(value, (tuple, list)):
            return (type(value).__name__, *map(spelled, value))
        if isinstance(value, Mapping):
            return ("mapping", *((key, spelled(item)) for key, item in value.items()))
        if isinstance(value, slice):
            return ("slice", spelled(value.start), spelled(value.stop), spelled(value.step))
        return (type(value), value)

    def add(node: fx.Node) -> None:
        shape = node.meta.get("shape")
        if shape is not None and not facts.reach.reaches(layer, node):
            step: Hashable = tuple(shape)
        elif node.op == "call_module":
            inputs = tensors_in(node)
            if facts.kinds[node] not in PASSED or not inputs or inputs[0].meta.get("shape") != shape:
                raise TypeError("a module's answer depends on the module")
            step = ("passed", spelled(inputs[0]))
        else:
            step = (node.op, node.target, spelled(node.args), spelled(node.kwargs))
        numbers[node] = len(steps)
        steps.append(step)

    try:
        add(end)
        hash(tuple(steps))
    except (TypeError, RecursionError):
        return None
    return tuple(steps)


def _asked(facts: Facts, layer: fx.Node, end: fx.Node, axis: int) -> list[int] | None:
    shape = layer.meta["shape"]
    with torch.enable_grad():
        made = _numbers(shape, 0.6180339).requires_grad_()
        try:
            value = Part(facts, layer, made * 1).value(end)
            (gradient,) = torch.autograd.grad((value * _numbers(value.shape, 0.7548777)).sum(), made)
        except Exception:  # whatever a model's own functions raise on made-up numbers
            return None
    used = gradient.movedim(axis, 0).flatten(1).ne(0).any(1)
    rows: list[int] = used.nonzero()[:, 0].tolist()
    return rows


def _numbers(shape: Sequence[int], step: float) -> Tensor:
    """Numbers between -1 and 1 without symmetry: multiples of an irrational step, less their whole parts."""
    steps = torch.arange(torch.Size(shape).numel(), dtype=torch.float32)
    return steps.mul_(step).frac_().mul_(2).sub_(1 - 1 / 64).reshape(tuple(shape))


class Part:
    """The part of a graph behind one node, on numbers: everything else is ones of the recorded shape."""

    def __init__(self, facts: Facts, layer: fx.Node, made: Tensor) -> None:
        self.facts, self.layer = facts, layer
        self.values: dict[fx.Node, Any] = {layer: made}

    def value(self, node: fx.Node) -> Any:
        if node not in self.values:
            self.values[node] = self._made(node)
        return self.values[node]

    def _made(self, node: fx.Node) -> Any:
        shape = node.meta.get("shape")
        behind = self.facts.reach.reaches(self.layer, node)
        if not behind and shape is not None:
            return torch.ones(()).expand(shape)
        if node.op == "call_module":
            inputs = tensors_in(node)
            module: nn.Module = self.facts.root.get_submodule(str(node.target))
            if self.facts.kinds[node] in PASSED and inputs and inputs[0].meta.get("shape") == shape:
                return self.value(inputs[0])
            return module(*fx.map_arg(node.args, self.value), **fx.map_arg(node.kwargs, self.value))
        args = fx.map_arg(node.args, self.value)
        kwargs = fx.map_arg(node.kwargs, self.value)
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        if node.op == "call_function":
            return node.target(*args, **kwargs)  # type: ignore[operator]
        raise TypeError(node.op)
