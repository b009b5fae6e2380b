"""Fixup, SkipInit and ReZero: their values from the papers, and what every network is that starts with them."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, fx, nn

import zero_convert as zc
from zero_convert import schemes
from zero_convert.errors import CoverageError
from zero_convert.formulas import Bell
from zero_convert.records import Geometry, Join, Layer, Structure
from zero_convert.records import Tensor as Entry

from .nets import BottleneckNet, NormFreeNet, PlainCnn, PreActivationResNet, mlp, tiny_resnet
from .odd_nets import ActivatedBranch, GatedMlp, PostNormEncoder, TinyViT, gated_net, nested, ramp

NAMES = ("fixup", "skipinit", "rezero")
NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "resnet18": (torchvision.models.resnet18, (2, 3, 32, 32)),
    "resnet50": (torchvision.models.resnet50, (2, 3, 32, 32)),
    "pre-activation": (PreActivationResNet, (2, 3, 8, 8)),
    "post-activation": (tiny_resnet, (2, 3, 8, 8)),
    "bottlenecks": (BottleneckNet, (2, 3, 32, 32)),
    "norm-free": (NormFreeNet, (2, 3, 8, 8)),
    "ViT": (TinyViT, (2, 3, 8, 8)),
    "post-norm encoder": (PostNormEncoder, (2, 6, 5)),
    "gates": (lambda: gated_net(True), (2, 3, 8, 8)),
    "nested": (nested, (2, 3, 8, 8)),
    "plain": (PlainCnn, (2, 3, 32, 32)),
    "MLP": (mlp, (3, 20)),
}


@cache
def converted(net: str, scheme: str) -> tuple[zc.Result, Tensor]:
    make, shape = NETS[net]
    x = ramp(*shape)
    return zc.convert(make(), (x,), scheme=scheme, validate="none"), x


def values(module: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Node → what it computes in evaluation mode."""
    seen: dict[str, Tensor] = {}

    class Recorder(fx.Interpreter):
        def run_node(self, n: fx.Node) -> object:
            value = super().run_node(n)
            if isinstance(value, Tensor):
                seen[n.name] = value.clone()
            return value

    module = copy.deepcopy(module).eval()
    with torch.no_grad():
        Recorder(module, graph=module.evaluate_graph).run(x)  # type: ignore[arg-type]
    return seen


def bits(x: Tensor) -> Tensor:
    return x.contiguous().view(torch.int32)


# -- values ------------------------------------------------------------------------------------------------------------


def conv(name: str, role: str, m: int, n: int, k: int, join: int | None = None, **more: object) -> Layer:
    g = Geometry(m, n, (k, k), (1, 1), ((0, 0), (0, 0)), (1, 1))
    weight = Entry(f"{name}.weight", (m, n, k, k), "F32", True)
    return Layer(name, "convolution", "Conv2d", role, (weight,), g, join=join, **more)  # type: ignore[arg-type]


def blocks(count: int, *layers: Layer) -> Structure:
    join = Join(0, "add", "x", "b", "x", "identity", (), (), "plain", (), "", 4, 4, 1, depth=len(layers))
    return Structure(layers, (join,) * count)


def rule(scheme: str, layer: Layer, structure: Structure, **options: int) -> object:
    chosen = schemes.get(scheme)
    given = chosen.fill(layer, structure, schemes.complete_options(chosen, options))
    assert given is not None
    return given["weight"]


def test_fixup_has_the_deviations_of_the_authors_code() -> None:
    # init.normal_(conv1.weight, 0, sqrt(2 / (out·k·k)) · L^-0.5) for basic blocks, L^-0.25 for bottlenecks; last 0.
    first, last = conv("a", "branch", 64, 32, 3, 0), conv("b", "branch-last", 64, 64, 3, 0)
    basic = blocks(16, first, last)
    assert rule("fixup", first, basic) == Bell((64, 32, 3, 3), math.sqrt(2 / (64 * 9)) * 0.25, 0, "a.weight")
    assert rule("fixup", last, basic).rule == "constant 0"  # type: ignore[attr-defined]
    middle, end = conv("c", "branch", 64, 64, 3, 0), conv("d", "branch-last", 256, 64, 1, 0)
    bottleneck = blocks(16, first, middle, end)
    assert rule("fixup", middle, bottleneck) == Bell((64, 64, 3, 3), math.sqrt(2 / (64 * 9)) * 0.5, 0, "c.weight")
    projection = conv("p", "shortcut", 256, 64, 1, 0)
    assert rule("fixup", projection, bottleneck, seed=5) == Bell((256, 64, 1, 1), math.sqrt(2 / 256), 5, "p.weight")
    assert rule("fixup", conv("h", "head", 10, 64, 1), basic).rule == "constant 0"  # type: ignore[attr-defined]


