"""`as_strided` in an exported program: a view of all elements becomes a `Reshape`, or nothing.

torch leaves such views where pooling meets channels-last activations; its exporter makes one Range for each axis and a
Gather over the flat tensor of them, and takes the order in which ONNX counts elements for that of the memory.

    all elements, once    Transpose to the order of the memory, Reshape, Transpose; each only where it changes anything
    some, or repeatedly   the Gather stays, over the elements in the order of the memory
    of a view with gaps   ModelError: the elements in the gaps are not known to ONNX
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import fx

from zero_convert.errors import ModelError

_TARGETS = (torch.ops.aten.as_strided.default, torch.ops.aten.as_strided_copy.default)


def replace_strided_views(model: ir.Model, program: torch.export.ExportedProgram) -> None:
    """Changes the model in place.

    Args:
        model: whose values have the names of the program's nodes.
        program: that it was translated from, after its decompositions.
    Raises:
        ModelError: a view that has no form in ONNX.
    """
    nodes = [node for node in program.graph.nodes if node.op == "call_function" and node.target in _TARGETS]
    if not nodes:
        return
    made = [value for node in model.graph for value in node.outputs]
    values = [*model.graph.inputs, *model.graph.initializers.values(), *made]
    count = Counter(value.name for value in values)
    named = {value.name: value for value in values if count[value.name] == 1}
    for node in nodes:
        source, view = named.get(node.args[0].name), named.get(node.name)
        if source is not None and view is not None:
            _replace(model.graph, node, source, view)


def _replace(graph: ir.Graph, node: fx.Node, source: ir.Value, view: ir.Value) -> None:
    """Write one view in another way, where there is one."""
    given, wanted = node.args[0].meta["val"], node.meta["val"]  # type: ignore[union-attr]
    memory = _memory_order(given.shape, given.stride())
    offset = node.args[3] if len(node.args) > 3 else node.kwargs.get("storage_offset")
    moved = offset is not None and not _equal(offset, given.storage_offset())
    order = None if moved or not _equal(_count(given), _count(wanted)) else _memory_order(wanted.shape, wanted.stride())
    if memory is None:
        raise ModelError(
            "the strided view of a view cannot be written to ONNX",
            where=str(node.meta.get("stack_trace") or node.name).strip().splitlines()[-1].strip(),
            got=f"as_strided of a tensor with sizes {tuple(given.shape)} and strides {given.stride()}",
            expected="a tensor without gaps in memory",
            fix="Take the values with slices, `unfold` or `reshape`, or write safetensors instead.",
        )
    maker = view.producer()
    assert maker is not None
    sizes = [wanted.shape[axis] for axis in order or ()]
    free = [axis for axis, size in enumerate(sizes) if not _is_int(size)]
    if order is None or len(free) > 1 or (free and 0 in sizes):
        _gather_from_memory(graph, maker, source, memory)
        return
    value = _transposed(graph, maker, source, memory)
    if not _same_sizes([given.shape[axis] for axis in memory], sizes):
        target = np.array([-1 if axis in free else int(size) for axis, size in enumerate(sizes)], np.int64)
        value = _added(graph, maker, "Reshape", [value, _constant(graph, maker, target)])
    value = _transposed(graph, maker, value, [order.index(axis) for axis in range(len(order))])
    if value is not source:
        value.type, value.shape = view.type, view.shape
    for index, output in enumerate(graph.outputs):
        if output is view:
            graph.outputs[index] = value
    ir.convenience.replace_all_uses_with(view, value)


def _memory_order(sizes: Sequence[Any], strides: Sequence[Any]) -> list[int] | None:
    """The axes from the slowest to the fastest in memory, those of size 1 where they are; None where there are gaps."""
    left = [axis for axis, size in enumerate(sizes) if not _equal(size, 1)]
    places, order, expected = list(left), list(range(len(sizes))), 1
    for place in reversed(places):
        found = next((axis for axis in reversed(left) if _equal(strides[axis], expected)), None)
        if found is None:
            return None
        left.remove(found)
        order[place] = found
        expected = expected * sizes[found]
    return order


def _gather_from_memory(graph: ir.Graph, maker: ir.Node, source: ir.Value, memory: list[int]) -> None:
    """The exporter's Gather reads the flat tensor in the order of the memory."""
    flat = maker.inputs[0].producer() if maker.op_type == "Gather" and maker.inputs[0] is not None else None
    if memory == list(range(len(memory))):
        return
    if flat is None or flat.op_type != "Reshape" or flat.inputs[0] is not source:
        raise ModelError(
            "the strided view of a transposed tensor cannot be written to ONNX",
            where=str(maker.outputs[0].name),
            got=maker.op_type,
            expected="a Gather over the flat tensor",
            fix="Take the values with slices, `unfold` or `reshape`, or write safetensors instead.",
        )
    flat.replace_input_with(0, _transposed(graph, flat, source, memory))


def _transposed(graph: ir.Graph, before: ir.Node, value: ir.Value, order: list[int]) -> ir.Value:
    if order == list(range(len(order))):
        return value
    return _added(graph, before, "Transpose", [value], [ir.AttrInt64s("perm", order)])


def _constant(graph: ir.Graph, before: ir.Node, value: Any) -> ir.Value:
    return _added(graph, before, "Constant", [], [ir.AttrTensor("value", ir.tensor(value))])


def _added(
    graph: ir.Graph, before: ir.Node, kind: str, inputs: list[ir.Value], attributes: Sequence[ir.Attr] = ()
) -> ir.Value:
    """The output of a new node in front of another."""
    node = ir.Node("", kind, inputs, attributes, num_outputs=1)
    graph.insert_before(before, node)
    value, dtype = node.outputs[0], inputs[0].dtype if inputs else ir.DataType.INT64
    if dtype is not None:
        value.dtype = dtype
    return value


def _count(tensor: Any) -> Any:
    return math.prod(tensor.shape)


def _same_sizes(first: Sequence[Any], second: Sequence[Any]) -> bool:
    return len(first) == len(second) and all(_equal(a, b) for a, b in zip(first, second, strict=True))


def _is_int(size: Any) -> bool:
    return isinstance(size, int)


def _equal(a: Any, b: Any) -> bool:
    """Whether two sizes are equal whatever the free ones are. Nothing is asked of what is not known."""
    if isinstance(a, int) and isinstance(b, int):
        return a == b
    first, second = (each if isinstance(each, int) else each.node.expr for each in (a, b))
    difference: Any = first - second  # of sympy
    return bool(difference.expand() == 0)
