"""Forwards that draw numbers or change state: captured as what they are, and nobody's generator moves."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import zero_convert as zc
from zero_convert.runtime import rng

from .odd_nets import ramp
from .test_families import SCHEMES

DRAWS: dict[str, Callable[[], float]] = {
    "torch": lambda: torch.rand(1).item(),
    "python": random.random,
    "numpy": lambda: np.random.rand(),  # a copy of the method itself would have a generator of its own
}


class Dropped(nn.Module):
    """A residual block that a drawn number leaves out in training (stochastic depth, Huang et al., 2016)."""

    def __init__(self, draw: Callable[[], float]) -> None:
        super().__init__()
        self.draw, self.branch = draw, nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8))

    def forward(self, x: Tensor) -> Tensor:
        if self.training and self.draw() < 0.5:
            return x
        return x + self.branch(x)


def dropping(draw: Callable[[], float]) -> nn.Module:
    return nn.Sequential(nn.Linear(5, 8), *(Dropped(draw) for _ in range(4)), nn.Linear(8, 3))


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", DRAWS)
def test_what_a_drawn_number_decides_is_decided_anew_each_time(name: str, scheme: str) -> None:
    digests = set()
    for seed in (0, 1):
        for start in (torch.manual_seed, random.seed, np.random.seed):
            start(seed)
        net, before = dropping(DRAWS[name]), rng.states()
        result = zc.convert(net, (ramp(4, 5),), scheme=scheme, device="cpu")
        assert not rng.states().changed(before), "the caller's generators moved"
        assert not result.failed, [check.summary for check in result.failed]
        digests.add(result.weights_digest)
    assert len(digests) == 1
    with torch.no_grad():  # so that every branch adds something
        for p in result.module.parameters():
            p.fill_(0.3)
    seen = {tuple(result.module.train()(ramp(1, 5)).flatten().tolist()) for _ in range(40)}
    assert len(seen) > 2, "blocks are dropped in training"
    assert len({tuple(result.module.eval()(ramp(1, 5)).flatten().tolist()) for _ in range(10)}) == 1


class Reversible(torch.autograd.Function):
    """x + f(x), recomputed in its backward; f is a module that no operation shows."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, f: nn.Module, *parameters: Tensor) -> Tensor:
        ctx.f = f
        ctx.save_for_backward(x)
        with torch.no_grad():
            return x + f(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        (x,) = ctx.saved_tensors
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            made = torch.autograd.grad(x + ctx.f(x), [x, *ctx.f.parameters()], gradient)
        return made[0], None, *made[1:]


class RevNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(5, 8), nn.Linear(8, 3)
        self.f = nn.Sequential(nn.BatchNorm1d(8), nn.Linear(8, 8))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(Reversible.apply(self.first(x), self.f, *self.f.parameters()))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_module_inside_an_autograd_function_is_part_of_no_graph(scheme: str) -> None:
    results = [zc.convert(RevNet(), (ramp(4, 5),), scheme=scheme, validate=v, device="cpu") for v in ("none", "quick")]
    assert results[0].weights_digest == results[1].weights_digest
    assert not results[1].failed, [check.summary for check in results[1].failed]
    coverage = next(check for check in results[1].checks if check.name == "coverage")
    assert coverage.numbers["captured"] < 1
    assert results[1].module.f[0].num_batches_tracked == 0


class Followed(nn.Module):
    """A second network that follows the first, as in MoCo: its weights are moving averages."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = (nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4)) for _ in "ab")
        for parameter in self.second.parameters():
            parameter.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        for own, other in zip(self.second.parameters(), self.first.parameters(), strict=True):
            own.data = own.data * 0.5 + other.data * 0.5
        return self.first(x) - self.second(x).detach()


@pytest.mark.parametrize("scheme", ["zero-2021", "zero-2022"])
def test_weights_that_follow_others_go_on_following(scheme: str) -> None:
    module = zc.convert(
        Followed(), (ramp(3, 6),), scheme=scheme, device="cpu", validate="none", uncovered="keep"
    ).module
    weights = dict(module.named_parameters())
    with torch.no_grad():
        weights["first.0.weight"].add_(1.0)
    before = weights["second.0.weight"].clone()
    module(ramp(3, 6))
    assert torch.allclose(weights["second.0.weight"], (before + weights["first.0.weight"]) / 2)


class OwnNorm(nn.Module):
    """A batch norm written by hand: its buffers change in place, twice in one expression, or through a view."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(8))
        self.register_buffer("variance", torch.ones(1, 8))
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.mean.mul_(0.9).add_(x.detach().mean(0), alpha=0.1)
            self.variance[0].mul_(0.9).add_(x.detach().var(0, unbiased=False), alpha=0.1)
            return self.head((x - x.mean(0)) / (x.var(0, unbiased=False) + 1e-5).sqrt())
        return self.head((x - self.mean) / (self.variance[0] + 1e-5).sqrt())


@pytest.mark.parametrize("scheme", SCHEMES)
def test_buffers_that_change_in_place_go_on_changing(scheme: str) -> None:
    norm = zc.convert(OwnNorm(), (ramp(6, 8),), scheme=scheme, device="cpu").module
    expected = OwnNorm().train()
    for step in range(3):
        norm.train()(ramp(6, 8) * (step + 1))
        expected(ramp(6, 8) * (step + 1))
    found = dict(norm.named_buffers())
    assert torch.allclose(found["mean"], expected.mean) and torch.allclose(found["variance"], expected.variance)
