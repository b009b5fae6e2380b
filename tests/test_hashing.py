"""The integer hash: known outputs, any index alone, names and seeds apart."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zero_convert import hashing
from zero_convert.errors import UsageError


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


@settings(deadline=None)
@given(st.integers(), st.text(st.characters(exclude_categories=["Cs"])), st.integers(0, 2**40), st.integers(0, 50))
def test_any_window_of_indices_is_a_part_of_the_sequence(seed: int, name: str, start: int, count: int) -> None:
    window = hashing.words(seed, name, start, start + count)
    assert window.dtype == np.uint64
    assert window.tolist() == [hashing.words(seed, name, i, i + 1)[0] for i in range(start, start + count)]


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


def test_a_backward_window_is_a_usage_error() -> None:
    with pytest.raises(UsageError):
        hashing.words(0, "x", 3, 2)
