"""Analyze: from a traced graph to layers with roles, residual joins and gates.

A residual join is an addition whose two operands share a nearest common ancestor, the fork. The side with a path from
the fork that passes no weight layer, or only one small projection, is the shortcut; the other is the branch. The same
analysis runs on the model as given and on the rewritten one. It changes nothing.
"""

from __future__ import annotations

import inspect
import math
import operator
from collections.abc import Iterable
from dataclasses import replace
from itertools import pairwise

import torch
from torch import fx, nn
from torch.nn import functional as F

from .errors import CoverageError
from .graphs import Reach, is_size, kind, only_user, tensors_in
from .layers import WEIGHT_KINDS, geometry, kind_of
from .live import Traced
from .records import Gate, Geometry, Join, Layer, Structure, Tensor

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
INDEXING = frozenset({operator.getitem, F.embedding, torch.index_select, "index_select"})
ARGUMENTS = {  # of the libraries' own functions
    "logit_scale": "temperature",
    **dict.fromkeys(("relative_position_bias_table", "rel_pos_h", "rel_pos_w", "rel_pos_t"), "indexed"),
}
PASSIVE = frozenset({"drop", "identity", "transform"})  # on a shortcut these leave it an identity up to a frozen mixing


def analyze(traced: Traced, graph: fx.Graph | None = None) -> Structure:
    """Layers, joins and gates of the training graph, or of another graph over the same modules."""
    return _Analysis(traced.root, traced.train if graph is None else graph).structure()


