"""Risotto: linear, isometric and exact on real networks, and declined where it cannot be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torchvision import models

import zero_convert as zc
from tests import nets
from tests.test_checks import convert
from tests.test_schemes import conv, fill, linear
from zero_convert import checks
from zero_convert.checks.harness.bench import CheckContext
from zero_convert.checks.harness.isolation import pinned
from zero_convert.checks.subject import Subject
from zero_convert.errors import CoverageError
from zero_convert.formulas import Mirrored, Orthogonal
from zero_convert.graph.example_values import reference_values
from zero_convert.records import Check, SignalPath
from zero_convert.runtime.threads import one_thread

BATCH = torch.from_numpy(reference_values((2, 3, 32, 32)))
INPUT, RELU = SignalPath("input"), SignalPath("layer", "b", ("relu",))


class PostActivationNet(nn.Module):
    """Blocks y = relu(x + f(x)) without norms."""

    def __init__(self, width: int = 16, depth: int = 3) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, width, 3, 1, 1), nn.Linear(width, 10)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width, width, 3, 1, 1), nn.ReLU(), nn.Conv2d(width, width, 3, 1, 1))
            for _ in range(depth)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        for block in self.blocks:
            x = F.relu(x + block(x))
        return self.head(x.mean((2, 3)))


REAL: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "resnet18": (models.resnet18, BATCH),
    "resnet50": (models.resnet50, BATCH),
    "resnext": (lambda: models.ResNet(models.resnet.Bottleneck, [2, 2, 1, 1], groups=4, width_per_group=16), BATCH),
    "pre-activation": (nets.PreActivationResNet, BATCH),
    "norm-free": (nets.NormFreeNet, BATCH),
    "post-activation": (PostActivationNet, BATCH),
    "bottleneck": (nets.BottleneckNet, BATCH),
    "plain": (nets.PlainCnn, BATCH),
    "mlp": (nets.mlp, torch.from_numpy(reference_values((4, 20)))),
}


def asked(check: str, subject: Subject) -> Check:
    with pinned("cpu"), one_thread():
        found = checks.answer(check, CheckContext(subject, "quick", "cpu"))
    assert found is not None
    return found


def joins(subject: Subject, module: nn.Module, x: Tensor) -> list[tuple[Tensor, Tensor]]:
    """What each residual join's fork carries and what it returns, in one run."""
    wanted = [(join.fork, join.node) for join in subject.structure.joins if join.residual]
    seen: dict[str, Tensor] = {}

    class Run(fx.Interpreter):
        def run_node(self, n: fx.Node) -> object:
            value = super().run_node(n)
            seen[n.name] = value
            return value

    with torch.no_grad(), one_thread():
        Run(module, graph=subject.traced.train).run(x)
    return [(seen[fork], seen[node]) for fork, node in wanted]


# -- values ------------------------------------------------------------------------------------------------------------


def test_the_first_layer_makes_pairs_and_the_head_reads_their_difference() -> None:
    first = fill("risotto", replace(conv(8, 3, 3, 3, role="stem"), way=INPUT))["weight"]
    u = first[:4, :, 1, 1]
    assert (
        np.array_equal(first[4:, :, 1, 1], -u) and np.array_equal(u.T @ u, np.eye(3)) and np.count_nonzero(first) == 24
    )
    head = fill("risotto", replace(linear(2, 8, "head"), way=RELU))["weight"]
    assert np.array_equal(head[:, 4:], -head[:, :4]) and np.array_equal(head[:, :4] @ head[:, :4].T, np.eye(2))
    assert not fill("risotto", replace(linear(2, 8, "head"), way=RELU), head="zero")["weight"].any()


def test_a_layer_without_a_relu_before_it_has_half_the_weight() -> None:
    whole = fill("risotto", replace(linear(8, 8), way=RELU))["weight"]
    half = fill("risotto", replace(linear(8, 8), way=SignalPath("layer", "b")))["weight"]
    assert np.array_equal(whole, 2 * half) and np.array_equal(whole[:4, :4], -whole[4:, :4])


def test_the_seed_decides() -> None:
    layer = replace(linear(32, 32), way=RELU)
    assert np.array_equal(fill("risotto", layer, seed="7")["weight"], fill("risotto", layer, seed="7")["weight"])
    assert not np.array_equal(fill("risotto", layer, seed="7")["weight"], fill("risotto", layer)["weight"])


