"""Layers: every module that owns tensors, with its kind, its role in the network and how raw parameters are used."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Iterable

import torch
from torch import fx, nn
from torch.nn import functional as F

from ..errors import CoverageError
from ..graphs import is_size
from ..layers import geometry, kind_of
from ..records import Join, Layer, Tensor
from .facts import Facts

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


def find_layers(facts: Facts, joins: tuple[Join, ...]) -> tuple[Layer, ...]:
    """Every module that owns tensors, in order of execution, then those the graph never calls."""
    return _Inventory(facts).layers(joins)


class _Inventory:
    def __init__(self, facts: Facts) -> None:
        self.facts = facts

    def layers(self, joins: tuple[Join, ...]) -> tuple[Layer, ...]:
        """Every module that owns tensors, in order of execution, then those the graph never calls."""
        roles = self._roles(joins)
        position = {
            str(n.target): i for i, n in reversed(list(enumerate(self.facts.graph.nodes))) if n.op == "call_module"
        }
        position |= {
            path: self.facts.reach.position[n]
            for n in self.facts.weights
            for path in self.facts.paths[n]
            if path not in position
        }
        owners: dict[int, str] = {}
        found: list[tuple[int, Layer]] = []
        state = set(self.facts.root.state_dict(keep_vars=True))
        for path, module in self.facts.root.named_modules():
            tensors = _own_tensors(path, module, state)
            if not tensors or id(module) in owners:
                continue
            owners[id(module)] = path
            parent = path.rpartition(".")[0]
            inside = self._enclosing(path, position)
            what = kind_of(module) or ("parameter" if any(not t.buffer for t in tensors) else "buffers")
            role, join = roles.get(path, ("trunk", None))
            reason = ""
            if inside and isinstance(self.facts.root.get_submodule(inside), nn.MultiheadAttention):
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
        node = next((n for n in self.facts.weights if path in self.facts.paths[n]), None)
        if node is None:
            return 1
        if node.op == "call_function":  # a library's attention function names its arguments
            return 3 if any(str(k).startswith("qkv") for k in _argument_names(node)) else 1
        attention = (F.softmax, torch.softmax, F.scaled_dot_product_attention, "softmax")
        after = {n for n in self.facts.graph.nodes if n is not node and self.facts.reach.reaches(node, n)}
        nearest = [n for n in after if n in self.facts.paths]
        return (
            3
            if any(
                (n.target in attention or isinstance(_called(n, self.facts.root), nn.Softmax))
                and not any(self.facts.reach.reaches(w, n) for w in nearest)
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
        for role, nodes in (("trunk", self.facts.weights), ("stem", self._stems()), ("head", self._heads())):
            roles |= dict.fromkeys(self.facts.names(nodes), (role, None))
        by_name = {node.name: node for node in self.facts.graph.nodes}
        for join in sorted(joins, key=lambda join: -len(join.branch)):  # inner joins speak last
            if not join.residual:
                continue
            fork, end = by_name[join.fork], by_name[join.branch_node]
            finals = self.facts.finals(fork, end)
            for node in self.facts.reach.between(fork, end):
                if node not in self.facts.weights or node in self.facts.gate_of:
                    continue
                *first, last = self.facts.paths[node]
                if node in finals or roles[last][0] != "last":
                    roles[last] = ("last" if node in finals else "branch", join.index)
                roles |= dict.fromkeys(first, ("branch", join.index))
            for path in join.shortcut_layers:
                roles[path] = ("shortcut", join.index)
        for node, product in self.facts.gate_of.items():
            later = any(
                n is not node and self.facts.reach.reaches(node, n)
                for n, p in self.facts.gate_of.items()
                if p is product
            )
            roles |= dict.fromkeys(self.facts.paths[node], ("gate" if later else "gate-last", None))
        return roles

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

    def _uses(self, path: str, tensors: tuple[Tensor, ...]) -> tuple[tuple[str, str], ...]:
        """How the graph uses each raw tensor of a module: see `Layer.uses`."""
        found = dict.fromkeys((t.local for t in tensors), "unused")
        for node in self.facts.graph.nodes:
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
            if len([n for n in user.all_input_nodes if not is_size(n)]) == 1 and self.facts.kinds[user] == "other":
                node = user
                continue
            if user.op == "call_function" and (use := ARGUMENTS.get(_argument_of(user, node))):
                return use
            return names.get(self.facts.kinds[user], "read")


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
