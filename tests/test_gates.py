"""Products of a signal with what is computed from it: which of the two factors starts at 0."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import zero_convert as zc
from zero_convert.structure import analyze
from zero_convert.tracing import trace

from .odd_nets import ramp
from .test_families import SCHEMES

LIFTED: dict[str, Callable[[Tensor], Tensor]] = {
    "sigmoid": torch.sigmoid,
    "module": nn.Hardsigmoid(),
    "relu6 of x + 3": lambda x: F.relu6(x + 3) / 6,
    "one minus": lambda x: 1 - torch.tanh(x),
    "one plus": lambda x: x.tanh().add(1.0),
    "exponential": torch.exp,
}
UNLIFTED: dict[str, Callable[[Tensor], Tensor]] = {
    "itself": lambda x: x,
    "tanh": torch.tanh,
    "norm": lambda x: F.layer_norm(x, x.shape[-1:]),
    "plus nothing": lambda x: x + 0,
}


class Gated(nn.Module):
    """x + s·g(s) where s is the branch, or x·g(x) on the way itself."""

    def __init__(self, lift: Callable[[Tensor], Tensor], on_the_branch: bool = True, residual: bool = False) -> None:
        super().__init__()
        self.stem, self.first, self.last = nn.Linear(5, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.reduce, self.expand, self.inner = nn.Linear(8, 4), nn.Linear(4, 8), nn.Linear(8, 8)
        self.head, self.norm = nn.Linear(8, 3), nn.LayerNorm(8)
        self.lift, self.on_the_branch, self.residual = lift, on_the_branch, residual

    def gate(self, x: Tensor) -> Tensor:
        x = self.expand(torch.tanh(self.reduce(x)))
        return self.lift(x + self.inner(x) if self.residual else x)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        if not self.on_the_branch:
            x = x * self.gate(x)
        y = self.last(torch.tanh(self.first(self.norm(x))))
        return self.head(x + (y * self.gate(y) if self.on_the_branch else y))


def roles(net: nn.Module) -> dict[str, str]:
    return {layer.name: layer.role for layer in analyze(trace(net, (ramp(4, 5),))).layers}


@pytest.mark.parametrize("name", LIFTED)
def test_a_factor_that_is_not_zero_leaves_the_zero_to_the_branch(name: str) -> None:
    found = roles(Gated(LIFTED[name]))
    assert (found["last"], found["reduce"], found["expand"]) == ("branch-last", "gate", "gate-last")


@pytest.mark.parametrize("name", UNLIFTED)
def test_of_two_factors_that_would_both_be_zero_the_gate_is(name: str) -> None:
    found = roles(Gated(UNLIFTED[name]))
    assert (found["last"], found["reduce"], found["expand"]) == ("branch", "gate", "branch-last")


def test_a_gate_with_a_join_inside_is_zero_where_all_of_its_ways_are() -> None:
    found = roles(Gated(torch.tanh, residual=True))
    assert (found["last"], found["expand"], found["inner"]) == ("branch", "branch-last", "branch-last")


def test_a_factor_on_the_way_itself_is_not_zero() -> None:
    assert roles(Gated(torch.tanh, on_the_branch=False))["expand"] == "gate"
    assert roles(Gated(torch.sigmoid, on_the_branch=False))["expand"] == "gate-last"


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("on_the_branch", [True, False])
@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("lift", [torch.sigmoid, torch.tanh])
def test_gates_start_alive(lift: Callable[[Tensor], Tensor], residual: bool, on_the_branch: bool, scheme: str) -> None:
    net = Gated(lift, on_the_branch, residual)
    result = zc.convert(net, (ramp(6, 5),), scheme=scheme, device="cpu")
    assert not result.failed, [check.summary for check in result.failed]
    if scheme == "zero-2021":
        held = next(check for check in result.checks if check.name == "zero_branches")
        assert held.numbers["joins"] == len([join for join in result.structure.joins if join.residual]) >= 3


class ConvCell(nn.Module):
    """A convolutional LSTM (Shi et al., 2015): one layer makes the signal and its gates, step by step."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.Conv2d(3 + 4, 16, 3, padding=1), nn.Conv2d(4, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = c = torch.zeros_like(x[:, 0, :1]).expand(-1, 4, -1, -1)
        for t in range(x.shape[1]):
            i, f, o, g = self.cell(torch.cat([x[:, t], h], 1)).chunk(4, 1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
        return self.head(h)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_layer_that_makes_both_the_signal_and_its_gates_is_not_closed(scheme: str) -> None:
    result = zc.convert(ConvCell(), (ramp(2, 3, 3, 6, 6),), scheme=scheme, device="cpu")
    assert not result.failed, [check.summary for check in result.failed]
    assert result.module.cell.weight.any()


class AxisGates(nn.Module):
    """Coordinate attention on a branch (Hou et al., 2021): one gate for each axis, from the same layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.last, self.both = (
            nn.Conv2d(3, 8, 3, padding=1),
            nn.Conv2d(8, 8, 3, padding=1),
            nn.Conv2d(8, 8, 1),
        )
        self.rows, self.columns, self.head = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1), nn.Linear(8, 3)

    def gated(self, x: Tensor) -> Tensor:
        pooled = torch.cat([x.mean(3, keepdim=True), x.mean(2, keepdim=True).transpose(2, 3)], 2)
        rows, columns = F.hardswish(self.both(pooled)).split(list(x.shape[-2:]), 2)
        return x * self.rows(rows).sigmoid() * self.columns(columns.transpose(2, 3)).sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head((x + self.gated(self.last(x))).mean((2, 3)))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_second_gate_on_a_branch_leaves_the_zero_to_the_branch(scheme: str) -> None:
    result = zc.convert(AxisGates(), (ramp(2, 3, 6, 6),), scheme=scheme, device="cpu")
    found = {layer.name: layer.role for layer in result.structure.layers}
    assert (found["last"], found["rows"].startswith("gate"), found["columns"].startswith("gate")) == (
        "branch-last",
        True,
        True,
    )
    assert not result.failed
