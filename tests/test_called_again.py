"""Roles where values only choose among others, and where the layers of a branch are called before it as well."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

import zero_convert as zc
from zero_convert.graph.queries import signals_in


class DenseMixture(nn.Module):
    """All experts run on every row; the two with the highest scores are gathered (Shazeer et al., arXiv 1701.06538)."""

    def __init__(self, width: int = 8, experts: int = 4) -> None:
        super().__init__()
        self.gate = nn.Linear(width, experts, bias=False)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 12), nn.SiLU(), nn.Linear(12, width)) for _ in range(experts)
        )

    def forward(self, x: Tensor) -> Tensor:
        shares, chosen = torch.topk(F.softmax(self.gate(x), -1), 2, -1)
        shares = shares / shares.sum(-1, keepdim=True)
        answers = torch.stack([expert(x) for expert in self.experts], 1)
        taken = answers.gather(1, chosen.unsqueeze(-1).expand(-1, -1, x.shape[-1]))
        return x + (taken * shares.unsqueeze(-1)).sum(1)


class Steps(nn.Module):
    """One gated transform called for each of several decisions (Arik and Pfister, TabNet, arXiv 1908.07442)."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(6)
        self.first = nn.Sequential(nn.Linear(6, 16, bias=False), nn.BatchNorm1d(16))
        self.second = nn.Sequential(nn.Linear(8, 16, bias=False), nn.BatchNorm1d(16))
        self.masks = nn.ModuleList(nn.Linear(4, 6, bias=False) for _ in range(2))
        self.head = nn.Linear(4, 2, bias=False)

    def gated(self, x: Tensor) -> Tensor:
        return x[:, :8] * torch.sigmoid(x[:, 8:])

    def features(self, x: Tensor) -> Tensor:
        x = self.gated(self.first(x))
        return (x + self.gated(self.second(x))) * 0.5**0.5

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        prior, h, out = torch.ones_like(x), self.features(x), 0
        for mask in self.masks:
            share = torch.softmax(mask(h[:, 4:]) * prior, -1)
            prior = (1.3 - share) * prior
            h = self.features(share * x)
            out = out + F.relu(h[:, :4])
        return self.head(out)


class Isomorphism(nn.Module):
    """A graph layer whose own row counts 1 + epsilon times (Xu et al., arXiv 1810.00826), a ReLU before the join."""

    def __init__(self) -> None:
        super().__init__()
        self.epsilon = nn.Parameter(torch.zeros(1))
        self.inner = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 8))
        self.norm = nn.BatchNorm1d(8)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(self.inner((1 + self.epsilon) * x + x.roll(1, 0)))) + x


def mixture() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), DenseMixture(), DenseMixture(), nn.Linear(8, 3))


def graph() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), Isomorphism(), Isomorphism(), nn.Linear(8, 3))


X = torch.linspace(-1, 1, 48).reshape(8, 6).sin() * torch.arange(1, 7)


@pytest.mark.parametrize("make", [mixture, Steps, graph])
@pytest.mark.parametrize("scheme", ["zero-2021", "zero-2022", "fixup", "idinit"])
def test_every_parameter_comes_alive(make, scheme) -> None:
    result = zc.convert(make(), (X,), scheme=scheme)
    assert not result.failed
    gradients = next(check for check in result.checks if check.name == "gradients")
    assert not gradients.numbers["dead"]


class Choices(nn.Module):
    """Every way to choose among the values of `x`, by what is made of `scores`."""

    def forward(self, x: Tensor, scores: Tensor) -> list[Tensor]:
        index, mask = scores.argmax(-1, keepdim=True), scores > 0
        return [
            torch.gather(x, 1, index),
            x.gather(1, index=index),
            torch.where(mask, x, -x),
            x.where(mask, -x),
            x.masked_fill(mask, 0.0),
            x[index],
            torch.zeros_like(x).index_add(0, index[:, 0], x),
        ]


def test_what_chooses_is_no_signal() -> None:
    graph = fx.symbolic_trace(Choices()).graph
    output = next(n for n in graph.nodes if n.op == "output")
    for made in output.args[0]:
        names = {n.name for n in signals_in(made)}
        assert names & {"x", "neg", "neg_1"}, made
        assert not names & {"argmax", "gt", "scores", "getitem_1"}, made
    assert {n.name for n in signals_in(output.args[0][3])} == {"x", "neg_1"}


def test_of_scores_and_what_they_choose_the_scores_are_not_zero() -> None:
    roles = {layer.name: layer.role for layer in zc.convert(mixture(), (X,)).structure.layers}
    assert roles["1.gate"] == "branch" and roles["1.experts.3.2"] == "branch-last"


def test_a_stem_that_a_branch_calls_again_is_not_zero() -> None:
    result = zc.convert(Steps(), (X,))
    assert result.structure.layer("first.0").role == "stem" and result.structure.layer("second.0").role == "branch-last"


def test_a_parameter_that_is_added_to_one_leaves_the_one() -> None:
    result = zc.convert(graph(), (X,), scheme="constnet")
    assert result.module.state_dict()["1.epsilon"].tolist() == [0.0]
