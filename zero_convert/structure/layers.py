"""Layers: every module that owns tensors, with its kind, its role in the network and what its rows and tensors are."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

import torch
from torch import fx, nn
from torch.nn import functional as F
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils import parametrize

from ..errors import CoverageError
from ..graphs import is_size, relu_kind, tensors_in
from ..layers import NORMS, WEIGHT_KINDS, geometry, is_quantized, kind_of, recurrent_gates
from ..records import Join, Layer, Tensor
from .attentions import arguments, product
from .directions import find_directions
from .facts import Facts
from .neutral import constant, neutral
from .parametrized import parametrized
from .raw import Use, feeds_nothing_else, stored, use_of
from .sections import find_sections

Role = tuple[str, int | None]

SAFETENSORS_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint64: "U64",
    torch.uint32: "U32",
    torch.uint16: "U16",
    torch.uint8: "U8",
    torch.bool: "BOOL",
    torch.complex64: "C64",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
}
ATTENTION = ("query", "key", "value")

LIFTING = (nn.Softmax, nn.Softmax2d, nn.Softmin, nn.LogSoftmax, nn.Sigmoid, nn.LogSigmoid, nn.Hardsigmoid, nn.Softplus)
LIFTING_FUNCTIONS = frozenset(
    {
        *(
            F.softmax,
            F.softmin,
            F.log_softmax,
            F.logsigmoid,
            F.sigmoid,
            F.hardsigmoid,
            F.softplus,
            torch.softmax,
            torch.sigmoid,
            torch.exp,
        ),
        *("softmax", "log_softmax", "sigmoid", "sigmoid_", "exp", "cos", "cosh", torch.cos, torch.cosh),
    }
)
DIFFERENCES = frozenset({operator.sub, operator.isub, torch.sub, torch.rsub, "sub", "sub_"})


def find_layers(facts: Facts, joins: tuple[Join, ...]) -> tuple[Layer, ...]:
    """Every module that owns tensors, in order of execution, then those the graph never calls.

    Raises:
        CoverageError: a layer is quantized, or a tensor has a type that no file can store.
    """
    return _Inventory(facts, joins).layers()


class _Inventory:
    def __init__(self, facts: Facts, joins: tuple[Join, ...]) -> None:
        self.facts, self.joins = facts, joins
        self.nodes = {node.name: node for node in facts.graph.nodes}
        self.called = {str(n.target) for n in facts.graph.nodes if n.op == "call_module"}
        self.parameters = {name for name, _ in facts.root.named_parameters(remove_duplicate=False)}
        self.owners: dict[int, list[str]] = {}
        for path, module in facts.root.named_modules():
            if kind_of(module) in WEIGHT_KINDS and (weight := module._parameters.get("weight")) is not None:
                self.owners.setdefault(id(weight), []).append(path)
        self.clipped: set[str] = set()
        self.stilled: set[str] = set()
        self.by_node: dict[fx.Node, Role] = {}
        self.directions = find_directions(facts)
        self.normalized: set[str] = set()
        self.roles = self._roles()
        self.sections = find_sections(facts)
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
        state = set(facts.root.state_dict(keep_vars=True))
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
        role, join = self.roles.get(path, ("trunk", None))
        reason = ""
        if inside and isinstance(self.facts.root.get_submodule(inside), nn.MultiheadAttention):
            role, join = self.roles.get(inside, ("trunk", None))
            reason = f"output projection of {inside}"
        elif inside:
            reason = f"inside {inside}, which tracing kept whole"
        elif what == "attention" and role == "last":
            role = "branch"  # what is last is its output projection
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
            return self._raw(layer, inside)
        sections = self.sections.get(path, ())
        if what == "recurrent":
            sections = tuple((gate, module.hidden_size) for gate in recurrent_gates(module))  # type: ignore[misc]
        attention = [part for part in ATTENTION if any(section == part for section, _ in sections)]
        return replace(
            layer,
            sections=sections,
            parts=max(1, len(attention)),
            neutral=neutral(module) if _has_factors(module, what, tensors) else (),
            table=what == "embedding" and self._is_table(path),
            blank=getattr(module, "padding_idx", None) if what == "embedding" else None,
            clipped=path in self.clipped
            or (role == "last" and _rectifies(module))
            or (role == "head" and self._ends_rectified(path))
            or ("value" in attention and self._ends_rectified(path)),
            stilled=path in self.stilled,
            normalized=path in self.normalized,
            shared=self._sharing(path, module),
        )

    def _sharing(self, path: str, module: nn.Module) -> tuple[str, ...]:
        """The other layers that hold the same weight."""
        weight = module._parameters.get("weight")
        return tuple(p for p in self.owners.get(id(weight), ()) if weight is not None and p != path)

    def _raw(self, layer: Layer, inside: str) -> Layer:
        """The layer with the use of each of its tensors."""
        uses, weights, normalized = [], [], layer.name in self.normalized
        for tensor in layer.tensors:
            use = Use("unseen" if inside else "unused")
            for node in self.reads.get(tensor.name, ()):
                made = use_of(node, self.facts.kinds)
                use = made if use.what in ("unused", "unseen") else use
            what = use.what
            if what == "added" and use.node is not None and feeds_nothing_else(use.node, self.facts.weights):
                what = "signal"
            if use.geometry is not None and use.node is not None:
                weights.append((tensor.local, use.geometry, self.by_node.get(use.node, ("trunk", None))[0]))
            uses.append((tensor.local, what))
            normalized |= use.node is not None and self._ends_as_direction(use.node)
        return replace(layer, uses=tuple(uses), weights=tuple(weights), normalized=normalized)

    def _ends_as_direction(self, node: fx.Node) -> bool:
        return any(self.facts.reach.reaches(node, end) for end in self.directions)

    def _is_table(self, path: str) -> bool:
        """Whether an embedding is added to a signal: of weight layers, or of an embedding that comes before it."""
        calls = [n for n in self.facts.weights if n.op == "call_module" and str(n.target) == path]
        return bool(calls) and all(self._added_to_others(node) for node in calls)

    def _added_to_others(self, node: fx.Node) -> bool:
        todo, seen = [node], set()
        while todo:
            at = todo.pop(0)
            for user in at.users:
                if user in seen or user in self.facts.weights or user.op == "output":
                    continue
                seen.add(user)
                others = [n for n in tensors_in(user) if n is not at]
                if self.facts.kinds[user] != "add" or not others:
                    if not others and self.facts.kinds[user] in ("other", "identity", "drop", "norm"):
                        todo.append(user)
                    continue
                if any(self._carries(other, node) for other in others):
                    return True
                todo.append(user)
        return False

    def _carries(self, value: fx.Node, table: fx.Node) -> bool:
        """Whether a value comes from a weight layer that is no embedding, or from an embedding before this one.

        What is computed from the table itself is its own branch.
        """
        if self.facts.reach.reaches(table, value):
            return False
        makers = [n for n in self.facts.weights if n is not table and self.facts.reach.reaches(n, value)]
        if any(self.facts.kinds[n] != "embedding" for n in makers):
            return True
        at = self.facts.reach.position
        return any(at[n] < at[table] for n in makers)

    def _enclosing(self, path: str) -> str:
        """The called module that `path` lies inside of; "" where it lies in no called module."""
        parts = path.split(".")
        outer = (".".join(parts[:end]) for end in range(1, len(parts)))
        return next((module for module in outer if module in self.called), "")

    def _roles(self) -> dict[str, Role]:
        facts = self.facts
        roles: dict[str, Role] = {}
        self.normalized = set(facts.names(facts.makers_of(self.directions)))
        heads = [n for n in self._heads() if not self._ends_as_direction(n)]
        for role, nodes in (("trunk", facts.weights), ("stem", self._stems()), ("head", heads)):
            roles |= dict.fromkeys(facts.names(nodes), (role, None))
            self.by_node |= dict.fromkeys(nodes, (role, None))
        for join in sorted(self.joins, key=lambda join: -len(join.branch)):  # inner joins speak last
            if not join.residual:
                continue
            fork, end = self.nodes[join.fork], self.nodes[join.branch_node]
            finals = self._finals(fork, end)
            self.clipped |= {path for node, clipped in finals.items() if clipped for path in facts.paths[node][-1:]}
            self.stilled |= {path for n in finals for path in facts.paths[n][-1:] if self._stilled(n, end)}
            for node in facts.reach.between(fork, end):
                if not facts.counts(node, end):
                    continue
                *first, last = facts.paths[node]
                self.by_node[node] = ("last" if node in finals else "branch", join.index)
                if node in finals or roles[last][0] != "last":
                    roles[last] = self.by_node[node]
                roles |= dict.fromkeys(first, ("branch", join.index))
            for path in join.shortcut_layers:
                roles[path] = ("shortcut", join.index)
        for gated in facts.factors:
            for node, given in self._gate_roles(gated).items():
                self.by_node[node] = given
                roles |= dict.fromkeys(facts.paths[node], given)
        return roles

    def _gate_roles(self, product: fx.Node) -> dict[fx.Node, Role]:
        """Which layers of a gate start at 0; those in the branch of a join inside the gate have their roles.

        Where nothing keeps that 0 from being the factor (no sigmoid, no softmax), a gate at the end of a branch is the
        branch's last part, and the signal is not 0: with both at 0 neither would ever move. Anywhere else such a gate
        may not be 0, or the signal would end there.
        """
        facts = self.facts
        inside = [n for n, p in facts.gate_of.items() if p is product]
        own = [n for n in inside if self.by_node[n][1] is None]
        ends = [n for n in own if not any(n is not other and facts.reach.reaches(n, other) for other in inside)]
        roles: dict[fx.Node, Role] = dict.fromkeys(own, ("gate", None))
        finals = [n for n in facts.finals(*facts.factors[product]) if n in own]
        if not finals or any(True in self._passed(n, product, self._lifts) for n in finals):
            return roles | dict.fromkeys(ends, ("gate-last", None))
        for join in self.joins:
            fork, end = self.nodes[join.fork], self.nodes[join.branch_node]
            last = [n for n in facts.finals(fork, end) if self.by_node[n] == ("last", join.index)]
            if join.residual and last and all(self._only_by(product, n, end) for n in last):
                return roles | dict.fromkeys(last, ("branch", join.index)) | dict.fromkeys(finals, ("last", join.index))
        return roles

    def _only_by(self, product: fx.Node, layer: fx.Node, end: fx.Node) -> bool:
        """Whether every way from the layer to the end passes the product."""
        return self._passed(layer, end, lambda node: node is product) == {True}

    def _finals(self, fork: fx.Node, end: fx.Node) -> dict[fx.Node, bool]:
        """The last weight layers of a branch, and whether a ReLU stands behind each on some way to the end.

        Of two factors that are multiplied only one is last: both at 0 would never get a gradient. The activated one,
        or the first, is the gate and no last layer. Of an attention only the values are last.
        """
        facts = self.facts
        finals = dict.fromkeys(facts.finals(fork, end), False)
        for node in facts.reach.between(fork, end):
            if node.target is F.scaled_dot_product_attention:
                named = arguments(node)
                scores, values = (self._ends(fork, [named[x] for x in what]) for what in (("query", "key"), ("value",)))
                finals = {n: clipped for n, clipped in finals.items() if n not in scores or n in values}
                continue
            operands = [n for n in self._factors(node) if facts.reach.reaches(fork, n)]
            if len(operands) != 2 or not any(self._behind(n, node) for n in finals):
                continue
            ends = [{n: None for n in facts.finals(fork, operand) if n in finals} for operand in operands]
            if not all(ends):
                continue
            ways = [list(self._way(e, o)) for e, o in zip(ends, operands, strict=True)]
            lifted = [any(self._lifts(n) for n in way) for way in ways]
            if set(ends[0]) & set(ends[1]) and sum(lifted) != 1:
                continue
            active = [any(facts.kinds[n] == "activation" for n in way) for way in ways]
            signs = lifted if any(lifted) else active
            gate, other = (ends[1], ends[0]) if signs == [False, True] else (ends[0], ends[1])
            finals = {n: clipped for n, clipped in finals.items() if n not in gate or n in other}
        return {node: self._rectified(node, end) for node in finals}

    def _ends(self, fork: fx.Node, values: Iterable[fx.Node]) -> set[fx.Node]:
        """The last weight layers between the fork and any of the values."""
        return {n for value in values if self._behind(fork, value) for n in self.facts.finals(fork, value)}

    def _factors(self, node: fx.Node) -> list[fx.Node]:
        """The two operands of a product, of numbers or of matrices."""
        if self.facts.kinds[node] == "multiply":
            return tensors_in(node)
        operands = product(node)
        return [n for n in operands if isinstance(n, fx.Node) and n in tensors_in(node)] if operands else []

    def _rectified(self, layer: fx.Node, end: fx.Node) -> bool:
        """Whether a ReLU stands on a way from the layer to the end that passes no other weight layer."""
        return True in self._passed(layer, end, self._rectifies)

    def _ends_rectified(self, path: str) -> bool:
        """Whether a way from a layer to the next weight layers passes a ReLU."""
        todo = [(n, False) for n in self.facts.weights if self.facts.paths[n][-1] == path]
        seen, found = set(todo), set()
        while todo:
            at, passed = todo.pop()
            for user in at.users:
                if user in self.facts.weights or user.op == "output":
                    found.add(passed)
                elif (step := (user, passed or self._rectifies(user))) not in seen and not is_size(user):
                    seen.add(step)
                    todo.append(step)
        return True in found

    def _stilled(self, layer: fx.Node, end: fx.Node) -> bool:
        """Whether a factor that was constructed as 0 stands on every way from the layer to the end."""
        return self._passed(layer, end, self._multiplies_by_zero) == {True}

    def _passed(self, layer: fx.Node, end: fx.Node, wanted: Callable[[fx.Node], bool]) -> set[bool]:
        """Whether a wanted node stands on the ways from the layer to the end that pass no other weight layer."""
        todo, seen, found = [(layer, False)], set(), set()
        while todo:
            at, passed = todo.pop()
            if at is end:
                found.add(passed)
            for user in at.users:
                if user in self.facts.reach.position and self.facts.reach.reaches(user, end):
                    step = (user, passed or wanted(user))
                    if step not in seen and (user not in self.facts.weights):
                        seen.add(step)
                        todo.append(step)
        return found

    def _multiplies_by_zero(self, node: fx.Node) -> bool:
        if self.facts.kinds[node] != "multiply":
            return False
        factors = [stored(n) for n in node.all_input_nodes]
        own = [self.facts.root.get_parameter(name) for name in factors if name in self.parameters]
        return any(constant(p) == 0 for p in own)

    def _behind(self, layer: fx.Node, node: fx.Node) -> bool:
        return layer is not node and self.facts.reach.reaches(layer, node)

    def _lifts(self, node: fx.Node) -> bool:
        """Whether 0 does not stay 0: a factor behind it is not 0 however its layers start."""
        module = self.facts.root.get_submodule(str(node.target)) if node.op == "call_module" else None
        shifts = self.facts.kinds[node] == "add" or node.target in DIFFERENCES
        if shifts and any(isinstance(x, (int, float)) and x != 0 for x in node.args[:2]):
            return True  # relu6(x + 3) / 6, 1 - tanh(x)
        return isinstance(module, LIFTING) or node.target in LIFTING_FUNCTIONS

    def _way(self, layers: Iterable[fx.Node], end: fx.Node) -> Iterator[fx.Node]:
        for layer in layers:
            yield from self.facts.reach.between(layer, end)

    def _rectifies(self, node: fx.Node) -> bool:
        """Whether the derivative at 0 is 0: a ReLU, or a norm that contains one. Inside a gate it does not matter."""
        if node.op == "call_module" and self.facts.kinds[node] == "norm":
            module = self.facts.root.get_submodule(str(node.target))
            return any(isinstance(m, nn.ReLU | nn.ReLU6) for m in module.children())
        inside = any(
            self._behind(signal, node) and self.facts.reach.reaches(node, factor)
            for signal, factor in self.facts.factors.values()
        )
        return bool(relu_kind(node, self.facts.root)) and not inside

    def _stems(self) -> list[fx.Node]:
        """Weight layers that an input reaches without passing another."""
        inputs = [n for n in self.facts.graph.nodes if n.op == "placeholder"]
        return [
            n
            for n in self.facts.weights
            if any(self.facts.reach.reaches(i, n) for i in inputs)
            and not any(m is not n and self.facts.reach.reaches(m, n) for m in self.facts.weights)
        ]

    def _heads(self) -> list[fx.Node]:
        """Weight layers with none after them, whose values reach the output."""
        output = next(node for node in self.facts.graph.nodes if node.op == "output")
        return [
            n
            for n in self.facts.weights
            if self.facts.reach.reaches(n, output)
            and not any(m is not n and self.facts.reach.reaches(n, m) for m in self.facts.weights)
        ]


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


def _own_tensors(path: str, module: nn.Module, state: Iterable[str]) -> Iterator[Tensor]:
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
                if value.dtype not in SAFETENSORS_DTYPES:
                    raise CoverageError("a tensor's type cannot be stored", where=prefix + name, got=str(value.dtype))
                dtype = SAFETENSORS_DTYPES[value.dtype]
                trainable = value.requires_grad and not buffer
                yield Tensor(prefix + name, tuple(value.shape), dtype, trainable, buffer)
