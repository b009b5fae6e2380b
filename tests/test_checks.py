"""Checks find what is planted, pass what is sound, and leave everything as it was."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from zero_convert import checks, rewrites, schemes
from zero_convert.checks.harness.bench import CheckContext
from zero_convert.checks.harness.channels import distinct
from zero_convert.checks.harness.isolation import kept, pinned
from zero_convert.checks.subject import Subject
from zero_convert.errors import DeviceError, UsageError
from zero_convert.formulas import PartialIdentity, Rows
from zero_convert.initialization.fill import initialize
from zero_convert.records import Check
from zero_convert.runtime.threads import threads
from zero_convert.structure import analyze
from zero_convert.tracing import trace

from . import nets

IMAGES = torch.zeros(1, 3, 32, 32)


def convert(net: nn.Module, inputs: Tensor | tuple[Any, ...], scheme: str = "zero-2021", **options: str) -> Subject:
    """The subject as the pipeline makes it."""
    given = inputs if isinstance(inputs, tuple) else (inputs,)
    chosen = schemes.complete_options(schemes.get(scheme), options)
    before = trace(net, given)
    outputs = {
        mode: next(n for n in graph.nodes if n.op == "output").meta["outputs"]
        for mode, graph in (("train", before.train), ("evaluate", before.evaluate))
    }
    traced, _ = rewrites.apply(before, schemes.get(scheme).rewrites(chosen), chosen)
    structure = analyze(traced)
    rules = initialize(traced, structure, schemes.get(scheme), chosen)
    return Subject(traced, structure, schemes.get(scheme), chosen, rules, given, outputs)


def answers(subject: Subject, level: str = "quick") -> dict[str, Check]:
    return {check.name: check for check in checks.run(subject, level=level, device="cpu")}


def found_by(subject: Subject) -> dict[str, str]:
    """The checks that did not pass, and how they ended."""
    return {name: check.status for name, check in answers(subject).items() if check.status != "pass"}


def parameter(subject: Subject, name: str) -> Tensor:
    return subject.traced.root.get_parameter(name).detach()


# ---------------------------------------------------------------------------------------------------------------------
# what is sound


@pytest.mark.parametrize("scheme", ["zero-2021", "zero-2022"])
@pytest.mark.parametrize(
    ("make", "inputs"),
    [
        (nets.tiny_resnet, IMAGES),
        (nets.PlainCnn, IMAGES),
        (nets.mlp, torch.zeros(3, 20)),
        (nets.PreActivationResNet, IMAGES),
        (nets.BottleneckNet, torch.zeros(1, 3, 128, 128)),
        (nets.NormFreeNet, IMAGES),
    ],
)
def test_no_check_fails_on_a_sound_conversion(make: Callable[[], nn.Module], inputs: Tensor, scheme: str) -> None:
    found = answers(convert(make(), inputs, scheme))
    assert {name: check.summary for name, check in found.items() if check.status == "fail"} == {}
    assert [name for name in checks.FILES if name in found] == list(found)
    assert {"outputs", "finite", "gradients", "repeat", "channels", "precision"} <= set(found)
    assert ("binary" in found) == ("logits" in found) == (scheme == "zero-2021")


class Everything(nn.Module):
    """Batch norm, dropout as a module and as a function: all that a forward can change."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.norm = nn.BatchNorm2d(8)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.drop(self.norm(self.conv(x))).mean((2, 3))
        return self.head(F.dropout(x, 0.1, training=self.training))


