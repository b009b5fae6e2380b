"""The integer hash: known outputs, any index alone, names and seeds apart."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zero_convert.errors import UsageError
from zero_convert.formulas import hashing


def test_the_generator_is_splitmix64() -> None:
    # The outputs for seed 1234567 that implementations of SplitMix64 are commonly checked against.
    assert hashing.splitmix64(1234567, 0, 5).tolist() == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]


def test_first_outputs_never_change() -> None:
    # Worked out with Python's integers from the definition at the head of hashing.py.
    assert hashing.key(0, "layer1.0.conv1") == 0x7C91BD7DC8B3CEE9
    assert hashing.words(0, "layer1.0.conv1", 0, 3).tolist() == [
        0xD795DAFE5CA3A073,
        0x2D8FB22722464F76,
        0x06A881C1BCEBB134,
    ]
    assert hashing.words(1, "layer1.0.conv1", 0, 1).tolist() == [0x21B52A3EDEC3599E]
    assert hashing.words(-3, "é", 0, 2).tolist() == [0x913933B5EB60FB86, 0xA5687908DE244C21]
    assert hashing.signs(0, "layer1.0.conv1", 0, 8).tolist() == [-1, 1, 1, -1, -1, -1, 1, 1]
    assert hashing.permutation(0, "layer1.0.conv1", 8).tolist() == [2, 1, 6, 7, 5, 3, 4, 0]
    assert hashing.permutation(-3, "é", 8).tolist() == [3, 5, 0, 1, 7, 4, 2, 6]
    assert hashing.uniform(0, "layer1.0.conv1", 0, 4).tolist() == [
        6163272694180073,
        -5801106935869037,
        -8538667976017171,
        4858430731642255,
    ]
    assert hashing.bell(0, "layer1.0.conv1", 0, 6).tolist() == [-2135, -956, -86288, -35853, 101277, 10075]
    assert hashing.bell(7, "é", 0, 3).tolist() == [-515, 53179, 76586]


def test_the_bell_is_the_sum_of_twelve_quarters_of_three_words() -> None:
    for index, value in enumerate(hashing.bell(5, "conv", 100, 103).tolist(), start=100):
        three = hashing.words(5, "conv", 3 * index, 3 * index + 3).tolist()
        assert value == sum(word >> shift & 0xFFFF for word in three for shift in (0, 16, 32, 48)) - 6 * 65535


@settings(deadline=None)
@given(st.integers(), st.text(st.characters(exclude_categories=["Cs"])), st.integers(0, 2**40), st.integers(0, 50))
def test_any_window_of_indices_is_a_part_of_the_sequence(seed: int, name: str, start: int, count: int) -> None:
    window = hashing.words(seed, name, start, start + count)
    assert window.dtype == np.uint64
    assert window.tolist() == [hashing.words(seed, name, i, i + 1)[0] for i in range(start, start + count)]


@settings(deadline=None)
@given(st.sampled_from([hashing.signs, hashing.uniform, hashing.bell]), st.integers(0, 2**40), st.integers(0, 50))
def test_any_window_of_drawn_values_is_a_part_of_the_sequence(draw, start: int, count: int) -> None:
    window = draw(3, "conv", start, start + count)
    assert window.tolist() == [draw(3, "conv", i, i + 1)[0] for i in range(start, start + count)]


def test_seed_and_name_are_kept_apart() -> None:
    pairs = [(0, ""), (1, ""), (1, "1"), (11, ""), (0, "a"), (0, "b"), (0, "a\0"), (-1, "")]
    assert len({hashing.key(seed, name) for seed, name in pairs}) == len(pairs)


@pytest.mark.parametrize("n", [0, 1, 2, 1000])
def test_a_permutation_has_every_index_once(n: int) -> None:
    order = hashing.permutation(7, "conv", n)
    assert order.dtype == np.int64
    assert sorted(order.tolist()) == list(range(n))
    assert n < 3 or order.tolist() != list(range(n))


def test_signs_are_balanced() -> None:
    signs = hashing.signs(0, "balance", 0, 1 << 16)
    assert signs.dtype == np.int8
    assert set(signs.tolist()) == {-1, 1}
    assert abs(int(signs.sum(dtype=np.int64))) < 4 * 256  # four standard deviations


N = 1 << 16


def moments(values: np.ndarray) -> tuple[float, float, float, float]:
    """Mean, variance, skewness and excess kurtosis."""
    mean = values.mean()
    variance = ((values - mean) ** 2).mean()
    third, fourth = (((values - mean) ** k).mean() / variance ** (k / 2) for k in (3, 4))
    return mean, variance, third, fourth - 3


def test_uniform_values_fill_their_interval_evenly() -> None:
    values = hashing.uniform(0, "even", 0, N) / hashing.UNIFORM_BOUND
    mean, variance, skewness, kurtosis = moments(values)
    assert abs(mean) < 4 * np.sqrt(1 / 3 / N) and abs(variance - 1 / 3) < 4 * np.sqrt(4 / 45 / N)
    assert abs(skewness) < 0.03 and abs(kurtosis + 1.2) < 0.03
    counts, _ = np.histogram(values, 64, (-1, 1))
    assert counts.sum() == N
    assert 30 < ((counts - N / 64) ** 2 / (N / 64)).sum() < 110  # χ² of 63 degrees of freedom: 63 ± 11


def test_the_bell_has_the_moments_that_are_stated() -> None:
    values = hashing.bell(0, "bell", 0, 4 * N) / np.sqrt(hashing.BELL_VARIANCE)
    mean, variance, skewness, kurtosis = moments(values)
    assert abs(mean) < 4 / 512 and abs(variance - 1) < 4 * np.sqrt(1.9) / 512
    assert abs(skewness) < 4 * np.sqrt(6) / 512 and abs(kurtosis + 0.1) < 4 * np.sqrt(24) / 512
    inside = [float((abs(values) < k).mean()) for k in (1, 2, 3)]
    assert abs(inside[0] - 0.6827) < 0.01 and abs(inside[1] - 0.9545) < 0.005 and inside[2] > 0.997
    extremes = 12 * 65535 - 6 * 65535
    assert abs(hashing.bell(0, "bell", 0, 4 * N)).max() < extremes


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.corrcoef(a, b)[0, 1])


@pytest.mark.parametrize("draw", [hashing.signs, hashing.uniform, hashing.bell])
def test_values_of_neighbours_names_and_seeds_are_independent(draw) -> None:
    base = draw(0, "layer1.0.conv1.weight", 0, N)
    others = [
        *(draw(0, "layer1.0.conv1.weight", lag, N + lag) for lag in (1, 2, 3, 7, 64, 576)),  # neighbouring indices
        *(draw(seed, "layer1.0.conv1.weight", 0, N) for seed in (-1, 1, 2, 10, 2**53 - 1)),
        *(draw(0, name, 0, N) for name in ("layer1.0.conv2.weight", "layer1.1.conv1.weight", "layer1.0.conv1.bias")),
    ]
    for other in others:
        assert not np.array_equal(base, other)
        for f in (lambda x: x, np.abs, lambda x: (x > 0) * 1.0):
            if f(base).min() < f(base).max():
                assert abs(correlation(f(base), f(other))) < 4.5 / np.sqrt(N)


def test_bits_of_words_are_independent_of_each_other_and_of_the_index() -> None:
    words = hashing.words(0, "bits", 0, N)
    bits = (words[:, None] >> np.arange(64, dtype=np.uint64) & np.uint64(1)).astype(np.float64)
    assert abs(bits.mean(0) - 0.5).max() < 4.5 * 0.5 / np.sqrt(N)
    between = np.corrcoef(bits.T) - np.eye(64)
    assert abs(between).max() < 5 / np.sqrt(N)
    index = (np.arange(N)[:, None] >> np.arange(16) & 1).astype(np.float64)
    assert abs(np.corrcoef(bits.T, index.T)[:64, 64:]).max() < 5 / np.sqrt(N)


def test_a_backward_window_is_a_usage_error() -> None:
    with pytest.raises(UsageError):
        hashing.words(0, "x", 3, 2)
