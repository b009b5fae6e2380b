"""Initialize: every tensor gets its rule's value, ties are followed, and what has no rule stops the run."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import zero_convert as zc
from zero_convert import schemes
from zero_convert.errors import CoverageError
from zero_convert.graph.ties import ties
from zero_convert.initialization.constants import _is_progression, nan_names
from zero_convert.initialization.fill import initialize
from zero_convert.options import RecipeOptions
from zero_convert.structure import analyze
from zero_convert.tracing import trace

from .odd_nets import ramp

ZEROS, KEEP = RecipeOptions(uncovered="zeros"), RecipeOptions(uncovered="keep")


class Net(nn.Module):
    """Two layers, a buffer, and a factor that `extra` stands for."""

    def __init__(self, extra: Tensor | None = None) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(4, 6), nn.Linear(6, 3)
        self.register_buffer("count", torch.tensor(7))
        self.extra = None if extra is None else nn.Parameter(extra)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.first(x))
        return self.head(x if self.extra is None else torch.special.zeta(x.abs() + 2, self.extra))


class Buffered(nn.Module):
    """A layer and two buffers: one that may have been drawn, and a table."""

    def __init__(self, noise: Tensor) -> None:
        super().__init__()
        self.head = nn.Linear(4, 6)
        self.register_buffer("noise", noise)
        self.register_buffer("table", torch.tensor([0.25, 0.75]))

    def forward(self, x: Tensor) -> Tensor:
        return (self.head(x) + self.noise) * self.table.sum()


def shared_memory() -> Net:
    """A second name for the first layer's numbers, without being the same tensor."""
    net = Net()
    net.again = nn.Linear(4, 6)
    net.again.weight = nn.Parameter(net.first.weight.detach())
    assert net.again.weight is not net.first.weight
    return net


def filled(net: nn.Module, **settings: object) -> tuple[nn.Module, dict[str, str]]:
    traced = trace(net, (ramp(3, 4),))
    scheme = schemes.get("zero-2021")
    rules = initialize(traced, analyze(traced), scheme, schemes.complete_options(scheme, {}), **settings)  # type: ignore[arg-type]
    return traced.root, {a.tensor.name: a.rule for a in rules}


def test_every_tensor_has_a_rule_and_its_value() -> None:
    net, rules = filled(Net())
    assert set(rules) == set(net.state_dict())
    assert torch.equal(net.first.weight, torch.eye(6, 4)) and not net.head.weight.any() and not net.first.bias.any()
    assert net.count == 7


def test_nothing_is_written_where_only_the_plan_is_wanted() -> None:
    before = Net()
    values = {name: value.clone() for name, value in before.state_dict().items()}
    net, rules = filled(before, write=False)
    assert all(torch.equal(values[name], value) for name, value in net.state_dict().items())
    assert rules == filled(Net())[1]


def test_names_of_the_same_numbers_are_tied_to_the_first() -> None:
    net = shared_memory()
    found = ties(net.state_dict(keep_vars=True))
    assert found["first.weight"] == found["again.weight"] == "again.weight"
    assert len(set(found.values())) == len(found) - 1
    made, rules = filled(net)
    assert torch.equal(made.first.weight, torch.eye(6, 4)) and torch.equal(made.again.weight, torch.eye(6, 4))
    assert rules["first.weight"].startswith("partial identity")
    assert rules["again.weight"] == "tied to first.weight"


def test_empty_tensors_are_never_tied() -> None:
    state = {"a": torch.empty(0), "b": torch.empty(0), "c": torch.ones(2)}
    assert ties(state) == {"a": "a", "b": "b", "c": "c"}
    column = torch.ones(2, 3)
    assert len(set(ties({"whole": column, "turned": column.T, "part": column[:1]}).values())) == 3


def test_a_tensor_without_a_rule_stops_the_run_unless_it_is_said_what_it_gets() -> None:
    given = torch.tensor([0.3, 0.1, 0.7, 0.2, 0.9, 0.5])
    with pytest.raises(CoverageError, match="no rule") as raised:
        filled(Net(given), constructed=False)
    assert "extra (6, Net" in str(raised.value.where) and "--uncovered" in raised.value.fix
    net, rules = filled(Net(given.clone()), constructed=False, asked=ZEROS)
    assert net.extra.tolist() == [0.0] * 6
    net, rules = filled(Net(given), asked=KEEP)  # a factory fixed it
    assert given.all() and (net.extra.tolist(), rules["extra"]) == (given.tolist(), "kept as constructed")


