"""Faults in one mode, in one output, in one value, or smaller than others: each is found by the check that should
find it, which passes without it and says where it is."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zero_convert.checks.exact_parts import ask as exact_parts
from zero_convert.checks.harness.bench import CheckContext
from zero_convert.checks.harness.isolation import pinned
from zero_convert.checks.subject import Subject
from zero_convert.initialization.scheme import AsConstructed
from zero_convert.records import Check
from zero_convert.rewrites import inner_skips

from . import nets
from .fake_gpu import fake_gpu
from .subjects import IMAGES, Opaque, ask, parameter, subject_of, with_gradient
from .test_planted_promises import behind, by_mode, into_the_branch, written

pytestmark = pytest.mark.usefixtures("one_thread")
Plant = Callable[[Subject], None]
VECTOR = torch.linspace(-1, 1, 12).reshape(2, 6)


class Heads(nn.Module):
    """Two heads behind a layer, and another graph for each mode."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.one, self.other = nn.Linear(6, 6), nn.Linear(6, 4), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = F.dropout(self.first(x), 0.0, self.training)
        return self.one(x), self.other(x)


class Large(nn.Module):
    """Most of the weights are in a part that branches on values."""

    class Inner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wide = nn.Linear(6, 6)
            self.scale = nn.Parameter(torch.ones(200))

        def forward(self, x: Tensor) -> Tensor:
            y = self.wide(x) + self.scale.mean()
            return y if float(x.detach().numpy().sum()) > 0 else y * 2

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = self.Inner(), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.inner(x))


def infinite(x: Tensor) -> Tensor:
    return x + 3e38 + 3e38


def undefined(x: Tensor) -> Tensor:
    return x * torch.nan


def activate_in_place(x: Tensor) -> Tensor:
    return F.hardsigmoid(x, inplace=True)


def shorter(x: Tensor) -> Tensor:
    return x[:, :2]


def kept(subject: Subject) -> None:
    """A factor of 2 that the user chose to keep."""
    written("blocks.1.bn1.weight", 2.0)(subject)


def doubled_row(subject: Subject) -> None:
    weight = parameter(subject, "0.weight")
    weight[5::8] = weight[3]


def another_bias(subject: Subject) -> None:
    parameter(subject, "0.bias")[5] = 1


def wide() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 4))


