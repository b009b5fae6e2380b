"""A network's description, of which the architecture digest `za1` is made: the same from every version of a library.

    {"version": 1, "state": [[name, shape, stored as], …], "train": [row, …], "evaluate": [row, …]}

A row is one operation, [name, {argument: value}]: layers with kind, geometry and the names of their tensors, frozen
transforms with order, channels and permutation, dropout with its probability, activations, pooling, scalar factors. An
argument that another operation computed is that row's number. The rows of a graph stand in the order in which its
output, followed back from the first argument to the last, needs them; so neither the names of nodes nor the order in
which a tracer met them matters, and what nothing reads is not there. Numbers are text.

Views, casts and the arithmetic of sizes have no row: an edge goes through them. Permutations of axes have one, in which
axes that stay together count as one. What dropout does in evaluation mode is nothing. A result that is written into its
argument is what later readers of the argument read. Values of parameters are not in it, nor is their type; tensors
outside the state dict are, see `leaf_descriptions.constant`.

Of a network whose own Python stays around rewritten regions only what a recording shows can be described.
"""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import fx, nn

from zero_convert.formats.digests import canonical_json

from .functional_layers import functional_layer
from .leaf_descriptions import constant, describe, spelled
from .queries import SIZES, VIEWS, is_size
from .ties import ties
from .traced import Traced
from .vocabulary import (
    COMMUTATIVE,
    CREATING,
    DROPPING,
    PASSING,
    PERMUTING,
    changes_in_place,
    name_of,
    named_arguments,
    without_defaults,
)

Row = tuple[str, dict[str, Any]]
MODES = ("train", "evaluate")


def describe_network(traced: Traced) -> dict[str, Any]:
    """The description of a network: plain values that canonical JSON can spell."""
    state = traced.root.state_dict(keep_vars=True)
    tensors = {name: value for name, value in state.items() if isinstance(value, torch.Tensor)}
    stored = ties(tensors)
    named = [[name, list(tensors[name].shape) if name in tensors else None, stored.get(name, name)] for name in state]
    graphs = {"train": traced.train, "evaluate": traced.evaluate}
    rows = {mode: _Description(traced.root, graph, mode, stored).rows() for mode, graph in graphs.items()}
    return {"version": 1, "state": sorted(named, key=lambda row: str(row[0]).encode()), **rows}


class _Reference(int):
    """The number of a row, where an argument stands."""


