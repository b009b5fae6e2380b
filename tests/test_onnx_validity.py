"""No invalid ONNX file is written: the full check comes first, and bfloat16 takes the opset whose operators have it."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn

import zero_convert as zc
from zero_convert.errors import ModelError, UsageError
from zero_convert.exporters import onnx as exporter
from zero_convert.exporters import safetensors
from zero_convert.exporters.onnx import Graph, validity
from zero_convert.exporters.onnx.graph import graph
from zero_convert.formats.dtypes import DTYPES
from zero_convert.graph.ties import ties
from zero_convert.saving import entries_of

from .nets import tiny_resnet
from .onnx_graphs import parsed, written
from .subjects import IMAGES

IMAGE, ROW, VOLUME = (2, 4, 8, 8), (2, 4, 8), (2, 4, 4, 4, 4)


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.cell = kind(8, 3, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.cell(x)[0]


# operator of ONNX → a module that needs it, and the sizes of its input; none of them has bfloat16 before opset 22
LATE: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "Conv": (lambda: nn.Conv2d(4, 3, 3), IMAGE),
    "Conv of rows": (lambda: nn.Conv1d(4, 3, 3), ROW),
    "Conv of volumes": (lambda: nn.Conv3d(4, 3, 3), VOLUME),
    "ConvTranspose": (lambda: nn.ConvTranspose2d(4, 3, 3), IMAGE),
    "MaxPool": (lambda: nn.MaxPool2d(2), IMAGE),
    "AveragePool": (lambda: nn.AvgPool2d(2), IMAGE),
    "InstanceNormalization": (lambda: nn.InstanceNorm2d(4, affine=True), IMAGE),
    "HardSwish": (nn.Hardswish, ROW),
    "HardSigmoid": (nn.Hardsigmoid, ROW),
    "Elu": (nn.ELU, ROW),
    "Selu": (nn.SELU, ROW),
    "Softplus": (nn.Softplus, ROW),
    "GRU": (lambda: Recurrent(nn.GRU), ROW),
}
EARLY: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "Gemm": (lambda: nn.Linear(8, 3), (2, 8)),
    "LayerNormalization": (lambda: nn.LayerNorm(8), ROW),
    "Gelu": (nn.GELU, ROW),
    "BatchNormalization": (lambda: nn.BatchNorm1d(4), ROW),
    "Softmax": (lambda: nn.Softmax(-1), ROW),
}


def half(case: tuple[Callable[[], nn.Module], tuple[int, ...]]) -> tuple[nn.Module, tuple[Tensor]]:
    return case[0]().bfloat16().eval(), (torch.ones(case[1], dtype=torch.bfloat16),)


# -- bfloat16 ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", LATE)
def test_operators_without_bfloat16_take_the_first_opset_that_has_it(case: str) -> None:
    module, inputs = half(LATE[case])
    model, made = written(module, inputs)
    assert (made.opset, made.raised) == (22, f"bfloat16 in {case.partition(' ')[0]}")
    onnx.checker.check_model(parsed(model), full_check=True)


@pytest.mark.parametrize("case", EARLY)
def test_operators_with_bfloat16_keep_the_usual_opset(case: str) -> None:
    model, made = written(*half(EARLY[case]))
    assert (made.opset, made.raised) == (exporter.OPSET, "")
    onnx.checker.check_model(parsed(model), full_check=True)


@pytest.mark.parametrize("opset", [18, 20, 21])
def test_a_lower_opset_that_is_named_is_refused_with_the_one_to_pass(opset: int) -> None:
    module, inputs = half(LATE["Conv"])
    states = ties(module.state_dict(keep_vars=True))
    with pytest.raises(UsageError, match=rf"--opset {opset}.*got Conv; expected --opset 22 or higher") as caught:
        graph(module, inputs, states, opset)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("opset", [22, pytest.param(25, marks=pytest.mark.slow)])
def test_a_named_opset_that_has_the_operators_is_written(opset: int) -> None:
    model, made = written(*half(LATE["Conv"]), opset)
    assert made.opset == opset
    onnx.checker.check_model(parsed(model), full_check=True)


def test_a_type_that_no_opset_has_is_refused() -> None:
    node = helper.make_node("Det", ["x"], ["y"])
    made = made_graph([node], TensorProto.INT32, [2, 3, 3], [2])
    with pytest.raises(ModelError, match=r"no such operator for int32 \(Det\).*opset 18 to 25"):
        validity.fitting_opset(made, [], exporter.OPSETS, None)


def test_a_conversion_says_which_opset_it_took_and_that_the_cpu_provider_does_not_compute_it(tmp_path: Path) -> None:
    result = zc.convert(tiny_resnet(), (IMAGES,), dtype="bfloat16", validate="none")
    (made,) = result.save(tmp_path / "a.onnx")
    onnx.checker.check_model(made.path, full_check=True)
    assert made.opset == 22 and "opset 22 for bfloat16 in Conv" in made.note
    assert "ONNX Runtime's CPU provider has no arithmetic in bfloat16" in made.note
    with pytest.raises(UsageError, match="expected --opset 22 or higher"):
        result.save(tmp_path / "b.onnx", opset=20)
    assert sorted(os.listdir(tmp_path)) == ["a.onnx", "a.onnx.receipt.json"]
    (again,) = result.save(tmp_path / "c.onnx", opset=22)
    assert again.path.read_bytes() == made.path.read_bytes()  # a lock makes it again with the opset that it names
    answer = zc.validate(made.path, tiny_resnet(), (IMAGES,), device="cpu")
    parity = next(check for check in answer.checks if check.name == "parity")
    assert parity.status == "skip" and "CPU provider does not run the file" in parity.summary


# -- the full check ----------------------------------------------------------------------------------------------------


def made_graph(nodes: list[onnx.NodeProto], kind: int, sizes: list[Any], output: list[Any]) -> Graph:
    head = onnx.GraphProto(node=nodes, name="g")
    given = [helper.make_tensor_value_info("x", kind, sizes)]
    tail = onnx.GraphProto(input=given, output=[helper.make_tensor_value_info("y", kind, output)])
    return Graph(head.SerializeToString(), tail.SerializeToString(), exporter.OPSET)


def convolution(**changes: Any) -> onnx.NodeProto:
    given = {"op_type": "Conv", "inputs": ["x", "weight"], "outputs": ["y"], "kernel_shape": [3, 3], **changes}
    return helper.make_node(**given)


def sound(weight: tuple[int, ...] = (40, 4, 3, 3), kind: str = "F32") -> list[safetensors.Entry]:
    size = {"F32": 4, "F16": 2, "I64": 8}[kind]
    count = size * int(torch.Size(weight).numel())
    return [
        safetensors.Entry("weight", kind, weight, lambda: bytes(count)),
        safetensors.Entry("target", "I64", (2,), lambda: torch.tensor([3, -1]).numpy()),
    ]


IMAGE_IN: tuple[int, list[Any], list[Any]] = (TensorProto.FLOAT, ["batch", 4, 8, 8], ["batch", 40, 6, 6])
BROKEN: dict[str, tuple[list[onnx.NodeProto], tuple[int, list[Any], list[Any]], list[safetensors.Entry]]] = {
    "an unknown operator": ([convolution(op_type="Konv")], IMAGE_IN, sound()),
    "an unknown attribute": ([convolution(nope=1)], IMAGE_IN, sound()),
    "a value from nowhere": ([convolution(inputs=["x", "nowhere"])], IMAGE_IN, sound()),
    "nodes out of order": (
        [helper.make_node("Relu", ["z"], ["y"]), convolution(outputs=["z"])], IMAGE_IN, sound(),
    ),
    "one name for two values": ([convolution(), helper.make_node("Relu", ["x"], ["y"])], IMAGE_IN, sound()),
    "a name that a weight has": (
        [helper.make_node("Relu", ["x"], ["weight"]), convolution()], IMAGE_IN, sound(),
    ),
    "weights of another type": ([convolution()], IMAGE_IN, sound(kind="F16")),
    "a permutation of other axes": ([helper.make_node("Transpose", ["x"], ["y"], perm=[0, 2, 1])], IMAGE_IN, sound()),
    "an output of another size": ([convolution()], (*IMAGE_IN[:2], ["batch", 7, 6, 6]), sound()),
    "a type that the operator does not have": ([convolution()], (TensorProto.BFLOAT16, *IMAGE_IN[1:]), sound()),
    "a small tensor whose values do not fit": (
        [helper.make_node("Reshape", ["x", "target"], ["y"])], (TensorProto.FLOAT, [2, 3], [2, 3]), sound(),
    ),
}  # fmt: skip


def whole(made: Graph, given: list[safetensors.Entry]) -> onnx.ModelProto:
    """The model with all its tensors, as the onnx library would be asked without us."""
    model = onnx.ModelProto(ir_version=exporter.IR_VERSION, opset_import=[helper.make_opsetid("", made.opset)])
    model.graph.ParseFromString(made.head + made.tail)
    for entry in given:
        data = bytes(safetensors.raw_bytes(entry))
        model.graph.initializer.add(
            name=entry.name, data_type=DTYPES[entry.dtype].onnx, dims=entry.shape, raw_data=data
        )
    return model


@pytest.mark.parametrize("external", [False, True])
@pytest.mark.parametrize("case", BROKEN)
def test_an_invalid_model_is_refused_and_nothing_is_written(case: str, external: bool) -> None:
    nodes, signature, given = BROKEN[case]
    made = made_graph(nodes, *signature)
    with pytest.raises((onnx.checker.ValidationError, onnx.shape_inference.InferenceError)) as theirs:
        onnx.checker.check_model(whole(made, given), full_check=True)
    stream, data = io.BytesIO(), io.BytesIO() if external else None
    with pytest.raises(ModelError, match="no valid ONNX model, and was not written") as caught:
        exporter.write(stream, made, given, {}, data, "a.onnx.data")
    assert caught.value.exit_code == 3
    assert caught.value.got == " ".join(str(theirs.value).split())[:400]  # the answer for the whole model
    assert stream.getvalue() == b"" and (data is None or data.getvalue() == b"")


@pytest.mark.parametrize("external", [False, True])
def test_a_sound_model_is_written(external: bool, tmp_path: Path) -> None:
    made = made_graph([convolution()], *IMAGE_IN)
    with (tmp_path / "a.onnx").open("wb") as stream, (tmp_path / "b").open("wb") as data:
        exporter.write(stream, made, sound(), {"key": "value"}, data if external else None, "b")
    onnx.checker.check_model(tmp_path / "a.onnx", full_check=True)


@pytest.mark.parametrize("more", [(), ("b.safetensors",)])
def test_a_conversion_whose_graph_is_invalid_writes_no_file(
    more: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = zc.convert(tiny_resnet(), (IMAGES,), scheme="zero-2022", validate="none")
    result._writer._graphs[None] = made_graph([convolution(op_type="Konv")], *IMAGE_IN), ""
    with pytest.raises(ModelError, match="Konv"):
        result.save(*(tmp_path / name for name in (*more, "a.onnx")))
    assert os.listdir(tmp_path) == []


def test_the_check_asks_for_no_large_values() -> None:
    """So that a model beyond 2 GiB is checked without its tensors in memory."""

    def values() -> Any:
        raise AssertionError("the values were asked for")

    huge = safetensors.Entry("weight", "F32", (5, 1 << 30), values)
    node = helper.make_node("MatMul", ["weight", "x"], ["y"])
    validity.check(made_graph([node], TensorProto.FLOAT, [1 << 30, 1], [5, 1]), [huge], {}, exporter.IR_VERSION)
    with pytest.raises(ModelError, match="MatMul"):
        validity.check(made_graph([node], TensorProto.FLOAT, [7, 1], [5, 1]), [huge], {}, exporter.IR_VERSION)


def test_each_tensor_is_asked_for_once() -> None:
    module = nn.Linear(40, 3)
    asked: list[str] = []
    counted = [
        safetensors.Entry(e.name, e.dtype, e.shape, lambda e=e: asked.append(e.name) or e.data())
        for e in entries_of(module)
    ]
    made, _ = graph(module.eval(), (torch.ones(2, 40),), ties(module.state_dict(keep_vars=True)))
    exporter.write(io.BytesIO(), made, counted, {})
    assert sorted(asked) == ["bias", "weight"]
