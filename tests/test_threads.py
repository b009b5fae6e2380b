"""torch gets its threads back."""

from __future__ import annotations

import pytest
import torch

from zero_convert.runtime.threads import one_thread


def test_the_number_of_threads_is_restored_even_after_an_error() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with pytest.raises(ValueError, match="invalid literal"):
            one_thread()(int)("no number")
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_a_decorated_function_can_be_called_again() -> None:
    inside = one_thread()(torch.get_num_threads)
    assert (inside(), inside()) == (1, 1)
