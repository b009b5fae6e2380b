"""Whether a model is valid: the check of the onnx library before a file is written, and the operators that are missing.

The library reads a model as one message below 2 GiB, or a file whose data file is there already. So the model that it
is given has no large tensors: they stand among its inputs, with their types and sizes, which is all the check asks of
them. Small ones, from whose values it tells shapes, are there as they are. Its answers are those for the whole model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto

from zero_convert.errors import ModelError, UsageError
from zero_convert.exporters.safetensors import Entry, raw_bytes
from zero_convert.formats.dtypes import DTYPES

from . import SMALL, Graph
from .simplification import all_nodes, signatures


def check(graph: Graph, entries: Sequence[Entry], metadata: Mapping[str, str], ir_version: int) -> None:
    """Raises ModelError where `onnx.checker.check_model(full_check=True)` refuses the model.

    Args:
        entries: its initializers, of types that ONNX has.
        metadata: all of it.
    """
    model = _model(graph)
    model.ir_version = ir_version
    for key, value in metadata.items():
        model.metadata_props.add(key=key, value=value)
    for entry in entries:
        number = DTYPES[entry.dtype].onnx or 0
        if entry.size < SMALL:
            tensor = TensorProto(name=entry.name, data_type=number, dims=entry.shape, raw_data=bytes(raw_bytes(entry)))
            model.graph.initializer.append(tensor)
        else:
            model.graph.input.append(onnx.helper.make_tensor_value_info(entry.name, number, entry.shape))
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ModelError(
            "the exported graph is no valid ONNX model, and was not written",
            where=f"opset {graph.opset}",
            got=" ".join(str(error).split())[:400],
            expected="what onnx.checker.check_model(full_check=True) accepts",
            fix="Another --opset may have other operators; safetensors holds the weights without a graph.",
        ) from error


def fitting_opset(graph: Graph, states: Sequence[ValueInfoProto], allowed: range, asked: int | None) -> tuple[int, str]:
    """The lowest version of the operators, from that of the graph on, in which all of them take the types they get.

    And what that version is needed for, "bfloat16 in Conv"; "" where it is the graph's own.

    Args:
        states: signatures of the tensors that the graph reads and does not hold.
        allowed: versions that can be written.
        asked: the version that the user named, if one was.

    Raises:
        UsageError: the user named a version that is too low.
        ModelError: no version has such operators.
    """
    found = _misfits(graph, states, allowed)
    if not found:
        return graph.opset, ""
    types = ", ".join(sorted({kind for _, kind in found}))
    named = ", ".join(sorted({operator for operator, _ in found}))
    lowest = max((version or allowed.stop for version in found.values()), default=0)
    if lowest >= allowed.stop:
        raise ModelError(
            f"ONNX has no such operator for {types}",
            where=", ".join(sorted({operator for (operator, _), version in found.items() if version is None})),
            got=f"opset {allowed.start} to {allowed.stop - 1}",
            expected=f"operators that take {types}",
            fix="--dtype float32, or write safetensors instead.",
        )
    if asked is not None:
        raise UsageError(
            f"these operators take {types} in later versions only",
            where=f"--opset {asked}",
            got=named,
            expected=f"--opset {lowest} or higher",
            fix=f"--opset {lowest}; without --opset it is taken by itself.",
        )
    return lowest, f"{types} in {named}"


def _model(graph: Graph) -> ModelProto:
    """The model as far as its graph tells it."""
    proto = GraphProto()
    proto.ParseFromString(graph.head + graph.tail)
    opset = onnx.helper.make_opsetid("", graph.opset)
    return ModelProto(ir_version=onnx.IR_VERSION, graph=proto, opset_import=[opset])


def _misfits(graph: Graph, states: Sequence[ValueInfoProto], allowed: range) -> dict[tuple[str, str], int | None]:
    """Operator and type that it does not take in the graph's version → the first version in which it does, or None."""
    model = _model(graph)
    kinds = {name: _type(value) for name, value in signatures(model.graph, {}, states, model.opset_import).items()}
    found: dict[tuple[str, str], int | None] = {}
    for node in all_nodes(model.graph.node):
        for kind in _refused(node, kinds, graph.opset):
            versions = (version for version in allowed if version > graph.opset)
            later = next((version for version in versions if kind not in _refused(node, kinds, version)), None)
            found[node.op_type, kind.removeprefix("tensor(").removesuffix(")")] = later
    return found


def _refused(node: NodeProto, kinds: Mapping[str, str], version: int) -> list[str]:
    """The types of a node's operands and results that its operator does not take."""
    if node.domain or not onnx.defs.has(node.op_type):
        return []
    schema = onnx.defs.get_schema(node.op_type, version)
    refused = []
    for names, parameters in ((node.input, schema.inputs), (node.output, schema.outputs)):
        for index, name in enumerate(names):
            parameter = parameters[min(index, len(parameters) - 1)]
            kind = kinds.get(name, "") if name else ""
            if kind and kind not in parameter.types:
                refused.append(kind)
    return refused


def _type(value: ValueInfoProto) -> str:
    """`tensor(bfloat16)`; "" of what is no tensor."""
    number = value.type.tensor_type.elem_type if value.type.HasField("tensor_type") else 0
    return f"tensor({TensorProto.DataType.Name(number).lower()})" if number else ""
