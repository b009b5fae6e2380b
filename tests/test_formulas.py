"""Closed forms: literals typed from paper, isometry, windows, and the bugs of public ports."""

from __future__ import annotations

import ast
import importlib
import inspect
import math
import pkgutil
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import zero_convert.formulas as f
from zero_convert.errors import UsageError
from zero_convert.formulas import (
    Bell,
    Codes,
    Constant,
    EinsumWeight,
    Formula,
    Hadamard,
    Kernel,
    PartialIdentity,
    Patch,
    Repeated,
    Sections,
    Stack,
    WeightNormV,
    Zeros,
)
from zero_convert.initialization.scheme import AsConstructed

from . import formula_strategies
from .formula_strategies import matrices, whole_formulas

EXPANSIONS = [96, 192, 320, 384, 768, 1280, 1536, 3072]


def values(formula: Formula, dtype: type = np.float32) -> np.ndarray:
    out = np.full(formula.shape, np.nan, dtype=dtype)
    formula.fill(out)
    return out


# ---------------------------------------------------------------------------------------------------------------------
# Literals


def test_4x3_is_the_one_typed_by_hand() -> None:
    assert values(Hadamard(4, 3)).tolist() == [[0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0.5, 0.5, -0.5], [0.5, -0.5, -0.5]]


def test_6x4_is_the_one_typed_by_hand() -> None:
    c = np.float32(0.35355339059327373)  # 1 / sqrt(8)
    assert np.array_equal(
        values(Hadamard(6, 4)),
        np.array([[c, c, c, c], [c, -c, c, -c], [c, c, -c, -c], [c, -c, -c, c], [c, c, c, c], [c, -c, c, -c]]),
    )


def test_8x8_is_the_one_typed_by_hand() -> None:
    typed = ["++++++++", "+-+-+-+-", "++--++--", "+--++--+", "++++----", "+-+--+-+", "++----++", "+--+-++-"]
    expected = np.float32(0.35355339059327373) * np.array([[1 if s == "+" else -1 for s in row] for row in typed])
    assert np.array_equal(values(Hadamard(8, 8)), expected.astype(np.float32))
    assert np.array_equal(values(PartialIdentity(8, 8)), np.eye(8))


def test_5x7_is_the_one_typed_by_hand() -> None:
    assert values(PartialIdentity(5, 7)).tolist() == [
        [1, 0, 0, 0, 0, 0, 0],
        [0, 1, 0, 0, 0, 0, 0],
        [0, 0, 1, 0, 0, 0, 0],
        [0, 0, 0, 1, 0, 0, 0],
        [0, 0, 0, 0, 1, 0, 0],
    ]
    assert values(PartialIdentity(3, 2)).tolist() == [[1, 0], [0, 1], [0, 0]]


def test_a_grouped_kernel_is_the_one_typed_by_hand() -> None:
    # 8 outputs from 4 inputs in 2 groups, kernel 1×3: in each group H_4[:, :2] / 2 at the middle tap.
    h = 0.5
    group = [
        [[[0, h, 0]], [[0, h, 0]]],
        [[[0, h, 0]], [[0, -h, 0]]],
        [[[0, h, 0]], [[0, h, 0]]],
        [[[0, h, 0]], [[0, -h, 0]]],
    ]
    formula = Kernel(Hadamard(4, 2), (1, 3), groups=2)
    assert values(formula).tolist() == group + group
    assert formula.rule == "Hadamard 4×2 of Sylvester 2^2, times 1/sqrt(4) at tap (0, 1) in each of 2 groups"


