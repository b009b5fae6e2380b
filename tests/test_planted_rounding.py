"""Faults of rounding and of range, each found by the check that should find it, which passes without it.

The faults are operations in the forward of a small network that float32 cannot carry, or that no precision can.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from .subjects import ask, subject_of

pytestmark = pytest.mark.usefixtures("one_thread")
WIDE = torch.linspace(-1, 1, 64).reshape(4, 16)
Change = Callable[[Tensor], Tensor]


def same(x: Tensor) -> Tensor:
    return x


def noise(x: Tensor) -> Tensor:
    """0, but for what rounding leaves of it: a hundredth of x in float32."""
    return (x * 0.1 * 3 - x * 0.3) * 1e6


def noisy(x: Tensor) -> Tensor:
    return x + noise(x)


def scaled_by_noise(x: Tensor) -> Tensor:
    """The factor is 1 where nothing is rounded, and wrong in the first digit in float32."""
    return x * (1 + noise(x) * 10)


def faint(x: Tensor) -> Tensor:
    """x, whose derivative is a thousandth, and wrong in the first digit in float32."""
    return scaled_by_noise(x) * 1e-3 + (x - x * 1e-3).detach()


def turned(x: Tensor) -> Tensor:
    """The sign of x is another one where 1 + 1e-9 is 1."""
    one = x.mean() * 0 + 1
    return x * torch.where(one + 1e-9 > one, 1.0, -1.0)


def overflowing(x: Tensor) -> Tensor:
    """x, but not where 1e60 is too much."""
    large = x * 1e30 * 1e30
    return x + (large - large)


def far_away(x: Tensor) -> Tensor:
    """Infinite, with a derivative of 1."""
    return x + 3e38 + 3e38


def rooted(x: Tensor) -> Tensor:
    """x, with an infinite derivative."""
    return x + (x * 0).sqrt()


def quieter(x: Tensor) -> Tensor:
    """A hundred thousandth, whose derivative is 1."""
    return x + (x * 1e-5 - x).detach()


def unmoved(x: Tensor) -> Tensor:
    """x, whose derivative is a hundred thousandth."""
    return x * 1e-5 + (x - x * 1e-5).detach()


class Net(nn.Module):
    """Three linear layers; what is planted stands before the head, behind it, or before it in one mode only."""

    def __init__(self, change: Change, where: str = "before") -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 4)
        self.change, self.where = change, where

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        if self.where == "early":
            x = self.change(x)
        x = self.second(x)
        if self.where == "before" or self.where == ("training" if self.training else "evaluation"):
            x = self.change(x)
        x = self.head(x)
        return self.change(x) if self.where == "behind" else x


class Two(nn.Module):
    """Two outputs; what is planted stands before the second."""

    def __init__(self, change: Change, where: str = "") -> None:
        super().__init__()
        self.first, self.change = nn.Linear(16, 16), change
        self.one, self.other = nn.Linear(16, 4), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.first(x)
        return self.one(x), self.other(self.change(x))


FAULTS: dict[str, tuple[str, Change, str, type[nn.Module], str, str, str, str]] = {
    "rounding before a silent head": ("precision", noisy, "before", Net, "zero-2021", "warn", "quick", "training"),
    "rounding behind the head": ("precision", noisy, "behind", Net, "zero-2022", "warn", "quick", "training"),
    "rounding in training": ("precision", noisy, "training", Net, "zero-2022", "warn", "quick", "in training mode"),
    "rounding in evaluation": ("precision", noisy, "evaluation", Net, "zero-2022", "warn", "quick", "in evaluation"),
    "a NaN of float32 alone": ("precision", overflowing, "", Two, "zero-2022", "warn", "quick", "nan in"),
    "an infinity on the way": ("signal", far_away, "early", Net, "zero-2022", "fail", "quick", "at second, head"),
    "an infinite gradient": ("signal", rooted, "early", Net, "zero-2022", "fail", "quick", "not finite at first"),
    "a signal that dies": ("signal", quieter, "early", Net, "zero-2022", "warn", "quick", "signal within a factor"),
    "a gradient that dies": ("signal", unmoved, "early", Net, "zero-2022", "warn", "quick", "gradient within 1e+05"),
    "a gradient of noise": ("gradient_norms", scaled_by_noise, "early", Net, "zero-2022", "warn", "full", "off floa"),
    "a faint gradient of noise": ("gradient_norms", faint, "early", Net, "zero-2022", "warn", "full", "(first.weight)"),
    "a gradient turned round": ("gradient_norms", turned, "early", Net, "zero-2022", "warn", "full", "2 of it"),
    "a gradient that is infinite": ("gradient_norms", rooted, "early", Net, "zero-2022", "fail", "quick", "first.we"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS, ids=[f"{FAULTS[name][0]}: {name}" for name in FAULTS])
def test_a_fault_of_rounding_or_range_is_found(fault: str) -> None:
    check, change, where, make, scheme, status, level, words = FAULTS[fault]
    sound = ask(check, subject_of(make(same, where), WIDE, scheme=scheme), level)
    found = ask(check, subject_of(make(change, where), WIDE, scheme=scheme), level)
    assert sound is not None and sound.status == "pass", sound
    assert found is not None and found.status == status and words in found.summary and found.remedy, found


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_precision_has_a_limit_for_half_precision(dtype: torch.dtype) -> None:
    """64 times its rounding unit, which is half of the largest value in bfloat16."""
    subjects = [subject_of(Net(change), WIDE, scheme="zero-2022") for change in (same, lambda x: x + noise(x) / 300)]
    for subject in subjects:
        subject.traced.root.to(dtype)
    sound, found = (ask("precision", subject) for subject in subjects)
    assert sound is not None and found is not None and (sound.status, found.status) == ("pass", "warn"), found
    assert found.summary.startswith(str(dtype).removeprefix("torch."))
    assert found.threshold == f"at most {64 * torch.finfo(dtype).eps:.0e} of the largest value"


@pytest.mark.parametrize(("columns", "words"), [("first", "--set columns=spanning"), ("spanning", "warm-up or a norm")])
def test_signal_names_the_remedy_of_the_scheme_where_channels_repeat(columns: str, words: str) -> None:
    class Growing(Net):
        def __init__(self) -> None:
            super().__init__(quieter, "early")
            self.first, self.second = nn.Linear(16, 64), nn.Linear(64, 16)

    found = ask("signal", subject_of(Growing(), WIDE, scheme="zero-2022", columns=columns))
    assert found is not None and found.status == "warn" and words in found.remedy, found
