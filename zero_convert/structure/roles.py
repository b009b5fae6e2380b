"""Roles: what each weight layer is in the network, and which layers of a branch or a gate have to start at 0."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import fx, nn
from torch.nn import functional as F

from zero_convert.graph.queries import is_size, relu_kind, tensors_in

from ..records import Join
from .attentions import arguments, product
from .graph_facts import Facts
from .neutral_values import constant
from .normalized_outputs import find_directions
from .raw_parameters import stored

Role = tuple[str, int | None]

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


class Roles:
    """The roles of a graph's weight layers.

    Attributes:
        of: path of a layer → its role, and the index of the join in whose branch or shortcut it stands.
        by_node: the same for each call.
        before_relu: paths of last layers behind which a ReLU stands.
        zeroed_by_scale: paths of last layers behind which a factor of 0 stands.
        normalized: paths of layers of whose output only the direction leaves the model.
    """

    def __init__(self, facts: Facts, joins: tuple[Join, ...]) -> None:
        self.facts, self.joins = facts, joins
        self.nodes = {node.name: node for node in facts.graph.nodes}
        self.parameters = {name for name, _ in facts.root.named_parameters(remove_duplicate=False)}
        self.before_relu: set[str] = set()
        self.zeroed_by_scale: set[str] = set()
        self.by_node: dict[fx.Node, Role] = {}
        self.directions = find_directions(facts)
        self.normalized = set(facts.names(facts.makers_of(self.directions)))
        self.of = self._roles()

    def ends_as_direction(self, node: fx.Node) -> bool:
        """Whether only the direction of a value leaves the model."""
        return any(self.facts.reach.reaches(node, end) for end in self.directions)

    def ends_rectified(self, path: str) -> bool:
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

    def _roles(self) -> dict[str, Role]:
        facts = self.facts
        roles: dict[str, Role] = {}
        heads = self._movable([n for n in self._heads() if not self.ends_as_direction(n)])
        for role, nodes in (("trunk", facts.weights), ("stem", self._stems()), ("head", heads)):
            roles |= dict.fromkeys(facts.names(nodes), (role, None))
            self.by_node |= dict.fromkeys(nodes, (role, None))
        for join in sorted(self.joins, key=lambda join: -len(join.branch)):  # inner joins speak last
            if not join.residual:
                continue
            fork, end = self.nodes[join.fork], self.nodes[join.branch_node]
            finals = self._finals(fork, end)
            self.before_relu |= {
                path for node, before_relu in finals.items() if before_relu for path in facts.paths[node][-1:]
            }
            self.zeroed_by_scale |= {
                path for n in finals for path in facts.paths[n][-1:] if self._zeroed_by_scale(n, end)
            }
            for node in facts.reach.between(fork, end):
                if not facts.counts(node, end):
                    continue
                *first, last = facts.paths[node]
                self.by_node[node] = ("branch-last" if node in finals else "branch", join.index)
                if node in finals or roles[last][0] != "branch-last":
                    roles[last] = self.by_node[node]
                roles |= dict.fromkeys(first, ("branch", join.index))
            for path in join.shortcut_layers:
                roles[path] = ("shortcut", join.index)
        for node in facts.weights:
            *_, last = facts.paths[node]
            if roles[last][0] == "branch-last" and self.by_node[node][0] == "stem":
                roles[last] = self.by_node[node]  # called there as well, where 0 would end the signal
        free = {path for node in facts.weights if node not in facts.gate_of for path in facts.paths[node]}
        for gated in facts.factors:
            for node, given in self._gate_roles(gated).items():
                self.by_node[node] = given
                if node in facts.gate_of and free.intersection(facts.paths[node]):
                    continue  # a recurrent cell: the layer makes the signal as well
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
            last = [n for n in facts.finals(fork, end) if self.by_node[n] == ("branch-last", join.index)]
            if join.residual and last and all(self._only_by(product, n, end) for n in last):
                return (
                    roles
                    | dict.fromkeys(last, ("branch", join.index))
                    | dict.fromkeys(finals, ("branch-last", join.index))
                )
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
                finals = {n: before_relu for n, before_relu in finals.items() if n not in scores or n in values}
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
            finals = {n: before_relu for n, before_relu in finals.items() if n not in gate or n in other}
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

    def _zeroed_by_scale(self, layer: fx.Node, end: fx.Node) -> bool:
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

    def _movable(self, heads: list[fx.Node]) -> list[fx.Node]:
        """The heads without those that are multiplied with others: with both factors at 0 neither would ever move."""
        for node in self.facts.graph.nodes:
            operands = self._factors(node)
            if len(operands) != 2:
                continue
            first, second = ([h for h in heads if self.facts.reach.reaches(h, operand)] for operand in operands)
            lifted = any(True in self._passed(h, node, self._lifts) for h in (*first, *second))
            if first and not lifted and not set(first) & set(second):
                heads = [h for h in heads if h not in second]
        return heads
