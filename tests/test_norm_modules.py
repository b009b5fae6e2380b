"""Norms with an activation inside: followed into, and rewritten as two layers that compute the same."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import zero_convert as zc
from zero_convert.graph.queries import kind
from zero_convert.rewrites import apply
from zero_convert.structure import analyze
from zero_convert.tracing import trace

from .odd_nets import ramp


class BatchNormAct(nn.BatchNorm2d):
    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.drop, self.act = nn.Identity(), nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        if self.training and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        x = F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, self.training, self.momentum, self.eps
        )
        return self.act(self.drop(x))


class GroupNormAct(nn.GroupNorm):
    def __init__(self, channels: int) -> None:
        super().__init__(2, channels)
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(F.group_norm(x, self.num_groups, self.weight, self.bias, self.eps))


def net(norm: type[nn.Module]) -> nn.Module:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1, self.norm1 = nn.Conv2d(8, 8, 3, padding=1, bias=False), norm(8)
            self.conv2 = nn.Conv2d(8, 8, 3, padding=1, bias=False)
            self.norm2, self.act = nn.BatchNorm2d(8), nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            return self.act(x + self.norm2(self.conv2(self.norm1(self.conv1(x)))))

    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), norm(8), Block(), Block(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)
    )


@pytest.mark.parametrize("norm", [BatchNormAct, GroupNormAct])
def test_taken_apart_the_network_computes_and_counts_the_same(norm: type[nn.Module]) -> None:
    torch.manual_seed(0)
    module, x = net(norm), ramp(4, 3, 8, 8)
    state = {name: value.clone() for name, value in module.state_dict().items()}
    returned = module(x)
    after = {name: value.clone() for name, value in module.state_dict().items()}
    module.load_state_dict(state)
    traced, [edit] = apply(trace(module, (x,)), ("norm_modules",), {})
    assert "3 norms" in edit.action
    assert torch.equal(traced.root(x), returned)
    found = traced.root.state_dict()
    assert found.keys() == after.keys()
    assert all(torch.equal(found[name], after[name]) for name in after)


@pytest.mark.parametrize("norm", [BatchNormAct, GroupNormAct])
def test_their_activations_are_seen_and_get_the_derivative(norm: type[nn.Module]) -> None:
    traced = trace(net(norm), (ramp(2, 3, 8, 8),))
    assert sum(kind(node, traced.root) == "activation" for node in traced.train.nodes) == 5
    assert {layer.kind for layer in analyze(traced).layers if "norm" in layer.name} == {"norm"}
    result = zc.convert(net(norm), (ramp(2, 3, 8, 8),), device="cpu")
    assert not result.failed
    assert "relu" not in {str(n.target) for n in result.network.train_graph.nodes if n.op == "call_module"}


@pytest.mark.parametrize("scheme", ["fixup", "risotto"])
@pytest.mark.parametrize("norm", [BatchNormAct, GroupNormAct])
def test_schemes_without_norms_remove_them_and_keep_their_activations(norm: type[nn.Module], scheme: str) -> None:
    result = zc.convert(net(norm), (torch.zeros(2, 3, 16, 16),), scheme=scheme, device="cpu")
    assert not result.failed
    assert not [edit for edit in result.plan.edits if edit.rewrite == "remove_norms" and not edit.applied]
    assert not [name for name in result.module.state_dict() if "running" in name or name.endswith("norm1.weight")]
    assert not [m for m in result.module.modules() if isinstance(m, (nn.BatchNorm2d, nn.GroupNorm))]
    assert sum(isinstance(m, nn.ReLU) for m in result.module.modules()) == 5