class _Analysis:
    def __init__(self, root: nn.Module, graph: fx.Graph) -> None:
        self.root, self.graph = root, graph
        self.reach = Reach(graph)
        self.kinds = {node: kind(node, root) for node in graph.nodes}
        self.paths = {node: paths for node in graph.nodes if (paths := self._weight_layers(node))}
        self.weights = self.paths.keys()
        self.gates, self.gate_of = self._find_gates()
        self.notes: list[str] = []

    def structure(self) -> Structure:
        joins = self._find_joins()
        return Structure(self._layers(joins), joins, self.gates, tuple(self.notes))

    def _weight_layers(self, node: fx.Node) -> tuple[str, ...]:
        """Paths of the weight layers a node applies: the module it calls, or the owners of the weights it is given."""
        if self.kinds[node] in WEIGHT_KINDS or self.kinds[node] == "opaque":
            return (str(node.target),)
        owners = dict.fromkeys(
            str(n.target).rpartition(".")[0] for n in node.all_input_nodes if n.op == "get_attr" and node.op != "output"
        )
        return tuple(path for path in owners if kind_of(self.root.get_submodule(path)) in WEIGHT_KINDS)

    # -- gates ---------------------------------------------------------------------------------------------------------

    def _find_gates(self) -> tuple[tuple[Gate, ...], dict[fx.Node, fx.Node]]:
        """Products of a signal with what weight layers compute from it; and the product of each gate layer's node."""
        gates: list[Gate] = []
        owner: dict[fx.Node, fx.Node] = {}
        for node in self.graph.nodes:
            if self.kinds[node] != "multiply" or len(tensors_in(node)) != 2:
                continue
            for signal, factor in (tensors_in(node), tensors_in(node)[::-1]):
                if not self.reach.reaches(signal, factor):
                    continue
                layers = [n for n in self.reach.between(signal, factor) if n in self.weights]
                if layers:
                    gates.append(Gate(node.name, self._names(layers)))
                    owner |= dict.fromkeys(layers, node)
                break
        return tuple(gates), owner

    # -- joins ---------------------------------------------------------------------------------------------------------

    def _find_joins(self) -> tuple[Join, ...]:
        joins: list[Join] = []
        concatenations = sum(self.kinds[node] == "concatenate" for node in self.graph.nodes)
        for node in self.graph.nodes:
            operands = tensors_in(node)
            if self.kinds[node] != "add" or len(operands) != 2 or operands[0] is operands[1]:
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
        nearest = self.reach.nearest_common(left, right)
        if nearest is None or min(self._fewest_layers(nearest, operand) for operand in (left, right)) == 0:
            return nearest
        for sum_, other in ((left, right), (right, left)):
            inner = next((join for join in before if join.node == sum_.name and join.residual), None)
            if inner is not None and not inner.shortcut_layers:
                fork: fx.Node = next(n for n in self.reach.nodes if n.name == inner.fork)
                if self.reach.reaches(fork, other):
                    return fork
        return nearest

    def _join(self, index: int, node: fx.Node, fork: fx.Node, left: fx.Node, right: fx.Node) -> Join | None:
        sides = [[] if operand is fork else self.reach.between(fork, operand) for operand in (left, right)]
        layers = [[n for n in side if n in self.weights and n not in self.gate_of] for side in sides]
        if not any(layers):
            return None  # a sum without weights on either side
        depth = [self._fewest_layers(fork, operand) for operand in (left, right)]
        choice, residual, reason = self._choose(sides, layers, depth)
        branch_end, shortcut_end = (left, right) if choice == 1 else (right, left)
        branch = layers[1 - choice]
        shortcut = sides[choice] if depth[choice] else self._weightless(fork, shortcut_end)
        shortcut_layers = layers[choice] if depth[choice] else []
        first, last = self._geometry(branch[0]), self._geometry(branch[-1])
        chain = self._chain(fork, branch_end)
        if residual and not reason:
            inner = sum(
                self.kinds[n] == "add" and self._is_join_between(n, fork) for n in sides[1 - choice] if n not in branch
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
            branch=self._names(branch),
            shortcut_layers=self._names(shortcut_layers),
            order=self._order(node, fork, chain, user, bool(shortcut_layers)),
            chain=tuple(n.name for n in chain),
            activation=user.name if user is not None and self.kinds[user] == "activation" else "",
            in_channels=first.in_channels if first else 0,
            out_channels=last.out_channels if last else 0,
            stride=math.prod(max(g.stride, default=1) for n in branch if (g := self._geometry(n)) and not g.transposed),
            residual=residual,
            reason=reason,
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
        candidates = [i for i in (0, 1) if len(layers[i]) == 1 and self._pointwise(layers[i][0])]
        ends_in_transform = [i for i in candidates if any(self.kinds[n] == "transform" for n in sides[i])]
        if len(ends_in_transform) == 1:
            return ends_in_transform[0], True, ""
        if len(candidates) == 2:
            return 1, False, "two single layers meet, and neither is a shortcut"
        if len(candidates) == 1:
            return candidates[0], True, ""
        fewer = 0 if len(layers[0]) <= len(layers[1]) else 1
        return fewer, False, "both operands have weight layers, and neither is a 1×1 projection"

    def _pointwise(self, node: fx.Node) -> bool:
        g = self._geometry(node)
        return g is not None and self.kinds[node] in ("convolution", "linear") and all(k == 1 for k in g.kernel)

    def _fewest_layers(self, fork: fx.Node, end: fx.Node) -> int:
        """The least number of weight layers on a path from fork to end; gates do not count."""
        if end is fork:
            return 0
        count: dict[fx.Node, int] = {fork: 0}
        for node in self.reach.between(fork, end):
            ways = [count[n] for n in tensors_in(node) if n in count]
            if ways:
                count[node] = min(ways) + (node in self.weights and node not in self.gate_of)
        return count[end]

    def _weightless(self, fork: fx.Node, end: fx.Node) -> list[fx.Node]:
        """What acts on the ways from fork to end that pass no weight layer; sums on them pass the value on."""
        found: dict[fx.Node, None] = {}
        todo = [end]
        while todo:
            node = todo.pop()
            if node is fork or node in found or node in self.weights or not self.reach.reaches(fork, node):
                continue
            if self._fewest_layers(fork, node) == 0:
                found[node] = None
                todo += tensors_in(node)
        return [node for node in found if not (self.kinds[node] == "add" and len(tensors_in(node)) == 2)]

    def _finals(self, fork: fx.Node, end: fx.Node) -> dict[fx.Node, None]:
        """The weight layers with no other behind them on some way from fork to end: all 0, the value at end is 0."""
        finals: dict[fx.Node, None] = {}
        seen, todo = {fork}, [end]
        while todo:
            node = todo.pop()
            if node in seen:
                continue
            seen.add(node)
            if node in self.weights and node not in self.gate_of:
                finals[node] = None
            else:
                todo += [n for n in tensors_in(node) if self.reach.reaches(fork, n)]
        return finals

    def _without_certain_zero(self, joins: list[Join]) -> tuple[Join, ...]:
        """Joins whose branch ends in the projection of another (a feature pyramid) are no residual joins."""
        nodes = {node.name: node for node in self.graph.nodes}
        projections = {path: join for join in joins if join.residual for path in join.shortcut_layers}
        kept = []
        for join in joins:
            ends = self._names(self._finals(nodes[join.fork], nodes[join.branch_node])) if join.residual else ()
            other = next((projections[path] for path in ends if path in projections), None)
            if other is not None:
                join = replace(join, residual=False, reason=f"its branch ends in the shortcut of {other.node}")
            kept.append(join)
        return tuple(kept)

    def _shortcut_kind(self, side: list[fx.Node], layers: list[fx.Node]) -> str:
        if layers:
            return "projection"
        active = [n for n in side if self.kinds[n] not in PASSIVE and not is_size(n)]
        if not active:
            return "transform" if any(self.kinds[n] == "transform" for n in side) else "identity"
        return "pooling" if any(self.kinds[n] == "pool" for n in active) else "other"

    def _order(self, node: fx.Node, fork: fx.Node, chain: list[fx.Node], user: fx.Node | None, projects: bool) -> str:
        if "order" in node.meta:  # a rewrite knows
            return str(node.meta["order"])
        first = next((n for n in chain if self.kinds[n] != "drop"), None)
        if first is not None and self.kinds[first] in ("norm", "activation", "bias"):
            return "pre-activation"
        if user is not None and self.kinds[user] == "activation":
            return "post-activation"
        shared = projects and self.kinds[fork] == "activation"  # its projection reads the activated signal as well
        return "pre-activation" if shared else "plain"

    def _is_join_between(self, node: fx.Node, fork: fx.Node) -> bool:
        operands = tensors_in(node)
        return len(operands) == 2 and all(self.reach.reaches(fork, operand) for operand in operands)

    def _chain(self, fork: fx.Node, end: fx.Node) -> list[fx.Node]:
        """The nodes from fork to end if they form one chain, on which only gates may branch off; else an empty list."""
        chain: list[fx.Node] = []
        node = end
        while node is not fork:
            chain.append(node)
            inputs = [n for n in tensors_in(node) if self.reach.reaches(fork, n)]
            if len(inputs) == 2 and self.kinds[node] == "multiply":  # a gate: go on along the signal
                a, b = inputs
                inputs = [a] if self.reach.reaches(a, b) else [b] if self.reach.reaches(b, a) else inputs
            if len(inputs) != 1:
                return []
            node = inputs[0]
        chain.reverse()
        inside = set(chain)
        for a, b in pairwise(chain):
            others = [u for u in a.users if u is not b and not is_size(u)]
            gate = self.kinds[b] == "multiply"
            if others and not (gate and all(self.reach.reaches(u, b) and u not in inside for u in others)):
                return []
        return chain

    # -- layers --------------------------------------------------------------------------------------------------------

    def _layers(self, joins: tuple[Join, ...]) -> tuple[Layer, ...]:
        """Every module that owns tensors, in order of execution, then those the graph never calls."""
        roles = self._roles(joins)
        position = {str(n.target): i for i, n in reversed(list(enumerate(self.graph.nodes))) if n.op == "call_module"}
        position |= {
            path: self.reach.position[n] for n in self.weights for path in self.paths[n] if path not in position
        }
        owners: dict[int, str] = {}
        found: list[tuple[int, Layer]] = []
        state = set(self.root.state_dict(keep_vars=True))
        for path, module in self.root.named_modules():
            tensors = _own_tensors(path, module, state)
            if not tensors or id(module) in owners:
                continue
            owners[id(module)] = path
            parent = path.rpartition(".")[0]
            inside = self._enclosing(path, position)
            what = kind_of(module) or ("parameter" if any(not t.buffer for t in tensors) else "buffers")
            role, join = roles.get(path, ("trunk", None))
            reason = ""
            if inside and isinstance(self.root.get_submodule(inside), nn.MultiheadAttention):
                role, join = roles.get(inside, ("trunk", None))
                reason = f"output projection of {inside}"
            elif inside:
                reason = f"inside {inside}, which tracing kept whole"
            elif what == "attention" and role == "last":
                role = "branch"  # what is last is its output projection
            at = position.get(path, position.get(inside, position.get(parent, len(position))))
            found.append(
                (
                    at,
                    Layer(
                        path,
                        what,
                        type(module).__qualname__,
                        role,
                        tensors,
                        geometry(module),
                        self._uses(path, tensors) if what in ("parameter", "buffers") else (),
                        join,
                        self._parts(path, module),
                        reason,
                    ),
                )
            )
        return tuple(layer for _, layer in sorted(found, key=lambda pair: pair[0]))

    def _parts(self, path: str, module: nn.Module) -> int:
        """3 for one linear layer that makes queries, keys and values at once, else 1."""
        g = geometry(module)
        if not isinstance(module, nn.Linear) or g is None or g.out_channels != 3 * g.in_channels:
            return 1
        node = next((n for n in self.weights if path in self.paths[n]), None)
        if node is None:
            return 1
        if node.op == "call_function":  # a library's attention function names its arguments
            return 3 if any(str(k).startswith("qkv") for k in _argument_names(node)) else 1
        attention = (F.softmax, torch.softmax, F.scaled_dot_product_attention, "softmax")
        after = {n for n in self.graph.nodes if n is not node and self.reach.reaches(node, n)}
        nearest = [n for n in after if n in self.paths]
        return (
            3
            if any(
                (n.target in attention or isinstance(_called(n, self.root), nn.Softmax))
                and not any(self.reach.reaches(w, n) for w in nearest)
                for n in after
            )
            else 1
        )

    def _enclosing(self, path: str, position: dict[str, int]) -> str:
        """The called module that `path` lies inside of; "" where it is called itself or lies in no called module."""
        parts = path.split(".")
        for end in range(1, len(parts)):
            outer = ".".join(parts[:end])
            if outer in position:
                return outer
        return ""

    def _roles(self, joins: tuple[Join, ...]) -> dict[str, tuple[str, int | None]]:
        roles: dict[str, tuple[str, int | None]] = {}
        for role, nodes in (("trunk", self.weights), ("stem", self._stems()), ("head", self._heads())):
            roles |= dict.fromkeys(self._names(nodes), (role, None))
        by_name = {node.name: node for node in self.graph.nodes}
        for join in sorted(joins, key=lambda join: -len(join.branch)):  # inner joins speak last
            if not join.residual:
                continue
            fork, end = by_name[join.fork], by_name[join.branch_node]
            finals = self._finals(fork, end)
            for node in self.reach.between(fork, end):
                if node not in self.weights or node in self.gate_of:
                    continue
                *first, last = self.paths[node]
                if node in finals or roles[last][0] != "last":
                    roles[last] = ("last" if node in finals else "branch", join.index)
                roles |= dict.fromkeys(first, ("branch", join.index))
            for path in join.shortcut_layers:
                roles[path] = ("shortcut", join.index)
        for node, product in self.gate_of.items():
            later = any(n is not node and self.reach.reaches(node, n) for n, p in self.gate_of.items() if p is product)
            roles |= dict.fromkeys(self.paths[node], ("gate" if later else "gate-last", None))
        return roles

    def _stems(self) -> list[fx.Node]:
        """Weight layers that an input reaches without passing another."""
        inputs = [n for n in self.graph.nodes if n.op == "placeholder"]
        return [
            n
            for n in self.weights
            if any(self.reach.reaches(i, n) for i in inputs)
            and not any(m is not n and self.reach.reaches(m, n) for m in self.weights)
        ]

    def _heads(self) -> list[fx.Node]:
        """Weight layers with none after them, whose values reach the output."""
        output = next(node for node in self.graph.nodes if node.op == "output")
        return [
            n
            for n in self.weights
            if self.reach.reaches(n, output) and not any(m is not n and self.reach.reaches(n, m) for m in self.weights)
        ]

    def _uses(self, path: str, tensors: tuple[Tensor, ...]) -> tuple[tuple[str, str], ...]:
        """How the graph uses each raw tensor of a module: see `Layer.uses`."""
        found = dict.fromkeys((t.local for t in tensors), "unused")
        for node in self.graph.nodes:
            if node.op == "get_attr" and str(node.target) in {t.name for t in tensors}:
                found[str(node.target).rpartition(".")[2]] = self._first_use(node)
        return tuple(found.items())

    def _first_use(self, node: fx.Node) -> str:
        """What the first operation that meets the parameter with something else does; reshapes are followed."""
        names = {"add": "added", "multiply": "multiplied", "concatenate": "concatenated"}
        while True:
            user = next(iter(node.users), None)
            if user is None:
                return "unused"
            if user.target in INDEXING and user.all_input_nodes[0] is node:
                return "indexed"
            if len([n for n in user.all_input_nodes if not is_size(n)]) == 1 and self.kinds[user] == "other":
                node = user
                continue
            if user.op == "call_function" and (use := ARGUMENTS.get(_argument_of(user, node))):
                return use
            return names.get(self.kinds[user], "read")

    def _geometry(self, node: fx.Node) -> Geometry | None:
        return geometry(self.root.get_submodule(self.paths[node][-1]))

    def _names(self, nodes: Iterable[fx.Node]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(path for node in nodes for path in self.paths[node]))


def _called(node: fx.Node, root: nn.Module) -> nn.Module | None:
    return root.get_submodule(str(node.target)) if node.op == "call_module" else None


def _argument_names(node: fx.Node) -> tuple[str, ...]:
    try:
        return tuple(inspect.signature(node.target).parameters)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return ()


def _argument_of(node: fx.Node, value: fx.Node) -> str:
    """The name of the argument under which a function gets the value; "" where it cannot be said."""
    names = (*zip(_argument_names(node), node.args, strict=False), *node.kwargs.items())
    return next((name for name, argument in names if argument is value), "")


def _own_tensors(path: str, module: nn.Module, state: Iterable[str]) -> tuple[Tensor, ...]:
    prefix = f"{path}." if path else ""
    own: list[Tensor] = []
    for buffer, entries in ((False, module._parameters), (True, module._buffers)):
        for name, value in entries.items():
            if value is not None and prefix + name in state:
                if value.dtype not in SAFETENSORS_DTYPES:
                    raise CoverageError("a tensor's type cannot be stored", where=prefix + name, got=str(value.dtype))
                dtype = SAFETENSORS_DTYPES[value.dtype]
                own.append(Tensor(prefix + name, tuple(value.shape), dtype, value.requires_grad and not buffer, buffer))
    return tuple(own)