def test_fixup_keeps_a_last_layer_alive_that_could_not_leave_0() -> None:
    first = conv("a", "branch", 8, 8, 3, 0)
    for why in ({"before_relu": True}, {"zeroed_by_scale": True}):
        last = conv("b", "branch-last", 8, 8, 3, 0, **why)
        structure = blocks(16, first, last)
        shrunk = Bell((8, 8, 3, 3), math.sqrt(2 / 72) * 0.5, 0, "b.weight")  # 16^(-1/4): both layers share the L^(-1/2)
        assert rule("fixup", last, structure) == shrunk
        assert not schemes.get("fixup").zero_branch(structure.joins[0], structure)


@pytest.mark.parametrize("scheme", ["skipinit", "rezero"])
def test_gated_schemes_have_hes_deviation_and_numbers_of_0(scheme: str) -> None:
    layers = conv("a", "branch", 64, 32, 3, 0), conv("b", "branch-last", 16, 64, 1, 0), conv("h", "head", 10, 64, 1)
    structure = blocks(1, *layers)
    found = [rule(scheme, layer, structure) for layer in layers]
    assert found[0] == Bell((64, 32, 3, 3), math.sqrt(2 / (32 * 9)), 0, "a.weight")
    assert found[1] == Bell((16, 64, 1, 1), math.sqrt(2 / 64), 0, "b.weight")
    assert found[2] == Bell((10, 64, 1, 1), math.sqrt(1 / 64), 0, "h.weight")
    scale = Layer("s", "scale", "ScalarScale", "trunk", (Entry("s.scale", (1,), "F32", True),))
    given = schemes.get(scheme).fill(scale, structure, {"seed": 0})
    assert given is not None and given["scale"].rule == "constant 0"


@pytest.mark.parametrize(
    ("net", "depths"),
    [("post-activation", [2, 2]), ("bottlenecks", [3, 3, 3]), ("ViT", [2, 2]), ("post-norm encoder", [2, 2])],
)
def test_an_attention_is_two_layers_of_its_branch(net: str, depths: list[int]) -> None:
    result, _ = converted(net, "fixup")
    assert [join.depth for join in result.structure.joins if join.residual] == depths
    deviations = {a.tensor.name: a.rule for a in result.plan.assignments}
    if net == "post-norm encoder":  # L = 2, p = 2, width 8: sqrt(1/8) · 2^(-1/2), and sqrt(2/24) · 2^(-1/2)
        assert "standard deviation 0.25," in deviations["attention.in_proj_weight"]
        assert "standard deviation 0.204124," in deviations["mlp.0.weight"]


@pytest.mark.parametrize("scheme", NAMES)
def test_the_seed_moves_every_drawn_value_and_nothing_else(scheme: str) -> None:
    one, other = (zc.convert(tiny_resnet(), scheme=scheme, options={"seed": s}, validate="none") for s in (0, 1))
    again = zc.convert(tiny_resnet(), scheme=scheme, options={"seed": "1"}, validate="none")
    assert again.weights_digest == other.weights_digest != one.weights_digest
    assert again.recipe == other.recipe
    for a in one.plan.assignments:
        x, y = (r.network.state_dict()[a.tensor.name] for r in (one, other))
        assert bool((x == y).any()) != a.rule.startswith("bell-shaped")


# -- what a converted network is ---------------------------------------------------------------------------------------


QUICK = ("resnet18", "fixup")  # of the large ones
PAIRS = [
    pytest.param(net, scheme, marks=pytest.mark.slow if "resnet" in net and (net, scheme) != QUICK else ())
    for net in NETS
    for scheme in NAMES
]


@pytest.mark.parametrize(("net", "scheme"), PAIRS)
def test_every_join_is_its_shortcut(net: str, scheme: str) -> None:
    result, x = converted(net, scheme)
    joins = [join for join in result.structure.joins if join.residual]
    assert bool(joins) == (net not in ("plain", "MLP"))
    seen = values(result.network, x)
    for join in joins:
        shortcut = seen[join.shortcut_node]
        assert torch.equal(bits(seen[join.node]), bits(shortcut + 0.0))
        assert seen[join.branch_node].count_nonzero() == 0
        assert shortcut.count_nonzero() > 0


@pytest.mark.parametrize("net", [pytest.param(n, marks=pytest.mark.slow if n == "resnet50" else ()) for n in NETS])
def test_fixups_identity_blocks_return_their_input_bit_for_bit_and_logits_are_0(net: str) -> None:
    result, x = converted(net, "fixup")
    seen = values(result.network, x)
    for join in result.structure.joins:
        if join.residual and join.shortcut == "identity":
            rectified = bool(join.activation) and bool(
                (seen[join.fork] >= 0).all()
            )  # post-activation: what comes in is
            after = seen[join.activation if rectified else join.node]
            assert torch.equal(bits(after), bits(seen[join.fork] + 0.0))
    logits = result.network.eval()(x)
    assert logits.count_nonzero() == 0 and result.network.train()(x).count_nonzero() == 0


