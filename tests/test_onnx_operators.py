"""What operators return for constants: literal results, and no result where machines or runtimes could differ."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
import torch

from zero_convert.exporters.onnx.operators import evaluate
from zero_convert.exporters.onnx.operators.values import LIMIT

INT, HALF, BRAIN, FLOAT = np.int64, np.float16, ml_dtypes.bfloat16, np.float32
TYPE = onnx.TensorProto


def i(*values: Any) -> np.ndarray:
    return np.array(values[0] if len(values) == 1 else values, INT)


def f(*values: Any, dtype: Any = FLOAT) -> np.ndarray:
    return np.array(values[0] if len(values) == 1 else values, dtype)


ANSWERS: list[tuple[str, list[Any], dict[str, Any], Any]] = [
    ("Cast", [i(7)], {"to": TYPE.FLOAT}, f(7.0)),
    ("Cast", [f([2.9, -2.9])], {"to": TYPE.INT64}, i([2, -2])),
    ("Cast", [f([0.0, -0.0, 3.0])], {"to": TYPE.BOOL}, np.array([False, False, True])),
    ("Cast", [f(1.00390625)], {"to": TYPE.BFLOAT16}, f(1.0, dtype=BRAIN)),  # a tie, to even
    ("Cast", [f(-np.inf)], {"to": TYPE.FLOAT16}, f(-np.inf, dtype=HALF)),
    ("Reshape", [i([1, 2, 3, 4]), i([2, -1])], {}, i([[1, 2], [3, 4]])),
    ("Reshape", [i([[1, 2]]), i([0, 2, 1])], {}, i([[[1], [2]]])),
    ("Squeeze", [i([[5]])], {}, i(5)),
    ("Squeeze", [i([[[5], [6]]]), i([0])], {}, i([[5], [6]])),
    ("Unsqueeze", [i([5, 6]), i([0, -1])], {}, i([[[5], [6]]])),
    ("Flatten", [i([[[1, 2], [3, 4]]])], {"axis": 2}, i([[1, 2], [3, 4]])),
    ("Transpose", [i([[1, 2, 3]])], {"perm": [1, 0]}, i([[1], [2], [3]])),
    ("Concat", [i([1]), i([2, 3])], {"axis": 0}, i([1, 2, 3])),
    ("Slice", [i([0, 1, 2, 3, 4]), i([3]), i([-(1 << 63)]), i([0]), i([-2])], {}, i([3, 1])),
    ("Slice", [i([0, 1, 2, 3, 4]), i([-3]), i([(1 << 63) - 1])], {}, i([2, 3, 4])),
    ("Gather", [i([5, 6, 7]), i([[-1, 0]])], {"axis": 0}, i([[7, 5]])),
    ("GatherND", [i([[1, 2], [3, 4]]), i([[1, 0], [0, 1]])], {}, i([3, 2])),
    ("GatherElements", [i([[1, 2], [3, 4]]), i([[1, -2]])], {"axis": 1}, i([[2, 1]])),
    ("Expand", [i([[1], [2]]), i([3, 1, 2])], {}, i([[[1, 1], [2, 2]]] * 3)),
    ("Tile", [i([1, 2]), i([2])], {}, i([1, 2, 1, 2])),
    ("Where", [np.array([True, False]), f(0.0), f([-0.0, -np.inf])], {}, f([0.0, -np.inf])),
    ("Pad", [i([1]), i([1, 2]), i(9)], {}, i([9, 1, 9, 9])),
    ("ScatterND", [i([1, 2, 3]), i([[2]]), i([9])], {}, i([1, 2, 9])),
    ("ScatterElements", [i([1, 2, 3]), i([0]), i([9])], {}, i([9, 2, 3])),
    ("Trilu", [i([[1, 2], [3, 4]])], {"upper": 0}, i([[1, 0], [3, 4]])),
    ("Shape", [f([[1.0, 2.0]])], {"start": -1}, i([2])),
    ("Size", [f([[1.0, 2.0]])], {}, i(2)),
    ("ConstantOfShape", [i([2])], {}, f([0.0, 0.0])),
    ("Range", [i(1), i(8), i(3)], {}, i([1, 4, 7])),
    ("Range", [i(3), i(0), i(-2)], {}, i([3, 1])),
    ("Range", [f(0.0), f(3.0), f(1.0)], {}, f([0.0, 1.0, 2.0])),
    ("EyeLike", [f(np.zeros((2, 2)))], {"k": 1}, f([[0.0, 1.0], [0.0, 0.0]])),
    ("OneHot", [i([2, -3]), i(3), f([0.0, 5.0])], {}, f([[0.0, 0.0, 5.0], [5.0, 0.0, 0.0]])),
    ("NonZero", [i([0, 4, 5])], {}, i([[1, 2]])),
    ("Add", [i([1, 2]), i([[10], [20]])], {}, i([[11, 12], [21, 22]])),
    ("Add", [f(0.1), f(0.2)], {}, f(np.float32(0.1) + np.float32(0.2))),
    ("Sub", [f(0.1), f(0.1)], {}, f(0.0)),
    ("Mul", [f(3.0, dtype=BRAIN), f(0.5, dtype=BRAIN)], {}, f(1.5, dtype=BRAIN)),
    ("Div", [i([-7, 7]), i([2, -2])], {}, i([-3, -3])),
    ("Div", [f(1.0), f(3.0)], {}, f(np.float32(1) / np.float32(3))),
    ("Mod", [i([-7]), i([3])], {}, i([2])),
    ("Mod", [i([-7]), i([3])], {"fmod": 1}, i([-1])),
    ("Pow", [i([3]), i([4])], {}, i([81])),
    ("Sqrt", [f([64.0, 2.0])], {}, f([8.0, 1.41421354])),
    ("Neg", [f(0.0)], {}, f(-0.0)),
    ("Floor", [f(-1.5)], {}, f(-2.0)),
    ("Sign", [i([-4, 0, 9])], {}, i([-1, 0, 1])),
    ("Clip", [i([1, 5, 9]), i(3), None], {}, i([3, 5, 9])),
    ("Max", [f([1.0, -2.0]), f(0.0)], {}, f([1.0, 0.0])),
    ("LessOrEqual", [i([1, 2, 3]), i(2)], {}, np.array([True, True, False])),
    ("And", [np.array([True, False]), np.array(True)], {}, np.array([True, False])),
    ("BitwiseNot", [i([0])], {}, i([-1])),
    ("IsNaN", [f([np.nan, 1.0])], {}, np.array([True, False])),
    ("ReduceSum", [i([[1, 2], [3, 4]]), i([-1])], {"keepdims": 0}, i([3, 7])),
    ("ReduceProd", [i([2, 3, 4])], {"keepdims": 0}, i(24)),
    ("CumSum", [i([1, 1, 1]), i(0)], {}, i([1, 2, 3])),
]  # fmt: skip
NONE: dict[str, tuple[str, list[Any], dict[str, Any]]] = {
    "approximated by libraries": ("Exp", [f(1.0)], {}),
    "powers of floats": ("Pow", [f(2.0), f(0.5)], {}),
    "summed in some order": ("ReduceSum", [f([0.1, 0.2, 0.3])], {}),
    "a matrix product": ("MatMul", [f([[1.0]]), f([[1.0]])], {}),
    "drawn": ("RandomUniform", [], {}),
    "unknown": ("Konv", [i(1)], {}),
    "a sum beyond the type": ("Add", [i((1 << 63) - 1), i(1)], {}),
    "division by zero": ("Div", [i(1), i(0)], {}),
    "NaN": ("Div", [f(0.0), f(0.0)], {}),
    "the root of a negative number": ("Sqrt", [f(-1.0)], {}),
    "NaN as an integer": ("Cast", [f(np.nan)], {"to": TYPE.INT64}),
    "infinity as an integer": ("Cast", [f(np.inf)], {"to": TYPE.INT64}),
    "a float beyond the integers": ("Cast", [f(1e30)], {"to": TYPE.INT32}),
    "rounded twice": ("Cast", [f(0.1, dtype=np.float64)], {"to": TYPE.FLOAT16}),
    "a small operand": ("Add", [f(1e-40), f(1.0)], {}),
    "a product that vanishes": ("Mul", [f(1e-30), f(1e-30)], {}),
    "a small difference": ("Sub", [f(1.5e-38), f(1.2e-38)], {}),
    "a small half": ("Cast", [f(1e-7)], {"to": TYPE.FLOAT16}),
    "steps that are rounded": ("Range", [f(0.0), f(1.0), f(0.1)], {}),
    "zeros of two signs": ("Max", [f(0.0), f(-0.0)], {}),
    "operands of two types": ("Add", [f(1.0), i(1)], {}),
    "an index outside": ("Gather", [i([1, 2]), i(2)], {}),
    "a target that does not fit": ("Reshape", [i([1, 2, 3]), i([2, 2])], {}),
    "too large": ("Expand", [i(1), i([LIMIT])], {}),
    "far too large": ("ConstantOfShape", [i([1 << 40, 1 << 20])], {}),
    "far too long": ("Range", [i(0), i(1 << 50), i(1)], {}),
    "an input that is left out": ("Add", [i(1), None], {}),
    "another kind of padding": ("Pad", [i([1, 2]), i([1, 0])], {"mode": b"reflect"}),
    "a scatter that adds": ("ScatterND", [i([1]), i([[0]]), i([1])], {"reduction": b"add"}),
}


@pytest.mark.parametrize(("kind", "inputs", "attributes", "expected"), ANSWERS)
def test_a_result_is_the_one_that_was_written_down(kind: str, inputs: Any, attributes: Any, expected: Any) -> None:
    (found,) = evaluate(kind, inputs, attributes) or [None]
    assert found is not None
    assert (found.dtype, found.shape, found.tobytes()) == (expected.dtype, expected.shape, expected.tobytes())


@pytest.mark.parametrize("case", NONE)
def test_there_is_no_result(case: str) -> None:
    assert evaluate(*NONE[case]) is None


def test_a_split_has_a_result_for_each_part() -> None:
    found = evaluate("Split", [i([1, 2, 3, 4, 5])], {"num_outputs": 2})
    assert found is not None and [x.tolist() for x in found] == [[1, 2, 3], [4, 5]]
    found = evaluate("Split", [i([1, 2, 3]), i([1, 2])], {})
    assert found is not None and [x.tolist() for x in found] == [[1], [2, 3]]


@pytest.mark.parametrize("kind", ["Transpose", "Reshape", "Concat", "Where", "Expand"])
def test_bits_of_nan_and_of_zeros_are_moved_as_they_are(kind: str) -> None:
    x = np.array([[0x7FC00001, 0xFF800123], [0x80000000, 0x00000001]], np.uint32).view(FLOAT)
    operands = {
        "Transpose": [x], "Reshape": [x, i([4])], "Concat": [x, x], "Expand": [x, i([2, 2])],
        "Where": [np.ones((2, 2), bool), x, x],
    }[kind]  # fmt: skip
    (found,) = evaluate(kind, operands, {"perm": [0, 1]} if kind == "Transpose" else {"axis": 0}) or [f(0.0)]
    assert found.tobytes()[:16] == x.tobytes()


def test_a_vector_with_unknown_elements_is_moved_and_nothing_else() -> None:
    batch = np.array(["batch", 8, 16], object)
    (found,) = evaluate("Slice", [batch, i([1]), i([9])], {}) or [None]
    assert found is not None and found.tolist() == [8, 16]
    (found,) = evaluate("Concat", [batch[:1], i([4])], {"axis": 0}) or [None]
    assert found is not None and found.tolist() == ["batch", 4]
    assert evaluate("Mul", [batch, i(2)], {}) is None
    assert evaluate("Cast", [batch], {"to": TYPE.FLOAT}) is None


def test_a_processor_that_takes_small_numbers_as_zero_changes_nothing() -> None:
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot be told to")
    try:
        for case in ("a small operand", "a product that vanishes", "a small difference", "a small half"):
            assert evaluate(*NONE[case]) is None
    finally:
        torch.set_flush_denormal(False)