# -- real networks -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("net", REAL)
def test_the_network_is_linear(net: str) -> None:
    make, x = REAL[net]
    module = convert(make(), x[:1], "risotto").traced.root.train()
    y = x.flip(-1) * 0.7
    with torch.no_grad(), one_thread():
        both, one, other = module(x + y), module(x), module(y)
    assert both.abs().max() > 1e-3
    assert (both - one - other).abs().max() <= 1e-5 * both.abs().max()


@pytest.mark.parametrize("net", [name for name in REAL if name not in ("plain", "mlp")])
def test_blocks_keep_the_length_and_pairs_stay_pairs(net: str) -> None:
    """In float32 and in float64, by none of the package's own checks."""
    make, x = REAL[net]
    subject = convert(make(), x[:1], "risotto")
    for dtype, limit in ((torch.float32, 1e-5), (torch.float64, 1e-12)):
        found = joins(subject, subject.traced.root.to(dtype).train(), x.to(dtype))
        kept = [(f, z) for f, z in found if f.shape[2:] == z.shape[2:] and f.shape[1] <= z.shape[1]]
        assert len(kept) >= 2
        for fork, z in kept:
            ratio = (z.relu().norm() / fork.relu().norm()).item()
            assert abs(ratio - 1) <= limit
        for _, z in found:
            side, other = z.relu().chunk(2, 1)
            assert torch.minimum(side, other).max() <= limit * z.abs().max()


@pytest.mark.parametrize("make", [nets.NormFreeNet, pytest.param(PostActivationNet, marks=pytest.mark.slow)])
def test_a_hundred_layers_keep_the_length_and_the_jacobian(make: Callable[..., nn.Module]) -> None:
    x = torch.from_numpy(reference_values((2, 3, 8, 8)))
    subject = convert(make(width=16, depth=50), x[:1], "risotto")
    for dtype, limit in ((torch.float32, 1e-5), (torch.float64, 1e-12)):
        found = joins(subject, subject.traced.root.to(dtype), x.to(dtype))
        start, ends = found[0][0].relu().norm(), [z.relu().norm() for _, z in found]
        assert len(ends) == 50 and all(abs((end / start).item() - 1) <= limit for end in ends)
    subject.traced.root.float()
    check = asked("jacobian", subject)
    assert check.status == "pass" and check.numbers["off"] <= 1e-5 and check.numbers["ones"] == 512


@pytest.mark.parametrize(
    "net",
    [pytest.param("resnet18", marks=pytest.mark.slow), "pre-activation", "post-activation", "bottleneck", "resnext"],
)
def test_the_checks_find_what_is_promised(net: str) -> None:
    make, x = REAL[net]
    subject = convert(make(), x[:1], "risotto")
    for check in ("norm_per_depth", "linearity"):
        assert asked(check, subject).status == "pass", asked(check, subject)
    square = asked("jacobian", subject)
    if net == "resnext":  # 1024 rows are too many
        assert square.status == "skip"
    else:
        assert square.status == "pass" and square.numbers["ones"] > 0


def test_every_weight_is_exact_in_float32() -> None:
    subject = convert(models.resnet18(), BATCH[:1], "risotto")
    for name, value in subject.traced.root.named_parameters():
        bits = (value.detach() * 2**12).double()
        assert bool((bits == bits.round()).all()) and value.abs().max() <= 2, name


@pytest.mark.parametrize(
    ("scheme", "options"), [("risotto", {"seed": 3}), ("constnet", {"break_symmetry": "dropout:0.1"})]
)
def test_files_load_back_into_the_same_network(scheme: str, options: dict[str, Any], tmp_path: Path) -> None:
    result = zc.convert(nets.BottleneckNet(), (BATCH,), scheme=scheme, options=options)
    assert not result.failed
    (saved,) = result.save(tmp_path / "a.safetensors")
    back = zc.load(saved.path, model=nets.BottleneckNet(), example_inputs=(BATCH,)).eval()
    with torch.no_grad():
        assert torch.equal(back(BATCH), result.module.eval()(BATCH))
    assert back.state_dict().keys() == result.module.state_dict().keys()


# -- what it needs -----------------------------------------------------------------------------------------------------


def test_norms_and_max_pools_are_edits_in_the_plan() -> None:
    plan = zc.plan("resnet18", scheme="risotto")
    edits = [edit for edit in plan.edits if edit.rewrite != "out_of_place"]
    assert [(edit.rewrite, edit.applied) for edit in edits] == [("remove_norms", True), ("average_pools", True)]
    assert "before the ReLU" in edits[1].action


