"""Weights that a forward computes from parameters before a product or convolution takes them.

    a length and a direction   g·v/‖v‖ (weight norm by hand), slice by slice along an axis, or the whole
    normalized                 v/‖v‖, (v − mean)/deviation; 0 is 0/0 or nearly that
    a sum                      v + B·A, v + u: what is added is 0
    a product                  B·A of two parameters: the one that makes the output ends the layer

Found by asking the graph: the part between the parameters and the layer runs on made-up numbers, so it does not matter
how it is spelled. What is none of these, nor leaves 0 and the signs of a weight alone, is refused by name. It decides
no role.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from zero_convert.graph.queries import VIEWS, is_size

from ..records import Geometry
from .attentions import product
from .raw_geometry import CONVOLUTIONS, convolved, followed, kernel, matrix
from .scaled_weights import PASSED, SCALINGS, scaled_source

LIMIT = 64  # nodes between the parameters and the layer
VALUES = 1 << 24  # of a weight above which it is not tried
TINY = 1e-8
STEEP = 3e4  # a slope at 0 with which no training step stays small; the epsilon of a batch norm has 1e3
WAY_OUT = "make it a plain weight (nn.Linear, nn.Conv2d, torch.nn.utils.parametrizations.weight_norm)"
PICKS = {operator.getitem, torch.select, torch.unbind, torch.narrow, torch.chunk, torch.split}
PICKS |= {"select", "unbind", "narrow", "chunk", "split"}  # type: ignore[arg-type]
Run = Callable[[Mapping[str, Tensor]], Tensor]


@dataclass(frozen=True, slots=True)
class Made:
    """How the weight of one node is computed.

    Attributes:
        weight: name of the parameter that a rule for the layer's weight is for.
        uses: name of each parameter on the way → its use, and its geometry where it is a weight. "length" is the g of
            a weight norm, "inner" a weight that is the layer's only together with another.
        kind: "weight_norm" or "normalized" where `weight` has the direction only, else "".
        axis: along which the slices are that have a length each; -1 where the whole has one.
        length: name of the g, or "".
        refusal: why no rule fits, and the way out.
    """

    weight: str
    uses: Mapping[str, tuple[str, Geometry | None]] = field(default_factory=dict)
    kind: str = ""
    axis: int = 0
    length: str = ""
    refusal: str = ""


def made_weight(
    root: nn.Module, user: fx.Node, owned: Callable[[fx.Node], bool], answers: dict[Hashable, Any]
) -> Made | None:
    """How the weight of a product or convolution is made of parameters; None where it is one as it stands, or scaled.

    Args:
        owned: whether a node reads a parameter that is a scheme's to fill.
        answers: what was asked before.
    """
    for made in _operands(user):
        nodes = _part(made)
        names = list(dict.fromkeys(str(n.target) for n in nodes if n.op == "get_attr" and owned(n)))
        plain = all(n.op == "get_attr" or _passes(n) or _picks(n) or n.target in SCALINGS or is_size(n) for n in nodes)
        shape = made.meta.get("shape")
        if not names or not shape or (plain and len(names) == 1):
            continue
        if plain and len({str(n.target) for n in scaled_source(made) if owned(n)}) == 1:
            continue
        if math.prod(shape) > VALUES:
            return None
        steps = tuple((str(n.target), str(n.args), str(n.kwargs)) for n in nodes)
        key = ("made", *names, str(user.target), str(user.args), steps)
        if key not in answers:
            answers[key] = _Question(root, user, made, nodes, names).answer()
        known: Made = answers[key]
        return known
    return None


def _operands(user: fx.Node) -> Iterator[fx.Node]:
    """What may be the weight: a computed value beside another one that is made of the network's input."""
    if user.op not in ("call_function", "call_method"):
        return
    if user.target in CONVOLUTIONS:
        candidates: tuple[Any, ...] = (convolved(user)["weight"],)
        others: tuple[Any, ...] = (convolved(user)["input"],)
    else:
        operands = product(user) or ()
        candidates = operands[1:] if user.target is F.linear else operands[::-1]
        others = operands[:1] if user.target is F.linear else operands
    for made in candidates:
        beside = [n for n in others if n is not made and isinstance(n, fx.Node)]
        if isinstance(made, fx.Node) and made.op != "get_attr" and _part(made) and any(not _part(n) for n in beside):
            yield made


