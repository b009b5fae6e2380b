"""A graph whose constants are computed and whose shapes are written down. No torch here.

    constants    a node of which every input is a constant of the graph becomes one (`operators/`)
    sizes        `Shape` of sizes that are fixed becomes a constant; the target of a `Reshape` becomes one where only
                 one size of its result is free: `[-1, 8, 64]`. It stays computed with two free sizes, or beside a size
                 of 0, from which no -1 can be told
    tables       a `Gather` by a constant of several axes is one by a vector, and a `Reshape`: importers take constant
                 indices for a vector
    casts        to the type of another value become casts to that type
    attributes   that have their default value are left out
    nodes        that nothing reads any more are gone

Weights are never touched: whatever is stored in the state dict is an input here, with a type and sizes and without
values. The result is the same for the same graph, and a second pass changes nothing. Constants grow by at most
`operators.values.LIMIT` bytes each; what is larger stays computed.
"""

from __future__ import annotations

import collections
from collections.abc import Iterable, Iterator, MutableMapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, GraphProto, NodeProto, TensorProto, ValueInfoProto

from .operators import CASTS, Array, evaluate

_READ_LATER = 1024  # elements; longer vectors tell no shapes
_KEPT = frozenset({"If", "Loop", "Scan", "Constant"})
_ATTRIBUTES = (AttributeProto.INT, AttributeProto.INTS, AttributeProto.FLOAT, AttributeProto.FLOATS,
               AttributeProto.STRING, AttributeProto.TENSOR)  # fmt: skip


def simplify(
    graph: GraphProto,
    constants: MutableMapping[str, TensorProto],
    states: Sequence[ValueInfoProto],
    opsets: Sequence[onnx.OperatorSetIdProto],
) -> None:
    """Changes the graph in place, until a pass over it changes nothing.

    Args:
        graph: names in it are unique, also those inside of its nodes' graphs; `value_info` is used where it is there.
        constants: tensors that the graph reads by name besides those of its `Constant` nodes; computed ones are added.
        states: signatures of the tensors that the graph reads and that are not constants.
    """
    while _Pass(graph, constants, signatures(graph, constants, states, opsets)).run():
        pass
    _remove_unread(graph)
    versions = {each.domain: each.version for each in opsets}
    for node in all_nodes(graph.node):
        _drop_defaults(node, versions)


def all_nodes(nodes: Iterable[NodeProto]) -> Iterator[NodeProto]:
    """The nodes, and those of the graphs inside them."""
    for node in nodes:
        yield node
        for inner in _graphs(node):
            yield from all_nodes(inner.node)


def constant_of(node: NodeProto) -> TensorProto | None:
    """The tensor of a Constant node, if it is one of numbers."""
    if node.op_type != "Constant" or node.domain or len(node.attribute) != 1:
        return None
    (attribute,) = node.attribute
    if attribute.type not in _ATTRIBUTES or attribute.name.startswith(("value_string", "sparse")):
        return None
    if attribute.name == "value":
        given: TensorProto = attribute.t
        return given
    values: Any = onnx.helper.get_attribute_value(attribute)
    shape = [len(values)] if attribute.name.endswith("s") else []
    kind = TensorProto.INT64 if "int" in attribute.name else TensorProto.FLOAT
    made: TensorProto = onnx.helper.make_tensor("", kind, shape, values if shape else [values])
    return made


def signatures(
    graph: GraphProto,
    constants: MutableMapping[str, TensorProto],
    states: Sequence[ValueInfoProto],
    opsets: Sequence[onnx.OperatorSetIdProto],
) -> dict[str, ValueInfoProto]:
    """Name → type and sizes of the values, as the exporter told them and as the onnx library infers them.

    Args: as for `simplify`. Of a name that two inner graphs have, the signature of one.
    """
    whole = GraphProto(name="signatures", input=[*graph.input, *states], output=graph.output)
    whole.node.extend(graph.node)
    whole.value_info.extend(graph.value_info)
    for name, tensor in constants.items():
        if np.prod(tensor.dims, dtype=np.int64) <= _READ_LATER:
            whole.initializer.add().CopyFrom(tensor)
            whole.initializer[-1].name = name
        else:
            whole.input.append(onnx.helper.make_tensor_value_info(name, tensor.data_type, tensor.dims))
    model = onnx.ModelProto(ir_version=onnx.IR_VERSION, graph=whole, opset_import=opsets)
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    found = {each.name: each for each in (*inferred.value_info, *inferred.input, *inferred.output)}
    for node in all_nodes(inferred.node):
        for inner in _graphs(node):
            found.update((each.name, each) for each in (*inner.value_info, *inner.input, *inner.output))
    return found