def test_a_transposed_kernel_is_the_adjoint_typed_by_hand() -> None:
    # 3 inputs, 2 outputs: torch keeps (in, out, k), input i goes to output i at the tap.
    assert values(Kernel(PartialIdentity(2, 3), (2,), tap=(0,), transposed=True)).tolist() == [
        [[1, 0], [0, 0]],
        [[0, 0], [1, 0]],
        [[0, 0], [0, 0]],
    ]
    # 4 inputs, 8 outputs, 2 groups: in each group the columns of H_4[:, :2] / 2.
    h = 0.5
    group = [[[0, h], [0, h], [0, h], [0, h]], [[0, h], [0, -h], [0, h], [0, -h]]]
    assert values(Kernel(Hadamard(4, 2), (2,), groups=2, transposed=True)).tolist() == group + group


def test_patches_are_flattened_as_channel_row_column() -> None:
    weight = values(Patch(PartialIdentity(6, 8), (2, 2)))  # (6, 2, 2, 2)
    expected = np.zeros((6, 2, 2, 2), dtype=np.float32)
    for output, position in enumerate([(0, 0, 0), (0, 0, 1), (0, 1, 0), (0, 1, 1), (1, 0, 0), (1, 0, 1)]):
        expected[(output, *position)] = 1
    assert np.array_equal(weight, expected)


def test_outputs_and_inputs_of_several_axes_are_counted_the_last_one_fastest() -> None:
    matrix = Hadamard(6, 4)
    spread = values(EinsumWeight(matrix, (2, 2, 5, 3, 2), ("in", "out", "stack", "out", "in")))
    dense = values(matrix)
    for i, o, s, p, j in np.ndindex(spread.shape):
        assert spread[i, o, s, p, j] == dense[3 * o + p, 2 * i + j]


def test_a_cyclic_identity_is_the_one_typed_by_hand() -> None:
    cyclic = f.CyclicIdentity(5, 3, 2.0)
    assert values(cyclic).tolist() == [[2, 0, 0], [0, 2, 0], [0, 0, 2], [2, 0, 0], [0, 2, 0]]
    assert cyclic.rule == "cyclic identity 5×3, times 2"
    distinct = f.CyclicIdentity(6, 3, distinct=True)
    assert values(distinct).tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0], [0, 1, 1], [1, 0, 1]]
    assert distinct.rule == "identity 6×3, wrapped around"
    assert values(f.CyclicIdentity(4, 1, distinct=True)).tolist() == [[1]] * 4


def test_stacks_follow_one_another_and_scalars_are_scalars() -> None:
    stack = Stack((PartialIdentity(2, 2), Constant((1, 2), 0.0), Hadamard(2, 2)))
    c = np.float32(0.7071067811865476)
    assert np.array_equal(values(stack), np.array([[1, 0], [0, 1], [0, 0], [c, c], [c, -c]], dtype=np.float32))
    assert stack.rule == "stack of identity 2×2; constant 0; Hadamard 2×2 of Sylvester 2^1, times 1/sqrt(2)"
    assert values(Constant((), 0.1)).tolist() == np.float32(0.1)
    assert Constant((), 0.1).window(0, 0).shape == ()


# ---------------------------------------------------------------------------------------------------------------------
# What a formula is


@pytest.mark.parametrize(
    ("formula", "zero"),
    [
        (Constant((2, 2), 0.0), True),
        (Constant((2, 2), 1e-30), False),
        (Kernel(Zeros(2, 2), (3,)), True),
        (Kernel(Sections((Zeros(1, 2), PartialIdentity(1, 2)), ((0, 1), (1, 1))), ()), False),
        (Stack((Constant((2, 2), 0.0), Zeros(2, 2))), True),
        (Stack((Constant((2, 2), 0.0), PartialIdentity(2, 2))), False),
        (Repeated(Kernel(Zeros(2, 2), ()), (3,)), True),
        (WeightNormV(Zeros(2, 2)), False),
        (AsConstructed((2, 2), Constant((2, 2), 0.0)), False),
        (Bell((2, 2), 0.0, 0, "w"), False),
    ],
)
def test_a_formula_that_says_it_is_zero_is(formula: Formula, zero: bool) -> None:
    """One that does not may be zero all the same."""
    assert formula.is_zero is zero
    assert not zero or not values(formula).any()


