"""Each fault is planted into a sound network, and found by the check that should find it, which passes without it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zero_convert import checks
from zero_convert.checks.harness import recorder
from zero_convert.checks.subject import Subject
from zero_convert.errors import DeviceError
from zero_convert.graph.traced import Traced
from zero_convert.rewrites import out_of_place

from . import nets
from .subjects import IMAGES, Opaque, ask, parameter, subject_of, with_gradient
from .test_checks import Aliased, Constant

pytestmark = pytest.mark.usefixtures("one_thread")
Plant = Callable[[Subject], None]


def written(name: str, index: tuple[int, ...], value: float) -> Plant:
    def plant(subject: Subject) -> None:
        parameter(subject, name)[index] = value

    return plant


def silenced(subject: Subject) -> None:
    parameter(subject, "blocks.1.conv1.weight").zero_()


def corrupted_row(subject: Subject) -> None:
    parameter(subject, "blocks.1.conv1.weight")[5] = 7


def cut(subject: Subject) -> None:
    """A layer of another size, as a rewrite that confuses two layers would leave it."""
    head = subject.traced.root.get_submodule("linear")
    head.weight, head.bias = nn.Parameter(head.weight[:7].detach()), nn.Parameter(head.bias[:7].detach())


def doubled(subject: Subject) -> None:
    subject.traced.root.get_submodule("linear").double()
    subject.traced.root.get_submodule("linear").register_forward_pre_hook(lambda module, given: (given[0].double(),))


IN_WEIGHTS: list[tuple[str, str, dict[str, str], Plant, str, str]] = [
    ("a NaN in a weight", "finite", {}, written("blocks.1.conv1.weight", (3, 2, 1, 0), math.nan), "fail", "quick"),
    ("an infinity in a weight", "finite", {}, written("bn1.weight", (0,), math.inf), "fail", "quick"),
    ("a branch that adds", "zero_branches", {}, written("blocks.1.conv2.weight", (0, 0, 1, 1), 1), "fail", "quick"),
    ("a value of a half", "binary", {}, written("blocks.0.bn1.weight", (2,), 0.5), "fail", "quick"),
    ("a head that is not 0", "logits", {}, written("linear.bias", (0,), 1), "fail", "quick"),
    ("an output of another size", "outputs", {}, cut, "fail", "quick"),
    ("an output of another type", "outputs", {}, doubled, "fail", "quick"),
    ("a corrupted row", "distinct_units", {"scheme": "zero-2022"}, corrupted_row, "fail", "quick"),
]


@pytest.mark.parametrize(
    ("check", "options", "plant", "status", "level"),
    [c[1:] for c in IN_WEIGHTS],
    ids=[f"{c[1]}: {c[0]}" for c in IN_WEIGHTS],
)
def test_a_fault_in_the_weights_is_found(
    check: str, options: dict[str, str], plant: Plant, status: str, level: str
) -> None:
    subject = subject_of(nets.tiny_resnet(), **options)
    sound = ask(check, subject, level)
    assert sound is not None and sound.status == "pass", sound
    plant(subject)
    found = ask(check, subject, level)
    assert found is not None and found.status == status, found


def test_a_dead_branch_is_found() -> None:
    subject = subject_of(nets.NormFreeNet(), scheme="zero-2022")
    sound = ask("gradients", subject)
    silenced(subject)
    found = ask("gradients", subject)
    assert sound is not None and found is not None and (sound.status, found.status) == ("pass", "fail")


# -- in the forward ----------------------------------------------------------------------------------------------------


class Net(nn.Module):
    """Two linear layers with whatever is planted between them."""

    def __init__(self, between: Callable[[Tensor], Tensor] = lambda x: x) -> None:
        super().__init__()
        self.first, self.second, self.between = nn.Linear(6, 6), nn.Linear(6, 4), between

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.between(self.first(x)))


def drawing() -> Callable[[Tensor], Tensor]:
    """An operator with a generator of its own, which nobody seeds."""
    generator = torch.Generator().manual_seed(0)
    return lambda x: x + torch.rand((), generator=generator)


def counting() -> Callable[[Tensor], Tensor]:
    calls = itertools.count()
    return lambda x: x + next(calls)


backwards = with_gradient(lambda gradient: -1000 * gradient)


class Uphill(nn.Module):
    def __init__(self, planted: bool) -> None:
        super().__init__()
        self.linear, self.planted = nn.Linear(6, 4), planted

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x)
        return backwards(y) if self.planted else y


class Overflowing(nn.Module):
    """Infinite on the way, and finite again before anybody sees it."""

    def __init__(self, planted: bool) -> None:
        super().__init__()
        self.first, self.second, self.scale = nn.Linear(6, 6), nn.Linear(6, 4), 1e30 if planted else 1.0

    def forward(self, x: Tensor) -> Tensor:
        return torch.nan_to_num(self.second(self.first(x) * self.scale * self.scale), 0.0, 0.0, 0.0)


class Rooted(nn.Module):
    """A root at 0, whose derivative is infinite."""

    def __init__(self, planted: bool) -> None:
        super().__init__()
        self.first, self.head, self.planted = nn.Linear(6, 6), nn.Linear(6, 4), planted

    def forward(self, x: Tensor) -> Tensor:
        branch = self.first(x)
        return self.head(x + ((branch * 0).sqrt() if self.planted else branch))


class Noisy(nn.Module):
    """Sums that cancel, before norms that amplify what rounding leaves of them."""

    def __init__(self, planted: bool) -> None:
        super().__init__()
        self.norms = Constant().norms if planted else nn.BatchNorm1d(16)
        self.mid, self.head, self.planted = nn.Linear(16, 16), nn.Linear(16, 4), planted

    def forward(self, x: Tensor) -> Tensor:
        x = self.mid(x)
        return self.head(self.norms(x * 0.1 * 3 - x * 0.3 if self.planted else x))


VECTOR, WIDE = torch.zeros(2, 6), torch.zeros(4, 16)
IN_FORWARD: list[tuple[str, str, Callable[[bool], nn.Module], Tensor, str, str]] = [
    ("an aliased in-place write", "zero_branches", Aliased, IMAGES, "fail", "quick"),
    (
        "an operator that draws",
        "repeat",
        lambda p: Net(Opaque(drawing()) if p else torch.relu),
        VECTOR,
        "fail",
        "quick",
    ),
    (
        "a forward with a memory",
        "repeat",
        lambda p: Net(Opaque(counting()) if p else torch.relu),
        VECTOR,
        "fail",
        "quick",
    ),
    ("a gradient of the wrong sign", "training", Uphill, VECTOR, "fail", "full"),
    ("an overflow on the way", "signal", Overflowing, VECTOR, "fail", "quick"),
    ("an infinite derivative", "gradients", Rooted, VECTOR, "fail", "quick"),
    ("an infinite derivative by norm", "gradient_norms", Rooted, VECTOR, "fail", "quick"),
    ("amplified rounding", "precision", Noisy, WIDE, "warn", "quick"),
]


@pytest.mark.parametrize(
    ("check", "make", "inputs", "status", "level"),
    [c[1:] for c in IN_FORWARD],
    ids=[f"{c[1]}: {c[0]}" for c in IN_FORWARD],
)
def test_a_fault_in_the_forward_is_found(
    check: str, make: Callable[[bool], nn.Module], inputs: Tensor, status: str, level: str
) -> None:
    sound = ask(check, subject_of(make(False), inputs, scheme="zero-2022"), level)
    found = ask(check, subject_of(make(True), inputs, scheme="zero-2022"), level)
    assert sound is not None and sound.status not in ("skip", status), sound
    assert found is not None and found.status == status, found


# -- in the machine ----------------------------------------------------------------------------------------------------


def rounded_to(bits: int, x: Tensor) -> Tensor:
    """Float32 with so many bits of the significand, as a unit that multiplies faster keeps them."""
    whole = x.contiguous().view(torch.int32)
    drop = 24 - bits
    return ((whole + (1 << (drop - 1))) & -(1 << drop)).view(torch.float32)


@pytest.mark.parametrize("bits", [11, 8], ids=["TF32", "bfloat16"])
def test_products_that_round_are_found(monkeypatch: pytest.MonkeyPatch, bits: int) -> None:
    subject = subject_of(nets.mlp(), torch.zeros(1, 20))
    sound = ask("exact_parts", subject)
    linear = F.linear

    def fast(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return linear(rounded_to(bits, x) if x.dtype is torch.float32 else x, weight, bias)

    monkeypatch.setattr(F, "linear", fast)
    found = ask("exact_parts", subject)
    assert sound is not None and found is not None and (sound.status, found.status) == ("pass", "fail")
    assert "TF32" in found.remedy


def test_a_kernel_that_depends_on_the_batch_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    subject, linear = subject_of(nets.mlp(), torch.zeros(1, 20)), F.linear
    monkeypatch.setattr(F, "linear", lambda x, w, b=None: linear(x, w, b) + (len(x) == 7))
    found = ask("exact_parts", subject)
    assert found is not None and found.status == "fail"
    assert all("batch 7" in how for how in found.numbers["different"])


def test_a_rewrite_that_changes_the_function_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    subject, rewrite = subject_of(nets.mlp(), torch.zeros(1, 20)), out_of_place.rewrite

    def wrong(root: nn.Module, graph: torch.fx.Graph, *rest: Any) -> Any:
        for node in graph.nodes:
            if node.op == "call_module" and isinstance(root.get_submodule(node.target), nn.ReLU):
                node.op, node.target = "call_function", F.gelu
        return rewrite(root, graph, *rest)

    sound = ask("skips", subject, "full")
    monkeypatch.setattr(out_of_place, "rewrite", wrong)
    found = ask("skips", subject, "full")
    assert sound is not None and found is not None and (sound.status, found.status) == ("pass", "fail")
    assert set(found.numbers["different"]) == {"out_of_place"}


@pytest.mark.parametrize(("column", "expected"), [("first", "warn"), ("spanning", "pass")])
def test_duplicate_channels_are_warned_of(column: str, expected: str) -> None:
    net = nn.Sequential(nn.Linear(20, 256), nn.Linear(256, 4))
    found = ask("channels", subject_of(net, torch.zeros(1, 20), scheme="zero-2022", columns=column))
    assert found is not None and found.status == expected


@pytest.mark.parametrize(("column", "expected"), [("first", "warn"), ("spanning", "pass")])
def test_a_gradient_that_is_noise_is_warned_of(column: str, expected: str) -> None:
    """Channels that repeat each other are constant up to rounding behind the next layer, and a norm amplifies that."""
    found = ask("gradient_norms", subject_of(nets.tiny_resnet(), scheme="zero-2022", columns=column), "full")
    assert found is not None and found.status == expected
    assert (max(filter(None, found.numbers["difference_to_float64"])) > 1) == (expected == "warn")


# -- too little memory -------------------------------------------------------------------------------------------------


def full_above(monkeypatch: pytest.MonkeyPatch, samples: int, error: BaseException) -> None:
    """A device that has room for so many samples."""
    call = Traced.call

    def limited(self: Traced, module: nn.Module, values: tuple[Any, ...]) -> Any:
        if len(values[0]) > samples:
            raise error
        return call(self, module, values)

    real = recorder.Recorder.run_node

    def run_node(self: Any, n: torch.fx.Node) -> Any:
        value = real(self, n)
        if n.op == "placeholder" and len(value) > samples:
            raise error
        return value

    monkeypatch.setattr(Traced, "call", limited)
    monkeypatch.setattr(recorder.Recorder, "run_node", run_node)


MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory."),
    RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"),
]


@pytest.mark.parametrize("error", MEMORY, ids=["cuda", "mps"])
@pytest.mark.parametrize("samples", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_where_memory_is_short_all_checks_are_asked_with_a_smaller_batch(
    monkeypatch: pytest.MonkeyPatch, samples: int, error: BaseException
) -> None:
    subject = subject_of(nets.mlp(), torch.zeros(1, 20), scheme="zero-2022")
    usual = checks.run(subject, level="quick", device="cpu")
    full_above(monkeypatch, samples, error)
    found = checks.run(subject, level="quick", device="cpu")
    assert [c.name for c in found] == [*(c.name for c in usual), "memory"]
    assert (found[-1].status, found[-1].numbers) == ("warn", {"samples": samples})
    assert not [c for c in found if c.status == "fail"]


@pytest.mark.parametrize("error", MEMORY, ids=["cuda", "mps"])
def test_without_room_for_one_sample_it_ends_with_a_message(
    monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    subject = subject_of(nets.mlp(), torch.zeros(1, 20), scheme="zero-2022")
    full_above(monkeypatch, 0, error)
    with pytest.raises(DeviceError, match=r"do not fit into the device's memory.*--device cpu") as caught:
        checks.run(subject, level="quick", device="cpu")
    assert caught.value.exit_code == 5