class _Pass:
    """One pass over a graph and the graphs inside its nodes, in their order."""

    def __init__(
        self, graph: GraphProto, constants: MutableMapping[str, TensorProto], known: dict[str, ValueInfoProto]
    ) -> None:
        self._graph, self._tensors, self._known = graph, constants, known
        self._values: dict[str, Array] = {}  # constants, and vectors of sizes of which some are not known
        self._makers: dict[str, NodeProto] = {}
        self._renamed: dict[str, str] = {}
        self._changed = False
        self._twice = _defined_twice(graph)
        for name, tensor in constants.items():
            self._read(name, tensor)

    def run(self) -> bool:
        """Whether anything changed."""
        self._over(self._graph)
        return self._changed

    def _over(self, graph: GraphProto) -> None:
        for tensor in graph.initializer:
            if tensor.name not in self._twice:
                self._read(tensor.name, tensor)
        kept = []
        for node in graph.node:
            for index, name in enumerate(node.input):
                node.input[index] = self._renamed.get(name, name)
            for inner in _graphs(node):
                self._over(inner)
            for made in () if self._gone(node) else self._by_vector(node):
                kept.append(made)
                self._makers.update((name, made) for name in made.output)
        del graph.node[:]
        graph.node.extend(kept)
        outside = {each.name for each in self._graph.output} if graph is self._graph else set()
        for value in graph.output:
            if value.name not in outside:
                value.name = self._renamed.get(value.name, value.name)

    def _gone(self, node: NodeProto) -> bool:
        """Whether the node is not needed any more, because its outputs are constants or other values."""
        if node.domain or node.op_type in _KEPT or any(_graphs(node)) or self._twice & set(node.output):
            return self._is_constant(node)
        self._name_cast(node)
        answer = self._answer(node)
        if answer is not None and all(value.dtype != object for value in answer):
            for name, value in zip(node.output, answer, strict=False):
                if name:
                    self._set(name, value)
            self._changed = True
            return True
        if answer is not None:
            self._values.update(zip(node.output, answer, strict=False))
        if node.op_type == "Reshape":
            return self._reshaped(node)
        return False

    def _is_constant(self, node: NodeProto) -> bool:
        """Whether it is a `Constant`, whose tensor is set aside."""
        tensor = constant_of(node)
        if tensor is None or node.output[0] in self._twice:
            return False
        self._read(node.output[0], tensor)
        return True

    def _answer(self, node: NodeProto) -> list[Array] | None:
        """What is known of the outputs."""
        attributes = {each.name: _attribute(each) for each in node.attribute}
        if node.op_type == "Shape":
            sizes = self._sizes(node.input[0])
            return None if sizes is None else [sizes[attributes.get("start", 0) : attributes.get("end", len(sizes))]]
        inputs = [self._values.get(name) if name else None for name in node.input]
        if not inputs or any(name and value is None for name, value in zip(node.input, inputs, strict=True)):
            return None
        answer = evaluate(node.op_type, inputs, attributes)
        return None if answer is None else [_whole(value) for value in answer]

    def _sizes(self, name: str) -> Array | None:
        """The sizes of a value as a vector; those that are free are objects of their own."""
        if name in self._values and self._values[name].dtype != object:
            return np.array(self._values[name].shape, np.int64)
        dims = _dims(self._known.get(name))
        return None if dims is None else _whole(np.array([*dims, None], object)[:-1])

    def _reshaped(self, node: NodeProto) -> bool:
        """Write the target of a Reshape down, where one free size is left; whether it is the vector of one that was."""
        target, sizes = self._values.get(node.input[1]), _dims(self._known.get(node.output[0]))
        if target is not None and target.dtype != object:
            if not (target == 0).any():
                self._drop(node, "allowzero")
            return self._is_vector_again(node, target)
        free = [] if sizes is None else [axis for axis, size in enumerate(sizes) if not isinstance(size, int)]
        if sizes is None or len(free) > 1:
            sizes = None if target is None else tuple(target)
            free = [] if sizes is None else [axis for axis, size in enumerate(sizes) if not isinstance(size, int)]
        if sizes is None or len(free) > 1 or 0 in sizes or (-1 in sizes and free):
            return False
        value = np.array([-1 if axis in free else size for axis, size in enumerate(sizes)], np.int64)
        node.input[1] = f"{node.output[0]}<target>"
        self._set(node.input[1], value)
        self._drop(node, "allowzero")
        self._changed = True
        return False

    def _is_vector_again(self, node: NodeProto, target: Array) -> bool:
        """`Reshape(Squeeze(Shape(x, i, i + 1)), [-1])` is the vector that was squeezed."""
        squeeze = self._makers.get(node.input[0])
        shape = self._makers.get(squeeze.input[0]) if squeeze is not None and squeeze.op_type == "Squeeze" else None
        if shape is None or shape.op_type != "Shape" or target.tolist() not in ([-1], [1]):
            return False
        sizes = self._sizes(shape.input[0])
        given = {each.name: each.i for each in shape.attribute}
        if sizes is None or len(sizes[given.get("start", 0) : given.get("end", len(sizes))]) != 1:
            return False
        if node.output[0] in {each.name for each in self._graph.output}:
            return False
        self._renamed[node.output[0]] = shape.output[0]
        self._changed = True
        return True

    def _by_vector(self, node: NodeProto) -> list[NodeProto]:
        """The node; a Gather by a constant of several axes is one by a vector, and a Reshape."""
        index = self._values.get(node.input[1]) if node.op_type == "Gather" and not node.domain else None
        sizes = _dims(self._known.get(node.input[0])) if index is not None and index.ndim > 1 else None
        if index is None or sizes is None or self._twice & set(node.output):
            return [node]
        axis = next((each.i for each in node.attribute if each.name == "axis"), 0) % len(sizes)
        target = (*sizes[:axis], *index.shape, *sizes[axis + 1 :])
        free = [place for place, size in enumerate(target) if not isinstance(size, int)]
        if len(free) > 1 or 0 in target:
            return [node]
        flat, rows, shape = (f"{node.output[0]}<{part}>" for part in ("index", "rows", "sizes"))
        self._set(flat, index.reshape(-1))
        self._set(shape, np.array([-1 if place in free else size for place, size in enumerate(target)], np.int64))
        reshape = NodeProto(op_type="Reshape", input=[rows, shape], output=node.output)
        node.input[1], node.output[0] = flat, rows
        self._changed = True
        return [node, reshape]

    def _set(self, name: str, value: Array) -> None:
        """The value is a constant of that name."""
        self._values[name] = value
        self._tensors[name] = onnx.numpy_helper.from_array(np.ascontiguousarray(value).reshape(value.shape))

    def _name_cast(self, node: NodeProto) -> None:
        """A cast to the type of another value becomes a cast to that type."""
        if node.op_type != "CastLike" or len(node.input) < 2:
            return
        like = self._tensors.get(node.input[1])
        kind = like.data_type if like is not None else _kind(self._known.get(node.input[1]))
        if kind:
            node.op_type = "Cast"
            del node.input[1:]
            del node.attribute[:]
            node.attribute.append(onnx.helper.make_attribute("to", kind))
            self._changed = True

    def _drop(self, node: NodeProto, name: str) -> None:
        kept = [attribute for attribute in node.attribute if attribute.name != name]
        self._changed |= len(kept) < len(node.attribute)
        del node.attribute[:]
        node.attribute.extend(kept)

    def _read(self, name: str, tensor: TensorProto) -> None:
        self._tensors[name] = tensor
        if tensor.data_type in CASTS:
            self._values[name] = onnx.numpy_helper.to_array(tensor)