class _Description:
    """The rows of one graph."""

    def __init__(self, root: nn.Module, graph: fx.Graph, mode: str, stored: Mapping[str, str]) -> None:
        self._root, self._graph, self._mode, self._stored = root, graph, mode, stored
        self._rows: list[Row] = []
        self._value: dict[fx.Node, Any] = {}  # node → reference, or what stands for it
        self._readers: dict[int, list[fx.Node]] = {}  # number of a row → the nodes that have its value
        self._permuted: dict[fx.Node, tuple[Any, tuple[int, ...]]] = {}  # node → what was permuted, and how
        self._known: dict[str, _Reference] = {}  # tensors that are read by name

    def rows(self) -> list[list[Any]]:
        """The rows, in the order in which the output needs them."""
        inputs, output = 0, None
        for node in self._graph.nodes:
            if node.op == "placeholder":
                self._set(node, self._row("input", {"index": str(inputs)}))
                inputs += 1
            elif node.op == "output":
                output = self._tree(node.args[0])
            elif node.op == "get_attr":
                self._set(node, self._attribute(str(node.target)))
            elif node.op == "call_module":
                self._module(node)
            else:
                self._call(node)
        return _ordered(self._rows, output)

    def _row(self, name: str, attributes: dict[str, Any]) -> _Reference:
        self._rows.append((name, attributes))
        return _Reference(len(self._rows) - 1)

    def _set(self, node: fx.Node, value: Any) -> None:
        self._value[node] = value
        if isinstance(value, _Reference):
            self._readers.setdefault(value, []).append(node)

    def _overwrite(self, node: fx.Node, value: Any) -> None:
        """From here on whoever reads the node, or a view of it, reads the value."""
        old = self._value.get(node)
        if isinstance(old, _Reference) and old != value:
            for reader in self._readers.pop(old, ()):
                self._set(reader, value)

    def _attribute(self, target: str) -> Any:
        if target not in self._known:
            if target in self._stored:
                row = self._row("tensor", {"name": self._stored[target]})
            else:
                path, _, name = target.rpartition(".")
                value = getattr(self._root.get_submodule(path), name, None)
                row = self._row("constant", {"value": constant(value)})
            self._known[target] = row
        return self._known[target]

    def _tree(self, value: Any) -> Any:
        """An argument: references, text, and lists and dicts of them."""
        if isinstance(value, fx.Node):
            return self._value.get(value, "size")
        if isinstance(value, tuple | list):
            return [self._tree(item) for item in value]
        if isinstance(value, Mapping):
            return {str(key): self._tree(item) for key, item in value.items()}
        if isinstance(value, slice):
            return {"slice": [self._tree(part) for part in (value.start, value.stop, value.step)]}
        if isinstance(value, torch.Tensor):
            return constant(value)
        if isinstance(value, bool | int | float | str) or value is None:
            return spelled(value)
        return "..." if value is Ellipsis else "type" if isinstance(value, torch.dtype | torch.device) else (
            spelled(str(value)) if isinstance(value, complex | range) else type(value).__name__
        )

    def _module(self, node: fx.Node) -> None:
        path = str(node.target)
        module = self._root.get_submodule(path)
        name, attributes = describe(module, path, self._stored)
        arguments = dict(zip(_forward_names(len(node.args)), node.args, strict=True)) | dict(node.kwargs)
        first = node.args[0] if node.args else next(iter(node.kwargs.values()), None)
        idle = DROPPING.fullmatch(name) and (self._mode == "evaluate" or attributes.get("p", attributes.get("drop_prob")) == "0")
        if (name in ("identity", *PASSING) or idle) and isinstance(first, fx.Node):
            self._pass(node, first)
            return
        if name == "batch_norm":
            running = getattr(module, "running_mean", None) is not None and self._mode == "evaluate"
            attributes["statistics"] = "running" if running else "batch"
        row = self._row(name, {**self._dimensions(node, attributes), **self._tree(arguments)})
        self._set(node, row)
        if getattr(module, "inplace", False) and isinstance(first, fx.Node):
            self._overwrite(first, row)

    def _call(self, node: fx.Node) -> None:
        name = name_of(node.target)
        arguments = named_arguments(node.target, node.args, node.kwargs)
        first = arguments.get("input", node.args[0] if node.args else None)
        if name in CREATING:
            fill = {"fill_value": self._tree(arguments["fill_value"])} if "fill_value" in arguments else {}
            self._set(node, self._row(name.removeprefix("new_").removesuffix("_like"), fill))
        elif name in SIZES or is_size(node):
            self._value[node] = "size"
        elif self._is_permutation(node, name):
            self._permute(node, name, arguments)
        elif isinstance(first, fx.Node) and self._passes(name, node, arguments):
            self._pass(node, first)
        else:
            row = self._row(*self._operation(node, name, arguments))
            self._set(node, row)
            if isinstance(first, fx.Node) and changes_in_place(node.target, arguments):
                self._overwrite(first, row)

    def _operation(self, node: fx.Node, name: str, arguments: dict[str, Any]) -> Row:
        layer = functional_layer(name, arguments, self._root, self._stored)
        if layer is not None:
            what, attributes, inputs = layer
            return what, {**attributes, **self._tree(inputs)}
        if DROPPING.fullmatch(name):
            arguments.pop("training", None)
        if name == "hardtanh" and (arguments.get("min_val"), arguments.get("max_val")) == (0, 6):
            return "relu6", {"0": self._tree(arguments["input"])}
        found = {key: self._tree(value) for key, value in without_defaults(name, arguments).items()}
        found = {"0" if key == "input" else key: value for key, value in self._dimensions(node, found).items()}
        if name in COMMUTATIVE and set(found) == {"0", "other"}:
            return name, {"terms": [found["0"], found["other"]]}
        return name, found

    def _passes(self, name: str, node: fx.Node, arguments: Mapping[str, Any]) -> bool:
        if DROPPING.fullmatch(name):
            return not arguments.get("training", True) or arguments.get("p", 0.5) == 0
        if name == "getitem":
            index = arguments["index"]
            parts = index if isinstance(index, tuple) else (index,)
            return all(part is None or part is Ellipsis or part == slice(None) for part in parts if not _node(part)) and (
                not any(map(_node, parts))
            )
        return name in PASSING or (name == "getattr" and arguments.get("name") == "data")

    def _pass(self, node: fx.Node, source: fx.Node) -> None:
        self._set(node, self._value.get(source, "size"))
        if source in self._permuted and _rank(source) == _rank(node):
            self._permuted[node] = self._permuted[source]

    def _is_permutation(self, node: fx.Node, name: str) -> bool:
        if name == "getattr":
            return node.args[1] in PERMUTING
        return name in PERMUTING

    def _permute(self, node: fx.Node, name: str, arguments: Mapping[str, Any]) -> None:
        source = node.args[0] if node.args else arguments.get("input")
        if not isinstance(source, fx.Node):
            self._set(node, self._row(name, self._tree(dict(arguments))))
            return
        rank = _rank(source)
        order = None if rank is None else _order(str(node.args[1]) if name == "getattr" else name, node, rank)
        if order is None:
            self._set(node, self._row("permute", {"0": self._value.get(source, "size")}))
            return
        base, before = self._permuted.get(source, (self._value.get(source, "size"), tuple(range(len(order)))))
        whole = tuple(before[axis] for axis in order)
        blocks = _blocks(whole)
        self._permuted[node] = (base, whole)
        self._set(node, base if len(blocks) == 1 else self._row("permute", {"0": base, "order": _ranks(blocks)}))

    def _dimensions(self, node: fx.Node, attributes: dict[str, Any]) -> dict[str, Any]:
        """The attributes with axes counted from the first, and sizes of windows once where all are alike."""
        found = dict(attributes)
        rank = next((r for n in node.all_input_nodes if n.op != "get_attr" and (r := _rank(n)) is not None), None)
        if rank is not None and "dim" in found:
            found["dim"] = _positive(found["dim"], rank)
        for name in ("kernel_size", "stride", "padding", "dilation", "output_size"):
            value = found.get(name)
            if isinstance(value, list) and value and all(item == value[0] for item in value):
                found[name] = value[0]
        if found.get("stride") is not None and found.get("stride") == found.get("kernel_size"):
            del found["stride"]
        return found