# check: fault → network, scheme, what is planted, words of the summary
FAULTS: dict[str, tuple[Callable[[], nn.Module], str, Plant, str]] = {
    "outputs: a size in training": (Heads, "zero-2021", behind("other", shorter, True), "train mode: 2×4"),
    "outputs: a size in evaluation": (Heads, "zero-2021", behind("other", shorter, False), "evaluate mode: 2×4 float"),
    "finite: an infinite output": (nets.tiny_resnet, "zero-2021", behind("linear", infinite), "the output in"),
    "finite: a NaN in training": (nets.tiny_resnet, "zero-2021", behind("linear", undefined, True), "in train mode"),
    "finite: a NaN in evaluation": (nets.tiny_resnet, "zero-2021", behind("linear", undefined, False), "evaluate mode"),
    "finite: a NaN in a buffer": (nets.tiny_resnet, "zero-2021", written("bn1.running_mean", torch.nan, (1,)), "bn1"),
    "zero_branches: a value of a millionth": (
        nets.tiny_resnet, "zero-2021", written("blocks.1.conv2.weight", 1e-6, (0, 0, 1, 1)), "(behind blocks.1.conv2)"
    ),
    "zero_branches: in training": (
        nets.tiny_resnet, "zero-2021", behind("blocks.1.conv2", lambda x: x + 1, True), "1 at"
    ),
    "zero_branches: in evaluation": (
        nets.tiny_resnet, "zero-2021", behind("blocks.1.conv2", lambda x: x + 1, False), "1 at"
    ),
    "zero_branches: a NaN in training": (
        nets.tiny_resnet, "zero-2021", behind("blocks.1.conv2", undefined, True), "nan at"
    ),
    "zero_branches: an aliased in-place activation": (
        nets.tiny_resnet, "zero-2021", into_the_branch(-1, activate_in_place), "0.5 at"
    ),
    "binary: almost 1": (nets.tiny_resnet, "zero-2021", written("bn1.weight", 1.0001, (7,)), "1 values"),
    "binary: almost 0": (nets.tiny_resnet, "zero-2021", written("linear.weight", 1e-5, (3, 2)), "1 values"),
    "binary: -1": (nets.tiny_resnet, "zero-2021", written("linear.bias", -1.0, (9,)), "in linear.bias"),
    "logits: a millionth": (nets.tiny_resnet, "zero-2021", written("linear.bias", 1e-6, (9,)), "up to 1e-06"),
    "logits: in training": (nets.tiny_resnet, "zero-2021", behind("linear", lambda x: x + 1, True), "linear returns"),
    "logits: in evaluation": (nets.tiny_resnet, "zero-2021", behind("linear", lambda x: x + 1, False), "linear return"),
    "logits: a NaN": (nets.tiny_resnet, "zero-2021", written("linear.bias", torch.nan, (9,)), "up to nan"),
    "logits: the second head": (Heads, "zero-2021", written("other.bias", 1.0), "other returns up to 1"),
    "distinct_units: a row twice": (wide, "zero-2022", doubled_row, "7 different rows instead of 8 at 0"),
    "distinct_units: a bias": (wide, "zero-2022", another_bias, "9 different rows instead of 8 at 0"),
    "distinct_units: a row of a partial identity": (
        nets.tiny_resnet, "zero-2021", written("blocks.1.shortcut.0.weight", 2.0, (12, 0, 0, 0)), "10 different"
    ),
}  # fmt: skip


@cache
def sound(check: str, make: Callable[[], nn.Module], scheme: str) -> str:
    """How the check ends without a fault."""
    found = ask(check, subject_of(make(), VECTOR if make in (Heads, wide) else IMAGES, scheme=scheme))
    return "none" if found is None else found.status


@pytest.mark.parametrize("fault", by_mode(FAULTS))
def test_a_fault_in_one_place_is_found(fault: str) -> None:
    make, scheme, plant, words = FAULTS[fault]
    check = fault.partition(":")[0]
    assert sound(check, make, scheme) == "pass"
    subject = subject_of(make(), VECTOR if make in (Heads, wide) else IMAGES, scheme=scheme)
    plant(subject)
    found = ask(check, subject)
    assert found is not None and found.status == "fail" and words in found.summary, found
    assert found.remedy and found.threshold


def test_coverage_warns_of_little() -> None:
    check = ask("coverage", subject_of(Large(), VECTOR, scheme="zero-2022"))
    assert check is not None and (check.status, "hidden" in check.summary) == ("warn", False), check
    assert check.numbers["captured"] == 21 and "(8.0%)" in check.summary and check.remedy


def test_binary_names_what_was_kept() -> None:
    subject = subject_of(nets.tiny_resnet())
    rules = tuple(
        replace(a, formula=AsConstructed(a.tensor.shape)) if a.tensor.name == "blocks.1.bn1.weight" else a
        for a in subject.assignments
    )
    subject = replace(subject, assignments=rules)
    sound = ask("binary", subject)
    kept(subject)
    found = ask("binary", subject)
    assert sound is not None and found is not None and (sound.status, found.status) == ("pass", "warn")
    assert "other values kept in blocks.1.bn1.weight" in found.summary


