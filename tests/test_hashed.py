"""Hashed formulas: the hash's integers times one factor, the same bits in every window and layout."""

from __future__ import annotations

import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zero_convert.formulas import Bell, Formula, Signs, Uniform, hashed, hashing

SHAPES = ((), (5,), (4, 3), (6, 2, 3, 3))
KINDS = (
    lambda s: Bell(s, 0.5, 7, "a.weight"),
    lambda s: Uniform(s, 0.5, 7, "a.weight"),
    lambda s: Signs(s, 0.5, 7, "a"),
)


def values(formula: Formula, dtype: type = np.float32) -> np.ndarray:
    out = np.full(formula.shape, np.nan, dtype)
    formula.fill(out)
    return out


def test_values_are_the_integers_times_one_factor() -> None:
    sqrt = math.sqrt(2**32 - 1)
    assert values(Bell((2, 2), 0.5, 0, "layer1.0.conv1"), np.float64).tolist() == [
        [-2135 * (0.5 / sqrt), -956 * (0.5 / sqrt)],
        [-86288 * (0.5 / sqrt), -35853 * (0.5 / sqrt)],
    ]
    assert values(Uniform((1,), 4.0, 0, "layer1.0.conv1"), np.float64).tolist() == [4 * 6163272694180073 / 2**53]
    assert values(Signs((8,), 3.0, 0, "layer1.0.conv1")).tolist() == [-3, 3, 3, -3, -3, -3, 3, 3]


def test_first_float32_values_never_change() -> None:
    # Worked out with Python's integers and floats from the definitions at the heads of hashing.py and hashed.py.
    assert values(Bell((2,), 0.1, 0, "layer1.0.conv1")).view(np.uint32).tolist() == [0xBB558000, 0xBABF3333]
    assert values(Uniform((2,), 0.1, 0, "layer1.0.conv1")).view(np.uint32).tolist() == [0x3D8C22F8, 0xBD83E6E3]


@pytest.mark.parametrize("make", KINDS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_windows_and_layouts_have_the_bits_of_the_whole(make, shape: tuple[int, ...], dtype: type) -> None:
    formula = make(shape)
    whole = values(formula, dtype)
    assert whole.shape == shape and np.isfinite(whole).all()
    for start in range(shape[0] + 1 if shape else 1):
        for stop in range(start, shape[0] + 1 if shape else 1):
            assert np.array_equal(formula.window(start, stop, dtype), whole[start:stop] if shape else whole)
    wide = np.full((*shape, 2), np.nan, dtype)[..., 0]  # strides of two elements
    formula.fill(wide)
    assert np.array_equal(wide, whole)


@given(st.integers(1, 40), st.integers(1, 5))
def test_chunks_leave_no_trace(chunk: int, columns: int) -> None:
    formula = Bell((20, columns), 1.0, 1, "x")
    usual, hashed.CHUNK = hashed.CHUNK, chunk
    try:
        found = values(formula)
    finally:
        hashed.CHUNK = usual
    assert np.array_equal(found, values(formula))


def test_half_precision_is_single_precision_rounded() -> None:
    formula = Bell((1000,), 0.01, 0, "x")
    single = values(formula)
    assert np.array_equal(values(formula, np.float16), single.astype(np.float16))
    assert np.array_equal(single, values(formula, np.float64).astype(np.float32))


def test_the_standard_deviation_and_the_bound_are_kept() -> None:
    bell, uniform = values(Bell((1 << 16,), 0.3, 0, "x"), np.float64), values(Uniform((1 << 16,), 0.3, 0, "x"))
    assert abs(bell.std() / 0.3 - 1) < 0.01
    assert 0.2999 < abs(uniform).max() <= np.float32(0.3)


def test_the_seed_and_the_name_are_in_every_value() -> None:
    base = values(Bell((100,), 1.0, 0, "x"))
    assert not (base == values(Bell((100,), 1.0, 1, "x"))).any()
    assert not (base == values(Bell((100,), 1.0, 0, "y"))).any()


def test_a_large_tensor_is_made_without_a_large_memory() -> None:
    out = np.empty((2048, 2048), np.float32)  # 16 MiB; its hash words would be 96 MiB
    tracemalloc.start()
    try:
        Bell(out.shape, 1.0, 0, "x").fill(out)
        assert tracemalloc.get_traced_memory()[1] < 48 << 20
    finally:
        tracemalloc.stop()


def test_rules_say_which_distribution_and_which_seed() -> None:
    assert Bell((2, 3), 0.25, 7, "x").rule == "bell-shaped 2×3, standard deviation 0.25, seed 7"
    assert Uniform((2, 3), 0.25, 7, "x").rule == "uniform 2×3 within ±0.25, seed 7"
    assert Signs((), 0.25, 7, "x").rule == "±0.25 scalar, seed 7"
    assert hashing.BELL_VARIANCE == 12 * (65536**2 - 1) // 12