def world(subject: Subject) -> dict[str, Any]:
    """Everything that a check might leave changed, as comparable values."""
    root = subject.traced.root
    flags = (torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic)
    return {
        "tensors": {name: t.numpy().tobytes() for name, t in root.state_dict().items()},
        "writes": {name: t._version for name, t in root.state_dict(keep_vars=True).items()},
        "gradients": {
            name: None if p.grad is None else p.grad.numpy().tobytes() for name, p in root.named_parameters()
        },
        "training": {name: m.training for name, m in root.named_modules()},
        "probability": {name: m.p for name, m in root.named_modules() if isinstance(m, nn.Dropout)},
        "torch": torch.get_rng_state().numpy().tobytes(),
        "python": random.getstate(),
        "numpy": [str(part) for part in np.random.get_state()],
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "cudnn": flags,
        "precision": [owner.fp32_precision for owner in (torch.backends.mkldnn.conv, torch.backends.mkldnn.matmul)],
        "environment": dict(os.environ),
        "grad mode": torch.is_grad_enabled(),
    }


@pytest.fixture
def switches_of_their_own() -> Iterator[None]:
    """Torch's switches at other values than the checks use."""
    backends = torch.backends
    chosen = [
        (backends.cudnn, "benchmark", True),
        (backends.cudnn, "deterministic", False),
        (backends.mkldnn.conv, "fp32_precision", "bf16"),
        (backends.mkldnn.matmul, "fp32_precision", "bf16"),
    ]
    before = [(owner, name, getattr(owner, name)) for owner, name, _ in chosen]
    deterministic = torch.are_deterministic_algorithms_enabled()
    for owner, name, value in chosen:
        setattr(owner, name, value)
    torch.use_deterministic_algorithms(False)
    yield
    for owner, name, value in before:
        setattr(owner, name, value)
    torch.use_deterministic_algorithms(deterministic)


@pytest.mark.usefixtures("switches_of_their_own")
@pytest.mark.parametrize("scheme", ["zero-2021", "zero-2022"])
def test_checks_leave_the_model_and_the_process_as_they_were(scheme: str) -> None:
    subject = convert(Everything(), torch.zeros(2, 3, 16, 16), scheme)
    root = subject.traced.root
    root.train()
    root.get_submodule("norm").eval()
    for p in root.parameters():
        p.grad = torch.full_like(p, 0.5)
    before = world(subject)
    checks.run(subject, level="full", device="cpu")
    assert world(subject) == before


