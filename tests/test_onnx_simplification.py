"""Graphs without nodes over constants, with shapes that are written down, that compute bit for bit what they did."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
import torch
from onnx import TensorProto, helper

from zero_convert.exporters.onnx import OPSET
from zero_convert.exporters.onnx.simplification import all_nodes, simplify
from zero_convert.saving import entries_of

from .onnx_graphs import CASES, INPUT, answers, parsed, written, written_both_ways

OPSETS = [helper.make_opsetid("", OPSET)]


@cache
def files(name: str) -> tuple[bytes, bytes, torch.nn.Module]:
    """A module's file, the same without simplification, and the module."""
    torch.manual_seed(0)
    module = CASES[name].build().eval()
    return *written_both_ways(module, (INPUT,)), module


def only_constants(model: onnx.ModelProto) -> set[str]:
    """The kinds of nodes that read nothing but constants."""
    constants = {node.output[0] for node in all_nodes(model.graph.node) if node.op_type == "Constant"}
    nodes = [node for node in all_nodes(model.graph.node) if any(node.input)]
    return {node.op_type for node in nodes if all(name in constants for name in node.input if name)}


@pytest.mark.parametrize("name", CASES)
def test_constants_are_folded_and_not_a_bit_of_the_results_moves(name: str) -> None:
    whole, plain, module = files(name)
    model = parsed(whole)
    assert only_constants(model) == CASES[name].left
    assert len(model.graph.node) < len(parsed(plain).graph.node)
    for batch in (1, 2, 5):
        x = torch.randn(batch, 4, 6, generator=torch.Generator().manual_seed(batch))
        (ours,), (before,) = answers(whole, x), answers(plain, x)
        assert (ours.shape, ours.tobytes()) == (before.shape, before.tobytes())
        assert np.allclose(ours, module(x).detach().numpy(), atol=1e-5)
        assert np.ptp(ours) > 0


@pytest.mark.parametrize("name", CASES)
def test_weights_and_the_free_batch_are_untouched(name: str) -> None:
    whole, plain, module = files(name)
    model = parsed(whole)
    expected = [(e.name, e.shape, bytes(memoryview(e.data()))) for e in entries_of(module)]
    assert sorted((t.name, tuple(t.dims), t.raw_data) for t in model.graph.initializer) == sorted(expected)
    assert model.graph.initializer == parsed(plain).graph.initializer
    assert model.graph.input == parsed(plain).graph.input and model.graph.output == parsed(plain).graph.output
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"


@pytest.mark.parametrize("name", CASES)
def test_a_second_pass_changes_nothing(name: str) -> None:
    model = parsed(files(name)[0])
    again, constants = copy.deepcopy(model.graph), dict[str, TensorProto]()
    states = [helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in again.initializer]
    del again.initializer[:]
    simplify(again, constants, states, OPSETS)
    assert list(again.node) == [node for node in model.graph.node if node.op_type != "Constant"]
    assert set(constants) == {node.output[0] for node in model.graph.node if node.op_type == "Constant"}


@pytest.mark.parametrize("name", ["relative", pytest.param("attention", marks=pytest.mark.slow)])
def test_a_second_export_has_the_same_bytes(name: str) -> None:
    whole, _, module = files(name)
    assert written(module, (INPUT,))[0] == whole


@pytest.mark.parametrize("name", CASES)
def test_no_attribute_has_its_default_value(name: str) -> None:
    for node in all_nodes(parsed(files(name)[0]).graph.node):
        definition = onnx.defs.get_schema(node.op_type, OPSET)
        for attribute in node.attribute:
            default = definition.attributes[attribute.name].default_value
            assert not default.type or helper.get_attribute_value(default) != helper.get_attribute_value(attribute)


def test_attributes_that_have_another_value_stay() -> None:
    node = helper.make_node("Gemm", ["x", "w"], ["y"], alpha=1.0, beta=0.5, transA=0, transB=1)
    graph = one_node(node, {"x": [2, 3], "w": [4, 3]}, [2, 4])
    simplify(graph, {}, [], OPSETS)
    assert {each.name for each in graph.node[0].attribute} == {"beta", "transB"}


# -- shapes ------------------------------------------------------------------------------------------------------------


def one_node(node: onnx.NodeProto, inputs: dict[str, list[Any]], output: list[Any]) -> onnx.GraphProto:
    given = [helper.make_tensor_value_info(name, TensorProto.FLOAT, sizes) for name, sizes in inputs.items()]
    return helper.make_graph([node], "g", given, [helper.make_tensor_value_info("y", TensorProto.FLOAT, output)])


def simplified(text: str) -> tuple[onnx.GraphProto, dict[str, Any]]:
    """The graph of a text, simplified, and its constants."""
    graph, constants = onnx.parser.parse_graph(text), dict[str, TensorProto]()
    simplify(graph, constants, [], OPSETS)
    return graph, {name: onnx.numpy_helper.to_array(tensor).tolist() for name, tensor in constants.items()}


