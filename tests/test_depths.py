"""Signal, gradients, caps, exact layers, inserted skips, training: sound networks pass, and the numbers are right."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from zero_convert import checks
from zero_convert.checks.distinct_units import cap
from zero_convert.checks.exact_parts import EXACT
from zero_convert.checks.harness.bench import CheckContext
from zero_convert.checks.harness.channels import rank
from zero_convert.checks.harness.isolation import pinned
from zero_convert.formulas import Constant, Formula, Hadamard, Kernel, PartialIdentity, Patch, Rows
from zero_convert.graph.original import filled
from zero_convert.structure import analyze

from . import nets, odd_nets
from .subjects import IMAGES, ask, subject_of
from .test_checks import world

pytestmark = pytest.mark.usefixtures("one_thread")
COLUMNS = ("name", "kind", "activation", "gradient", "channels", "distinct", "duplicate", "zero", "low_variance")


def wide() -> nn.Module:
    return nn.Sequential(nn.Linear(20, 256), nn.ReLU(), nn.Linear(256, 4))


# -- signal ------------------------------------------------------------------------------------------------------------


def test_every_depth_has_a_number_in_every_column_for_original_and_converted() -> None:
    check = ask("signal", subject_of(nets.tiny_resnet()))
    assert check is not None and check.status == "pass"
    assert list(check.numbers) == ["converted", "original"]
    for table in check.numbers.values():
        assert {len(column) for column in table.values()} == {len(table["name"])}
        assert set(COLUMNS) < set(table)
    original, converted = check.numbers["original"], check.numbers["converted"]
    assert original["name"][0] == converted["name"][0] == "conv1"
    assert original["kind"].count("join") == 2 and converted["kind"].count("join") == 5
    assert original["distinct"] == original["channels"], "hashed weights repeat no channel"
    assert converted["distinct"][-1] == 5 < converted["channels"][-1] == 16


def test_activation_and_gradient_are_root_mean_squares_of_what_a_layer_reads() -> None:
    net = nn.Sequential(nn.Linear(16, 16, bias=False), nn.Linear(16, 16, bias=False))
    subject = subject_of(net, torch.zeros(1, 16), scheme="zero-2022")
    check = ask("signal", subject)
    assert check is not None
    table = check.numbers["converted"]
    assert table["activation"][0] == table["activation"][1], "the first layer is the identity"
    assert table["gradient"][0] == table["gradient"][1] == pytest.approx(1, abs=0.2)
    assert table["rank"] == [4, 4] == table["rank_limit"], "four samples"


def test_a_signal_that_dies_with_depth_is_warned_of() -> None:
    class Fading(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(6))

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.layers:
                x = layer(x) * 0.1
            return x

    check = ask("signal", subject_of(Fading(), torch.zeros(2, 8), scheme="zero-2022"))
    assert check is not None and (check.status, "factor of 1e+05" in check.summary) == ("warn", True)


def test_the_rank_of_rows_is_that_of_linear_algebra() -> None:
    base = torch.tensor([[1.0, 2, 3, 4], [0, 1, 0, 1]])
    assert rank(torch.cat([base, base.sum(0, keepdim=True), base * 2])) == (2, 4)
    assert rank(torch.eye(3, 100)) == (3, 3) and rank(torch.zeros(3, 5)) == (0, 3)
    assert rank(torch.full((3, 5), float("nan"))) == (0, 3)


@pytest.mark.slow
@pytest.mark.parametrize("mixing", ["none", "permute"])
def test_the_known_weakness_of_resnet50_is_a_warning_with_its_remedy(mixing: str) -> None:
    subject = subject_of(
        pytest.importorskip("torchvision").models.resnet50(), torch.zeros(1, 3, 224, 224), mixing=mixing
    )
    with pinned("cpu"):
        context = CheckContext(subject, "quick", "cpu")
        found = {name: checks.answer(name, context) for name in ("channels", "precision", "signal", "gradient_norms")}
    channels, precision, signal = found["channels"], found["precision"], found["signal"]
    assert channels is not None and precision is not None and signal is not None
    features, table = channels.numbers["heads"]["fc"], signal.numbers["converted"]
    assert table["distinct"][-1] == features[0] and features[1] == 2048
    late = [c for name, c in channels.numbers["layers"].items() if name.startswith(("layer2", "layer3", "layer4"))]
    norms = [c["low_variance"] for c in late if c["channels"] > c["zero"]]
    far = precision.numbers["train"]["features"]
    gradient = [value for value in table["gradient"] if value]
    if mixing == "none":
        assert features[0] == 5 and 0.9 < channels.numbers["worst_low_variance"] < 0.97 and 0.1 < far < 1
        assert max(gradient) / min(gradient) > 1e6 and {c.status for c in found.values() if c} == {"warn"}
        assert channels.remedy == precision.remedy and channels.remedy.startswith("--set mixing=permute")
    else:
        assert features[0] >= 2040 and not any(norms) and far < 1e-5
        assert max(gradient) / min(gradient) < 100 and {c.status for c in found.values() if c} == {"pass"}


# -- the original ------------------------------------------------------------------------------------------------------


def test_the_original_is_kept_as_it_was_given() -> None:
    net = nets.tiny_resnet().eval()
    subject = subject_of(net)
    assert subject.original is not None
    own = filled(subject.original)
    same = nets.tiny_resnet()
    same.load_state_dict(own.state_dict())
    x = torch.rand(2, 3, 32, 32)
    assert torch.equal(torch.fx.GraphModule(own, subject.original.traced.evaluate).eval()(x), same.eval()(x))
    assert [j.node for j in analyze(subject.original.traced).joins] == [
        j.node for j in subject.original.structure.joins
    ]
    weight = own.get_parameter("blocks.1.conv2.weight").detach()
    assert float(weight.std()) == pytest.approx((2 / weight[0].numel()) ** 0.5, rel=0.05)
    assert torch.equal(filled(subject.original).get_parameter("linear.weight"), own.get_parameter("linear.weight"))


# -- gradients ---------------------------------------------------------------------------------------------------------


def test_gradients_are_compared_with_float64_in_full() -> None:
    subject = subject_of(wide(), torch.zeros(1, 20), scheme="zero-2022", columns="spanning")
    quick, full = ask("gradient_norms", subject), ask("gradient_norms", subject, "full")
    assert quick is not None and full is not None
    assert quick.numbers["parameter"] == ["0.weight", "0.bias"], "the head is behind what goes back"
    assert quick.numbers["difference_to_float64"] == [None, None]
    assert all(0 < value < 1e-6 for value in full.numbers["difference_to_float64"])


class Uneven(nn.Module):
    """A branch whose gradient is a millionth of the other's."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(torch.cat([self.first(x)[:, :4], self.second(x)[:, 4:] * self.factor], 1))
        return out