@pytest.mark.usefixtures("switches_of_their_own")
def test_inside_the_checks_float32_is_float32_and_algorithms_are_deterministic() -> None:
    rows, values = torch.arange(400_000) % 37, torch.rand(400_000)
    products: dict[str, torch.dtype] = {}

    class Kernels(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            products[func.overloadpacket.__name__] = next((x.dtype for x in args if isinstance(x, Tensor)), torch.int8)
            return func(*args, **(kwargs or {}))

    with Kernels(), pinned("cpu"):
        assert torch.are_deterministic_algorithms_enabled()
        x = nn.Linear(8, 4)(nn.Conv2d(3, 8, 3)(torch.ones(2, 3, 5, 5)).mean((2, 3))) @ torch.eye(4)
        assert x.dtype is torch.float32
        x.sum().backward()
        assert bool(torch.empty(9).isnan().all())
        with threads(2):
            sums = {torch.zeros(37).index_put_((rows,), values, accumulate=True).numpy().tobytes() for _ in range(50)}
        assert len(sums) == 1
    wide = {name for name, dtype in products.items() if dtype is torch.float64}  # no kernel of float64 rounds to less
    assert {"convolution", "convolution_backward", "addmm", "mm"} <= wide
    assert torch.backends.mkldnn.conv.fp32_precision == "bf16" and not torch.are_deterministic_algorithms_enabled()


def test_a_run_leaves_the_copy_that_the_next_one_uses_as_it_was() -> None:
    module = Everything().train()
    before = {name: t.clone() for name, t in module.state_dict().items()}
    with kept(module):
        module.eval().train()
        module.norm.eval()
        module(torch.rand(4, 3, 8, 8)).sum().backward()
        module.train()(torch.rand(4, 3, 8, 8))
        assert not torch.equal(module.norm.running_mean, before["norm.running_mean"])
    assert all(torch.equal(t, before[name]) for name, t in module.state_dict().items())
    assert module.norm.training
    assert all(p.grad is None for p in module.parameters())


def test_random_numbers_in_a_forward_are_the_same_in_every_run() -> None:
    subject = convert(Everything(), torch.zeros(2, 3, 16, 16), "zero-2022")
    with pinned("cpu"):
        first, second = (CheckContext(subject, "quick", "cpu").run("train") for _ in range(2))
    assert first.random
    assert all(torch.equal(a, b) for a, b in zip(first.outputs, second.outputs, strict=True))


def test_the_progress_names_each_check_and_the_device() -> None:
    told: list[tuple[str, str]] = []
    checks.run(
        convert(nets.mlp(), torch.zeros(1, 20)), level="quick", device="cpu", progress=lambda *step: told.append(step)
    )
    left_out = {*checks.SCHEME_CHECKS, "skips", "training", "parity"}  # with quick, no steps of training and no file
    assert told == [("validate", f"{name} on cpu") for name in checks.FILES if name not in left_out]


# ---------------------------------------------------------------------------------------------------------------------
# what is planted


def test_a_changed_output_shape_or_dtype_is_found() -> None:
    subject = convert(nets.mlp(), torch.zeros(1, 20))
    right = subject.outputs["train"]
    for wrong in ((((1, 7), "float32"),), (((1, 5), "float64"),), (*right, *right), ()):
        other = replace(subject, outputs={"train": wrong, "evaluate": wrong})
        assert answers(other)["outputs"].status == "fail"
    assert answers(subject)["outputs"].status == "pass"


def test_a_nan_is_found_by_name() -> None:
    subject = convert(nets.tiny_resnet(), IMAGES)
    parameter(subject, "blocks.1.conv1.weight")[3, 2, 1, 0] = float("nan")
    check = answers(subject)["finite"]
    assert check.status == "fail"
    assert check.numbers["not_finite"][0] == "blocks.1.conv1.weight"


def test_an_infinity_is_found_in_a_parameter_but_allowed_in_a_mask() -> None:
    net = nets.mlp()
    net.register_buffer("mask", torch.tensor([0.0, float("-inf")]))
    subject = convert(net, torch.zeros(1, 20), "zero-2022")
    assert answers(subject)["finite"].status == "pass"
    assert answers(subject)["finite"].numbers["infinite_in_buffers"] == 1
    parameter(subject, "0.bias")[0] = float("inf")
    assert answers(subject)["finite"].status == "fail"


def test_a_branch_that_adds_something_is_found() -> None:
    subject = convert(nets.tiny_resnet(), IMAGES)
    assert answers(subject)["zero_branches"].numbers["joins"] == 5  # the stem's skip, and one for each 3×3 layer
    parameter(subject, "blocks.1.conv2.weight")[0, 0, 1, 1] = 1
    check = answers(subject)["zero_branches"]
    assert check.status == "fail"
    assert len(check.numbers["not_zero"]) == 1


class Aliased(nn.Module):
    """Writes into the branch through a view, after the branch's last layer and before the join."""

    def __init__(self, in_place: bool) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 1)
        self.conv1 = nn.Conv2d(4, 4, 3, 1, 1)
        self.conv2 = nn.Conv2d(4, 4, 3, 1, 1)
        self.in_place = in_place

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        branch = self.conv2(self.conv1(x))
        view = branch.view(-1)
        if self.in_place:
            view.add_(1)
        return x + branch


@pytest.mark.parametrize("end", [F.softplus, torch.sigmoid, nn.Softmax(-1)])
def test_a_branch_that_ends_in_something_else_than_zero_for_zero_is_counted_and_not_required(
    end: Callable[[Tensor], Tensor],
) -> None:
    class Lifted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.branch, self.head = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            return self.head(x + end(self.branch(x)))

    check = answers(convert(Lifted(), torch.zeros(2, 6), "zero-2021"))["zero_branches"]
    assert check.status == "pass" and check.numbers["not_required"] == ["add"]