REBUILT = """g (float[{input}] x{more}) => (float[{output}] y) {{
  n = Shape <start = 0, end = 1> (x)
  s = Squeeze (n)
  m = Constant <value = int64[1] {{-1}}> ()
  v = Reshape (s, m)
  {tail}
  y = Reshape <allowzero = {allowzero}> (x, t)
}}"""
TARGETS: dict[str, tuple[dict[str, Any], list[int] | None]] = {
    "one free size": ({"input": "N, 64, 9", "output": "N, 8, 8, 9", "rest": (8, 8, 9)}, [-1, 8, 8, 9]),
    "a size that is computed beside it": ({"input": "N, 64, 9", "output": "N, 8, 72", "rest": (8, -1)}, [-1, 8, 72]),
    "all sizes fixed": ({"input": "3, 64", "output": "3, 8, 8", "rest": (8, 8)}, [3, 8, 8]),
    "only the free size": ({"input": "N", "output": "N", "rest": ()}, [-1]),
    "a size of 0": ({"input": "N, 0, 4", "output": "N, 4, 0", "rest": (4, 0)}, None),
    "all fixed, one of them 0": ({"input": "2, 0, 4", "output": "2, 4, 0", "rest": (4, 0)}, [2, 4, 0]),
    "two free sizes": ({"input": "N, M, 4", "output": "N, M, 2, 2", "rest": (2, 2), "second": True}, None),
}


@pytest.mark.parametrize("case", TARGETS)
def test_the_target_of_a_reshape_is_a_constant_where_it_can_be(case: str) -> None:
    given, expected = TARGETS[case]
    rest = given["rest"]
    tail = f"r = Constant <value = int64[{len(rest)}] {{{', '.join(map(str, rest))}}}> ()\n"
    second = "w = Shape <start = 1, end = 2> (x)\n" if "second" in given else ""
    tail += f"{second}  t = Concat <axis = 0> (v, {'w, ' if second else ''}r)"
    text = REBUILT.format(**{**given, "more": "", "tail": tail, "allowzero": int(-1 not in rest)})
    graph, constants = simplified(text)
    *before, reshape = graph.node
    assert reshape.op_type == "Reshape"
    assert (constants.get(reshape.input[1]), bool(before)) == (expected, expected is None)
    if expected is None:
        assert [node.op_type for node in before] == ["Shape", *(["Shape"] if second else []), "Concat"]
    model = helper.make_model(graph, opset_imports=OPSETS, ir_version=10)
    for name, value in constants.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(value, np.int64), name))
    sizes = [int(size) if size.strip().isdigit() else 3 for size in given["input"].split(",")]
    x = torch.arange(float(np.prod(sizes))).reshape(sizes)
    (found,) = answers(model.SerializeToString(), x)
    output = [int(size) if size.strip().isdigit() else 3 for size in given["output"].split(",")]
    assert found.tobytes() == x.numpy().tobytes() and list(found.shape) == output
    if expected is not None and -1 in expected:  # also no sample at all
        (found,) = answers(model.SerializeToString(), x[:0])
        assert list(found.shape) == [0, *output[1:]]


def test_names_that_two_branches_share_are_left_alone() -> None:
    text = """g (bool c, float[N] x) => (float[N] y) {
      y = If (c) <
        then_branch = a () => (float[N] z) { k = Constant <value = float {2}> ()  m = Neg (k)  z = Mul (x, m) },
        else_branch = b () => (float[N] z) { k = Constant <value = float {3}> ()  m = Neg (k)  z = Mul (x, m) }
      >
    }"""
    graph, constants = simplified(text)
    assert constants == {}
    bodies = [attribute.g for attribute in graph.node[0].attribute]
    assert [[node.op_type for node in body.node] for body in bodies] == [["Constant", "Neg", "Mul"]] * 2


def test_constants_inside_of_a_branch_are_folded() -> None:
    text = """g (bool c, float[N] x) => (float[N] y) {
      y = If (c) <
        then_branch = a () => (float[N] z) { k = Constant <value = float {2}> ()  m = Neg (k)  z = Mul (x, m) },
        else_branch = b () => (float[N] w) { w = Identity (x) }
      >
    }"""
    graph, constants = simplified(text)
    assert constants["m"] == -2.0
    assert sorted(node.op_type for node in all_nodes(graph.node)) == ["Identity", "If", "Mul"]


def test_what_is_stored_is_no_constant() -> None:
    graph = onnx.parser.parse_graph("g () => (float[2] y) { m = Neg (w)  y = Abs (m) }")
    states = [helper.make_tensor_value_info("w", TensorProto.FLOAT, [2])]
    before = graph.SerializeToString()
    simplify(graph, {}, states, OPSETS)
    assert graph.SerializeToString() == before


def test_a_table_that_is_read_by_constants_is_read_by_a_vector() -> None:
    text = """g (float[5, 2] x) => (float[2, 2, 2] y) {
      i = Constant <value = int64[2, 2] {1, 2, 3, -1}> ()
      y = Gather (x, i)
    }"""
    graph, constants = simplified(text)
    gather, reshape = graph.node
    assert (gather.op_type, reshape.op_type) == ("Gather", "Reshape")
    assert constants[gather.input[1]] == [1, 2, 3, -1] and constants[reshape.input[1]] == [2, 2, 2]
