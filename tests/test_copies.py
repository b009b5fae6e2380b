"""Functions that a constructor made over the module's parts are, in a copy, over the copy's parts."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import zero_convert as zc
from tests.odd_nets import ramp
from zero_convert.graph.copies import copy_of


class Block(nn.Module):
    """As in minGPT: the MLP is a function in an attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(6)
        self.mlp = nn.ModuleDict({"up": nn.Linear(6, 12), "down": nn.Linear(12, 6)})
        parts = self.mlp
        self.act: Any = lambda x, act=torch.relu: act(x)
        self.mlpf = lambda x: parts["down"](self.act(parts["up"](x)))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.mlpf(self.norm(x))
        return y


def test_a_copy_calls_its_own_layers_through_its_functions() -> None:
    block = Block()
    twin = copy_of(block)
    with torch.no_grad():
        twin.mlp["down"].weight.fill_(2.0)
        twin.mlp["down"].bias.zero_()
    same = copy_of(twin)
    assert not torch.equal(twin(ramp(2, 6)), block(ramp(2, 6)))
    assert torch.equal(twin(ramp(2, 6)), same(ramp(2, 6)))
    assert twin.act is block.act, "a function over nothing of the module is no other"


def test_hooks_and_functions_that_name_themselves_are_copied_once() -> None:
    block, seen = Block(), []

    def hook(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        seen.append(hook)
        scaled: Tensor = output * block.mlp["up"].bias.sum()
        return scaled

    block.norm.register_forward_hook(hook)
    twin = copy_of(block)
    with torch.no_grad():
        twin.mlp["up"].bias.fill_(0.0)
    twin(ramp(2, 6))
    assert len(seen) == 1 and seen[0] is not hook, "the list is the one that is read, the function the copy's"
    assert torch.equal(twin(ramp(2, 6)), twin(torch.zeros(2, 6)) + ramp(2, 6)), "it reads the copy's bias"


def test_the_layers_that_such_a_function_calls_are_seen_and_filled() -> None:
    net = nn.Sequential(nn.Linear(5, 6), Block(), Block(), nn.Linear(6, 3))
    for scheme in ("zero-2021", "zero-2022"):
        made = zc.convert(net, (ramp(3, 5),), scheme=scheme, device="cpu")
        assert [join.branch for join in made.plan.joins] == [(f"{i}.mlp.up", f"{i}.mlp.down") for i in (1, 2)]
        assert not made.failed
