"""Layers: every module that owns tensors, with its kind, its role in the network and what its rows and tensors are."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch
from torch import fx, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils import parametrize

from zero_convert.formats.dtypes import of_torch
from zero_convert.graph.kinds import (
    FIXED,
    NORMS,
    WEIGHT_KINDS,
    geometry,
    is_quantized,
    kind_of,
    own_weight,
    recurrent_gates,
)
from zero_convert.graph.queries import tensors_in
from zero_convert.graph.state import EXTRA, stored_tensors

from ..errors import CoverageError
from ..records import Join, Layer, Tensor
from .graph_facts import Facts
from .made_weights import Made
from .neutral_values import neutral
from .own_forwards import own_forward
from .parametrized import parametrized
from .raw_parameters import Use, are_the_signal, feeds_nothing_else, is_inverted, use_of
from .roles import Roles
from .sections import find_sections

ATTENTION = ("query", "key", "value")


def find_layers(facts: Facts, joins: tuple[Join, ...]) -> tuple[Layer, ...]:
    """Every module that owns tensors, in order of execution, then those the graph never calls.

    Raises:
        CoverageError: a layer is quantized, or a tensor has a type that no file can store.
    """
    return _Inventory(facts, joins).layers()


class _Inventory:
    def __init__(self, facts: Facts, joins: tuple[Join, ...]) -> None:
        self.facts = facts
        self.called = {str(n.target) for n in facts.graph.nodes if n.op == "call_module"}
        self.owners: dict[int, list[str]] = {}
        for path, module in facts.root.named_modules():
            if kind_of(module) in WEIGHT_KINDS and (weight := own_weight(module)) is not None:
                self.owners.setdefault(id(weight), []).append(path)
        self.roles = Roles(facts, joins)
        self.sections = find_sections(facts)
        self.made = {name: (node, made) for node, made in facts.made.items() for name in (made.weight, *made.uses)}
        self.reads: dict[str, list[fx.Node]] = {}
        for node in facts.graph.nodes:
            if node.op == "get_attr":
                self.reads.setdefault(str(node.target), []).append(node)

    def layers(self) -> tuple[Layer, ...]:
        facts = self.facts
        position = {str(n.target): i for i, n in reversed(list(enumerate(facts.graph.nodes))) if n.op == "call_module"}
        position |= {
            path: facts.reach.position[n] for n in facts.weights for path in facts.paths[n] if path not in position
        }
        owners: set[int] = set()
        found: list[tuple[int, Layer]] = []
        state = stored_tensors(facts.root)
        for path, module in _plain_modules(facts.root):
            _refuse_quantized(path, module)
            tensors = tuple(_own_tensors(path, module, state))
            if not tensors or id(module) in owners:
                continue
            owners.add(id(module))
            inside = self._enclosing(path)
            parent = path.rpartition(".")[0]
            at = position.get(path, position.get(inside, position.get(parent, len(position))))
            found.append((at, self._layer(path, module, tensors, inside)))
        return tuple(layer for _, layer in sorted(found, key=lambda pair: pair[0]))

    def _layer(self, path: str, module: nn.Module, tensors: tuple[Tensor, ...], inside: str) -> Layer:
        what = kind_of(module) or ("parameter" if any(not t.buffer for t in tensors) else "buffers")
        role, join = self.roles.of.get(path, ("trunk", None))
        reason = ""
        if inside and isinstance(self.facts.root.get_submodule(inside), nn.MultiheadAttention):
            role, join = self.roles.of.get(inside, ("trunk", None))
            reason = f"output projection of {inside}"
        elif inside:
            reason = f"inside {inside}, which tracing kept whole"
        elif what == "attention" and role == "branch-last":
            role = "branch"  # what is last is its output projection
        if what == FIXED:
            return Layer(path, what, type(module).__qualname__, "trunk", tensors, reason="fixed by its constructor")
        layer = Layer(path, what, type(module).__qualname__, role, tensors, geometry(module), (), join, reason=reason)
        made = parametrized(module)
        if made is not None:
            layer = replace(
                layer,
                cls=type(module).__mro__[1].__qualname__ if parametrize.is_parametrized(module) else layer.cls,
                parametrization=(made.kind, made.axis) if made.kind else None,
                parameters=tuple((name.rpartition(".")[2], meaning) for name, meaning in made.names.items()),
                refusal=made.refusal,
            )
        if what in ("parameter", "buffers"):
            return self._raw(self._with_made(layer, module), inside)
        sections = self.sections.get(path, ())
        if what == "recurrent":
            sections = tuple((gate, module.hidden_size) for gate in recurrent_gates(module))  # type: ignore[misc]
        attention = [part for part in ATTENTION if any(section == part for section, _ in sections)]
        layer = replace(
            layer,
            sections=sections,
            parts=max(1, len(attention)),
            neutral=neutral(module) if _has_factors(module, what, tensors) else (),
            table=what == "embedding" and is_table(self.facts, path),
            padding_idx=getattr(module, "padding_idx", None) if what == "embedding" else None,
            before_relu=path in self.roles.before_relu
            or (role == "branch-last" and _rectifies(module))
            or (role == "head" and self.roles.ends_rectified(path))
            or ("value" in attention and self.roles.ends_rectified(path)),
            zeroed_by_scale=path in self.roles.zeroed_by_scale,
            normalized=path in self.roles.normalized,
            shared=self._sharing(path, module),
            states=isinstance(module, nn.RNNBase) and self._uses_all_states(path, 2 if module.bidirectional else 1),
        )
        return self._with_made(layer, module)

    def _uses_all_states(self, path: str, directions: int) -> bool:
        """Whether the final states of a recurrent layer are used as a whole, not only those of its last layer."""
        calls = [n for n in self.facts.graph.nodes if n.op == "call_module" and n.target == path]
        states = [n for call in calls for n in call.users if n.target is operator.getitem and n.args[1] in (1, -1)]
        parts = [n for n in states if self.facts.kinds[n] == "other"]
        if calls and isinstance(self.facts.root.get_submodule(path), nn.LSTM):  # the hidden states, and the cells'
            parts = [n for n in states for n in n.users if n.target is operator.getitem]
        last = tuple(range(-directions, 0))
        return any(user.target is not operator.getitem or user.args[1] not in last for n in parts for user in n.users)

    def _with_made(self, layer: Layer, module: nn.Module) -> Layer:
        """The layer with how its weights are computed in the forward, and what its other parameters are there."""
        prefix, own = f"{layer.name}." if layer.name else "", [t.local for t in layer.tensors]
        made, uses, weights, refusals = [], [], [], [layer.refusal]
        parts: list[tuple[str, fx.Node | None, Made]] = [
            (prefix, *self.made[prefix + local]) for local in own if prefix + local in self.made
        ]
        parts += [("", None, each) for each in own_forward(module, self.facts.answers)]
        neutral = dict(layer.neutral)
        for start, node, each in {id(part[2]): part for part in parts}.values():
            refusals.append(each.refusal)
            names = {name.removeprefix(start): use for name, use in each.uses.items() if name.startswith(start)}
            weight, length = each.weight.removeprefix(start), each.length.removeprefix(start)
            if each.kind and weight in own and (length in own or not length):
                made.append((weight, each.kind, each.axis, length))
            for local, (use, sizes) in names.items():
                plain = layer.geometry is not None and local == "weight" and use in ("weight", "inner")
                if local not in own or plain or (local in neutral and use == "multiplied"):
                    continue
                uses.append((local, "weight" if use == "inner" else use))
                role = self.roles.by_node.get(node, ("trunk", None))[0] if node is not None else "trunk"
                if sizes is not None:
                    weights.append((local, sizes, "trunk" if use == "inner" else role))
        refusal = next(filter(None, refusals), "")
        return replace(layer, made=tuple(made), uses=tuple(uses), weights=tuple(weights), refusal=refusal)

    def _sharing(self, path: str, module: nn.Module) -> tuple[str, ...]:
        """The other layers that hold the same weight."""
        weight = own_weight(module)
        return tuple(p for p in self.owners.get(id(weight), ()) if weight is not None and p != path)

    def _raw(self, layer: Layer, inside: str) -> Layer:
        """The layer with the use of each of its tensors."""
        uses, weights, normalized = [*layer.uses], [*layer.weights], layer.name in self.roles.normalized
        known = dict(uses)
        for tensor in (t for t in layer.tensors if t.local not in known):
            use = Use("unseen" if inside else "unused")
            for node in self.reads.get(tensor.name, ()):
                made = use_of(node, self.facts.kinds)
                use = made if use.what in ("unused", "unseen") else use
            what = use.what
            if what == "added" and use.node is not None and feeds_nothing_else(use.node, self.facts.weights):
                what = "signal"
            if what == "indexed" and use.node is not None and are_the_signal(use.node, self.facts.kinds):
                what = "embedding"
            if use.geometry is not None and use.node is not None:
                role = self.roles.by_node.get(use.node, ("trunk", None))[0]
                inverted = any(is_inverted(node) for node in self.reads[tensor.name])  # and has to be invertible
                weights.append((tensor.local, use.geometry, "trunk" if inverted else role))
            uses.append((tensor.local, what))
            normalized |= use.node is not None and self.roles.ends_as_direction(use.node)
        return replace(layer, uses=tuple(uses), weights=tuple(weights), normalized=normalized)

    def _enclosing(self, path: str) -> str:
        """The called module that `path` lies inside of; "" where it lies in no called module."""
        parts = path.split(".")
        outer = (".".join(parts[:end]) for end in range(1, len(parts)))
        return next((module for module in outer if module in self.called), "")


def _plain_modules(root: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """All modules with their paths, but those that only hold what another module's weight is computed from."""
    hidden: list[str] = []
    for path, module in root.named_modules():
        if parametrize.is_parametrized(module):
            hidden.append(f"{path}.parametrizations" if path else "parametrizations")
        if not any(path == outer or path.startswith(f"{outer}.") for outer in hidden):
            yield path, module


