"""Hadamard matrices: the right signs, orthogonal in integers, any window, rows that differ."""

from __future__ import annotations

from functools import reduce

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zero_convert.errors import UsageError
from zero_convert.formulas import hadamard

NAMED_ORDERS = [1, 2, 4, 8, 12, 16, 20, 24, 28, 32, 36, 40, 44, 48, 96, 192, 320, 384, 768, 1000, 1280, 1536, 3072]


def signs(text: str) -> np.ndarray:
    return np.array([[1 if sign == "+" else -1 for sign in row] for row in text.split()])


SYLVESTER_8 = signs("++++++++ +-+-+-+- ++--++-- +--++--+ ++++---- +-+--+-+ ++----++ +--+-++-")
# The squares mod 11 are 1, 3, 4, 5, 9: row 1 is + at columns 1 + square, the rows below turn its last 11 signs right.
PALEY_12 = signs(
    "++++++++++++ +-+-+++---+- +--+-+++---+ ++--+-+++--- +-+--+-+++-- +--+--+-+++- "
    "+---+--+-+++ ++---+--+-++ +++---+--+-+ ++++---+--+- +-+++---+--+ ++-+++---+--"
)


def whole(m: int) -> np.ndarray:
    matrix = hadamard.exact_order(m)
    assert matrix is not None
    assert matrix.order == m
    return matrix.entries(range(m), range(m))


def distinct(rows: np.ndarray) -> int:
    return len({row.tobytes() for row in np.ascontiguousarray(rows)})


def predicted(matrix: hadamard.ExactHadamard, kind: str, cols: np.ndarray) -> int:
    """How many rows of the matrix differ on n columns: while n is small 2^n, or 2^ceil(log2 n) of the first columns;
    then every row of the Sylvester factor, as often as the Paley factor's rows differ."""
    n, low = len(cols), 1 << matrix.power
    if kind == "spanning" and n < matrix.power:
        return 1 << n
    if kind == "first" and n <= low:
        return 1 << (n - 1).bit_length()
    return low * distinct(matrix.paley.entries(range(matrix.paley.order), np.unique(cols >> matrix.power)))


def test_sylvester_of_order_8_is_the_one_typed_by_hand() -> None:
    assert np.array_equal(hadamard.sylvester(range(8), range(8)), SYLVESTER_8)
    assert hadamard.sylvester(range(8), range(8)).dtype == np.int8


def test_sylvester_is_the_recursion_of_the_paper() -> None:
    recursive = np.array([[1]])
    for _ in range(9):
        recursive = np.block([[recursive, recursive], [recursive, -recursive]])
    assert np.array_equal(hadamard.sylvester(range(512), range(512)), recursive)


def test_paley_of_order_12_is_the_one_typed_by_hand() -> None:
    assert np.array_equal(whole(12), PALEY_12)


@pytest.mark.parametrize(
    ("m", "row_5"),
    [
        (28, "++++--+----++++--++--++----+"),  # field of 27 elements, x^3 = x + 2
        (52, "+++---+-+-+--+-++--++--+-++-+--++--+-+-++-+--+-++--+"),  # field of 25 elements, x^2 = x + 3
    ],
)
def test_paley_over_a_prime_power_is_the_one_worked_out_by_squaring_every_polynomial(m: int, row_5: str) -> None:
    assert np.array_equal(whole(m)[[5]], signs(row_5))


@settings(deadline=None)
@given(st.integers(0, 5000), st.integers(0, 300), st.lists(st.integers(0, 8191), min_size=1, max_size=20))
def test_any_window_of_rows_and_any_columns_follow_the_popcount_rule(start: int, count: int, cols: list[int]) -> None:
    window = hadamard.sylvester(range(start, start + count), np.array(cols))
    expected = [[(-1) ** (i & j).bit_count() for j in cols] for i in range(start, start + count)]
    assert window.tolist() == expected


@pytest.mark.parametrize("m", NAMED_ORDERS)
def test_named_orders_are_hadamard_matrices_with_a_first_row_and_column_of_ones(m: int) -> None:
    matrix = whole(m)
    assert matrix.shape == (m, m)
    assert set(np.unique(matrix)) <= {-1, 1}
    single = matrix.astype(np.float32)  # integers below 2^24 are exact in float32, in any order of summation
    assert np.array_equal(single @ single.T, m * np.eye(m, dtype=np.float32))
    assert (matrix[0] == 1).all()
    assert (matrix[:, 0] == 1).all()


def test_every_order_that_is_offered_up_to_400_is_a_hadamard_matrix_and_prime_powers_are_among_them() -> None:
    offered = [m for m in range(1, 401) if hadamard.exact_order(m) is not None]
    for m in offered:
        matrix = whole(m).astype(np.float32)
        assert np.array_equal(matrix @ matrix.T, m * np.eye(m, dtype=np.float32)), m
    missing = [m for m in range(4, 401, 4) if m not in offered]
    # No Paley matrix times a power of two has these orders; Hadamard matrices of most of them are known otherwise.
    assert missing == [92, 116, 156, 172, 184, 188, 232, 236, 260, 268, 292, 324, 356, 372, 376]
    names = {m: matrix.name for m in (28, 36, 100, 344, 48) if (matrix := hadamard.exact_order(m))}
    assert names == {
        28: "Paley I (q=3^3)",
        36: "Paley II (q=17)",
        100: "Paley II (q=7^2)",
        344: "Paley I (q=7^3)",
        48: "Paley I (q=11) ⊗ Sylvester 2^2",
    }