def test_an_aliased_in_place_write_into_a_branch_is_found() -> None:
    assert answers(convert(Aliased(False), IMAGES, "zero-2022"))["zero_branches"].status == "pass"
    check = answers(convert(Aliased(True), IMAGES, "zero-2022"))["zero_branches"]
    assert (check.status, *check.numbers["not_zero"].values()) == ("fail", 1.0)


def test_attention_without_values_must_add_exactly_zero() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Linear(6, 8)
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
            self.mlp = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            y, _ = self.attention(x, x, x, need_weights=False)
            x = x + y
            return x + self.mlp(x)

    subject = convert(Attention(), torch.zeros(1, 5, 6), "zero-2022")
    check = answers(subject)["zero_branches"]
    assert (check.status, check.numbers["joins"], len(check.numbers["not_required"])) == ("pass", 1, 1)
    parameter(subject, "attention.in_proj_weight")[16, 0] = 1  # the first value
    assert answers(subject)["zero_branches"].status == "fail"
    for name, formula in (
        ("in_proj_weight", PartialIdentity(24, 8)),
        ("in_proj_bias", Rows(PartialIdentity(1, 24), (24,))),
    ):
        rules = tuple(replace(a, formula=formula) if a.tensor.local == name else a for a in subject.assignments)
        assert "zero_branches" not in answers(replace(subject, assignments=rules))  # nothing is required any more


def test_a_value_that_is_neither_zero_nor_one_is_found() -> None:
    subject = convert(nets.tiny_resnet(), IMAGES)
    assert answers(subject)["binary"].status == "pass"
    parameter(subject, "blocks.0.bn1.weight")[2] = 0.5
    check = answers(subject)["binary"]
    assert (check.status, check.numbers["other"]) == ("fail", {"blocks.0.bn1.weight": 1})


def test_a_head_that_returns_something_is_found() -> None:
    subject = convert(nets.tiny_resnet(), IMAGES)
    parameter(subject, "linear.bias")[0] = 1
    assert found_by(subject)["logits"] == "fail"


def test_a_dead_branch_is_found() -> None:
    subject = convert(nets.NormFreeNet(), IMAGES, "zero-2022")
    assert answers(subject)["gradients"].status == "pass"
    parameter(subject, "blocks.1.conv1.weight").zero_()  # two zero layers in series behind a ReLU
    check = answers(subject)["gradients"]
    assert check.status == "fail"
    assert check.numbers["dead"] == ["blocks.1.conv1.weight", "blocks.1.conv1.bias", "blocks.1.conv2.weight"]


def test_the_first_step_with_a_gradient_is_known() -> None:
    check = answers(convert(nets.mlp(), torch.zeros(1, 20)))["gradients"]
    assert check.numbers["first_step"] == {"4.weight": 1, "4.bias": 1} | {
        f"{layer}.{name}": 2 for layer in (0, 2) for name in ("weight", "bias")
    }