@pytest.mark.parametrize(("factor", "status"), [(1e-6, "warn"), (1e-2, "pass")])
def test_weights_whose_gradients_are_far_apart_are_warned_of(factor: float, status: str) -> None:
    check = ask("gradient_norms", subject_of(Uneven(factor), torch.zeros(1, 8), scheme="zero-2022"))
    assert check is not None and check.status == status
    assert check.numbers["range_of_weights"] == pytest.approx(1 / factor, rel=0.9)


def test_a_shift_that_the_next_norm_takes_away_does_not_count_among_the_ranges() -> None:
    net = nn.Sequential(nn.Linear(16, 16), nn.BatchNorm1d(16), nn.Linear(16, 16), nn.BatchNorm1d(16), nn.Linear(16, 2))
    check = ask("gradient_norms", subject_of(net, torch.zeros(2, 16), scheme="zero-2022"))
    assert check is not None and check.status == "pass" and check.numbers["range_of_weights"] < 100
    norms = [value for value in check.numbers["norm"] if value]
    assert max(norms) / min(norms) > 1e4, "its gradient is rounding"
    assert "0.bias" not in check.numbers["parameter"] and "1.bias" in check.numbers["parameter"]


# -- distinct units ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("formula", "expected"),
    [
        (Kernel(PartialIdentity(256, 64), (1, 1)), 65),
        (Kernel(Hadamard(2048, 784), ()), 1024),
        (Patch(Hadamard(2048, 784), (28, 28)), 1024),
        (Hadamard(2048, 784, columns="spanning"), None),
        (Hadamard(12, 4, order="exact"), None),
        (Kernel(PartialIdentity(8, 4), (3,), groups=2), None),
        (Kernel(PartialIdentity(8, 4), (), transposed=True), None),
        (PartialIdentity(4, 256), None),
        (Constant((8, 4), 0.0), None),
        (Rows(PartialIdentity(8, 4), (8, 4)), None),
    ],
)
def test_the_cap_follows_from_the_formula(formula: Formula, expected: int | None) -> None:
    assert cap(formula) == expected


