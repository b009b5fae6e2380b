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
outside the state dict are, see `leaves.constant`.

Of a network whose own Python stays around rewritten regions only what a recording shows can be described.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import fx, nn

from zero_convert.graph.queries import SIZES, is_size
from zero_convert.graph.ties import ties
from zero_convert.graph.traced import Traced

from .fixed_sizes import FixedSizes, rank_of, shape_of
from .functional_layers import functional_layer
from .leaves import constant, describe, spelled
from .permutations import order_of, permutation
from .rows import Reference, Row, ordered
from .vocabulary import (
    ALONG_AXES,
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

_GLOBAL_POOL = re.compile(r"adaptive_avg_pool(\d)d")


def describe_network(traced: Traced) -> dict[str, Any]:
    """The description of a network: plain values that canonical JSON can spell."""
    state = traced.root.state_dict(keep_vars=True)
    tensors = {name: value for name, value in state.items() if isinstance(value, torch.Tensor)}
    stored = ties(tensors)
    named = [[name, list(tensors[name].shape) if name in tensors else None, stored.get(name, name)] for name in state]
    graphs = {"train": traced.train, "evaluate": traced.evaluate}
    rows = {
        mode: _Description(traced.root, graph, mode, stored, literal=traced.whole).rows()
        for mode, graph in graphs.items()
    }
    return {"version": 1, "state": sorted(named, key=lambda row: str(row[0]).encode()), **rows}


class _Description:
    """The rows of one graph."""

    def __init__(
        self, root: nn.Module, graph: fx.Graph, mode: str, stored: Mapping[str, str], *, literal: bool
    ) -> None:
        self._root, self._graph, self._mode, self._stored = root, graph, mode, stored
        self._sizes = FixedSizes(root, literal=literal)
        self._rows: list[Row] = []
        self._value: dict[fx.Node, Any] = {}  # node → reference, or what stands for it
        self._readers: dict[int, list[fx.Node]] = {}  # number of a row → the nodes that have its value
        self._permuted: dict[fx.Node, tuple[Any, tuple[int, ...]]] = {}  # node → what was permuted, and how
        self._known: dict[str, Reference] = {}  # tensors that are read by name

    def rows(self) -> list[list[Any]]:
        """The rows, in the order in which the output needs them."""
        inputs, output = 0, None
        for node in self._graph.nodes:
            self._sizes.learn(node, order_of(node))
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
        return ordered(self._rows, output)

    def _row(self, name: str, attributes: dict[str, Any]) -> Reference:
        self._rows.append((name, attributes))
        return Reference(len(self._rows) - 1)

    def _set(self, node: fx.Node, value: Any) -> None:
        self._value[node] = value
        if isinstance(value, Reference):
            self._readers.setdefault(value, []).append(node)

    def _overwrite(self, node: fx.Node, value: Any) -> None:
        """From here on whoever reads the node, or a view of it, reads the value."""
        old = self._value.get(node)
        if isinstance(old, Reference) and old != value:
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
        if isinstance(value, torch.dtype | torch.device):
            return "type"
        if isinstance(value, complex | range):
            return str(value)
        return "..." if value is Ellipsis else type(value).__name__

    def _module(self, node: fx.Node) -> None:
        path = str(node.target)
        module = self._root.get_submodule(path)
        name, attributes = describe(module, path, self._stored)
        arguments = {str(index): value for index, value in enumerate(node.args)} | dict(node.kwargs)
        first = node.args[0] if node.args else next(iter(node.kwargs.values()), None)
        idle = DROPPING.fullmatch(name) and (
            self._mode == "evaluate" or attributes.get("p", attributes.get("drop_prob")) == "0"
        )
        if (name in ("identity", *PASSING) or idle) and isinstance(first, fx.Node):
            self._pass(node, first)
            return
        if name == "batch_norm":
            running = getattr(module, "running_mean", None) is not None and self._mode == "evaluate"
            attributes["statistics"] = "running" if running else "batch"
        row = self._added(node, name, {**self._dimensions(node, attributes), **self._tree(arguments)})
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
        elif name in PERMUTING or (name == "getattr" and node.args[1] in PERMUTING):
            self._permute(node, name, arguments)
        elif isinstance(first, fx.Node) and self._passes(name, node, arguments):
            self._pass(node, first)
        else:
            row = self._added(node, *self._operation(node, name, arguments))
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

    def _added(self, node: fx.Node, name: str, attributes: dict[str, Any]) -> Reference:
        """The row of an operation; of one along axes with the sizes of its inputs that the network fixes."""
        name, found = _plain_mean(node, name, attributes)
        if name in ALONG_AXES:
            inputs = [n for n in node.all_input_nodes if n.op != "get_attr" and rank_of(n) is not None]
            sizes = [["free" if size is None else str(size) for size in self._sizes.of(n)] for n in inputs]
            found |= {"sizes": sizes} if any(size != "free" for each in sizes for size in each) else {}
        return self._row(name, found)

    def _passes(self, name: str, node: fx.Node, arguments: Mapping[str, Any]) -> bool:
        if DROPPING.fullmatch(name):
            return not arguments.get("training", True) or arguments.get("p", 0.5) == 0
        if name == "getitem":
            index = arguments["index"]
            parts = index if isinstance(index, tuple) else (index,)
            whole = (part is None or part is Ellipsis or part == slice(None) for part in parts)
            return not any(isinstance(part, fx.Node) for part in parts) and all(whole)
        return name in PASSING or (name == "getattr" and arguments.get("name") == "data")

    def _pass(self, node: fx.Node, source: fx.Node) -> None:
        self._set(node, self._value.get(source, "size"))
        if source in self._permuted and shape_of(source) == shape_of(node):
            self._permuted[node] = self._permuted[source]

    def _permute(self, node: fx.Node, name: str, arguments: Mapping[str, Any]) -> None:
        source = node.args[0] if node.args else arguments.get("input")
        if not isinstance(source, fx.Node):
            self._set(node, self._row(name, self._tree(dict(arguments))))
            return
        order = order_of(node)
        if order is None:
            self._set(node, self._row("permute", {"0": self._value.get(source, "size")}))
            return
        base, before = self._permuted.get(source, (self._value.get(source, "size"), tuple(range(len(order)))))
        whole = tuple(before[axis] for axis in order)
        self._permuted[node] = (base, whole)
        moved = permutation(whole, self._sizes.of(node))
        self._set(node, self._row("permute", {"0": base, **moved}) if moved else base)

    def _dimensions(self, node: fx.Node, attributes: dict[str, Any]) -> dict[str, Any]:
        """The attributes with axes counted from the first, and sizes of windows once where all are alike."""
        found = dict(attributes)
        rank = next((r for n in node.all_input_nodes if n.op != "get_attr" and (r := rank_of(n)) is not None), None)
        if rank is not None and "dim" in found:
            found["dim"] = _positive(found["dim"], rank)
        for name in ("kernel_size", "stride", "padding", "dilation", "output_size"):
            value = found.get(name)
            if isinstance(value, list) and value and all(item == value[0] for item in value):
                found[name] = value[0]
        if found.get("stride") is not None and found.get("stride") == found.get("kernel_size"):
            del found["stride"]
        return found


def _plain_mean(node: fx.Node, name: str, attributes: dict[str, Any]) -> Row:
    """A pooling to a single position is the mean over its axes."""
    found = _GLOBAL_POOL.fullmatch(name)
    rank = next((r for n in node.all_input_nodes if (r := rank_of(n)) is not None), None)
    if found is None or rank is None or set(attributes) != {"0", "output_size"} or attributes["output_size"] != "1":
        return name, attributes
    axes = [str(axis) for axis in range(rank - int(found[1]), rank)]
    return "mean", {"0": attributes["0"], "dim": axes if len(axes) > 1 else axes[0]}


def _positive(dim: Any, rank: int) -> Any:
    """An axis, or several in rising order, counted from the first."""
    if isinstance(dim, list):
        axes = sorted((_positive(each, rank) for each in dim), key=str)
        return axes if len(axes) > 1 else axes[0]
    try:
        number = int(dim)
    except (TypeError, ValueError):
        return dim
    return str(number % rank) if rank else str(number)