def _rectifies(module: nn.Module) -> bool:
    return isinstance(module, nn.RNN | nn.RNNCell) and module.nonlinearity == "relu"


def _has_factors(module: nn.Module, what: str, tensors: tuple[Tensor, ...]) -> bool:
    """Whether this is a norm of no torch class, or a layer with values per output of its own, such as a gain."""
    if what == "norm":
        return not isinstance(module, NORMS)
    more = [t for t in tensors if not t.buffer and t.local not in ("weight", "bias")]
    sizes = [sorted(t.shape) for t in more]
    return isinstance(module, nn.Linear | _ConvNd) and bool(more) and all(s == 1 for z in sizes for s in z[:-1])


def _refuse_quantized(path: str, module: nn.Module) -> None:
    if is_quantized(module):
        raise CoverageError(
            "a layer is quantized, and no rule can write packed integers",
            where=path or "the model itself",
            got=f"{type(module).__module__}.{type(module).__qualname__}",
            expected="a layer with floating weights",
            fix="Convert the model before it is quantized, and quantize the result.",
        )


def _own_tensors(path: str, module: nn.Module, state: Mapping[str, torch.Tensor]) -> Iterator[Tensor]:
    """The module's entries of the state dict, parameters first; with those that its weight is computed from."""
    made = module.parametrizations if parametrize.is_parametrized(module) else nn.Module()
    prefix = f"{path}.parametrizations" if path else "parametrizations"
    everything = [(path, module), *made.named_modules(prefix=prefix)]  # type: ignore[union-attr]
    for buffer in (False, True):
        for at, part in everything:
            prefix = f"{at}." if at else ""
            for name, value in (part._buffers if buffer else part._parameters).items():
                if value is None or prefix + name not in state:
                    continue
                yield _described(prefix + name, value, buffer)
    extra = f"{path}.{EXTRA}" if path else EXTRA
    if extra in state:
        yield _described(extra, state[extra], buffer=True)