def test_sections_of_rows_are_found_wherever_they_are_placed() -> None:
    query, key = PartialIdentity(2, 4), Zeros(2, 4)
    sections = Sections((query, key), ((0, 2), (1, 2)))
    for formula in (sections, Kernel(sections, (), transposed=True), Stack((query, key)), Repeated(sections, (3,))):
        assert formula.parts == (query, key)
    assert Kernel(Sections((query,), ((0, 2),)), ()).parts == (query,)
    plain = Kernel(query, (1,))
    assert plain.parts == (plain,)
    assert Stack((plain, Kernel(key, (1,)))).family == "identity" and WeightNormV(key).family == "other"


def test_the_kind_of_a_formula_has_no_sizes() -> None:
    kinds = {formula.kind for formula in (Kernel(PartialIdentity(4, 2), (3,)), PartialIdentity(9, 8))}
    assert kinds == {"partial identity"}
    assert Constant((3, 3), 0.0).kind == "constant 0" and Bell((2, 3), 0.25, 7, "w").kind == "bell-shaped"


# ---------------------------------------------------------------------------------------------------------------------
# The mathematics


def published(m: int, n: int) -> np.ndarray:
    """eye(m, 2^k) @ H / 2^(k/2) @ eye(2^k, n), dense, as the paper prints Algorithm 1."""
    k = math.ceil(math.log2(m))
    dense = np.array([[1.0]])
    for _ in range(k):
        dense = np.block([[dense, dense], [dense, -dense]])
    return (np.eye(m, 2**k) @ (dense / 2 ** (k / 2)) @ np.eye(2**k, n)).astype(np.float32)


