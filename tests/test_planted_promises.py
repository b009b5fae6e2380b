"""What a scheme promises of a network is broken in one place, and found by the check of that promise, which passes
without it and names the place."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from zero_convert.checks import norm_per_depth
from zero_convert.checks.subject import Subject

from . import nets
from .subjects import ask, parameter, subject_of, with_gradient
from .test_risotto import PostActivationNet

pytestmark = pytest.mark.usefixtures("one_thread")
IMAGES = torch.linspace(-1, 1, 3 * 16 * 16).reshape(1, 3, 16, 16)
Plant = Callable[[Subject], None]


def behind(name: str, change: Callable[[Tensor], Tensor], training: bool | None = None) -> Plant:
    """The operation after what a module returns, which the graph does not show."""

    def plant(subject: Subject) -> None:
        root = subject.traced.root
        own = root.get_submodule(name)
        own.register_forward_hook(
            lambda module, given, made: change(made) if training in (None, module.training) else made
        )

    return plant


def times(name: str, factor: float, index: tuple[int, ...] = ()) -> Plant:
    def plant(subject: Subject) -> None:
        with torch.no_grad():
            parameter(subject, name)[index or ...] *= factor

    return plant


def by_mode(faults: Iterable[str]) -> list[Any]:
    """The faults as parameters; those of one mode only are slow together."""
    slow = (": in training", ": in evaluation", "NaN in")
    return [pytest.param(f, marks=pytest.mark.slow) if any(word in f for word in slow) else f for f in faults]


def written(name: str, value: float, index: tuple[int, ...] = ()) -> Plant:
    def plant(subject: Subject) -> None:
        root = subject.traced.root
        tensor = dict(root.named_parameters()) | dict(root.named_buffers())
        with torch.no_grad():
            tensor[name][index or ...] = value

    return plant


def silenced_reading(subject: Subject) -> None:
    """A branch that reads nothing, and adds by its bias."""
    written("blocks.2.conv1.weight", 0.0)(subject)
    written("blocks.2.conv2.bias", 1.0)(subject)


def crossed(subject: Subject) -> None:
    """The second sides of the pairs change places at the last join: every length stays, and no pair is one."""
    weight = parameter(subject, "blocks.2.2.weight")[:, :, 1, 1]
    whole = weight + torch.eye(16)
    weight[8:] = whole[8:].roll(1, 0) - torch.eye(16)[8:]


def emptied(subject: Subject) -> None:
    for name in ("body.1.project.weight", "body.1.conv2.weight"):
        parameter(subject, name).zero_()


def twice(x: Tensor) -> Tensor:
    return 2 * x


class Moded(PostActivationNet):
    """With another graph for each mode, which compute the same."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(nn.functional.dropout(x, 0.0, self.training))


def into_the_branch(index: int, operation: Callable[[Tensor], Tensor]) -> Plant:
    """An operation on a view of a channel of the branch, after its last layer and before a residual join."""

    def plant(subject: Subject) -> None:
        join = [each for each in subject.structure.joins if each.residual][index]
        for graph in subject.traced.graphs:
            nodes = {node.name: node for node in graph.nodes}
            with graph.inserting_before(nodes[join.node]):
                channel = graph.call_function(operator.getitem, (nodes[join.branch_node], (slice(None), slice(1, 2))))
                graph.call_function(operation, (channel,))

    return plant


def before_the_join(index: int, operation: Callable[[Tensor], Tensor]) -> Plant:
    """An operation on each of the two that a residual join adds."""

    def plant(subject: Subject) -> None:
        join = [each for each in subject.structure.joins if each.residual][index]
        for graph in subject.traced.graphs:
            node = next(node for node in graph.nodes if node.name == join.node)
            with graph.inserting_before(node):
                node.args = tuple(graph.call_function(operation, (read,)) for read in node.args)

    return plant


def longer(x: Tensor) -> Tensor:
    """x, but a ten thousandth more of it where 1 + 1e-9 is 1."""
    one = x.mean() * 0 + 1
    return x * torch.where(one + 1e-9 > one, 1.0, 1.0001)


