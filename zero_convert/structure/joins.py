"""Residual joins: additions whose two operands share a nearest common ancestor, the fork.

The side with a path from the fork that passes no weight layer, or only one small projection, is the shortcut; the
other is the branch.
"""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

from torch import fx

from zero_convert.graph.queries import is_size, only_user, tensors_in

from ..records import Join
from .attentions import product
from .graph_facts import Facts

PASSIVE = frozenset({"drop", "identity", "transform"})  # on a shortcut these leave it an identity up to a frozen mixing


def find_joins(facts: Facts) -> tuple[tuple[Join, ...], tuple[str, ...]]:
    """The joins in order of execution, and notes on what looks like one and is none."""
    search = _Search(facts)
    return search.joins(), tuple(search.notes)


class _Search:
    def __init__(self, facts: Facts) -> None:
        self.facts = facts
        self.notes: list[str] = []

    def joins(self) -> tuple[Join, ...]:
        joins: list[Join] = []
        concatenations = sum(self.facts.kinds[node] == "concatenate" for node in self.facts.graph.nodes)
        for node in self.facts.graph.nodes:
            operands = tensors_in(node)
            if self.facts.kinds[node] != "add" or len(operands) != 2 or operands[0] is operands[1]:
                continue
            shapes = [operand.meta.get("shape") for operand in operands]
            if None not in shapes and shapes[0] != shapes[1]:
                continue  # a broadcast sum is a bias, not a join
            fork = self._fork(operands[0], operands[1], joins)
            if fork is not None:
                join = self._join(len(joins), node, fork, operands[0], operands[1])
                if join is not None:
                    joins.append(join)
        if concatenations:
            self.notes.append(f"{concatenations} concatenations: no residual joins, left as they are")
        return self._without_certain_zero(joins)

    def _fork(self, left: fx.Node, right: fx.Node, before: list[Join]) -> fx.Node | None:
        """The nearest common ancestor; for x + a(n(x)) + b(n(x)) not n(x) but x, which the inner sum carries along."""
        nearest = self.facts.reach.nearest_common(left, right)
        if nearest is None or min(self.facts.fewest_layers(nearest, operand) for operand in (left, right)) == 0:
            return nearest
        for sum_, other in ((left, right), (right, left)):
            inner = next((join for join in before if join.node == sum_.name and join.residual), None)
            if inner is not None and not inner.shortcut_layers:
                fork: fx.Node = next(n for n in self.facts.reach.nodes if n.name == inner.fork)
                if self.facts.reach.reaches(fork, other):
                    return fork
        return nearest

    def _join(self, index: int, node: fx.Node, fork: fx.Node, left: fx.Node, right: fx.Node) -> Join | None:
        sides = [[] if operand is fork else self.facts.reach.between(fork, operand) for operand in (left, right)]
        layers = [
            [n for n in side if self.facts.counts(n, end)] for side, end in zip(sides, (left, right), strict=True)
        ]
        if not any(layers):
            return None  # a sum without weights on either side
        depth = [self.facts.fewest_layers(fork, operand) for operand in (left, right)]
        choice, residual, reason = self._choose(sides, layers, depth)
        branch_end, shortcut_end = (left, right) if choice == 1 else (right, left)
        branch = layers[1 - choice]
        shortcut = sides[choice] if depth[choice] else self._weightless(fork, shortcut_end)
        shortcut_layers = layers[choice] if depth[choice] else []
        first, last = self.facts.geometry(branch[0]), self.facts.geometry(branch[-1])
        chain = self._chain(fork, branch_end)
        if residual and _is_number(node, fork):
            residual, reason = False, "it adds up numbers, such as losses, and no signal"
        if residual and self._carries_another(fork, branch_end):
            residual, reason = False, "its branch carries a signal that does not come from the fork"
        if residual and not reason:
            inner = sum(
                self.facts.kinds[n] == "add" and self._is_join_between(n, fork)
                for n in sides[1 - choice]
                if n not in branch
            )
            if inner and not chain:
                reason = f"its branch contains {inner} other joins"
            elif not chain:
                reason = "its branch is not one chain of layers"
        user = only_user(node)
        return Join(
            index=index,
            node=node.name,
            fork=fork.name,
            branch_node=branch_end.name,
            shortcut_node=shortcut_end.name,
            shortcut=self._shortcut_kind(shortcut, shortcut_layers),
            branch=self.facts.names(branch),
            shortcut_layers=self.facts.names(shortcut_layers),
            order=self._order(node, fork, chain, user, bool(shortcut_layers)),
            chain=tuple(n.name for n in chain),
            activation=user.name if user is not None and self.facts.kinds[user] == "activation" else "",
            in_channels=first.in_channels if first else 0,
            out_channels=last.out_channels if last else 0,
            stride=math.prod(
                max(g.stride, default=1) for n in branch if (g := self.facts.geometry(n)) and not g.transposed
            ),
            residual=residual,
            reason=reason,
            depth=self.facts.most_layers(fork, branch_end),
            scale=str(branch_end.target) if self.facts.kinds[branch_end] == "scale" else "",
        )

    def _choose(
        self, sides: list[list[fx.Node]], layers: list[list[fx.Node]], depth: list[int]
    ) -> tuple[int, bool, str]:
        """Index of the shortcut's side, whether the join is residual, and the reason if not."""
        if min(depth) == 0 and max(depth) > 0:
            return depth.index(0), True, ""
        if depth == [0, 0]:  # both have a way without weights: the side with fewer layers is the older signal
            choice = 0 if len(layers[0]) <= len(layers[1]) else 1
            return choice, False, "both operands have a path from the fork without weight layers"
        candidates = [i for i in (0, 1) if len(layers[i]) == 1 and self.facts.pointwise(layers[i][0])]
        ends_in_transform = [i for i in candidates if any(self.facts.kinds[n] == "transform" for n in sides[i])]
        if len(ends_in_transform) == 1:
            return ends_in_transform[0], True, ""
        if len(candidates) == 2:
            return 1, False, "two single layers meet, and neither is a shortcut"
        if len(candidates) == 1:
            return candidates[0], True, ""
        fewer = 0 if len(layers[0]) <= len(layers[1]) else 1
        return fewer, False, "both operands have weight layers, and neither is a 1×1 projection"

    def _carries_another(self, fork: fx.Node, end: fx.Node) -> bool:
        """Whether a sum adds what weight layers make of something else, and no weight or product comes after it."""
        todo, seen = [end], set()
        while todo:
            node = todo.pop()
            if node in seen or node in self.facts.weights or product(node) is not None:
                continue
            seen.add(node)
            inputs = tensors_in(node)
            own = [n for n in inputs if self.facts.reach.reaches(fork, n)]
            if self.facts.kinds[node] == "add" and len(own) == 1 and len(inputs) == 2:
                other = inputs[1 - inputs.index(own[0])]
                if any(self.facts.reach.reaches(n, other) for n in self.facts.weights):
                    return True
            todo += own if self.facts.kinds[node] != "multiply" else []
        return False

    def _weightless(self, fork: fx.Node, end: fx.Node) -> list[fx.Node]:
        """What acts on the ways from fork to end that pass no weight layer; sums on them pass the value on."""
        found: dict[fx.Node, None] = {}
        todo = [end]
        while todo:
            node = todo.pop()
            if node is fork or node in found or node in self.facts.weights or not self.facts.reach.reaches(fork, node):
                continue
            if self.facts.fewest_layers(fork, node) == 0:
                found[node] = None
                todo += tensors_in(node)
        return [node for node in found if not (self.facts.kinds[node] == "add" and len(tensors_in(node)) == 2)]

    def _without_certain_zero(self, joins: list[Join]) -> tuple[Join, ...]:
        """Joins whose branch ends in the projection of another (a feature pyramid) are no residual joins."""
        nodes = {node.name: node for node in self.facts.graph.nodes}
        projections = {path: join for join in joins if join.residual for path in join.shortcut_layers}
        kept = []
        for join in joins:
            ends = (
                self.facts.names(self.facts.finals(nodes[join.fork], nodes[join.branch_node])) if join.residual else ()
            )
            other = next((projections[path] for path in ends if path in projections), None)
            if other is not None:
                join = replace(join, residual=False, reason=f"its branch ends in the shortcut of {other.node}")
            kept.append(join)
        return tuple(kept)

    def _shortcut_kind(self, side: list[fx.Node], layers: list[fx.Node]) -> str:
        if layers:
            return "projection"
        active = [n for n in side if self.facts.kinds[n] not in PASSIVE and not is_size(n)]
        if not active:
            return "transform" if any(self.facts.kinds[n] == "transform" for n in side) else "identity"
        return "pooling" if any(self.facts.kinds[n] == "pool" for n in active) else "other"

    def _order(self, node: fx.Node, fork: fx.Node, chain: list[fx.Node], user: fx.Node | None, projects: bool) -> str:
        if "order" in node.meta:  # a rewrite knows
            return str(node.meta["order"])
        first = next((n for n in chain if self.facts.kinds[n] != "drop"), None)
        if first is not None and self.facts.kinds[first] in ("norm", "activation", "bias"):
            return "pre-activation"
        if user is not None and self.facts.kinds[user] == "activation":
            return "post-activation"
        shared = (
            projects and self.facts.kinds[fork] == "activation"
        )  # its projection reads the activated signal as well
        return "pre-activation" if shared else "plain"

    def _is_join_between(self, node: fx.Node, fork: fx.Node) -> bool:
        operands = tensors_in(node)
        return len(operands) == 2 and all(self.facts.reach.reaches(fork, operand) for operand in operands)

    def _chain(self, fork: fx.Node, end: fx.Node) -> list[fx.Node]:
        """The nodes from fork to end if they form one chain, on which only gates may branch off; else an empty list."""
        chain: list[fx.Node] = []
        node = end
        while node is not fork:
            chain.append(node)
            inputs = [n for n in tensors_in(node) if self.facts.reach.reaches(fork, n)]
            if len(inputs) == 2 and self.facts.kinds[node] == "multiply":  # a gate: go on along the signal
                a, b = inputs
                signal = self.facts.factors[node][0] if node in self.facts.factors else None
                inputs = [signal] if signal is not None else inputs
                if signal is None:
                    inputs = [n for n, o in ((a, b), (b, a)) if self.facts.reach.reaches(n, o)] or inputs
            if len(inputs) != 1:
                return []
            node = inputs[0]
        chain.reverse()
        inside = set(chain)
        for a, b in pairwise(chain):
            others = [u for u in a.users if u is not b and not is_size(u)]
            gate = self.facts.kinds[b] == "multiply"
            if others and not (gate and all(self.facts.reach.reaches(u, b) and u not in inside for u in others)):
                return []
        return chain


def _is_number(node: fx.Node, fork: fx.Node) -> bool:
    """Whether a sum is one number, or one for each sample, made of a signal with more axes."""
    shape, signal = node.meta.get("shape"), fork.meta.get("shape")
    return shape is not None and (not shape or (len(shape) == 1 and signal is not None and len(signal) > 1))