class Odd(nn.Module):
    """A parameter nobody reads, one that is multiplied by 0, and a bias that a batch norm takes away."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.norm = nn.BatchNorm2d(8)
        self.unread = nn.Linear(2, 2)
        self.muted = nn.Parameter(torch.ones(8))
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x)).relu().mean((2, 3))
        return self.head(x + 0 * self.muted)


def test_parameters_without_effect_are_told_apart_from_dead_weights() -> None:
    check = answers(convert(Odd(), IMAGES, "zero-2022"))["gradients"]
    assert check.status == "warn"
    assert check.numbers["dead"] == ["muted"]
    assert check.numbers["unused"] == ["unread.weight", "unread.bias"]
    assert check.numbers["cancelled"] == ["conv.bias"]
    assert set(check.numbers["first_step"]) == {"conv.weight", "norm.weight", "norm.bias", "head.weight", "head.bias"}


def test_a_gradient_that_is_not_finite_is_found() -> None:
    class Root(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.head = nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(x + (self.first(x) * 0).sqrt())  # the derivative of a root is infinite at 0

    check = answers(convert(Root(), torch.zeros(2, 4), "zero-2022"))["gradients"]
    assert check.status == "fail"
    assert "first.weight" in check.numbers["not_finite"]


def test_a_forward_that_depends_on_more_than_its_input_is_found() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.calls = nn.Linear(4, 4), 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return self.linear(x) + self.calls * 1e-6

    check = answers(convert(Counting(), torch.zeros(1, 4), "zero-2022"))["repeat"]
    assert check.status == "fail"
    assert set(check.numbers["different"]) == {"output 0 in train mode"}, "both modes have one graph"


def test_full_repeats_the_gradients_too() -> None:
    subject = convert(nets.mlp(), torch.zeros(1, 20))
    assert answers(subject)["repeat"].numbers["tensors"] == 1
    assert answers(subject, "full")["repeat"].numbers["tensors"] == 1 + 6


def test_random_numbers_in_the_forward_repeat_and_are_not_measured_against_float64() -> None:
    found = answers(convert(Everything(), torch.zeros(2, 3, 16, 16), "zero-2022"))
    assert found["repeat"].status == "pass"
    assert set(found["precision"].numbers) == {"dtype", "evaluate"}
    assert "training mode, which draws random numbers" in found["precision"].summary


@pytest.mark.parametrize(("columns", "expected"), [("first", 32), ("spanning", 256)])
def test_duplicate_channels_are_counted_and_warned_of_with_the_remedy(columns: str, expected: int) -> None:
    """The first 20 Sylvester columns see five bits of the row: 2^5 different rows."""
    net = nn.Sequential(nn.Linear(20, 256), nn.Linear(256, 4))
    check = answers(convert(net, torch.zeros(1, 20), "zero-2022", columns=columns))["channels"]
    assert check.numbers["heads"] == {"1": [expected, 256]}
    assert check.numbers["layers"]["1"]["duplicate"] == 256 - expected
    assert check.status == ("warn" if columns == "first" else "pass")
    assert check.remedy.startswith("--set columns=spanning") == (columns == "first")


def test_equal_rows_are_counted_once_whatever_their_order() -> None:
    rows = torch.tensor([[1.0, 2.0], [0.0, 0.0], [1.0, 2.0 + 1e-9], [2.0, 1.0], [0.0, 0.0]], dtype=torch.float64)
    assert distinct(rows) == 3
    assert distinct(rows.flip(0)) == 3
    assert distinct(rows[:1]) == 1


class Constant(nn.Module):
    """Channels that are 0 up to rounding, before three batch norms that each amplify the rounding."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.Sequential(*(nn.BatchNorm1d(16) for _ in range(3)))
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norms(x * 0.1 * 3 - x * 0.3))


def test_amplified_rounding_noise_is_found() -> None:
    sound = convert(nn.Sequential(nn.BatchNorm1d(16), nn.Linear(16, 4)), torch.zeros(4, 16), "zero-2022")
    assert answers(sound)["precision"].status == "pass"
    subject = convert(Constant(), torch.zeros(4, 16), "zero-2022")
    check = answers(subject)["precision"]
    assert check.status == "warn"
    assert check.numbers["train"]["features"] > 1e3 * check.numbers["evaluate"]["features"]


def test_channels_that_are_constant_up_to_rounding_are_counted() -> None:
    net = nn.Sequential(nn.BatchNorm1d(32), nn.Linear(32, 4))
    with pinned("cpu"):
        context = CheckContext(convert(net, torch.zeros(4, 32), "zero-2022"), "quick", "cpu")
        context.inputs[0][0][:, :24] = 1.0  # 24 of 32 channels
        context._runs.clear()
        check = checks.answer("channels", context)
    assert (check.status, check.numbers["layers"]["0"]["low_variance"]) == ("warn", 24)