def a_little_longer(x: Tensor) -> Tensor:
    """As `longer`, by less than what a check lets pass."""
    one = x.mean() * 0 + 1
    return x * torch.where(one + 1e-9 > one, 1.0, 1 + 4e-6)


def at_every_join(operation: Callable[[Tensor], Tensor]) -> Plant:
    def plant(subject: Subject) -> None:
        for index in range(3):
            before_the_join(index, operation)(subject)

    return plant


def add_in_place(x: Tensor) -> Tensor:
    return x.add_(0.1)


def lifted(x: Tensor) -> Tensor:
    return x + torch.arange(x.shape[1]).reshape(-1, 1, 1) * 1e-3


# check: fault → network, scheme, what is planted, how the check ends, words of its summary
FAULTS: dict[str, tuple[Callable[[], nn.Module], str, Plant, str, str]] = {
    "branch_bound: a last layer five times too large": (
        nets.NormFreeNet, "idinit", times("blocks.2.conv2.weight", 5), "fail", "much: 2.5 times the limit at add_2"
    ),
    "branch_bound: a norm ten times too large": (
        nets.tiny_resnet, "idinit", times("blocks.1.bn2.weight", 10), "fail", "at add_1"
    ),
    "branch_bound: in training": (
        nets.tiny_resnet, "idinit", behind("blocks.1.bn2", lambda x: x + 1, True), "fail", "at add_1"
    ),
    "branch_bound: in evaluation": (
        nets.tiny_resnet, "idinit", written("blocks.1.bn2.running_mean", -1.0), "fail", "at add_1"
    ),
    "branch_bound: a NaN": (
        nets.NormFreeNet, "idinit", written("blocks.2.conv2.weight", torch.nan), "fail", "nan times the limit at add_2"
    ),
    "branch_bound: a NaN in training": (
        nets.tiny_resnet, "idinit", behind("blocks.1.bn2", lambda x: x / 0, True), "fail", "at add_1"
    ),
    "branch_bound: a branch that reads nothing": (
        nets.NormFreeNet, "idinit", silenced_reading, "fail", "1 of 3 branches add too much"
    ),
    "channel_spread: a value a thousandth too large": (
        nets.NormFreeNet, "constnet", times("blocks.0.conv1.weight", 1.001, (3, 2, 1, 1)), "fail", "first at blocks_0"
    ),
    "channel_spread: a value that rounding could have made": (
        nets.NormFreeNet, "constnet", times("blocks.0.conv1.weight", 1 + 1e-6, (3, 2, 1, 1)), "warn", "up to rounding"
    ),
    "channel_spread: a NaN": (
        nets.NormFreeNet, "constnet", written("blocks.0.conv1.weight", torch.nan, (3, 2, 1, 1)), "fail", "spread inf"
    ),
    "channel_spread: in training": (
        nets.tiny_resnet, "constnet", behind("bn1", lifted, True), "fail", "first at bn1"
    ),
    "channel_spread: in evaluation": (
        nets.tiny_resnet, "constnet", written("bn1.running_mean", 0.5, (3,)), "fail", "first at bn1"
    ),
    "channel_spread: a write into the branch before its join": (
        nets.NormFreeNet, "constnet", into_the_branch(1, add_in_place), "fail", "first at add_1: spread 0.1"
    ),
    "symmetry: an infinite derivative": (
        nets.NormFreeNet, "constnet", behind("blocks.1.conv1", lambda x: x + (x * 0).sqrt()), "fail",
        "gradient not finite in step 1: stem.weight"
    ),
    "norm_per_depth: a layer a thousandth too large": (
        PostActivationNet, "risotto", times("blocks.1.2.weight", 1.001), "fail", "first off at add_1"
    ),
    "norm_per_depth: a value that is off by its last digit": (
        PostActivationNet, "risotto", times("blocks.1.2.weight", 1 + 2**-23, (3, 3, 1, 1)), "fail", "first off at add_1"
    ),
    "norm_per_depth: a value that no float32 shows": (
        PostActivationNet, "risotto", written("blocks.1.2.weight", 1e-10, (3, 3, 0, 0)), "fail", "first off at add_1"
    ),
    "norm_per_depth: rounding": (
        PostActivationNet, "risotto", before_the_join(1, longer), "fail", "0.0001 (train, own precision)"
    ),
    "norm_per_depth: rounding that adds up": (
        PostActivationNet, "risotto", at_every_join(a_little_longer), "fail", "first off at add_2"
    ),
    "norm_per_depth: pairs that are none": (
        PostActivationNet, "risotto", crossed, "fail", "both sides of a pair up to"
    ),
    "norm_per_depth: a NaN in the last block": (
        PostActivationNet, "risotto", written("blocks.2.2.weight", torch.nan), "fail", "first off at add_2"
    ),
    "jacobian: a layer a thousandth too large": (
        PostActivationNet, "risotto", times("blocks.1.2.weight", 1.001), "fail", "singular values"
    ),
    "jacobian: a block that lets nothing through": (
        nets.PreActivationResNet, "risotto", emptied, "fail", "0 singular values are 1"
    ),
    "jacobian: a NaN": (
        PostActivationNet, "risotto", written("blocks.1.2.weight", torch.nan), "fail", "the Jacobian is not finite"
    ),
    "linearity: a ReLU of no pairs": (
        PostActivationNet, "risotto", behind("blocks.1.2", torch.relu), "fail", "in mode train"
    ),
    "linearity: a bias": (
        PostActivationNet, "risotto", written("head.bias", 0.1), "fail", "0.1 in mode train"
    ),
    "norm_per_depth: in training": (
        Moded, "risotto", behind("blocks.1.2", twice, True), "fail", "first off at add_1"
    ),
    "norm_per_depth: in evaluation": (
        Moded, "risotto", behind("blocks.1.2", twice, False), "fail", "first off at add_1"
    ),
    "linearity: in training": (
        Moded, "risotto", behind("head", lambda x: x + 0.1, True), "fail", "0.1 in mode train"
    ),
    "linearity: in evaluation": (
        Moded, "risotto", behind("head", lambda x: x + 0.1, False), "fail", "0.1 in mode evaluate"
    ),
    "linearity: a small bias": (
        PostActivationNet, "risotto", written("head.bias", 1e-4), "fail", "0.0001 in mode train"
    ),
    "linearity: a NaN": (
        PostActivationNet, "risotto", written("head.bias", torch.nan), "fail", "nan in mode train"
    ),
}  # fmt: skip