def _node(value: object) -> bool:
    return isinstance(value, fx.Node)


def _forward_names(count: int) -> list[str]:
    return [str(index) for index in range(count)]


def _rank(node: fx.Node) -> int | None:
    shape = node.meta.get("shape")
    return len(shape) if isinstance(shape, tuple | torch.Size) else None


def _positive(dim: Any, rank: int) -> Any:
    """An axis, or several in rising order, counted from the first."""
    if isinstance(dim, list):
        return sorted((_positive(each, rank) for each in dim), key=str)
    try:
        number = int(dim)
    except (TypeError, ValueError):
        return dim
    return str(number % rank) if rank else str(number)


def _order(name: str, node: fx.Node, rank: int) -> tuple[int, ...] | None:
    """For each axis of the result the axis of the source, or None where the arguments do not say."""
    axes = list(range(rank))
    if name in ("t", "T", "mT", "adjoint"):
        return tuple(reversed(axes)) if name in ("t", "T") else tuple(axes[:-2] + axes[:-3:-1])
    numbers = [*node.args[1:], *node.kwargs.values()]
    flat = [list(n) if isinstance(n, tuple | list) else n for n in numbers]
    if name == "permute":
        flat = flat[0] if len(flat) == 1 and isinstance(flat[0], list) else flat
        plain = [n % rank for n in flat if isinstance(n, int)]
        return tuple(plain) if sorted(plain) == axes else None
    if len(flat) != 2:
        return None
    one, other = (n if isinstance(n, list) else [n] for n in flat)
    if not all(isinstance(n, int) for n in (*one, *other)) or len(one) != len(other):
        return None
    one, other = [n % rank for n in one], [n % rank for n in other]
    if name in ("movedim", "moveaxis"):
        rest = [axis for axis in axes if axis not in one]
        for source, target in sorted(zip(one, other, strict=True), key=operator.itemgetter(1)):
            rest.insert(target, source)
        return tuple(rest)
    axes[one[0]], axes[other[0]] = other[0], one[0]
    return tuple(axes)


def _blocks(order: tuple[int, ...]) -> list[int]:
    """The first axis of each run of axes that stay together."""
    return [axis for i, axis in enumerate(order) if i == 0 or order[i - 1] + 1 != axis]


def _ranks(blocks: list[int]) -> list[str]:
    return [str(sorted(blocks).index(axis)) for axis in blocks]


# ---------------------------------------------------------------------------------------------------------------------


def _ordered(rows: list[Row], output: Any) -> list[list[Any]]:
    """The rows that the output needs, each after those it reads, and last the output itself."""
    marks = _marks(rows)
    for name, attributes in rows:
        if name in COMMUTATIVE and "terms" in attributes:
            attributes["terms"].sort(key=lambda term: marks[term] if isinstance(term, _Reference) else str(term))
    number: dict[int, int] = {}
    for start in _references(output):
        stack = [start]
        while stack:
            at = stack[-1]
            missing = [each for each in _references(rows[at][1]) if each not in number]
            if at in number:
                stack.pop()
            elif missing:
                stack += reversed(missing)
            else:
                number[at] = len(number)
                stack.pop()
    found = [[rows[at][0], _renumbered(rows[at][1], number)] for at in number]
    return [*found, ["output", _renumbered(output, number)]]


def _marks(rows: list[Row]) -> list[str]:
    """Of each row a digest of all that it is computed from; a row reads earlier ones only."""
    marks: list[str] = []
    for name, attributes in rows:
        known = {index: marks[index] for index in _references(attributes)}
        plain = _renumbered(attributes, known)
        if name in COMMUTATIVE and "terms" in plain:
            plain["terms"] = sorted(map(str, plain["terms"]))
        marks.append(hashlib.sha256(canonical_json([name, plain]).encode("ascii")).hexdigest())
    return marks


def _references(value: Any) -> Iterator[int]:
    if isinstance(value, _Reference):
        yield value
    elif isinstance(value, dict):
        for key in sorted(value):
            yield from _references(value[key])
    elif isinstance(value, list):
        for item in value:
            yield from _references(item)


def _renumbered(value: Any, number: Mapping[int, Any]) -> Any:
    if isinstance(value, _Reference):
        return number[value]
    if isinstance(value, dict):
        return {key: _renumbered(item, number) for key, item in value.items()}
    return [_renumbered(item, number) for item in value] if isinstance(value, list) else value


__all__ = ["MODES", "VIEWS", "describe_network"]
