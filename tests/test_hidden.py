"""Layers that no graph shows: inside parts kept whole, and members of lists that values did not choose."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import zero_convert as zc

from .odd_nets import ramp


class Experts(nn.Module):
    """Each row goes to the expert that a gate names: control flow on values that parameters make."""

    def __init__(self, width: int, count: int) -> None:
        super().__init__()
        self.gate = nn.Linear(width, count)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)) for _ in range(count)
        )

    def forward(self, x: Tensor) -> Tensor:
        share, chosen = self.gate(x).softmax(-1).max(-1)
        out = torch.zeros_like(x)
        for index, expert in enumerate(self.experts):
            mine = chosen == index
            if mine.any():
                out[mine] = expert(x[mine]) * share[mine][:, None]
        return out


class Mixture(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = nn.Linear(4, 8), nn.Linear(8, 3)
        self.norms = nn.ModuleList(nn.LayerNorm(8) for _ in range(2))
        self.blocks = nn.ModuleList(Experts(8, 3) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.inner(x)
        for norm, block in zip(self.norms, self.blocks, strict=True):
            x = x + block(norm(x))
        return self.head(x)


class EarlyExit(nn.Module):
    """Stops after the first block that is sure."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = nn.Linear(4, 8), nn.Linear(8, 3)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.inner(x)
        for block in self.blocks:
            x = x + block(x)
            if bool(self.head(x).softmax(-1).max() > 0.1):
                break
        return self.head(x)


def roles(result: zc.Result) -> dict[str, str]:
    return {layer.name: layer.role for layer in result.structure.layers}


@pytest.mark.parametrize("scheme", ["zero-2021", "zero-2022"])
def test_experts_that_values_choose_keep_the_promises(scheme: str) -> None:
    result = zc.convert(Mixture(), (ramp(12, 4),), scheme=scheme, device="cpu")
    assert not [f"{check.name}: {check.summary}" for check in result.failed]
    assert result.plan.capture == "values+leaf"
    assert sum(join.residual for join in result.plan.joins) == 2
    found = roles(result)
    assert {found[f"blocks.{i}.experts.{k}.2"] for i in range(2) for k in range(3)} == {"branch-last"}
    assert {found[f"blocks.{i}.experts.{k}.0"] for i in range(2) for k in range(3)} == {"branch"}


@pytest.mark.parametrize("scheme", ["zero-2021", "zero-2022"])
def test_blocks_that_were_not_reached_have_the_roles_of_those_that_were(scheme: str) -> None:
    result = zc.convert(EarlyExit(), (ramp(2, 4),), scheme=scheme, device="cpu")
    assert not [f"{check.name}: {check.summary}" for check in result.failed]
    assert not result.plan.joins[1:], "only the first block was reached"
    assert {roles(result)[f"blocks.{i}.2"] for i in range(3)} == {"branch-last"}
    saved = {name: tuple(value.shape) for name, value in result.module.state_dict().items()}
    assert saved == {name: tuple(value.shape) for name, value in EarlyExit().state_dict().items()}
