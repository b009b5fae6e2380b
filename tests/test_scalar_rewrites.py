"""Scalar biases, factors and gates: each rewritten network against its new forward, written out by hand.

The scalars and the weights are random here, so that each that is missing, shared by mistake or misplaced shows.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from zero_convert import rewrites
from zero_convert.records import Edit
from zero_convert.tracing import trace

from .nets import PreActivationResNet, tiny_resnet
from .odd_nets import Residual, TinyViT, nested, ramp

FIXUP = ("out_of_place", "scalar_biases", "outer_biases", "remove_norms")
GATED = ("out_of_place", "branch_scalars", "remove_norms")

Forward = Callable[[nn.Module, Tensor], Tensor]


def rewritten(net: nn.Module, x: Tensor, names: tuple[str, ...]) -> tuple[nn.Module, tuple[Edit, ...]]:
    made, edits = rewrites.apply(trace(copy.deepcopy(net), (x,)), names, {})
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in made.root.parameters():
            p.copy_(torch.rand(p.shape, generator=generator) - 0.4)
    return made.root, edits


def agree(net: nn.Module, x: Tensor, names: tuple[str, ...], forward: Forward) -> tuple[nn.Module, tuple[Edit, ...]]:
    made, edits = rewritten(net, x, names)
    found, expected = made(x), forward(made, x)
    assert found.abs().max() > 1e-3
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-6 * float(expected.detach().abs().max()))
    for name, p in made.named_parameters():  # each of them matters
        with torch.no_grad():
            p.add_(0.5)
            assert not torch.equal(made(x), found) or name.endswith(("linear.weight", "head.weight")), name
            p.sub_(0.5)
    return made, edits


def fixup_block(part: nn.Module, x: Tensor, projection: nn.Module | None) -> Tensor:
    """The block of Fixup's authors: the shortcut's projection reads the first bias too."""
    get = part.get_submodule
    biased = get("conv1_bias_in")(x)
    out = torch.relu(get("conv1_bias_out")(get("conv1")(biased)))
    out = get("conv2_bias_out")(get("conv2_scale")(get("conv2")(get("conv2_bias_in")(out))))
    return torch.relu(out + (x if projection is None else projection(biased)))


def test_fixups_post_activation_blocks_are_those_of_the_authors_code() -> None:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        x = torch.relu(m.bn1_bias(m.conv1(x)))
        x = fixup_block(m.get_submodule("blocks.0"), x, None)
        x = fixup_block(m.get_submodule("blocks.1"), x, m.get_submodule("blocks.1.shortcut.0"))
        return m.linear(m.linear_bias_in(x.mean((2, 3))))

    made, edits = agree(tiny_resnet(), ramp(2, 3, 8, 8), FIXUP, forward)
    biases = sorted(name for name, p in made.named_parameters() if p.numel() == 1)
    assert len(biases) == 2 * (4 + 1) + 2
    assert [e.target for e in edits if e.rewrite == "outer_biases"] == ["bn1", "linear"]
    assert [e.rewrite for e in edits if e.action.startswith("4 scalar biases and a scale")] == ["scalar_biases"] * 2


def test_fixups_pre_activation_blocks() -> None:
    def block(part: nn.Module, x: Tensor) -> Tensor:
        get, projects = part.get_submodule, hasattr(part, "project")
        active = torch.relu(get("norm1_bias")(x) if projects else x)  # a projection's norm stands before the fork
        biased = get("conv1_bias_in")(active)
        out = torch.relu(get("conv1_bias_out")(get("conv1")(biased)))
        out = get("conv2_bias_out")(get("conv2_scale")(get("conv2")(get("conv2_bias_in")(out))))
        return out + (get("project")(biased) if projects else x)

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        x = m.stem(x)
        for i in range(3):
            x = block(m.get_submodule(f"body.{i}"), x)
        return m.head(m.head_bias_in(torch.relu(m.norm_bias(x)).mean((2, 3))))

    agree(PreActivationResNet(), ramp(2, 3, 8, 8), FIXUP, forward)


def test_a_branch_that_is_no_chain_gets_a_factor_and_a_bias_at_its_end() -> None:
    made, edits = rewritten(TinyViT(), ramp(2, 3, 8, 8), FIXUP)
    assert {n for n, p in made.named_parameters() if p.numel() == 1 and n.startswith("attention")} == {
        "attention.proj_scale.scale",
        "attention.proj_bias_out.bias",
    }
    declined = [edit for edit in edits if not edit.applied]
    assert [(e.action, e.reason) for e in declined] == [
        ("no scalar biases inside the branch", "its branch is not one chain of layers")
    ]


def test_a_number_stands_at_the_end_of_each_branch() -> None:
    def block(part: nn.Module, x: Tensor) -> Tensor:
        get = part.get_submodule
        out = get("conv2_scale")(get("conv2")(torch.relu(get("conv1")(x))))
        return torch.relu(out + (get("shortcut.0")(x) if len(get("shortcut")._modules) else x))

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        x = torch.relu(m.conv1(x))
        for i in range(2):
            x = block(m.get_submodule(f"blocks.{i}"), x)
        return m.linear(x.mean((2, 3)))

    agree(tiny_resnet(), ramp(2, 3, 8, 8), GATED, forward)


def test_each_join_has_a_number_of_its_own_where_one_layer_ends_two_branches() -> None:
    inner = Residual(nn.Linear(6, 6))
    net = Residual(nn.Sequential(nn.Linear(6, 6), inner))
    made, edits = rewritten(net, ramp(3, 6), GATED)
    x, scale = ramp(3, 6), "branch.1.branch_scale"
    first = made.get_submodule("branch.0")(x)
    y = first + made.get_submodule(scale)(made.get_submodule("branch.1.branch")(first))
    assert torch.allclose(made(x), x + made.get_submodule(f"{scale}_2")(y))
    assert sum("scalar" in edit.action for edit in edits) == 2
    several, _ = rewritten(nested(), ramp(2, 3, 8, 8), GATED)
    scales = [name for name, p in several.named_parameters() if p.numel() == 1]
    assert len(scales) == len(set(scales)) >= 3


class Silenced(nn.Module):
    """A branch with a factor that the constructor set to 0, and one without."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6)
        self.alpha = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.alpha * self.a(x)
        return x + self.b(x)


def test_a_branch_that_is_silent_already_gets_no_second_factor() -> None:
    made, edits = rewritten(Silenced(), ramp(3, 6), GATED)
    assert [(edit.applied, edit.reason) for edit in edits] == [
        (False, "a factor constructed as 0 ends the branch already"),
        (True, ""),
    ]
    assert [n for n, _ in made.named_parameters() if "scale" in n] == ["b_scale.scale"]
