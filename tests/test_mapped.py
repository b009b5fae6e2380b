"""Forwards that call `torch.vmap`."""

from __future__ import annotations

import torch
from torch import nn

import zero_convert as zc
from zero_convert.tracing import trace


class Members(nn.Module):
    """Three linear layers with tanh as one, then a head."""

    def __init__(self):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(3, 5, 4)), nn.Parameter(torch.zeros(3, 4))
        self.head = nn.Linear(12, 2)

    def forward(self, x):
        y = torch.vmap(lambda w, b: torch.tanh(x @ w + b))(self.weight, self.bias)
        return self.head(y.permute(1, 0, 2).flatten(1))


class Shapes(nn.Module):
    """Two outputs that are stacked along different axes, arguments that are not mapped, and a nest of both."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(5, 3, 4))

    def forward(self, x):
        def member(w, given):
            return x @ w + given["shift"], (x @ w).sum()

        mapped = torch.func.vmap(member, in_dims=(1, {"shift": None}), out_dims=(1, 0))
        return mapped(self.weight, {"shift": x.mean()})


class Samples(nn.Module):
    """A network called once for each sample."""

    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Linear(5, 8), nn.Linear(8, 2)
        self.body = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))

    def forward(self, x):
        x = self.stem(x)
        return self.head(x + torch.vmap(self.body)(x))


def test_each_member_of_an_ensemble_gets_the_rule_of_a_linear_layer():
    result = zc.convert(Members(), (torch.zeros(4, 5),))
    assert not result.failed
    assert result.plan.captured == 1.0
    weight = result.module.state_dict()["weight"]
    assert all(torch.equal(member, torch.eye(5, 4)) for member in weight)


def test_a_recorded_map_computes_what_torch_maps():
    net = Shapes()
    graph = trace(net, (torch.zeros(4, 5),)).evaluate
    for batch in (2, 7):  # the batch is not fixed
        x = torch.randn(batch, 5)
        for ours, theirs in zip(torch.fx.GraphModule(net, graph)(x), net(x), strict=True):
            torch.testing.assert_close(ours, theirs)


def test_a_map_over_samples_is_left_to_torch():
    result = zc.convert(Samples(), (torch.randn(4, 5),), scheme="zero-2022")
    assert not result.failed
    assert result.plan.capture == "regions"
    assert "torch.vmap maps over values of an input" in " ".join(result.plan.capture_attempts)
    x = torch.randn(7, 5)
    torch.testing.assert_close(result.module(x), result.module.head(_joined(result.module, x)))


def _joined(module, x):
    x = module.stem(x)
    return x + module.body(x)
