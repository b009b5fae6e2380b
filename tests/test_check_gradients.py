"""Dead is what is dead for small steps and other inputs as well; everything that a forward reads is seen."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from zero_convert import schemes
from zero_convert.checks.subject import Subject
from zero_convert.initialization.fill import initialize
from zero_convert.options import RecipeOptions
from zero_convert.structure import analyze
from zero_convert.tracing import trace

from .test_checks import IMAGES, answers, convert, parameter


class Fire(nn.Module):
    """A layer that shrinks before two that grow, as in SqueezeNet; no join, no norm."""

    def __init__(self, inputs: int, middle: int, outputs: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(inputs, middle, 1)
        self.expand1, self.expand3 = nn.Conv2d(middle, outputs, 1), nn.Conv2d(middle, outputs, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.squeeze(x).relu()
        return torch.cat((self.expand1(x).relu(), self.expand3(x).relu()), 1)


class DiesInLargeSteps(nn.Module):
    """The path through `slow` is open only while `gate` is nearly where it began."""

    def __init__(self) -> None:
        super().__init__()
        self.slow = nn.Linear(6, 6)
        self.fast = nn.Parameter(torch.ones(1))
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        open_ = (self.fast * torch.ones(1) - 0.95).relu()
        return self.head(open_ * self.slow(x)) + self.fast * torch.tensor([1.0, 0.0, 0.0])


def test_a_weight_that_a_large_step_kills_is_not_called_dead() -> None:
    """A head at zero lets nothing through in the first step; `fast` moves in it."""
    subject = convert(DiesInLargeSteps(), torch.zeros(2, 6), "zero-2022")
    parameter(subject, "head.weight").zero_()
    check = answers(subject)["gradients"]
    assert check.numbers["dead"] == []
    assert check.numbers["step_sizes"] == [0.1, 0.01]
    assert check.numbers["first_step"]["slow.weight"] == 2
    assert "2 of them only with smaller steps or another batch" in check.summary


def test_a_network_without_joins_and_norms_is_alive() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 16, 3, 2), nn.ReLU(), *(Fire(16, 4, 8) for _ in range(6)), nn.Conv2d(16, 5, 1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    )  # fmt: skip
    check = answers(convert(net, IMAGES, "zero-2022"))["gradients"]
    assert (check.status, check.numbers["dead"]) == ("pass", [])


def test_what_is_dead_in_steps_of_every_size_and_for_other_inputs_is_dead() -> None:
    net = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3))
    subject = convert(net, torch.zeros(2, 6), "zero-2022")
    parameter(subject, "0.bias").fill_(-100)  # below 0 for every input
    check = answers(subject)["gradients"]
    assert check.status == "fail"
    assert check.numbers["step_sizes"] == [0.1, 0.01, 0.001, 0.001]
    assert {"0.weight", "2.weight"} <= set(check.numbers["dead"])


def test_a_unit_that_is_silent_for_one_batch_is_tried_with_another() -> None:
    class Narrow(nn.Module):
        """Open where the inputs of a sample add up to more than a limit that the first batch never reaches."""

        def __init__(self) -> None:
            super().__init__()
            self.first, self.head = nn.Linear(3, 3), nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.first(x) * (x.sum(1, keepdim=True) - 2.15).relu())

    check = answers(convert(Narrow(), torch.zeros(1, 3), "zero-2022"))["gradients"]
    assert check.numbers["dead"] == []
    assert check.numbers["step_sizes"] == [0.1, 0.01]
    assert check.numbers["first_step"]["first.weight"] == 1


def test_a_gradient_that_only_large_steps_make_infinite_is_no_finding() -> None:
    class Explodes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.head = nn.Linear(4, 4), nn.Linear(4, 2)
            self.scale = nn.Parameter(torch.ones(1))

        def forward(self, x: Tensor) -> Tensor:
            open_ = (0.05 - (self.scale * torch.ones(1) - 1).abs()).relu()
            return self.head(self.first(x)) / open_ + self.scale * torch.tensor([1.0, 0.0])

    subject = convert(Explodes(), torch.zeros(2, 4), "zero-2022")
    parameter(subject, "head.weight").zero_()
    check = answers(subject)["gradients"]
    assert (check.status, check.numbers["dead"], check.numbers["step_sizes"]) == ("pass", [], [0.1, 0.01])


def test_what_two_images_leave_silent_is_tried_with_more() -> None:
    """As a batch norm does that normalizes two values: to ±1, whatever they are."""

    class Images(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.head = nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, images: list[Tensor]) -> Tensor:
            x = self.first(torch.stack([image.mean((1, 2)) for image in images]))
            return self.head(x if len(images) > 2 else x.sign())

    subject = convert(Images(), ([torch.zeros(3, 4, 4), torch.zeros(3, 4, 4)],), "zero-2022")
    check = answers(subject)["gradients"]
    assert check.numbers["dead"] == []
    assert check.numbers["step_sizes"] == [0.1, 0.01]


@pytest.mark.parametrize("cls", [nn.LSTM, nn.GRU, nn.RNN])
def test_the_weights_of_a_recurrent_layer_are_seen_in_the_copy_that_is_trained(cls: type[nn.RNNBase]) -> None:
    """Its forward reads a list of them, which a copy has to carry over."""

    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.head = cls(6, 8, num_layers=2, batch_first=True), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.rnn(x)[0][:, -1])

    net, inputs = Reader(), torch.zeros(1, 5, 6)
    traced, scheme = trace(net, (inputs,)), schemes.get("zero-2022")
    options = schemes.complete_options(scheme, {})
    rules = initialize(traced, analyze(traced), scheme, options, asked=RecipeOptions(uncovered="keep"))
    for name, p in net.named_parameters():
        if name.startswith("rnn."):
            torch.nn.init.constant_(p, 0.1)
    shapes = {"train": (((1, 3), "float32"),), "evaluate": (((1, 3), "float32"),)}
    check = answers(Subject(traced, analyze(traced), scheme, options, rules, (inputs,), shapes))["gradients"]
    assert check.numbers["unused"] == []
    assert {name for name, _ in net.named_parameters()} == set(check.numbers["first_step"])


def test_a_network_without_a_floating_output_is_skipped_and_one_without_a_path_to_its_parameters_fails() -> None:
    class Decides(nn.Module):
        def __init__(self, detached: bool) -> None:
            super().__init__()
            self.head, self.detached = nn.Linear(4, 3), detached

        def forward(self, x: Tensor) -> Tensor:
            return self.head(x).detach() if self.detached else self.head(x).argmax(1)

    whole = answers(convert(Decides(False), torch.zeros(2, 4), "zero-2022"))["gradients"]
    assert (whole.status, whole.summary) == ("skip", "no floating tensor is returned in training mode")
    detached = answers(convert(Decides(True), torch.zeros(2, 4), "zero-2022"))["gradients"]
    assert (detached.status, detached.numbers["unused"]) == ("fail", ["head.weight", "head.bias"])


class ReadsZeros(nn.Module):
    """A branch whose input is 0 whatever the weights are, as the first self-attention of DETR's decoder."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer, self.head = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        blank = torch.zeros_like(x)
        return self.head(x + self.outer(self.inner(blank).relu()))


