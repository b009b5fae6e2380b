"""The distinct kinds of residual block in a network: what lies between fork and join, before and after the rewrites.

Reads graphs and records; draws nothing.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from torch import fx, nn

from zero_convert.formulas import Constant, Formula
from zero_convert.records import Assignment, Join, Layer, Structure

MOST = 40  # operations in one drawing

# They move values or leave them alone: an edge says enough.
_SILENT_NAMES = """
    alias chunk clone contiguous detach drop_path dropout expand flatten float getattr getitem identity permute
    pin reshape size split squeeze swapaxes to transpose type_as unbind unflatten unsqueeze view
"""
_SILENT = frozenset(_SILENT_NAMES.split())
_SILENT_MODULES = frozenset(["Dropout", "Dropout2d", "DropPath", "Identity", "StochasticDepth"])
_WORDS = {"relu0": "ReLU, derivative 1 at 0", "relu": "ReLU", "ReLU": "ReLU", "gelu": "GELU", "silu": "SiLU"}
_SIGNS = {"add": "+", "iadd": "+", "add_": "+", "mul": "×", "imul": "×", "mul_": "×", "matmul": "@", "cat": "concat"}


@dataclass(frozen=True, slots=True)
class Box:
    """One operation.

    Attributes:
        label: what it is, "3×3 convolution 64 → 128, stride 2".
        kind: the same without sizes, by which blocks are compared.
        rule: what its weight became, in words; "" before, and where it has none.
        sources: places of the operations whose values it reads, in the block's list.
        mark: how it is marked, by what its weight became: "zero", "identity", "hadamard", "other" or "plain".
    """

    label: str
    kind: str
    rule: str
    sources: tuple[int, ...]
    mark: str = "plain"


Block = tuple[Box, ...]  # in order of execution; the first is the fork


@dataclass(frozen=True, slots=True)
class Kind:
    """Blocks that are alike but for their sizes.

    Attributes:
        names: of the blocks: the module that their branches have in common.
        before, after: of the first of them; None where no graph shows it, and `after` where there is no join any more.
        note: why something is not drawn.
    """

    names: tuple[str, ...]
    before: Block | None
    after: Block | None
    note: str = ""

    @property
    def others(self) -> tuple[str, ...]:
        """Other names than the first, each once."""
        return tuple(dict.fromkeys(name for name in self.names if name != self.names[0]))


class Scene:
    """A graph with its modules and records, in which blocks are looked for."""

    def __init__(
        self, root: nn.Module, graph: fx.Graph, structure: Structure, assignments: Iterable[Assignment] = ()
    ) -> None:
        self.structure = structure
        self._root = root
        self._nodes = {node.name: node for node in graph.nodes}
        self._layers = {layer.name: layer for layer in structure.layers}
        self._assignments = tuple(assignments)

    def block(self, fork: str, join: str, behind: str = "") -> Block | None:
        """What lies between two nodes, with the operation `behind`, if any; None where it cannot be drawn."""
        if fork not in self._nodes or join not in self._nodes:
            return None
        start, end = self._nodes[fork], self._nodes[join]
        inside = _between(start, end)
        ordered = [node for node in self._nodes.values() if node in inside]
        if start not in inside or len(ordered) > 8 * MOST:
            return None
        boxes = [Box(self._origin(start), "fork", "", ())]
        places: dict[fx.Node, tuple[int, ...]] = {start: (0,)}
        for node in ordered:
            if node is start:
                continue
            sources = tuple(dict.fromkeys(at for one in node.all_input_nodes for at in places.get(one, ())))
            if _is_size(node) or not sources:  # numbers, and what is made of them: no signal
                continue
            if node is not end and self._silent(node):
                places[node] = sources
                continue
            places[node] = (len(boxes),)
            boxes.append(replace(self._box(node), sources=sources))
        if behind in self._nodes:
            boxes.append(replace(self._box(self._nodes[behind]), sources=places[end]))
        return tuple(boxes) if len(boxes) <= MOST else None

    def _silent(self, node: fx.Node) -> bool:
        if node.op == "call_module":
            return type(self._root.get_submodule(str(node.target))).__name__ in _SILENT_MODULES
        return _name(node) in _SILENT

    def _origin(self, node: fx.Node) -> str:
        return (
            "input" if node.op == "placeholder" else f"from {node.target}" if node.op == "call_module" else "from above"
        )

    def _box(self, node: fx.Node) -> Box:
        if node.op == "call_module":
            path = str(node.target)
            layer = self._layers.get(path)
            if layer is None:
                label = _spaced(type(self._root.get_submodule(path)).__name__)
                frozen = "transform" in label
                return Box(label, label, "frozen" if frozen else "", (), "hadamard" if frozen else "plain")
            return self._layer_box(layer, path)
        name = _name(node)
        owner = next((str(i.target).rpartition(".")[0] for i in node.all_input_nodes if i.op == "get_attr"), "")
        held = self._layers.get(owner)
        if held is not None and held.geometry is not None:
            return self._layer_box(held, owner)
        label = _SIGNS.get(name) or _WORDS.get(name) or name.replace("_", " ").strip()
        return Box(label, label, "", ())

    def _layer_box(self, layer: Layer, path: str) -> Box:
        """With what its weight became; of an attention or a recurrent layer, what each of its matrices did."""
        inside = [each for each in self._assignments if each.tensor.name.startswith(f"{path}.")]
        matrices = [each for each in inside if len(each.tensor.shape) > 1]
        parts: dict[str, Formula] = {}  # by their words
        for each in matrices or [each for each in inside if each.tensor.name == f"{path}.weight"]:
            whole = each.formula.parts[0] is each.formula
            parts |= {each.rule if whole else part.rule: part for part in each.formula.parts}
        return Box(_label(layer), _kind(layer), "; ".join(parts), (), _mark(tuple(parts.values())))


def kinds(before: Scene | None, after: Scene | None, joins: Iterable[Join]) -> tuple[Kind, ...]:
    """The distinct kinds of residual block, in order of their first appearance.

    Args:
        before: the network as given; None where nobody kept it.
        after: the converted network; None where no graph stands for it.
        joins: those of the network as given.
    """
    found: dict[object, Kind] = {}
    for join in joins:
        if not join.residual:
            continue
        old = before.block(join.fork, join.node, join.activation) if before is not None else None
        new = _converted(after, join) if after is not None else None
        key = (_signature(old), _signature(new)) if old or new else join.node
        name = _common(join.branch) or join.node
        if key in found:
            found[key] = replace(found[key], names=(*found[key].names, name))
            continue
        note = "" if old and new else "Not drawn: too many operations, or no graph of the whole shows the block."
        found[key] = Kind((name,), old, new, note)
    return tuple(found.values())


def _converted(scene: Scene, join: Join) -> Block | None:
    """The block after the rewrites: all joins that the layers of the given one are in, from first fork to last join."""
    own = {*join.branch, *join.shortcut_layers}
    order = {name: index for index, name in enumerate(scene._nodes)}
    held = [
        each
        for each in scene.structure.joins
        if each.residual and own.intersection((*each.branch, *each.shortcut_layers)) and each.fork in order
    ]
    held = [each for each in held if own.issuperset((*each.branch, *each.shortcut_layers))] or held
    if not held:
        return None
    first = min(held, key=lambda each: order[each.fork])
    last = max(held, key=lambda each: order.get(each.node, -1))
    return scene.block(first.fork, last.node, last.activation)


def _between(start: fx.Node, end: fx.Node) -> set[fx.Node]:
    """The nodes on the ways from `start` to `end`, both included."""
    down, stack = {start}, [start]
    while stack:
        for user in stack.pop().users:
            if user not in down:
                down.add(user)
                stack.append(user)
    up, stack = {end}, [end]
    while stack:
        for node in stack.pop().all_input_nodes:
            if node not in up:
                up.add(node)
                stack.append(node)
    return down & up


def _is_size(node: fx.Node) -> bool:
    """Asks a tensor for something else than its values: its shape, its device."""
    name = _name(node)
    return name in ("dim", "numel", "size") or (name == "getattr" and node.args[1] not in ("T", "mT", "data"))


def _signature(block: Block | None) -> object:
    return None if block is None else tuple((box.kind, box.sources) for box in block)


def _name(node: fx.Node) -> str:
    return str(node.target if isinstance(node.target, str) else getattr(node.target, "__name__", node.target)).strip(
        "_"
    )


def _label(layer: Layer) -> str:
    geometry = layer.geometry
    if geometry is None:
        return _kind(layer)
    sizes = f"{geometry.in_channels} → {geometry.out_channels}"
    return f"{_kind(layer).partition(',')[0]} {sizes}{_stride(layer)}"


def _kind(layer: Layer) -> str:
    geometry = layer.geometry
    if layer.kind == "convolution" and geometry is not None:
        groups = "grouped " if geometry.groups > 1 else ""
        return f"{'×'.join(map(str, geometry.kernel))} {groups}conv{_stride(layer)}"
    return layer.kind if layer.kind in ("linear", "attention", "embedding") else _spaced(layer.cls.rpartition(".")[2])


def _stride(layer: Layer) -> str:
    stride = layer.geometry.stride if layer.geometry is not None else ()
    return f", /{max(stride)}" if stride and max(stride) > 1 else ""


def _spaced(name: str) -> str:
    """ "Hadamard transform" of "HadamardTransform", "batch norm" of "BatchNorm2d"."""
    if name in _WORDS or name.isupper():
        return _WORDS.get(name, name)
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", re.sub(r"\dd$", "", name)).lower()
    return words.replace("hadamard", "Hadamard")


def _common(names: Iterable[str]) -> str:
    """The innermost module that holds all layers."""
    columns = zip(*(name.split(".")[:-1] for name in names), strict=False)
    return ".".join(column[0] for column in itertools.takewhile(lambda column: len(set(column)) == 1, columns))


def _mark(parts: Sequence[Formula]) -> str:
    """How a box is marked whose weight became this."""
    one = parts[0] if len(parts) == 1 else None
    if not parts or (isinstance(one, Constant) and one.value == 1):
        return "plain"
    return "other" if one is None else "zero" if one.is_zero else one.family