def test_zeros_go_to_buffers_that_a_generator_drew() -> None:
    net, rules = filled(Buffered(torch.full((6,), torch.nan)), asked=ZEROS)
    assert net.noise.tolist() == [0.0] * 6 and rules["noise"] == "constant 0"
    assert net.table.tolist() == [0.25, 0.75] and rules["table"] == "kept as constructed"


def test_what_a_generator_drew_is_not_kept() -> None:
    with pytest.raises(CoverageError, match="hold no constants"):
        filled(Net(torch.full((6,), torch.nan)), asked=KEEP)
    with pytest.raises(CoverageError, match="hold no constants"):
        filled(Net(torch.tensor([0.3, 0.1, 0.7, 0.2, 0.9, 0.5])), asked=KEEP, constructed=False)
    with pytest.raises(CoverageError, match="hold no constants"):
        filled(Net(), drawn=("count",))


def test_a_left_nan_is_named_wherever_it_is() -> None:
    net = Net()
    assert nan_names(net) == []
    net.register_buffer("hidden", torch.tensor([1.0, torch.nan]), persistent=False)
    with torch.no_grad():
        net.head.bias[1] = torch.nan
    assert nan_names(net) == ["head.bias", "hidden"]


def test_given_values_do_not_matter() -> None:
    digests = set()
    for seed in range(3):
        torch.manual_seed(seed)
        digests.add(zc.convert(Net(), (ramp(3, 4),), validate="none").weights_digest)
    assert len(digests) == 1


def test_a_short_progression_is_a_formula_where_it_stands_several_times() -> None:
    """As the decays of a state space: log(1 … 4) for every channel. Four numbers alone may be in order by chance."""
    assert _is_progression(torch.log(torch.arange(1.0, 5.0)).repeat(8, 1))
    assert not _is_progression(torch.log(torch.arange(1.0, 5.0)).repeat(1, 1))
    assert not _is_progression(torch.tensor([3.0, 1.0, 2.0, 4.0]).repeat(8, 1))


class Policy(nn.Module):
    """The logarithms of deviations are constants that no layer owns, in places that no rule knows."""

    def __init__(self, drawn: bool = False) -> None:
        super().__init__()
        self.mean, self.spread = nn.Linear(4, 2), nn.Parameter(torch.rand(2) if drawn else torch.full((2,), -0.5))

    def forward(self, x: Tensor) -> Tensor:
        return torch.distributions.Normal(self.mean(x), self.spread.exp()).rsample()


@pytest.mark.parametrize("scheme", ["zero-2021", "zero-2022"])
def test_a_constant_that_is_read_in_a_way_no_rule_knows_stays(scheme: str) -> None:
    result = zc.convert(Policy(), (torch.ones(3, 4),), scheme=scheme, device="cpu")
    assert result.module.spread.tolist() == [-0.5, -0.5] and not result.failed
    with pytest.raises(CoverageError, match="spread"):
        zc.convert(Policy(drawn=True), (torch.ones(3, 4),), scheme=scheme, device="cpu")


def test_buffers_of_a_given_module_that_may_be_drawn_are_named() -> None:
    class Features(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("directions", torch.rand(4, 8))
            self.register_buffer("places", torch.arange(8.0))
            self.head = nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.sin(x @ self.directions) + self.places)

    notes = zc.convert(Features(), (torch.ones(3, 4),), device="cpu", validate="none").plan.notes
    assert [note for note in notes if "buffers" in note and "directions;" in note]


@pytest.mark.filterwarnings("ignore:Initializing zero-element:UserWarning")
@pytest.mark.parametrize("scheme", ["zero-2021", "zero-2022", "idinit"])
def test_layers_without_any_weight_have_nothing_to_start_with(scheme: str) -> None:
    class Optional(nn.Module):
        """A condition that this configuration has none of."""

        def __init__(self) -> None:
            super().__init__()
            self.stem, self.condition, self.items = nn.Linear(4, 6), nn.Linear(0, 6), nn.Embedding(0, 6)
            self.head = nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.stem(x) + self.condition(x[:, :0]))

    result = zc.convert(Optional(), (torch.ones(3, 4),), scheme=scheme, device="cpu")
    assert not result.failed and not result.module.condition.bias.any()
