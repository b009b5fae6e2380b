"""The canonical form of an exported graph: names, order and constants that depend on the network alone. No torch here.

    inputs    as in `forward`; outputs as its result names them; the batch dimension is called `batch`
    nodes     what the output does not need is gone; functions are inlined; attributes by name; `/Conv_12` is the name
              of node 12 and of its output, further outputs are `/Split_12:1`, `/Split_12:2`, …
    states    keep the names of the state dict
    constants equal ones are one; they are nodes and come first, in the order in which they are needed

Doc strings, metadata and shapes of values in between are left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

import onnx
import onnx_ir as ir
from onnx_ir.passes.common import InlinePass, RemoveUnusedNodesPass

from .simplification import all_nodes, constant_of, simplify

BATCH = "batch"


def canonical(
    model: ir.Model, states: Mapping[str, str], outputs: Sequence[str], batched: bool
) -> tuple[bytes, bytes, list[onnx.ValueInfoProto]]:
    """The graph as protobuf, the part before the initializers and the part after them, and their signatures.

    Args:
        model: as exported; it is changed.
        states: every name of the state dict → the name it is stored under.
        outputs: the names that the results should have.
        batched: the free sizes of the inputs are numbers of samples.
    """
    _drop_missing_biases(model)
    for step in (InlinePass(), RemoveUnusedNodesPass()):
        step(model)
    initializers = list(model.graph.initializers.values())
    arguments = [str(value.name) for value in model.graph.inputs]
    model.graph.initializers.clear()  # the states' values are not needed here, and are large
    writer = _Writer(states.values(), arguments, outputs)
    for value, name in zip(model.graph.inputs, arguments, strict=True):
        value.name = writer.renamed(writer.free(name))
    constants: dict[str, onnx.TensorProto] = {}
    for value in initializers:
        name, tensor = str(value.name), value.const_value
        value.name = writer.renamed(states.get(name))
        if name not in states and tensor is not None:
            constants[value.name] = ir.to_proto(tensor)
    whole = ir.to_proto(model)
    proto = whole.graph
    signatures = [ir.to_proto(value) for value in initializers if value.name not in constants]
    simplify(proto, constants, signatures, whole.opset_import)
    writer.constants = {name: _plain_tensor(tensor) for name, tensor in constants.items()}
    nodes = writer.graph(proto)
    wanted = [writer.free(name) for name in outputs]
    nodes = writer.named_outputs(nodes, [value.name for value in proto.output], wanted)
    read = {name for node in all_nodes(nodes) for name in node.input}
    nodes += writer.readers(name for name in sorted(set(states.values()), key=str.encode) if name not in read)
    head = onnx.GraphProto(node=[*writer.constant_nodes, *nodes], name="zero_convert")
    sizes = _Sizes(batched)
    tail = onnx.GraphProto(input=[sizes.signature(value, writer.names[value.name]) for value in proto.input])
    sizes.batched = False
    tail.output.extend(sizes.signature(value, name) for value, name in zip(proto.output, wanted, strict=True))
    for each in signatures:
        each.name = writer.names[each.name]
    once = list({each.name: each for each in signatures}.values())  # of tied tensors one is stored
    return head.SerializeToString(deterministic=True), tail.SerializeToString(deterministic=True), once


def _drop_missing_biases(model: ir.Model) -> None:
    """Take away the zeros that torch puts where a convolution has no bias.

    It computes them from the weight's sizes, and wrongly so for three axes, where ONNX Runtime refuses the node. The
    optimizer that would take them away changes weights as well.
    """
    for node in model.graph.all_nodes():
        if node.op_type in ("Conv", "ConvTranspose") and len(node.inputs) == 3:
            value = node.inputs[2]
            for kind in ("Expand", "CastLike"):
                made = value.producer() if value is not None else None
                value = made.inputs[0] if made is not None and made.op_type == kind else None
            zero = ir.convenience.get_const_tensor(value) if value is not None and value.producer() else None
            if zero is not None and not zero.numpy().any():
                node.resize_inputs(2)


class _Writer:
    """Writes a graph down anew, one node after another.

    Attributes:
        names: of the exported graph's values → in ours.
        constants: name of a value in the exported graph → its tensor, until a node of ours holds it.
        constant_nodes: the constants that are needed, in the order in which they are.
    """

    def __init__(self, states: Iterable[str], inputs: Sequence[str], outputs: Sequence[str]) -> None:
        self.names: dict[str, str] = {"": ""}
        self.constants: dict[str, onnx.TensorProto] = {}
        self.constant_nodes: list[onnx.NodeProto] = []
        self._taken = set(states)
        self._known: dict[bytes, str] = {}
        reserved = [*self._taken, *inputs, *outputs]
        self._prefix = "/"
        while any(name.startswith(self._prefix) for name in reserved):
            self._prefix += "/"
        self._count = self._renamed = 0

    def renamed(self, name: str | None) -> str:
        """A name for a value of the exported graph that nothing else in it has; `name` is ours, if it is known yet.

        torch lets an argument, a parameter and a result in between have one name.
        """
        made = f"<{self._renamed}>"
        self._renamed += 1
        if name is not None:
            self.names[made] = name
        return made

    def free(self, name: str) -> str:
        """The name, or with underscores where the state dict, an input or an output has it already."""
        while name in self._taken:
            name += "_"
        self._taken.add(name)
        return name

    def graph(self, graph: onnx.GraphProto) -> list[onnx.NodeProto]:
        """The nodes of a graph in our names; its constants are set aside."""
        nodes = []
        for tensor in graph.initializer:  # of a graph inside a node; the main one has none any more
            self.constants[tensor.name] = _plain_tensor(tensor)
        for node in graph.node:
            if (tensor := constant_of(node)) is not None:
                self.constants[node.output[0]] = _plain_tensor(tensor)
            else:
                nodes.append(self._node(node))
        return nodes

    def named_outputs(
        self, nodes: list[onnx.NodeProto], exported: Sequence[str], wanted: Sequence[str]
    ) -> list[onnx.NodeProto]:
        """The nodes, so that the results have the names `wanted`."""
        makers = {name: node for node in nodes for name in node.output if name}
        given: dict[str, str] = {}
        for old, new in zip(exported, wanted, strict=True):
            name = self._read(old)
            if name in makers and name not in given:
                given[name] = new
            else:  # an input, a state or a constant leaves as it is, or a result leaves twice
                nodes.append(
                    onnx.NodeProto(op_type="Identity", name=self._next("Identity"), input=[name], output=[new])
                )
        for node in all_nodes(nodes):
            for names in (node.input, node.output):
                for index, name in enumerate(names):
                    if name in given:
                        names[index] = given[name]
        return nodes

    def readers(self, names: Iterable[str]) -> list[onnx.NodeProto]:
        """A node for each state that none reads."""
        made = []
        for name in names:
            own = self._next("Identity")
            made.append(onnx.NodeProto(op_type="Identity", name=own, input=[name], output=[own]))
        return made

    def _node(self, node: onnx.NodeProto) -> onnx.NodeProto:
        inputs = [self._read(name) for name in node.input]
        own = self._next(node.op_type)
        made = onnx.NodeProto(op_type=node.op_type, domain=node.domain, name=own, input=inputs)
        if not node.domain:
            made.ClearField("domain")
        for attribute in sorted(node.attribute, key=lambda attribute: attribute.name):
            made.attribute.append(self._attribute(attribute, own))
        for index, name in enumerate(node.output):
            if name:
                self.names[name] = f"{own}:{index}" if index else own
            made.output.append(self.names[name])
        return made

    def _attribute(self, attribute: onnx.AttributeProto, owner: str) -> onnx.AttributeProto:
        made = onnx.AttributeProto()
        made.CopyFrom(attribute)
        made.ClearField("doc_string")
        if attribute.type == onnx.AttributeProto.TENSOR:
            made.t.CopyFrom(_plain_tensor(attribute.t))
        elif attribute.type == onnx.AttributeProto.GRAPH:
            made.g.CopyFrom(self._inner(attribute.g, owner))
        elif attribute.type == onnx.AttributeProto.GRAPHS:
            del made.graphs[:]
            made.graphs.extend(self._inner(graph, owner) for graph in attribute.graphs)
        return made

    def _inner(self, graph: onnx.GraphProto, owner: str) -> onnx.GraphProto:
        """A graph inside a node: the body of a loop, the branch of a condition."""
        for value in graph.input:
            self.names[value.name] = self._next("input")
        made = onnx.GraphProto(name=self._next("graph"))
        sizes = _Sizes(False)
        made.input.extend(sizes.signature(value, self.names[value.name]) for value in graph.input)
        made.node.extend(self.graph(graph))
        for value in graph.output:
            inside = {name for node in made.node for name in node.output}
            name = self._read(value.name)
            if name not in inside:
                own = self._next("Identity")
                made.node.append(onnx.NodeProto(op_type="Identity", name=own, input=[name], output=[own]))
                name = own
            made.output.append(sizes.signature(value, name))
        return made

    def _read(self, name: str) -> str:
        """Our name of a value that is read; a constant gets its node now."""
        if name in self.names or name not in self.constants:
            return self.names[name]
        tensor = self.constants[name]
        key = tensor.SerializeToString(deterministic=True)
        if key not in self._known:
            own = f"{self._prefix}Constant_{len(self._known)}"
            node = onnx.NodeProto(op_type="Constant", name=own, output=[own])
            node.attribute.append(onnx.AttributeProto(name="value", type=onnx.AttributeProto.TENSOR, t=tensor))
            self.constant_nodes.append(node)
            self._known[key] = own
        self.names[name] = self._known[key]
        return self.names[name]

    def _next(self, kind: str) -> str:
        self._count += 1
        return f"{self._prefix}{kind}_{self._count - 1}"


class _Sizes:
    """Spells inputs and outputs; sizes that are free get names in the order in which they are met.

    In inputs only first sizes are: `batch`, and where another input may have another number of samples `batch_1`.
    """

    def __init__(self, batched: bool) -> None:
        self.batched = batched
        self._symbols: dict[str, str] = {}

    def signature(self, value: onnx.ValueInfoProto, name: str) -> onnx.ValueInfoProto:
        made = onnx.ValueInfoProto(name=name)
        made.type.CopyFrom(value.type)
        made.type.ClearField("denotation")
        for dimension in made.type.tensor_type.shape.dim:
            dimension.ClearField("denotation")
            if dimension.dim_param:
                dimension.dim_param = re.sub(r"\b[su][0-9]+\b", self._symbol, dimension.dim_param)
        return made

    def _symbol(self, found: re.Match[str]) -> str:
        kind, count = (BATCH if self.batched else "size"), len(self._symbols)
        return self._symbols.setdefault(found[0], f"{kind}_{count}" if count or not self.batched else kind)


def _plain_tensor(tensor: onnx.TensorProto) -> onnx.TensorProto:
    """Sizes, type and raw bytes; a tensor of strings stays as it is, without its name."""
    made = onnx.TensorProto(dims=tensor.dims, data_type=tensor.data_type)
    if tensor.data_type == onnx.TensorProto.STRING:
        made.string_data.extend(tensor.string_data)
    elif tensor.HasField("raw_data"):
        made.raw_data = tensor.raw_data
    else:
        made.raw_data = onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor)).raw_data
    return made
