"""What the checks read back from an ONNX file that was written."""

from __future__ import annotations

import os
from collections.abc import Collection
from os import PathLike

import torch
from torch import Tensor

from zero_convert.errors import MalformedError
from zero_convert.formats.dtypes import find


def input_sizes(path: str | PathLike[str]) -> list[list[int | None]]:
    """The sizes of each input, None for one that is free."""
    import onnx

    inputs = onnx.load(os.fspath(path), load_external_data=False).graph.input
    dims = [each.type.tensor_type.shape.dim for each in inputs]
    return [[dim.dim_value if dim.HasField("dim_value") else None for dim in sizes] for sizes in dims]


def initializers(path: str | PathLike[str]) -> dict[str, Tensor]:
    """The tensors of the file by name, those in its data file too.

    Raises:
        MalformedError: one has a type that torch does not have.
    """
    import onnx

    tensors = {}
    for tensor in onnx.load(os.fspath(path)).graph.initializer:
        array = onnx.numpy_helper.to_array(tensor)
        row = find("onnx", tensor.data_type)
        if row is None or row.torch is None:
            name = onnx.TensorProto.DataType.Name(tensor.data_type)
            raise MalformedError("a tensor has a type that torch does not have", where=tensor.name, got=name)
        dtype = getattr(torch, row.torch)
        raw = torch.frombuffer(bytearray(array.tobytes()), dtype=dtype) if array.size else torch.empty(0, dtype=dtype)
        tensors[tensor.name] = raw.reshape(array.shape)
    return tensors


def weight_outputs(path: str | PathLike[str], operators: Collection[str]) -> dict[str, list[str]]:
    """Path of a layer → outputs of the nodes of these operators that read its weight, in order of execution."""
    import onnx

    outputs: dict[str, list[str]] = {}
    for node in onnx.load(os.fspath(path), load_external_data=False).graph.node:
        owner = next((name.rpartition(".")[0] for name in node.input if name.endswith(".weight")), "")
        if owner and node.op_type in operators:
            outputs.setdefault(owner, []).append(node.output[0])
    return outputs


def with_all_values(path: str | PathLike[str]) -> tuple[bytes, list[tuple[str, str]]]:
    """The model with every value that a node of its main graph makes as an output, and (node, value) in their order.

    Data files are taken in, so a model beyond 2 GiB has no such form.
    """
    import onnx

    model = onnx.load(os.fspath(path))
    known = {output.name for output in model.graph.output}
    values = [(node.name, name) for node in model.graph.node for name in node.output if name]
    for _, name in values:
        if name not in known:
            model.graph.output.append(onnx.helper.make_empty_tensor_value_info(name))
    content: bytes = model.SerializeToString()
    return content, values
