"""ConstNet: every channel is the first one, exactly, on real networks; and what lets them part."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision import models

import zero_convert as zc
from tests import nets
from tests.test_checks import answers, convert
from tests.test_schemes import conv, fill, layer, linear, tensor
from zero_convert import checks, schemes
from zero_convert.checks.harness.bench import CheckContext
from zero_convert.checks.harness.isolation import pinned
from zero_convert.checks.subject import Subject
from zero_convert.errors import CoverageError, UsageError
from zero_convert.graph.example_values import reference_values
from zero_convert.records import Check
from zero_convert.runtime.threads import one_thread

IMAGES = torch.from_numpy(reference_values((4, 3, 64, 64)))


def asked(check: str, subject: Subject) -> Check:
    with pinned("cpu"), one_thread():
        found = checks.answer(check, CheckContext(subject, "quick", "cpu"))
    assert found is not None
    return found


# -- values ------------------------------------------------------------------------------------------------------------


def test_weights_are_averages_at_the_centre_and_ends_are_zero() -> None:
    third = float(np.float32(1 / 3))
    assert fill("constnet", linear(2, 3))["weight"].tolist() == [[third] * 3] * 2
    weight = fill("constnet", conv(2, 3, 3, 3, role="stem"))["weight"]
    assert weight[:, :, 1, 1].tolist() == [[third] * 3] * 2
    assert np.count_nonzero(weight) == 6
    for role in ("branch-last", "head"):
        assert not fill("constnet", conv(2, 3, 3, 3, role=role))["weight"].any()
    assert fill("constnet", conv(4, 4, 1, groups=2))["weight"].tolist() == [[[0.5], [0.5]]] * 4


def test_a_last_layer_that_zero_would_leave_dead_is_an_average() -> None:
    for more in ({"before_relu": True}, {"zeroed_by_scale": True}):
        assert fill("constnet", replace(linear(2, 2, "branch-last"), **more))["weight"].tolist() == [[0.5, 0.5]] * 2


def test_items_have_no_rule() -> None:
    scheme = schemes.get("constnet")
    table = layer("embedding", "trunk", tensor("a.weight", 5, 4))
    assert not scheme.fill(table, None, schemes.complete_options(scheme, {}))  # type: ignore[arg-type]


def test_a_classifier_behind_which_a_relu_stands_is_an_average() -> None:
    class Rectified(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            return F.relu(self.head(F.relu(self.conv(x)))).mean((2, 3))

    subject = convert(Rectified(), IMAGES[:1], "constnet")
    assert subject.structure.layer("head").before_relu
    assert bool((subject.traced.root.get_parameter("head.weight") == 0.25).all())


# -- real networks -----------------------------------------------------------------------------------------------------

REAL: dict[str, Callable[[], nn.Module]] = {
    "resnet18": models.resnet18,
    "resnet50": models.resnet50,
    "pre-activation": nets.PreActivationResNet,
    "norm-free": nets.NormFreeNet,
    "bottleneck": nets.BottleneckNet,
}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("net", REAL)
def test_all_channels_are_equal_bit_for_bit_at_every_layer_and_logits_are_zero(net: str, training: bool) -> None:
    """Looked at with hooks on every module, by none of the package's own checks."""
    module = convert(REAL[net](), IMAGES[:1], "constnet").traced.root.train(training)
    seen: dict[str, float] = {}

    def look(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def hook(_: nn.Module, __: tuple[Tensor, ...], value: Tensor) -> None:
            seen[name] = float((value - value[:, :1]).abs().max())

        return hook

    for name, part in module.named_modules():
        if next(part.children(), None) is None and not isinstance(part, nn.Linear):
            part.register_forward_hook(look(name))
    with one_thread(), torch.no_grad():
        logits = module(IMAGES)
    assert len(seen) >= {"resnet18": 40, "resnet50": 106, "pre-activation": 12, "norm-free": 7, "bottleneck": 22}[net]
    assert {name: value for name, value in seen.items() if value != 0} == {}
    assert not logits.any()


@pytest.mark.parametrize("net", [name for name in REAL if name != "resnet18"])
def test_every_nonzero_weight_has_rank_one(net: str) -> None:
    subject = convert(REAL[net](), IMAGES[:1], "constnet")
    for one in subject.structure.layers:
        if one.kind in ("convolution", "linear"):
            weight = subject.traced.root.get_parameter(f"{one.name}.weight").detach()
            assert weight.unique().numel() <= 2 and bool((weight == weight[:1, :1]).all()), one.name
            assert (one.role in ("branch-last", "head")) == (not weight.any()), one.name


@pytest.mark.parametrize("net", ["resnet18", "pre-activation", "norm-free", "bottleneck"])
def test_the_check_finds_every_place_equal(net: str) -> None:
    found = asked("channel_spread", convert(REAL[net](), IMAGES[:1], "constnet"))
    assert found.status == "pass" and set(found.numbers["spread"].values()) == {0.0}
    assert (
        len(found.numbers["spread"]) >= {"resnet18": 48, "pre-activation": 18, "norm-free": 10, "bottleneck": 26}[net]
    )


def test_one_value_that_differs_is_found() -> None:
    subject = convert(nets.PreActivationResNet(), IMAGES[:1], "constnet")
    with torch.no_grad():
        subject.traced.root.get_parameter("body.0.conv1.weight")[3, 2, 1, 1] *= 1.01
    found = asked("channel_spread", subject)
    assert found.status == "fail"
    assert found.numbers["spread"]["stem"] == 0 and found.numbers["spread"]["body_0_conv1"] > 0


class Two(nn.Module):
    """Different signals side by side: their channels differ, those made from them do not."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 3, padding=1, stride=1)
        self.norm, self.mix = nn.BatchNorm2d(8), nn.Conv2d(8, 6, 1)
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(torch.cat([self.a(x), self.b(x).roll(1, -1)], 1))
        return self.head(F.relu(self.mix(x)).mean((2, 3)))


def test_concatenated_signals_are_not_held_to_it() -> None:
    found = asked("channel_spread", convert(Two(), IMAGES[:1], "constnet"))
    assert found.status == "pass" and set(found.numbers["spread"]) == {"a", "b", "mix"}


# -- the symmetry ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("net", ["pre-activation", "norm-free"])
def test_channels_never_part_on_a_cpu_and_do_from_the_second_step_with_dropout(net: str) -> None:
    still = asked("symmetry", convert(REAL[net](), IMAGES[:1], "constnet"))
    assert still.status == "fail" and still.numbers["spread_after_step"] == [0.0] * 5
    broken = asked("symmetry", convert(REAL[net](), IMAGES[:1], "constnet", break_symmetry="dropout:0.01"))
    assert broken.status == "pass"
    first, *rest = broken.numbers["spread_after_step"]
    assert first == 0 and rest[-1] > 0


def test_dropout_is_an_edit_in_the_plan_behind_every_join() -> None:
    plan = zc.plan(
        nets.PreActivationResNet(), (IMAGES[:1],), scheme="constnet", options={"break_symmetry": "dropout:.5"}
    )
    assert [(edit.rewrite, edit.target) for edit in plan.edits] == [
        ("symmetry_dropout", name) for name in ("add", "add_1", "add_2")
    ]
    assert plan.options == {"break_symmetry": "dropout:0.5"}
    module = zc.convert(
        nets.mlp(), (torch.zeros(2, 20),), scheme="constnet", options=dict(plan.options), validate="none"
    ).module
    assert [m.p for m in module.modules() if isinstance(m, nn.Dropout)] == [0.5]


@pytest.mark.parametrize(
    "value", ["dropout", "dropout:", "dropout:0", "dropout:1", "dropout:x", "drop:0.1", "dropout:1e-2"]
)
def test_a_rate_that_is_none_is_refused(value: str) -> None:
    with pytest.raises(UsageError, match="dropout:P"):
        schemes.complete_options(schemes.get("constnet"), schemes.read_pairs([f"break_symmetry={value}"]))


# -- what it declines, and negative controls ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("module", "inputs"),
    [
        (models.VisionTransformer(32, 8, 1, 2, 16, 32), torch.zeros(1, 3, 32, 32)),
        (nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 2)), torch.zeros(2, 4)),
    ],
)
def test_networks_that_normalize_across_channels_are_declined(module: nn.Module, inputs: Tensor) -> None:
    with pytest.raises(CoverageError, match="normalized across channels") as raised:
        zc.plan(module, (inputs,), scheme="constnet")
    assert raised.value.exit_code == 3 and "--scheme" in raised.value.fix


def test_two_zero_layers_in_series_are_found_dead() -> None:
    subject = convert(nets.NormFreeNet(), IMAGES[:1], "constnet")
    with torch.no_grad():
        subject.traced.root.get_parameter("blocks.1.conv1.weight").zero_()
    dead = answers(subject)["gradients"]
    assert dead.status == "fail" and "blocks.1.conv1.weight" in dead.numbers["dead"]


def test_no_check_fails() -> None:
    found = answers(convert(nets.tiny_resnet(), IMAGES[:1], "constnet", break_symmetry="dropout:0.1"))
    assert {name: check.summary for name, check in found.items() if check.status == "fail"} == {}
    assert {"channel_spread", "symmetry", "logits", "zero_branches"} <= set(found)