@pytest.mark.parametrize("scheme", NAMES)
def test_a_branch_that_starts_otherwise_is_found(scheme: str) -> None:
    # 1e-3 instead of 0 in a branch's number or last layer: it is no longer silent.
    good = zc.convert(tiny_resnet(), scheme=scheme)
    assert {c.name: c.status for c in good.checks}["zero_branches"] == "pass"
    result, x = zc.convert(tiny_resnet(), scheme=scheme, validate="none"), ramp(2, 3, 8, 8)
    with torch.no_grad():
        name = "blocks.0.conv2.weight" if scheme == "fixup" else "blocks.0.conv2_scale.scale"
        result.network.get_parameter(name).fill_(1e-3)
    seen = values(result.network, x)
    assert [torch.equal(seen[j.node], seen[j.shortcut_node]) for j in result.structure.joins] == [False, True]


def test_only_rezero_keeps_batch_norms_and_none_keeps_a_layer_norm() -> None:
    def norms(net: nn.Module, scheme: str, **options: str) -> list[str]:
        made = zc.convert(net, scheme=scheme, options=options, validate="none").network
        return [type(m).__name__ for m in made.modules() if "Norm" in type(m).__name__]

    assert norms(tiny_resnet(), "rezero") == ["BatchNorm2d"] * 6
    assert norms(tiny_resnet(), "rezero", norm="none") == norms(tiny_resnet(), "skipinit") == []
    assert [norms(PostNormEncoder(), scheme) for scheme in NAMES] == [[], [], []]


def test_a_branch_behind_a_relu_is_alive_under_fixup() -> None:
    result = zc.convert(ActivatedBranch(nn.ReLU), scheme="fixup")
    assert result.failed == ()
    assert {c.name: c.status for c in result.checks}["gradients"] == "pass"


@pytest.mark.parametrize("scheme", NAMES)
def test_of_two_factors_one_is_silent(scheme: str) -> None:
    result = zc.convert(GatedMlp(), scheme=scheme)
    assert result.failed == ()
    rules = {a.tensor.name: a.rule for a in result.plan.assignments}
    assert scheme != "fixup" or any("0 for the outputs" in r or r == "constant 0" for r in rules.values())


@pytest.mark.parametrize("scheme", NAMES)
def test_spectral_norm_is_declined_with_the_reason_and_the_way_out(scheme: str) -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4)), nn.Linear(4, 2))
    with pytest.raises(CoverageError, match=r"declines this network.*: 1.*largest singular value.*--scheme zero-2022"):
        zc.convert(net, (ramp(2, 4),), scheme=scheme)


@pytest.mark.parametrize("scheme", NAMES)
def test_weight_norm_has_the_expected_lengths(scheme: str) -> None:
    net = nn.Sequential(nn.Linear(64, 32), nn.utils.parametrizations.weight_norm(nn.Linear(32, 400)), nn.Linear(400, 2))
    made = zc.convert(net, (ramp(2, 64),), scheme=scheme, validate="none").network
    weight = made.get_submodule("1").weight
    n = 400 if scheme == "fixup" else 32
    assert torch.allclose(weight.norm(dim=1), torch.full((400,), math.sqrt(2 / n * 32)), rtol=1e-5)


# -- training ----------------------------------------------------------------------------------------------------------


def train(net: nn.Module, steps: int, rate: float) -> list[float]:
    """Losses of SGD on two kinds of images that differ in their mean."""
    x = ramp(16, 3, 8, 8)
    x[::2] += 1
    target = torch.arange(16) % 2
    optimizer = torch.optim.SGD(net.train().parameters(), rate, momentum=0.9)
    losses = []
    for _ in range(steps):
        loss = F.cross_entropy(net(x), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.slow
@pytest.mark.parametrize("scheme", NAMES)
def test_a_hundred_layers_without_norms_train(scheme: str) -> None:
    result = zc.convert(NormFreeNet(16, 50, 2), (ramp(2, 3, 8, 8),), scheme=scheme, validate="none")
    losses = train(result.network, 50, 0.01)
    assert np.isfinite(losses).all()
    assert losses[-1] < 0.1 * losses[0]
    assert all(bool(torch.isfinite(p).all()) for p in result.network.parameters())


@pytest.mark.slow
def test_the_same_hundred_layers_do_not_train_with_open_branches() -> None:
    result = zc.convert(NormFreeNet(16, 50, 2), (ramp(2, 3, 8, 8),), scheme="skipinit", validate="none")
    with torch.no_grad():
        for name, value in result.network.named_parameters():
            if name.endswith("_scale.scale"):
                value.fill_(1.0)
    assert not np.isfinite(train(result.network, 10, 0.01)).all()