def _part(node: fx.Node) -> tuple[fx.Node, ...]:
    """The nodes that a value is made of, where that is nothing but tensors of the modules; else none."""
    found: dict[fx.Node, None] = {}
    todo = [node]
    while todo:
        at = todo.pop()
        if at in found:
            continue
        found[at] = None
        if at.op not in ("get_attr", "call_function", "call_method") or len(found) > LIMIT:
            return ()
        todo += at.all_input_nodes
    return tuple(found) if any(n.op == "get_attr" for n in found) else ()


def _passes(node: fx.Node) -> bool:
    """Whether the node's value is a view of another one: a reshape, a transpose, `x.T`, `x.data`."""
    if node.op not in ("call_function", "call_method"):
        return False
    return node.target in PASSED | {"view_as", "reshape_as", "detach"} or (
        node.target is getattr and node.args[1] in VIEWS
    )


def _picks(node: fx.Node) -> bool:
    """Whether the node's value is a part of another one at places that are known: a member of a stack, some rows."""
    return (
        node.op in ("call_function", "call_method")
        and node.target in PICKS
        and isinstance(node.args[0], fx.Node)
        and len(node.all_input_nodes) == 1
    )


def _numbers(shape: tuple[int, ...], step: float) -> Tensor:
    """Numbers without symmetry between -0.7 and 1.3, none of them 0."""
    steps = torch.arange(1, math.prod(shape) + 1, dtype=torch.float64)
    return steps.mul_(step).frac_().mul_(2).sub_(0.7).float().reshape(shape)


def _close(one: Tensor, other: Tensor) -> bool:
    size = float(other.abs().max()) if other.numel() else 0.0
    return one.shape == other.shape and torch.allclose(one, other, rtol=5e-3, atol=1e-4 * size)