# ----------------------------------------------------------------------------------------------------------------------


def _defined_twice(graph: GraphProto) -> set[str]:
    """Names that more than one value has: those inside of two branches."""
    count = collections.Counter(name for node in all_nodes(graph.node) for name in node.output if name)
    for node in all_nodes(graph.node):
        for inner in _graphs(node):
            count.update(each.name for each in (*inner.input, *inner.initializer))
    return {name for name, times in count.items() if times > 1}


def _dims(value: ValueInfoProto | None) -> tuple[Any, ...] | None:
    """The sizes of a value: integers, or an object where one is free; None where not even their number is known."""
    if value is None or not value.type.tensor_type.HasField("shape"):
        return None
    dims = value.type.tensor_type.shape.dim
    return tuple(int(d.dim_value) if d.HasField("dim_value") else d.dim_param or "?" for d in dims)


def _kind(value: ValueInfoProto | None) -> int:
    return 0 if value is None else int(value.type.tensor_type.elem_type)


def _whole(value: Array) -> Array:
    """A vector of known integers as one."""
    known = value.dtype == object and all(isinstance(each, int) for each in value.flat)
    return value.astype(np.int64) if known else value


def _attribute(attribute: AttributeProto) -> Any:
    value = onnx.helper.get_attribute_value(attribute)
    return onnx.numpy_helper.to_array(value) if isinstance(value, TensorProto) else value


def _graphs(node: NodeProto) -> Iterator[GraphProto]:
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            yield attribute.g
        yield from attribute.graphs


def _remove_unread(graph: GraphProto) -> None:
    """Take away nodes of which no output is read, and what only these read."""

    def prune(inner: GraphProto, read: set[str]) -> None:
        kept = []
        read |= {each.name for each in inner.output}
        for node in reversed(inner.node):
            if any(name in read for name in node.output):
                kept.append(node)
                read |= set(node.input)
                for body in _graphs(node):
                    prune(body, read)
        del inner.node[:]
        inner.node.extend(reversed(kept))

    prune(graph, set())


def _drop_defaults(node: NodeProto, versions: dict[str, int]) -> None:
    """Leave out the attributes that have the value which the operator's definition gives them."""
    version = versions.get(node.domain)
    if version is None or not onnx.defs.has(node.op_type, node.domain):
        return
    schema = onnx.defs.get_schema(node.op_type, version, node.domain)
    kept = [each for each in node.attribute if not _is_default(each, schema.attributes.get(each.name))]
    del node.attribute[:]
    node.attribute.extend(kept)


def _is_default(attribute: AttributeProto, definition: Any) -> bool:
    default = None if definition is None else definition.default_value
    if not default or not default.type or default.type != attribute.type:
        return False
    return bool(onnx.helper.get_attribute_value(default) == onnx.helper.get_attribute_value(attribute))