@pytest.mark.parametrize("check", ["zero_branches", "logits"])
def test_what_must_be_0_and_is_not_reached_is_no_pass(check: str) -> None:
    """A graph that calls something else than the analysis saw."""
    subject = subject_of(nets.tiny_resnet())
    structure = subject.structure
    if check == "zero_branches":
        joins = tuple(replace(j, branch_node="elsewhere") if j.residual else j for j in structure.joins)
        subject = replace(subject, structure=replace(structure, joins=joins))
    else:
        layers = tuple(replace(each, role="head") if each.name == "linear" else each for each in structure.layers)
        subject = replace(subject, structure=replace(structure, layers=layers))
        for graph in subject.traced.graphs:
            for node in graph.nodes:
                if node.target == "linear":
                    node.target = "same"
        subject.traced.root.same = subject.traced.root.get_submodule("linear")
    found = ask(check, subject)
    assert found is not None and found.status == "fail" and "not reached" in found.summary, found


# -- runs that differ --------------------------------------------------------------------------------------------------


class Running(nn.Module):
    def __init__(self, operation: Callable[[Tensor], Tensor], where: bool | None = None) -> None:
        super().__init__()
        self.first, self.second, self.planted = nn.Linear(6, 6), nn.Linear(6, 4), Opaque(operation, where)

    def forward(self, x: Tensor) -> Tensor:
        return self.planted(self.second(self.first(x)))


CALLS: Iterator[int] = itertools.count()


wandering = with_gradient(lambda gradient: gradient * (1 + 1e-6 * (next(CALLS) % 7)))


def in_the_last_digit(x: Tensor) -> Tensor:
    return torch.nextafter(x, torch.full_like(x, 9)) if next(CALLS) % 2 else x


def signed_zero(x: Tensor) -> Tensor:
    return x * 0 * (-1) ** next(CALLS) + torch.tensor(-0.0)


def longer(x: Tensor) -> Tensor:
    return torch.cat([x, x])[: len(x) + next(CALLS) % 2]


def undetermined(x: Tensor) -> Tensor:
    """As an operator whose deterministic kernel is another one."""
    return x if torch.are_deterministic_algorithms_enabled() else x + next(CALLS) * 1e-3


RUNS: dict[str, tuple[Callable[[Tensor], Tensor], bool | None, str, str]] = {
    "the last digit": (in_the_last_digit, None, "quick", "output 0 in train mode"),
    "the sign of 0": (signed_zero, None, "quick", "output 0 in train mode by 0"),
    "a size": (longer, None, "quick", "output 0 in train mode by nan"),
    "in training": (in_the_last_digit, True, "quick", "output 0 in train mode"),
    "in evaluation": (in_the_last_digit, False, "quick", "output 0 in evaluate mode"),
    "a gradient": (wandering, None, "full", "gradient of first.weight in train mode"),
}


@pytest.mark.parametrize("fault", RUNS, ids=[f"repeat: {name}" for name in RUNS])
def test_what_another_run_does_otherwise_is_found(fault: str) -> None:
    operation, where, level, words = RUNS[fault]
    found = ask("repeat", subject_of(Running(operation, where), VECTOR, scheme="zero-2022"), level)
    assert found is not None and found.status == "fail" and words in found.summary and found.remedy, found


def test_repeat_tells_what_a_nondeterministic_operator_does_without_its_deterministic_kernel() -> None:
    check = ask("repeat", subject_of(Running(undetermined), VECTOR, scheme="zero-2022"), "full")
    assert check is not None and check.status == "pass"
    assert "output 0 in train mode" in check.numbers["different_without_determinism"]
    assert re.search(r"without deterministic algorithms \d+ differ", check.summary)


# -- kernels -----------------------------------------------------------------------------------------------------------