def test_a_norm_after_a_zero_layer_is_not_blamed_for_its_silence() -> None:
    check = answers(convert(nets.tiny_resnet(), IMAGES, "zero-2022"))["channels"]
    assert check.numbers["layers"]["blocks.1.bn2"]["zero"] == 16
    assert check.numbers["worst_norm"] not in ("blocks.0.bn2", "blocks.1.bn2")


def test_a_network_that_breaks_on_the_way_is_a_failed_check_and_no_traceback() -> None:
    subject = convert(nets.mlp(), torch.zeros(1, 20), "zero-2022")
    subject.traced.root.get_submodule("2").weight = nn.Parameter(torch.zeros(3, 7))  # type: ignore[union-attr]
    check = answers(subject)["outputs"]
    assert check.status == "fail"
    assert "could not be answered: RuntimeError" in check.summary


def test_a_network_of_batch_one_is_checked_in_evaluation_mode() -> None:
    class Single(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.head = nn.BatchNorm1d(12), nn.Linear(12, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.norm(x.reshape(1, 12)))

    found = answers(convert(Single(), torch.zeros(1, 3, 4), "zero-2022"))
    assert (found["outputs"].status, found["gradients"].status, found["channels"].status) == ("pass", "skip", "skip")
    assert "more than 1 value per channel" in found["gradients"].summary
    assert set(found["precision"].numbers) == {"dtype", "evaluate"}


# ---------------------------------------------------------------------------------------------------------------------
# the device


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


@pytest.mark.usefixtures("no_gpu")
def test_auto_falls_back_and_says_so_but_a_named_device_must_be_there() -> None:
    assert checks.resolve("cpu") == ("cpu", "")
    device, note = checks.resolve("auto")
    assert device == "cpu"
    assert "no GPU" in note
    for name in ("cuda", "cuda:1", "mps"):
        with pytest.raises(DeviceError, match="--device cpu") as caught:
            checks.resolve(name)
        assert caught.value.exit_code == 5


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:x", "", "CPU", "cuda:-1"])
def test_another_spelling_of_a_device_is_a_usage_error(name: str) -> None:
    with pytest.raises(UsageError, match="auto, cpu, cuda"):
        checks.resolve(name)


def test_a_device_that_only_claims_to_compute_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    ones = torch.ones
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch, "ones", lambda *shape, device: ones(*shape))
    with pytest.raises(DeviceError, match="the result lies on cpu"):
        checks.resolve("cuda")
    with pytest.raises(DeviceError, match="only 1 CUDA"):
        checks.resolve("cuda:3")
    assert checks.resolve("auto") == ("cpu", "cuda:0: the result lies on cpu")


# ---------------------------------------------------------------------------------------------------------------------
# the numbers of the published network


@pytest.mark.parametrize(
    ("mixing", "least", "most", "constant", "difference"),
    [("none", 5, 5, (0.9, 0.97), (0.1, 1.0)), ("permute", 2040, 2048, (0.1, 0.13), (0.0, 1e-5))],
)
def test_resnet50_shows_the_known_weakness_and_its_remedy(
    mixing: str, least: int, most: int, constant: tuple[float, float], difference: tuple[float, float]
) -> None:
    torchvision = pytest.importorskip("torchvision")
    subject = convert(torchvision.models.resnet50(), torch.zeros(1, 3, 224, 224), mixing=mixing)
    with pinned("cpu"):
        context = CheckContext(subject, "quick", "cpu")
        signal, rounding = (checks.answer(name, context) for name in ("channels", "precision"))
    assert least <= signal.numbers["heads"]["fc"][0] <= most
    assert signal.numbers["heads"]["fc"][1] == 2048
    assert constant[0] <= signal.numbers["worst_low_variance"] <= constant[1]
    assert difference[0] <= rounding.numbers["train"]["features"] <= difference[1]
    assert {signal.status, rounding.status} == ({"warn"} if mixing == "none" else {"pass"})
    assert signal.remedy.startswith("--set mixing=permute") == (mixing == "none")
