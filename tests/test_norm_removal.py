"""Removing norms: the network is what it was with identities in their places, and a norm that stays has a reason."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zero_convert import rewrites
from zero_convert.graph.kinds import kind_of
from zero_convert.records import Edit
from zero_convert.tracing import trace

from .nets import BottleneckNet, PreActivationResNet, tiny_resnet
from .odd_nets import ConvNeXt, PostNormEncoder, Residual, SharedNorm, TinyViT, conv_net, gated_net, ramp


def without_norms(net: nn.Module) -> nn.Module:
    """A copy with an identity in the place of each norm."""
    net = copy.deepcopy(net)
    for module in list(net.modules()):
        for name, child in list(module._modules.items()):
            if child is not None and kind_of(child) == "norm":
                module._modules[name] = nn.Identity()
    return net


def removed(net: nn.Module, x: Tensor) -> tuple[nn.Module, tuple[Edit, ...]]:
    made, edits = rewrites.apply(trace(copy.deepcopy(net), (x,)), ("out_of_place", "norm_modules", "remove_norms"), {})
    return made.root, edits


NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int]] = {
    "behind layers and on projections": (tiny_resnet, (2, 3, 8, 8), 6),
    "bottlenecks with in-place activations": (BottleneckNet, (2, 3, 32, 32), 12),
    "before layers": (PreActivationResNet, (2, 3, 8, 8), 7),
    "group norms": (lambda: conv_net(lambda n: nn.GroupNorm(2, n)), (2, 3, 8, 8), 8),
    "instance norms": (lambda: conv_net(nn.InstanceNorm2d), (2, 3, 8, 8), 8),
    "RMS norms": (lambda: Residual(nn.Sequential(nn.RMSNorm(6), nn.Linear(6, 6))), (2, 6), 1),
    "layer norms of a transformer": (TinyViT, (2, 3, 8, 8), 2),
    "behind joins": (PostNormEncoder, (2, 6, 5), 2),
    "around a gate": (lambda: gated_net(True), (2, 3, 8, 8), 5),
    "used twice": (SharedNorm, (2, 3, 8, 8), 2),
    "channels last": (ConvNeXt, (2, 3, 16, 16), 1),
}  # fmt: skip


@pytest.mark.parametrize("name", NETS)
def test_the_network_is_what_it_was_without_its_norms(name: str) -> None:
    make, shape, count = NETS[name]
    torch.manual_seed(0)
    net, x = make(), ramp(*shape)
    made, edits = removed(net, x)
    for mode in (False, True):
        torch.manual_seed(0)
        expected = without_norms(net).train(mode)(x)
        torch.manual_seed(0)
        assert torch.equal(made.train(mode)(x), expected)
    assert not torch.equal(made.eval()(x), net.eval()(x))
    assert not [m for m in made.modules() if kind_of(m) == "norm"]
    assert made.state_dict().keys() == without_norms(net).state_dict().keys()
    assert Edit("remove_norms", "*", f"{count} norms removed", source=(str(count),)) in edits


class Functions(nn.Module):
    """A norm of no module, with factors of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.gain = nn.Linear(6, 6), nn.Linear(6, 6), nn.Parameter(torch.full((6,), 2.0))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.b(F.layer_norm(self.a(x), (6,), self.gain))


def test_norms_that_are_function_calls_are_removed() -> None:
    net, x = Functions(), ramp(3, 6)
    made, edits = removed(net, x)
    assert torch.equal(made(x), x + net.b(net.a(x)))
    assert [edit.action for edit in edits if edit.rewrite == "remove_norms"] == ["1 norms removed"]


class AdaptiveNorm(nn.Module):
    """A norm whose factors come from a second signal."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(6))

    def forward(self, x: Tensor, scale: Tensor) -> Tensor:
        return F.layer_norm(x, (6,)) * self.weight * scale


class ActivatedNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight, self.act = nn.Parameter(torch.ones(6)), nn.Tanh()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(F.layer_norm(x, (6,)) * self.weight)


class Adapted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm, self.tail = nn.Linear(6, 6), AdaptiveNorm(), ActivatedNorm()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.tail(self.norm(self.layer(x), x))


def test_a_norm_that_does_more_stays_and_the_plan_says_why() -> None:
    net, x = Adapted(), ramp(3, 6)
    made, edits = removed(net, x)
    assert torch.equal(made(x), net(x))
    assert [(edit.target, edit.applied) for edit in edits] == [("norm", False), ("tail", False)]
    assert "2 signals" in edits[0].reason and "Tanh" in edits[1].reason