@pytest.mark.parametrize("m", [-4, 0, 3, 6, 14, 92, 999])
def test_orders_without_a_construction_give_none(m: int) -> None:
    assert hadamard.exact_order(m) is None
    with pytest.raises(UsageError):
        hadamard.kronecker_factors(m)


@pytest.mark.parametrize("m", [24, 28, 36, 100, 192, 344])
def test_windows_of_exact_orders_are_windows(m: int) -> None:
    matrix, generator = hadamard.exact_order(m), np.random.default_rng(m)
    rows, cols = generator.integers(0, m, 50), generator.integers(0, m, 60)
    assert matrix is not None
    assert np.array_equal(matrix.entries(rows, cols), whole(m)[np.ix_(rows, cols)])


@pytest.mark.parametrize("m", [1, 2, 4, 8, 64, 512, 12, 24, 36, 48, 320, 384, 768, 1000, 1536])
def test_kronecker_factors_multiply_to_the_matrix_and_are_balanced(m: int) -> None:
    factors = hadamard.kronecker_factors(m)
    assert np.array_equal(reduce(np.kron, factors), whole(m))
    assert len(factors) <= 2
    sizes = {512: [16, 32], 384: [24, 16], 1536: [48, 32], 12: [12]}
    assert [len(factor) for factor in factors] == sizes.get(m, [len(factor) for factor in factors])


def test_spanning_columns_are_the_powers_of_two_then_the_smallest_unused() -> None:
    assert hadamard.columns(16, 2, "spanning").tolist() == [1, 2]
    assert hadamard.columns(16, 4, "spanning").tolist() == [1, 2, 4, 8]
    assert hadamard.columns(16, 5, "spanning").tolist() == [0, 1, 2, 4, 8]
    assert hadamard.columns(16, 7, "spanning").tolist() == [0, 1, 2, 3, 4, 5, 8]
    assert hadamard.columns(16, 16, "spanning").tolist() == list(range(16))
    assert hadamard.columns(3, 6, "spanning").tolist() == [0, 1, 2, 3, 4, 5]
    assert hadamard.columns(16, 7, "first").tolist() == list(range(7))


def test_spanning_makes_all_rows_distinct_whenever_n_signs_can() -> None:
    for m in [*range(1, 70), 100, 200, 255, 256, 257, 1000]:
        for n in {1, 2, 3, 4, 5, 6, 7, 8, 10, 11, 16, 33, m // 4 + 1, m // 2 + 1, m}:  # n > m too
            cols = hadamard.columns(m, n, "spanning")
            assert len(set(cols.tolist())) == n
            rows = distinct(hadamard.sylvester(range(m), cols))
            assert rows == min(m, 2**n), (m, n)


def test_first_columns_repeat_rows_as_predicted() -> None:
    for m in [*range(1, 70), 100, 256, 257]:
        for n in {1, 2, 3, 4, 5, 8, 9, m // 2 + 1, m}:
            rows = distinct(hadamard.sylvester(range(m), hadamard.columns(m, n)))
            assert rows == min(m, 1 << (n - 1).bit_length()), (m, n)
    for kind, rows in (("first", 1024), ("spanning", 2048)):
        assert distinct(hadamard.sylvester(range(2048), hadamard.columns(2048, 784, kind))) == rows


@pytest.mark.parametrize("m", [12, 20, 24, 28, 36, 40, 44, 48, 96, 320, 344, 768, 1000])
def test_exact_orders_keep_rows_apart_with_few_spanning_columns_and_predict_them(m: int) -> None:
    matrix = hadamard.exact_order(m)
    assert matrix is not None
    for kind in ("first", "spanning"):
        for n in {*range(1, min(m, 20)), m // 4, m // 2, m}:
            cols = hadamard.columns(m, n, kind, "exact")
            assert len(set(cols.tolist())) == n
            rows = distinct(matrix.entries(range(m), cols))
            assert rows == predicted(matrix, kind, cols), (kind, n)
            if kind == "spanning" and n >= hadamard.ceil_log2(m) + 5:
                assert rows == m, n


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from([(64, "sylvester"), (96, "exact"), (36, "exact"), (100, "sylvester"), (1000, "exact")]),
    st.data(),
)
def test_writing_a_window_into_a_strided_view_gives_the_scaled_signs(
    size: tuple[int, str], data: st.DataObject
) -> None:
    m, order = size
    matrix = hadamard.matrix_for(m, m, order)
    start = data.draw(st.integers(0, m))
    stop = data.draw(st.integers(start, m))
    cols = np.array(data.draw(st.lists(st.integers(0, m - 1), min_size=1, max_size=9)))
    dtype = data.draw(st.sampled_from([np.float16, np.float32, np.float64]))
    box = np.full((stop - start, len(cols), 3), 7, dtype=dtype)
    matrix.write(box[:, :, 1], start, cols, 0.25)
    assert np.array_equal(box[:, :, 1], matrix.entries(range(start, stop), cols) * 0.25)
    assert (box[:, :, [0, 2]] == 7).all()


@pytest.mark.parametrize(
    ("kind", "order", "m", "n"),
    [("last", "sylvester", 4, 2), ("first", "paley", 4, 2), ("first", "sylvester", 0, 2), ("first", "exact", 4, 0)],
)
def test_unknown_options_and_empty_sizes_are_usage_errors(kind: str, order: str, m: int, n: int) -> None:
    with pytest.raises(UsageError):
        hadamard.columns(m, n, kind, order)