def kernels(net: nn.Module, kind: str, off: float) -> Check:
    """The answer of `exact_parts` where a GPU's kernels of a kind are off by a part of their largest value."""
    subject = subject_of(net)

    def distort(name: str, made: Tensor) -> Tensor:
        return made + off * made.abs().max() if name == kind else made

    with fake_gpu(distort=distort), pinned("cuda:0"):
        found = exact_parts(CheckContext(subject, "full", "cuda:0"))
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("make", "kind", "off", "status"),
    [
        (nets.NormFreeNet, "convolution", 1e-6, "warn"),
        pytest.param(nets.NormFreeNet, "convolution", 1e-4, "fail", marks=pytest.mark.slow),
        pytest.param(nets.tiny_resnet, "convolution", 1e-6, "fail", marks=pytest.mark.slow),  # one has a single tap
        (nets.NormFreeNet, "addmm", 1e-6, "fail"),
    ],
)
def test_exact_parts_excuses_on_a_gpu_what_winograd_does_and_no_more(
    make: Callable[[], nn.Module], kind: str, off: float, status: str
) -> None:
    found = kernels(make(), kind, off)
    assert found.status == status and found.remedy, found
    assert all("cuda:0" in how for how in (*found.numbers["different"], *found.numbers["excused"]))


@pytest.mark.parametrize(
    "fault",
    ["two threads", *(pytest.param(name, marks=pytest.mark.slow) for name in ("a batch of 32", "a batch of 2", "all"))],
)
def test_exact_parts_finds_a_kernel_that_rounds_in_one_place(monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    subject, conv = subject_of(nets.NormFreeNet()), torch.conv2d

    def planted(x: Tensor, *rest: Any) -> Tensor:
        made = conv(x, *rest)
        here = {
            "two threads": torch.get_num_threads() == 2,
            "a batch of 32": len(x) == 32,
            "a batch of 2": len(x) == 2,
            "all": x.dtype is torch.float32,
        }[fault]
        return made * (1 + 1e-6) if here else made

    monkeypatch.setattr(F, "conv2d", planted)
    found = ask("exact_parts", subject, "full")
    words = {"two threads": "2 threads", "a batch of 32": "batch 32", "a batch of 2": "batch 2,"}
    assert found is not None and found.status == "fail", found
    assert all(words.get(fault, "cpu") in how for how in found.numbers["different"])


# -- edits -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [1e-5, torch.nan, None], ids=["a little", "a NaN", "a size"])
def test_skips_finds_an_edit_that_also_changes_what_was_there(
    monkeypatch: pytest.MonkeyPatch, value: float | None
) -> None:
    subject, rewrite = subject_of(Heads(), VECTOR), inner_skips.rewrite

    def wrong(root: nn.Module, *rest: Any) -> Any:
        head = root.get_submodule("other")
        with torch.no_grad():
            if value is None:
                head.weight, head.bias = nn.Parameter(head.weight[:2]), nn.Parameter(head.bias[:2])
            else:
                head.weight[0, 0] += value
        return rewrite(root, *rest)

    sound = ask("skips", subject, "full")
    monkeypatch.setattr(inner_skips, "rewrite", wrong)
    found = ask("skips", subject, "full")
    assert sound is not None and found is not None and (sound.status, found.status) == ("pass", "fail"), found
    assert set(found.numbers["different"]) == {"inner_skips"} and "inner_skips changes the output" in found.summary


# -- training ----------------------------------------------------------------------------------------------------------


class Hiding(nn.Module):
    """A path whose gradient is NaN and whose values are taken for 0 when they are."""

    def __init__(self, planted: bool) -> None:
        super().__init__()
        self.first, self.head, self.planted = nn.Linear(6, 6), nn.Linear(6, 4), planted

    def forward(self, x: Tensor) -> Tensor:
        branch = self.first(x) * 0
        return self.head(x + torch.nan_to_num(branch.sqrt() if self.planted else branch))


def test_training_finds_a_gradient_that_is_not_finite_though_the_loss_is() -> None:
    sound, found = (ask("training", subject_of(Hiding(p), VECTOR, scheme="zero-2022"), "full") for p in (False, True))
    assert sound is not None and found is not None and (sound.status, found.status) == ("pass", "fail"), found
    assert "not finite: in step 1 of rate 0.1, " in found.summary and found.numbers["rates_refused"] == [
        0.1,
        0.01,
        0.001,
    ]