def test_a_layer_has_as_many_different_units_as_predicted() -> None:
    check = ask("distinct_units", subject_of(wide(), torch.zeros(1, 20), scheme="zero-2022", columns="first"))
    assert check is not None and (check.status, check.numbers["layers"]) == ("pass", {"0": [32, 32, 256]})
    check = ask("distinct_units", subject_of(nets.tiny_resnet()))
    assert check is not None and check.numbers["layers"] == {"blocks.1.shortcut.0": [9, 9, 16]}


# -- exact layers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", ["quick", "full"])
def test_layers_of_zeros_and_ones_are_exact_in_every_batch_and_thread(level: str) -> None:
    check = ask("exact_parts", subject_of(nets.tiny_resnet()), level)
    assert check is not None and check.status == "pass"
    assert len(check.numbers["layers"]) == {"quick": 3, "full": 6}[level]
    assert EXACT == 2**24 and float(torch.tensor(float(EXACT)) + 1) == EXACT


# -- inserted skips ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "inputs", "readable"),
    [
        (nets.tiny_resnet, IMAGES, {"stem_skip", "relu_derivative", "out_of_place"}),
        (nets.PlainCnn, IMAGES, {"stem_skip", "growth_transforms"}),
        (odd_nets.UNetWithSums, None, {"relu_derivative"}),
    ],
)
def test_without_its_skips_the_network_is_the_original(
    make: Callable[[], nn.Module], inputs: Tensor | None, readable: set[str]
) -> None:
    check = ask("skips", subject_of(make(), torch.zeros(1, 3, 32, 32) if inputs is None else inputs), "full")
    assert check is not None and check.status == "pass", check
    assert readable <= set(check.numbers["equal"])


def test_inner_skips_are_read_where_they_only_add() -> None:
    check = ask("skips", subject_of(wide(), torch.zeros(1, 20)), "full")
    assert check is not None and "inner_skips" in check.numbers["equal"] and not check.numbers["not_readable"]


# -- training ----------------------------------------------------------------------------------------------------------


def test_training_is_asked_for_and_tells_losses_ranks_and_spread() -> None:
    subject = subject_of(nets.tiny_resnet())
    assert ask("training", subject) is None
    check = ask("training", subject, train_steps=3)
    assert check is not None and check.status == "pass"
    losses = check.numbers["losses"]
    assert len(losses) == 4 and losses[-1] < losses[0] and len(check.numbers["gradient_norms"]) == 3
    assert len(check.numbers["distinct_before"]) == len(check.numbers["distinct_after"])
    found, most = check.numbers["rank"]["linear.weight"]
    assert 0 < found <= most == 10


def test_weights_move_in_no_more_directions_than_there_are_inputs() -> None:
    """Theorem 1: the signal of a linear network spans at most as many dimensions as there are inputs."""
    net = nn.Sequential(*(nn.Linear(n, m, bias=False) for n, m in ((3, 32), (32, 32), (32, 8))))
    check = ask("training", subject_of(net, torch.zeros(1, 3), scheme="zero-2022"), train_steps=1)
    assert check is not None
    assert check.numbers["rank"]["1.weight"] == (3, 32)


# -- read only ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [n for n in checks.FILES if n not in (*checks.SCHEME_CHECKS, "parity")])
def test_each_check_leaves_everything_as_it_was(name: str) -> None:
    subject = subject_of(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3)))
    root = subject.traced.root.train()
    root.get_submodule("1").eval()
    for p in root.parameters():
        p.grad = torch.full_like(p, 0.5)
    assert subject.original is not None
    kept = {k: t.clone() for k, t in subject.original.traced.root.state_dict().items() if t.device.type == "cpu"}
    before, threads = world(subject), torch.get_num_threads()
    ask(name, subject, "full", train_steps=1)
    assert world(subject) == before and torch.get_num_threads() == threads
    after = subject.original.traced.root.state_dict()
    assert all(torch.equal(t, after[k]) for k, t in kept.items())