def _described(name: str, value: torch.Tensor, buffer: bool) -> Tensor:
    row = of_torch(value.dtype)
    if row is None or not row.written:
        raise CoverageError("a tensor's type cannot be stored", where=name, got=str(value.dtype))
    trainable = value.requires_grad and not buffer
    return Tensor(name, tuple(value.shape), row.name, trainable, buffer)


def is_table(facts: Facts, path: str) -> bool:
    """Whether an embedding is added to a signal: of weight layers, or of an embedding that comes before it."""
    calls = [n for n in facts.weights if n.op == "call_module" and str(n.target) == path]
    return bool(calls) and all(_added_to_others(facts, node) for node in calls)


def _added_to_others(facts: Facts, node: fx.Node) -> bool:
    todo, seen = [node], set()
    while todo:
        at = todo.pop(0)
        for user in at.users:
            if user in seen or user in facts.weights or user.op == "output":
                continue
            seen.add(user)
            others = [n for n in tensors_in(user) if n is not at]
            if facts.kinds[user] != "add" or not others:
                if not others and facts.kinds[user] in ("other", "identity", "drop", "norm"):
                    todo.append(user)
                continue
            if any(_carries(facts, other, node) for other in others):
                return True
            todo.append(user)
    return False


def _carries(facts: Facts, value: fx.Node, table: fx.Node) -> bool:
    """Whether a value comes from a weight layer that is no embedding, or from an embedding before this one.

    What is computed from the table itself is its own branch.
    """
    if facts.reach.reaches(table, value):
        return False
    makers = [n for n in facts.weights if n is not table and facts.reach.reaches(n, value)]
    if any(facts.kinds[n] != "embedding" for n in makers):
        return True
    at = facts.reach.position
    return any(at[n] < at[table] for n in makers)