@cache
def sound(check: str, make: Callable[[], nn.Module], scheme: str) -> str:
    """How the check ends without a fault."""
    found = ask(check, subject_of(make(), IMAGES, scheme=scheme))
    return "none" if found is None else found.status


@pytest.mark.parametrize("fault", by_mode(FAULTS))
def test_a_broken_promise_is_found(fault: str) -> None:
    make, scheme, plant, status, words = FAULTS[fault]
    check = fault.partition(":")[0]
    assert sound(check, make, scheme) == ("fail" if check == "symmetry" else "pass")
    subject = subject_of(make(), IMAGES, scheme=scheme)
    plant(subject)
    found = ask(check, subject)
    assert found is not None and found.status == status and words in found.summary, found
    assert bool(found.remedy) == (found.status == "fail")


@pytest.mark.parametrize(
    ("rate", "words", "size"),
    [
        ("none", "--set break_symmetry=dropout:0.01", 0.1),
        pytest.param("dropout:0.5", "larger rate", 1e-3, marks=pytest.mark.slow),
    ],
)
def test_symmetry_fails_where_nothing_parts_channels_and_warns_where_dropout_may_yet(
    rate: str, words: str, size: float
) -> None:
    """A head that hands no gradient on lets nothing move, in steps of any size."""
    subject = subject_of(nets.mlp(), torch.ones(2, 20), scheme="constnet", break_symmetry=rate)
    behind("4", torch.zeros_like)(subject)
    subject.traced.root.get_submodule("4").register_forward_hook(lambda module, given, made: made + 0 * module.bias)
    found = ask("symmetry", subject)
    assert found is not None and found.status == ("fail" if rate == "none" else "warn") and words in found.remedy, found
    assert found.numbers["step_size"] == size