def test_a_weight_that_no_start_gives_a_gradient_is_inert_and_not_dead() -> None:
    check = answers(convert(ReadsZeros(), torch.ones(2, 6), "zero-2022"))["gradients"]
    assert "inner.weight" in check.numbers["inert"]
    assert "head.weight" not in check.numbers["inert"] and check.status != "fail"
    assert "without a gradient whatever the weights are" in check.summary


def test_a_start_that_kills_a_weight_is_not_excused() -> None:
    subject = convert(Dying(), torch.zeros(2, 6), "zero-2022")
    for name in ("inner.weight", "outer.weight"):
        parameter(subject, name).zero_()
    check = answers(subject)["gradients"]
    assert check.status == "fail" and not check.numbers["inert"]


class Dying(nn.Module):
    """Two layers in a row: both at zero, neither ever gets a gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(6, 6, bias=False), nn.Linear(6, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(self.inner(x))


class Narrow(nn.Module):
    """A gate with one hidden unit, which reads a channel that is never positive."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.reduce, self.expand = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 1, 1), nn.Conv2d(1, 4, 1)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = -self.first(x).relu()
        x = x * self.expand(self.reduce(x.mean((2, 3), keepdim=True)).relu()).sigmoid()
        return self.head(x.mean((2, 3)))


def test_a_gate_that_the_inputs_leave_closed_is_warned_of() -> None:
    check = answers(convert(Narrow(), IMAGES, "zero-2022"))["gradients"]
    assert check.status == "warn"
    assert check.numbers["closed"] == ["expand.weight", "reduce.weight"]
    assert "2 of them in gates that these inputs leave closed" in check.summary


def test_a_gate_that_no_input_opens_is_dead() -> None:
    subject = convert(Narrow(), IMAGES, "zero-2022")
    parameter(subject, "reduce.weight").zero_()
    parameter(subject, "expand.weight").zero_()
    check = answers(subject)["gradients"]
    assert (check.status, check.numbers["closed"]) == ("fail", [])


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
def test_a_forward_that_is_run_again_in_the_backward_pass_has_gradients() -> None:
    class Again(nn.Module):
        """Keeps no values of its middle (Chen et al., gradient checkpointing, 2016)."""

        def __init__(self) -> None:
            super().__init__()
            self.first, self.middle, self.head = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            x = checkpoint(self.middle, x, use_reentrant=True) if self.training else self.middle(x)
            return self.head(x)

    check = answers(convert(Again(), torch.zeros(2, 6), "zero-2022"))["gradients"]
    assert (check.status, check.numbers["dead"]) == ("pass", [])
