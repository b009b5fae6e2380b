"""Weights that are divided by their spectral norm: what would be 0 is 0/0, and starts with other values."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import zero_convert as zc

from .odd_nets import ramp
from .test_families import SCHEMES

Divide = Callable[[nn.Module], nn.Module]


class Critic(nn.Module):
    """The last layer has one output, as in networks that judge images (Miyato et al., 2018)."""

    def __init__(self, divide: Divide) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 8, 3, padding=1), divide(nn.Linear(8, 1))
        self.first, self.last = (divide(nn.Conv2d(8, 8, 3, padding=1)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.last(self.first(x.relu()).relu())
        return self.head(x.relu().mean((2, 3)))


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize(
    "divide", [parametrizations.spectral_norm, nn.utils.spectral_norm], ids=["parametrized", "hook"]
)
def test_heads_and_branches_with_a_spectral_norm_start_finite_and_alive(divide: Divide, scheme: str) -> None:
    result = zc.convert(Critic(divide), (ramp(2, 3, 6, 6),), scheme=scheme, device="cpu")
    assert not result.failed, [f"{c.name}: {c.summary}" for c in result.failed]
    result.module.eval()(ramp(2, 3, 6, 6))  # a hook makes the weight when it is used
    for layer in (result.module.head, result.module.last):
        weight = layer.weight.detach()
        assert torch.linalg.matrix_norm(weight.flatten(1), 2) == 1