def test_expansions_equal_the_published_dense_formula_bit_for_bit() -> None:
    for m in range(2, 70):
        for n in {1, m // 3 + 1, m // 2, m - 1}:
            assert values(Hadamard(m, n)).tobytes() == published(m, n).tobytes(), (m, n)


@pytest.mark.parametrize("shrink", [2, 4])
@pytest.mark.parametrize("columns", ["first", "spanning"])
@pytest.mark.parametrize("m", EXPANSIONS)
def test_expansions_of_exact_order_are_isometries(m: int, columns: str, shrink: int) -> None:
    weight = values(Hadamard(m, m // shrink, columns=columns, order="exact")).astype(np.float64)
    gram = weight.T @ weight
    # Every |σ² - 1| is at most the largest row sum of |WᵀW - I| (Gershgorin).
    assert np.abs(gram - np.eye(len(gram))).sum(axis=1).max() < 1e-6
    if m <= 768:
        assert np.abs(np.linalg.svd(weight, compute_uv=False) - 1).max() < 1e-6


def test_a_cropped_sylvester_matrix_is_no_isometry_and_says_so_in_its_scale() -> None:
    singular = np.linalg.svd(values(Hadamard(768, 588)), compute_uv=False)
    assert singular.min() == pytest.approx(0.5, abs=1e-4)
    assert Hadamard(768, 588).rule == "Hadamard 768×588 of Sylvester 2^10, times 1/sqrt(1024)"
    exact = Hadamard(768, 588, columns="spanning", order="exact")
    assert exact.rule == ("Hadamard 768×588 of Paley I (q=11) ⊗ Sylvester 2^6, spanning columns, times 1/sqrt(768)")


def test_exact_order_falls_back_to_sylvester_and_says_so() -> None:
    formula = Hadamard(92, 46, order="exact")
    assert formula.rule == (
        "Hadamard 92×46 of Sylvester 2^7 (no Hadamard matrix of order 92 is known here), times 1/sqrt(128)"
    )
    assert np.array_equal(values(formula), values(Hadamard(92, 46)))


def test_scales_of_the_paper_and_of_the_code_are_both_possible() -> None:
    paper = Hadamard(6, 4, scale=1 / math.sqrt(2**2))
    assert np.unique(np.abs(values(paper))).tolist() == [0.5]
    assert paper.rule.endswith("times 1/sqrt(4)")
    assert Hadamard(6, 4, scale=0.3).rule.endswith("times 0.3")


def test_a_scale_is_rounded_once_to_float32_and_from_there_to_float16() -> None:
    scale = 1 / math.sqrt(2**5)
    formula = Hadamard(32, 3)
    assert values(formula, np.float64)[0, 0] == scale
    assert values(formula)[0, 0] == np.float32(scale)
    assert values(formula, np.float16)[0, 0] == np.float32(scale).astype(np.float16)
    # 1 + 2^-11 + 2^-40 is nearest to 1 + 2^-10 in float16, but float32 makes it the tie 1 + 2^-11, which goes to 1.
    assert values(Constant((2,), 1 + 2**-11 + 2**-40), np.float16).tolist() == [1, 1]


def test_codes_have_unit_norm_and_differ() -> None:
    for num, dim in [(1, 5), (10, 4), (100, 7), (1000, 64), (7, 96), (300, 300)]:
        table = values(Codes(num, dim)).astype(np.float64)
        assert np.abs(np.linalg.norm(table, axis=1) - 1).max() < 1e-6
        assert len(np.unique(table, axis=0)) == num, (num, dim)
    assert len(np.unique(values(Codes(100, 3)), axis=0)) == 8
    assert np.array_equal(np.abs(values(Codes(9, 4))), np.full((9, 4), 0.5, dtype=np.float32))
    assert values(Codes(3, 3)).shape == (3, 3)
    assert np.array_equal(values(Codes(5, 7, first=1)), values(Codes(6, 7))[1:])
    assert np.array_equal(Codes(5, 7, first=1).window(2, 4, np.float32), values(Codes(6, 7))[3:5])


# ---------------------------------------------------------------------------------------------------------------------
# Known bugs of public ports


@pytest.mark.parametrize("kernel", [(1,), (3,), (4,), (3, 3), (1, 7), (2, 2), (3, 5, 3), (1, 1, 1), ()])
@pytest.mark.parametrize("matrix", [PartialIdentity(4, 6), Hadamard(6, 4)])
def test_only_the_centre_tap_is_set_for_kernels_of_any_dimension(
    kernel: tuple[int, ...], matrix: PartialIdentity | Hadamard
) -> None:
    weight = values(Kernel(matrix, kernel))  # starts from NaN: a tap left alone would show
    tap = tuple(k // 2 for k in kernel)
    assert np.array_equal(weight[(..., *tap)], values(matrix))
    weight[(..., *tap)] = 0
    assert not weight.any()


def test_depthwise_kernels_are_the_identity_in_every_group() -> None:
    weight = values(Kernel(PartialIdentity(1, 1), (3, 3), groups=5))
    assert weight.shape == (5, 1, 3, 3)
    assert (weight[:, :, 1, 1] == 1).all()
    assert weight.sum() == 5


@pytest.mark.parametrize(("m", "n", "k"), [(2, 1, 1), (8, 3, 3), (5, 4, 3), (32, 16, 5), (20, 9, 5)])
def test_an_odd_exponent_keeps_its_root_of_two(m: int, n: int, k: int) -> None:
    assert np.unique(np.abs(values(Hadamard(m, n), np.float64))).tolist() == [1 / math.sqrt(2**k)]


# ---------------------------------------------------------------------------------------------------------------------
# Windows


@settings(max_examples=300, deadline=None)
@given(whole_formulas, st.sampled_from([np.float16, np.float32, np.float64]), st.data())
def test_a_block_is_bit_for_bit_a_part_of_the_whole(formula: Formula, dtype: type, data: st.DataObject) -> None:
    ranges = [
        (start, data.draw(st.integers(start, size)))
        for size in formula.shape[: data.draw(st.integers(1, len(formula.shape)))]
        for start in [data.draw(st.integers(0, size))]
    ]
    block = formula.block(ranges, dtype)
    assert block.dtype == dtype
    assert block.tobytes() == values(formula, dtype)[tuple(slice(*pair) for pair in ranges)].tobytes()
    if len(ranges) == 1:
        assert block.tobytes() == formula.window(*ranges[0], dtype).tobytes()


def test_every_formula_is_asked_for_blocks() -> None:
    """No class of the package is left out of the test above."""
    asked = set(re.findall(r"\w+", inspect.getsource(formula_strategies)))
    named = {name for name in f.__all__ if isinstance(kind := getattr(f, name), type) and issubclass(kind, Formula)}
    assert named - asked == {"Formula", "Matrix", "SizedMatrix"}


@settings(deadline=None)
@given(matrices, st.data())
def test_entries_are_the_chosen_rows_and_columns(matrix: f.Matrix, data: st.DataObject) -> None:
    rows = np.array(data.draw(st.lists(st.integers(0, matrix.m - 1), min_size=1, max_size=9)))
    cols = np.array(data.draw(st.lists(st.integers(0, matrix.n - 1), min_size=1, max_size=9)))
    assert np.array_equal(matrix.entries(rows, cols), values(matrix)[np.ix_(rows, cols)])


def test_a_window_of_a_matrix_larger_than_memory_is_made_alone() -> None:
    formula = Hadamard(2**40, 2**10)
    row = 2**40 - 2
    expected = [(-1) ** (row & j).bit_count() / 2**20 for j in range(2**10)]
    assert formula.window(row, row + 1)[0].tolist() == expected


def test_a_wrong_array_a_missing_row_and_a_tap_outside_the_kernel_are_usage_errors() -> None:
    with pytest.raises(UsageError, match=r"float16, float32 or float64 \(2, 2\)"):
        PartialIdentity(2, 2).fill(np.zeros((2, 3), dtype=np.float32))
    with pytest.raises(UsageError):
        PartialIdentity(2, 2).fill(np.zeros((2, 2), dtype=np.int64))
    with pytest.raises(UsageError, match=r"got 1:3; expected within 2×2"):
        PartialIdentity(2, 2).window(1, 3)
    for ranges in ([(0, 1), (1, 3)], [(2, 1)], [(0, 1)] * 3, [(-1, 1)]):
        with pytest.raises(UsageError, match="this block does not exist"):
            PartialIdentity(2, 2).block(ranges)
    with pytest.raises(UsageError):
        Kernel(PartialIdentity(2, 2), (3,), tap=(3,))
    with pytest.raises(UsageError):
        Kernel(PartialIdentity(2, 2), (3, 3), tap=(1,))
    with pytest.raises(UsageError):
        Patch(PartialIdentity(2, 7), (2, 2))
    with pytest.raises(UsageError):
        Stack((PartialIdentity(2, 2), PartialIdentity(2, 3)))


# ---------------------------------------------------------------------------------------------------------------------
# The package


def test_every_public_formula_is_offered_and_described_by_the_package() -> None:
    modules = [importlib.import_module(f"{f.__name__}.{info.name}") for info in pkgutil.iter_modules(f.__path__)]
    made = {
        name
        for module in modules
        for name, value in vars(module).items()
        if inspect.isclass(value) and issubclass(value, Formula) and value.__module__ == module.__name__
    }
    assert made - {"Hashed"} <= set(f.__all__)
    described = set(re.findall(r"\w+", f.__doc__ or "")) | {"Floats", "Integers"}
    assert set(f.__all__) <= described
    assert {module.__name__.rpartition(".")[2] for module in modules} <= described


def test_formulas_know_numpy_and_nothing_of_torch_models_or_schemes() -> None:
    allowed = {"numpy", "zero_convert.errors", *sys.stdlib_module_names}
    for path in Path(f.__path__[0]).glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level != 1:
                names = [node.module or ""]
            else:
                continue
            assert {name if name in allowed else name.partition(".")[0] for name in names} <= allowed, path.name