def test_linearity_is_skipped_for_inputs_that_cannot_be_added() -> None:
    class Flagged(PostActivationNet):
        def forward(self, x: Tensor, flag: bool | None = None) -> Tensor:
            return super().forward(x)

    found = ask("linearity", subject_of(Flagged(), IMAGES, None, scheme="risotto"))
    assert found is not None and (found.status, found.summary) == ("skip", "inputs that cannot be added")


# A millionth larger in each further channel, as sums in no fixed order make it.
uneven = with_gradient(lambda gradient: gradient * (1 + 1e-6 * torch.arange(gradient.shape[1]).reshape(-1, 1, 1)))


def test_symmetry_sees_channels_that_part_by_a_millionth() -> None:
    subject = subject_of(nets.NormFreeNet(), IMAGES, scheme="constnet")
    behind("blocks.1.conv1", uneven)(subject)
    found = ask("symmetry", subject)
    assert found is not None and found.status == "pass", found
    *equal, last = found.numbers["spread_after_step"]
    assert equal and not any(equal) and 0 < last < 1e-4


def stopped_before(subject: Subject, layer: str) -> Subject:
    """Graphs that are recordings only, and cannot be followed further than to this layer."""
    for graph in subject.traced.graphs:
        node = next(n for n in graph.nodes if n.op == "call_module" and n.target == layer)
        with graph.inserting_before(node):
            node.args = (graph.call_function(torch.reshape, (node.args[0], (7, 7))),)
    return replace(subject, traced=replace(subject.traced, whole=False))


@pytest.mark.parametrize(
    ("check", "make", "scheme"),
    [
        ("branch_bound", nets.NormFreeNet, "idinit"),
        ("channel_spread", nets.NormFreeNet, "constnet"),
    ],
)
@pytest.mark.parametrize("layer", ["head", "stem"])
def test_a_promise_that_a_recording_does_not_show_to_the_end_is_warned_of(
    check: str, make: Callable[[], nn.Module], scheme: str, layer: str
) -> None:
    found = ask(check, stopped_before(subject_of(make(), IMAGES, scheme=scheme), layer))
    assert found is not None and found.status == "warn" and "RuntimeError: shape '[7, 7]'" in found.summary, found


def test_norm_per_depth_warns_of_lengths_that_were_not_followed_to_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a network of which only parts are captured."""
    watch = norm_per_depth.watch
    monkeypatch.setattr(norm_per_depth, "watch", lambda *a, **k: (watch(*a, **k)[0], "RuntimeError: no further"))
    found = ask("norm_per_depth", subject_of(PostActivationNet(), IMAGES, scheme="risotto"))
    assert found is not None and (found.status, "stopped early: Runtime" in found.summary) == ("warn", True), found


@pytest.mark.parametrize("check", ["norm_per_depth", "linearity", "repeat", "finite", "precision"])
def test_a_network_that_runs_in_no_mode_passes_nothing(check: str) -> None:
    subject = subject_of(PostActivationNet(), IMAGES, scheme="risotto")
    subject.traced.root.get_submodule("head").weight = nn.Parameter(torch.zeros(3, 7))
    found = ask(check, subject)
    assert found is not None and found.status == ("warn" if check == "finite" else "skip"), found
    assert "does not run in train mode: RuntimeError" in found.summary


def test_a_promise_without_a_place_to_look_at_is_skipped() -> None:
    """Each channel for itself, and a branch that a factor silences."""
    apart = nn.Sequential(nn.Conv2d(3, 3, 3, groups=3), nn.ReLU(), nn.Flatten(), nn.Linear(3 * 14 * 14, 2))
    found = ask("channel_spread", subject_of(apart, IMAGES, scheme="constnet"))
    assert found is not None and (found.status, found.summary) == (
        "skip",
        "no layer to look at: none reads all channels of its input",
    )
    subject = subject_of(nets.NormFreeNet(), IMAGES, scheme="idinit")
    layers = tuple(replace(layer, zeroed_by_scale=True) for layer in subject.structure.layers)
    found = ask("branch_bound", replace(subject, structure=replace(subject.structure, layers=layers)))
    assert found is not None and found.status == "skip" and found.summary.startswith("no branch to look at"), found
