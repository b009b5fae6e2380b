"""Roots of whole numbers."""

from __future__ import annotations

from decimal import Decimal, localcontext

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zero_convert.formulas import inverse_root


@pytest.mark.parametrize(("n", "q", "value"), [(1, 7, 1.0), (4, 2, 0.5), (16, 4, 0.5), (8, 3, 0.5), (4, 1, 0.25)])
def test_exact_roots_are_exact(n: int, q: int, value: float) -> None:
    assert inverse_root(n, q) == value


@given(st.integers(1, 10**6), st.integers(1, 40))
def test_the_root_is_right_to_one_part_in_2_to_the_52(n: int, q: int) -> None:
    with localcontext() as context:
        context.prec = 60
        exact = Decimal(n) ** (Decimal(-1) / q)
        assert abs(Decimal(inverse_root(n, q)) / exact - 1) < Decimal(2) ** -52 + Decimal(n) / 2**64


def test_first_values_never_change() -> None:
    # Worked out from the definition with 60-digit decimals.
    assert inverse_root(8, 2).hex() == "0x1.6a09e667f3bcdp-2"
    assert inverse_root(16, 6).hex() == "0x1.428a2f98d728bp-1"
    assert inverse_root(50, 4).hex() == "0x1.8115f427378d7p-2"