@dataclass
class _Question:
    """The part of a graph that makes one weight, and what it answers."""

    root: nn.Module
    user: fx.Node
    made: fx.Node
    nodes: tuple[fx.Node, ...]
    names: list[str]

    def answer(self) -> Made:
        with torch.no_grad():
            try:
                return self._answer()
            except Exception as error:  # whatever a model's own functions raise on made-up numbers
                return self._refused(self.names[0], f"it does not run on made-up numbers ({type(error).__name__})")

    def _refused(self, name: str, why: str) -> Made:
        steps = [n for n in reversed(self.nodes) if n.op != "get_attr" and not _passes(n) and not is_size(n)]
        spelled = dict.fromkeys(n.target if isinstance(n.target, str) else n.target.__name__ for n in steps)
        how = ", ".join(list(spelled)[:4])
        refusal = f"{self.names[0].rpartition('.')[2]} becomes a weight by {how}, and {why}; {WAY_OUT}"
        return Made(name, refusal=refusal)

    def _shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.root.get_parameter(name).shape)

    def _run(self, end: fx.Node, values: Mapping[str, Tensor]) -> Tensor:
        known: dict[fx.Node, Any] = {}

        def value(node: fx.Node) -> Any:
            if node not in known:
                known[node] = made(node)
            return known[node]

        def made(node: fx.Node) -> Any:
            if node.op == "get_attr":
                own = values.get(str(node.target))
                return own.clone() if own is not None else self._held(str(node.target))
            args, kwargs = fx.map_arg(node.args, value), fx.map_arg(node.kwargs, value)
            if node.op == "call_method":
                return getattr(args[0], str(node.target))(*args[1:], **kwargs)
            return node.target(*args, **kwargs)  # type: ignore[operator]

        answer: Tensor = value(end)
        return answer.float()

    def _held(self, target: str) -> Any:
        path, _, name = target.rpartition(".")
        held = getattr(self.root.get_submodule(path), name)
        if not isinstance(held, Tensor) or not held.is_floating_point():
            return held.clone() if isinstance(held, Tensor) else held
        held = held.detach().float()
        return torch.where(torch.isnan(held), torch.ones_like(held), held)

    def _answer(self) -> Made:
        shape = tuple(self.made.meta["shape"])
        pair = self._pair()
        full = [n for n in self.names if n not in pair and math.prod(self._shape(n)) == math.prod(shape)]
        if not full and not pair:
            return self._refused(self.names[0], "none of its parameters has the weight's size")
        core = self._core(self._shape(full[0]) if full else None, pair)
        values = {n: _numbers(self._shape(n), 0.6180339 + 0.13 * i) for i, n in enumerate(self.names)}
        small = [n for n in self.names if n not in pair and n not in full]
        values |= {n: values[n].abs() + 0.5 for n in small}
        if not full:
            return self._product(pair, core, values, small)
        main, *more = full
        zeroed = {n: torch.zeros_like(values[n]) for n in (*more, *pair[:1])}
        uses: dict[str, tuple[str, Geometry | None]] = dict.fromkeys(zeroed, ("added", None))
        if pair:
            uses[pair[1]] = ("inner", _as_stored(self._shape(pair[1])))
        return self._direct(main, small, core, values | zeroed, uses)

    def _direct(
        self, main: str, small: list[str], core: fx.Node, values: dict[str, Tensor], uses: dict[str, Any]
    ) -> Made:
        """What becomes of one parameter with the weight's size, and of smaller ones beside it."""
        v, geometry = values[main], self._geometry(core, self._shape(main))
        if geometry is None:
            return self._refused(main, "its axes cannot be followed to the layer")

        def run(others: Mapping[str, Tensor]) -> Tensor:
            return self._run(core, {**values, **others})

        at = run({})
        if not bool(torch.isfinite(at).all()) or at.shape != v.shape:
            return self._refused(main, "it has no value for usual numbers")
        factors = [n for n in small if _close(run({n: 2 * values[n]}), 2 * at)]
        if factors != small:
            return self._refused(main, f"{next(n for n in small if n not in factors)} is no factor of it")
        uses |= {main: ("weight", geometry), **dict.fromkeys(small, ("multiplied", None))}
        zero, tiny = run({main: 0 * v}), run({main: TINY * v})
        steep = not bool(torch.isfinite(zero).all()) or float(tiny.abs().max()) > STEEP * TINY * float(at.abs().max())
        if _close(run({main: 2 * v}), at):
            return self._direction(main, small, values, run, uses, steep)
        if not bool(torch.isfinite(zero).all()) or float(zero.abs().max()) > 1e-6 * float(at.abs().max()):
            return self._refused(main, f"it is not 0 where {main.rpartition('.')[2]} is 0")
        signs = torch.sign(v) * (v.abs() > 0.3)
        kept = _close(run({main: signs}), signs) if not small else False
        odd = _close(run({main: -v}), -at) and not steep and float(tiny.abs().mean()) > 1e-3 * TINY
        return Made(main, uses) if kept or odd else self._refused(main, "0 would not move, or signs are lost")

    def _direction(
        self, main: str, small: list[str], values: dict[str, Tensor], run: Run, uses: dict[str, Any], steep: bool
    ) -> Made:
        """The weight has no length of its own: whose slices have one each, and which parameter says it."""
        v, ones = values[main], {n: torch.ones_like(values[n]) for n in small}
        unit = run(ones)
        axis = next((a for a, n in enumerate(v.shape) if n > 1 and _close(run(ones | {main: _steps(v, a)}), unit)), -1)
        along = tuple(a for a in range(v.ndim) if a != axis)
        centred = v - v.mean(dim=along, keepdim=True)
        units = [x / torch.linalg.vector_norm(x, dim=along, keepdim=True) for x in (unit, v, centred)]
        if not _close(units[0], units[1]) and not _close(units[0], units[2]):
            return self._refused(main, "its direction is not that of the parameter")
        if len(small) == 1 and _close(unit, units[1]):
            size = math.prod(self._shape(small[0]))
            if size == (v.shape[axis] if axis >= 0 else 1):
                return Made(main, uses | {small[0]: ("length", None)}, "weight_norm", axis, small[0])
        return Made(main, uses, "normalized", axis) if steep else Made(main, uses)

    def _product(self, pair: tuple[str, ...], core: fx.Node, values: dict[str, Tensor], small: list[str]) -> Made:
        left, right = pair
        at = self._run(core, values)
        if any(not _close(self._run(core, values | {n: 2 * values[n]}), 2 * at) for n in (*pair, *small)):
            return self._refused(left, "it is more than the product of the two")
        geometry = self._geometry(core, tuple(core.meta["shape"]))
        if geometry is None or geometry.kernel or geometry.axes:
            return self._refused(left, "its axes cannot be followed to the layer")
        last = right if geometry.transposed else left
        uses: dict[str, tuple[str, Geometry | None]] = dict.fromkeys(small, ("multiplied", None))
        for name, operand in zip(pair, product(core) or (), strict=True):
            rows, columns = tuple(operand.meta["shape"])
            turned = geometry.transposed
            outs, ins = (columns, rows) if turned else (rows, columns)
            stored = turned != (self._shape(name) != (rows, columns))
            uses[name] = ("weight" if name == last else "inner", Geometry(outs, ins, transposed=stored))
        return Made(last, uses)

    def _pair(self) -> tuple[str, ...]:
        """The two parameters of the only matrix product on the way, each a plain operand."""
        found = [n for n in self.nodes if product(n) is not None]
        if len(found) != 1:
            return ()
        names = []
        for operand in product(found[0]) or ():
            part = _part(operand) if isinstance(operand, fx.Node) else ()
            own = [str(n.target) for n in part if str(n.target) in self.names and n.op == "get_attr"]
            plain = all(n.op == "get_attr" or _passes(n) or is_size(n) for n in part)
            names += own if plain else []
        two = len(names) == 2 and len(set(names)) == 2 and all(len(self._shape(n)) == 2 for n in names)
        return tuple(names) if two else ()

    def _core(self, shape: tuple[int, ...] | None, pair: tuple[str, ...]) -> fx.Node:
        """The value before the views that lead to the layer: that of the parameter's shape, or the product."""
        if shape is None:
            return next(n for n in self.nodes if product(n) is not None)
        core = at = self.made
        while _passes(at):
            at = at.all_input_nodes[0]
            core = at if at.meta.get("shape") == shape else core
        return core

    def _geometry(self, core: fx.Node, shape: tuple[int, ...]) -> Geometry | None:
        way = [self.made]
        while way[-1] is not core:
            if not _passes(way[-1]):
                return None
            way.append(way[-1].all_input_nodes[0])
        labels: Tensor | None = torch.arange(math.prod(shape), dtype=torch.int64).reshape(shape)
        if core.meta.get("shape") != shape:
            return None
        for before, after in zip(way[::-1], way[-2::-1], strict=False):
            labels = followed(after, before, labels)
        if self.user.target in CONVOLUTIONS:
            return kernel(self.user, self.made, labels, shape)
        return matrix(self.user, product(self.user) or (), self.made, labels, shape)


def _steps(v: Tensor, axis: int) -> Tensor:
    """The tensor with its slices along an axis times 1, 2, 3, 1, …"""
    factors = 1 + torch.arange(v.shape[axis], dtype=torch.float32) % 3
    return v * factors.reshape([-1 if a == axis else 1 for a in range(v.ndim)])


def _as_stored(shape: tuple[int, ...]) -> Geometry:
    return Geometry(shape[0], shape[1])