class Two(nn.Module):
    """A stem, something in the middle, a head."""

    def __init__(self, middle: nn.Module, width: int = 8, out: int = 8) -> None:
        super().__init__()
        self.stem, self.middle, self.head = nn.Conv2d(3, width, 3, 1, 1), middle, nn.Linear(out, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.middle(F.relu(self.stem(x)))).mean((2, 3)))


class Add(nn.Module):
    def __init__(self, *branch: nn.Module) -> None:
        super().__init__()
        self.branch = nn.Sequential(*branch)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x)


class Join(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.a, self.b = how, nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        a, b = F.relu(self.a(x)), self.b(x)
        return torch.cat([a, b], 1) if self.how == "cat" else a * b.sigmoid() if self.how == "gate" else a + b


def three(m: int = 8, n: int = 8, **more: int) -> nn.Conv2d:
    return nn.Conv2d(m, n, 3, padding=1, **more)


DECLINED = {
    "odd channels": (lambda: Two(three(8, 9), out=9), {}, "odd number"),
    "another activation": (lambda: Two(nn.Sequential(three(), nn.GELU(), three())), {}, "another function than a ReLU"),
    "ReLU6": (lambda: Two(nn.Sequential(three(), nn.ReLU6(), three())), {}, "another function than a ReLU"),
    "a norm that stays": (
        lambda: Two(Add(three(), nn.BatchNorm2d(8), nn.ReLU(), three())),
        {"norm": "keep"},
        "a norm stands in its branch",
    ),
    "a gate": (lambda: Two(nn.Sequential(Join("gate"), three())), {}, "product"),
    "a concatenation": (lambda: Two(nn.Sequential(Join("cat"), three(16))), {}, "concatenation"),
    "a sum": (lambda: Two(nn.Sequential(Join("sum"), three())), {}, "sum|neither"),
    "groups": (lambda: Two(three(groups=4)), {}, "groups"),
    "two layers in a row": (lambda: Two(Add(three(), three())), {}, "something else than one ReLU"),
    "taps off the centre": (
        lambda: Two(Add(nn.Conv2d(8, 8, 3, padding=2), nn.ReLU(), nn.Conv2d(8, 8, 3))),
        {},
        "centre taps",
    ),
    "a transposed layer": (lambda: Two(nn.ConvTranspose2d(8, 8, 2, 2)), {}, "no form"),
}


@pytest.mark.parametrize("case", DECLINED)
def test_what_it_cannot_start_is_declined_with_the_reason_and_a_way_out(case: str) -> None:
    make, options, words = DECLINED[case]
    with pytest.raises(CoverageError, match=words) as raised:
        zc.plan(make(), (BATCH,), scheme="risotto", options=options)
    assert raised.value.exit_code == 3 and "--s" in raised.value.fix and raised.value.where


def test_the_way_out_of_a_norm_is_the_rewrite() -> None:
    make, _, _ = DECLINED["a norm that stays"]
    assert [edit.rewrite for edit in zc.plan(make(), (BATCH,), scheme="risotto").edits] == ["remove_norms"]


# -- negative controls -------------------------------------------------------------------------------------------------


def test_a_generic_orthogonal_first_layer_behind_a_relu_is_found() -> None:
    subject = convert(PostActivationNet(), BATCH[:1], "risotto")
    weight = subject.traced.root.get_parameter("blocks.1.0.weight")
    with torch.no_grad():
        weight[:, :, 1, 1] = torch.from_numpy(Mirrored(Orthogonal(8, 8, 9, "generic")).window(0, 16))
    assert [asked(check, subject).status for check in ("norm_per_depth", "jacobian", "linearity")] == ["fail"] * 3


def test_a_norm_left_in_a_branch_is_found() -> None:
    subject = convert(PostActivationNet(), BATCH[:1], "risotto")
    block = subject.traced.root.get_submodule("blocks.1")
    block.add_module("0", nn.Sequential(block.get_submodule("0"), nn.BatchNorm2d(16)))
    assert asked("norm_per_depth", subject).status == "fail"


def test_a_weight_that_is_a_little_too_large_is_found() -> None:
    subject = convert(PostActivationNet(depth=6), BATCH[:1], "risotto")
    with torch.no_grad():
        subject.traced.root.get_parameter("blocks.3.2.weight").mul_(1.001)
    assert [asked(check, subject).status for check in ("norm_per_depth", "jacobian")] == ["fail"] * 2
