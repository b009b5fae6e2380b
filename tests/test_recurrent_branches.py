"""Recurrent layers in a branch: only what the branch ends in starts at 0, and all of it moves in training."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import zero_convert as zc

WIDTH = 8


class Recurrent(nn.Module):
    """x + the recurrent layers of norm(x), then a head."""

    def __init__(self, layers: list[nn.RNNBase]) -> None:
        super().__init__()
        self.stem = nn.Linear(WIDTH, WIDTH)
        self.norm = nn.LayerNorm(WIDTH)
        self.layers = nn.ModuleList(layers)
        self.head = nn.Linear(WIDTH, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.norm(x)
        for layer in self.layers:
            y, _ = layer(y)
        return self.head(x + y)


def batch() -> Tensor:
    return torch.linspace(-1, 1, 2 * 5 * WIDTH).sin().reshape(2, 5, WIDTH)


# Network → the tensors that read an input and start at 0. All others that read one are alive. From the paper: the
# last layer of a branch is 0 (both of its directions), and none below it.
CASES: dict[str, tuple[Callable[[], nn.Module], set[str]]] = {
    "LSTM of 2": (lambda: Recurrent([nn.LSTM(8, 8, 2, batch_first=True)]), {"layers.0.weight_ih_l1"}),
    "GRU of 2": (lambda: Recurrent([nn.GRU(8, 8, 2, batch_first=True)]), {"layers.0.weight_ih_l1"}),
    "RNN of 3": (lambda: Recurrent([nn.RNN(8, 8, 3, batch_first=True)]), {"layers.0.weight_ih_l2"}),
    "LSTM of 12": (lambda: Recurrent([nn.LSTM(8, 8, 12, batch_first=True)]), {"layers.0.weight_ih_l11"}),
    "LSTM of 1": (lambda: Recurrent([nn.LSTM(8, 8, batch_first=True)]), {"layers.0.weight_ih_l0"}),
    "two LSTMs": (
        lambda: Recurrent([nn.LSTM(8, 8, batch_first=True), nn.LSTM(8, 8, batch_first=True)]),
        {"layers.1.weight_ih_l0"},
    ),
    "two GRUs of 2": (
        lambda: Recurrent([nn.GRU(8, 8, 2, batch_first=True), nn.GRU(8, 8, 2, batch_first=True)]),
        {"layers.1.weight_ih_l1"},
    ),
    "both directions": (
        lambda: Recurrent([nn.LSTM(8, 4, 2, batch_first=True, bidirectional=True)]),
        {"layers.0.weight_ih_l1", "layers.0.weight_ih_l1_reverse"},
    ),
    "a projection": (lambda: Recurrent([nn.LSTM(8, 16, 2, batch_first=True, proj_size=8)]), {"layers.0.weight_ih_l1"}),
    "no bias": (lambda: Recurrent([nn.GRU(8, 8, 2, batch_first=True, bias=False)]), {"layers.0.weight_ih_l1"}),
}


@pytest.mark.filterwarnings("ignore:LSTM with projections:UserWarning")
@pytest.mark.parametrize("name", CASES)
def test_only_the_last_layer_of_a_branch_starts_at_zero(name: str) -> None:
    build, zero = CASES[name]
    result = zc.convert(build(), (batch(),), scheme="zero-2021")
    state = result.module.state_dict()
    assert {n for n, value in state.items() if "weight_ih" in n and not value.any()} == zero
    assert [check.name for check in result.failed] == []
    gradients = next(check for check in result.checks if check.name == "gradients")
    assert gradients.status == "pass"


@pytest.mark.parametrize("scheme", ["zero-2022", "idinit"])
def test_schemes_without_zeros_in_the_middle_keep_them_alive(scheme: str) -> None:
    result = zc.convert(Recurrent([nn.GRU(8, 8, 2, batch_first=True)]), (batch(),), scheme=scheme)
    assert [check.name for check in result.failed] == []
    assert result.module.state_dict()["layers.0.weight_ih_l0"].any()
