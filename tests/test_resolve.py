"""Which formula a tensor gets: the rules decide by name, and nothing follows from how a formula is worded."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from zero_convert import checks, schemes
from zero_convert.formulas import Constant, Formula
from zero_convert.graph.fixed import mark
from zero_convert.initialization.fill import initialize
from zero_convert.initialization.resolve import FROZEN, RULES, TIE
from zero_convert.initialization.scheme import AsConstructed, Scheme
from zero_convert.options import RecipeOptions
from zero_convert.readers import Tensor as Stored
from zero_convert.records import Assignment
from zero_convert.report import blocks
from zero_convert.sources.file_values import FileValues
from zero_convert.structure import analyze
from zero_convert.tracing import trace

from . import nets
from .odd_nets import ramp
from .subjects import subject_of

pytestmark = pytest.mark.usefixtures("one_thread")


class Net(nn.Module):
    """Two layers between which a function of each case stands, with what the case registers."""

    def __init__(self, **held: nn.Module | nn.Parameter | Tensor) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(4, 6), nn.Linear(6, 3)
        for name, value in held.items():
            if isinstance(value, nn.Module):
                self.add_module(name, value)
            elif isinstance(value, nn.Parameter):
                self.register_parameter(name, value)
            else:
                self.register_buffer(name, value)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.stem(x))
        return self.head(self.between(x))

    def between(self, x: Tensor) -> Tensor:
        return x


class Scaled(Net):
    def between(self, x: Tensor) -> Tensor:
        return x * self.extra


class Zeta(Net):
    def between(self, x: Tensor) -> Tensor:
        return torch.special.zeta(x.abs() + 2, self.extra)


class Policy(Net):
    def between(self, x: Tensor) -> Tensor:
        return torch.distributions.Normal(x, self.extra.exp()).rsample()


class Shifted(Net):
    def between(self, x: Tensor) -> Tensor:
        return x + self.extra


class Optional(Net):
    def between(self, x: Tensor) -> Tensor:
        return x + self.extra(x[:, :0])


class Twice(Net):
    def between(self, x: Tensor) -> Tensor:
        return self.extra(torch.tanh(self.again(x)))


class Counting(Net):
    """A net with a tensor as extra state."""

    def get_extra_state(self) -> Tensor:
        return torch.ones(3)

    def set_extra_state(self, state: Tensor) -> None:
        assert state.shape == (3,)


def twice() -> Twice:
    net = Twice(again=nn.Linear(6, 6), extra=nn.Linear(6, 6))
    net.extra.weight = net.again.weight
    return net


class Through(Net):
    def between(self, x: Tensor) -> Tensor:
        return self.extra(x)


def through_a_frozen_matrix() -> Through:
    net = Through(extra=nn.Linear(6, 6))
    net.extra.weight.requires_grad_(False)
    mark(net)
    return net


def without_buffers() -> Scheme:
    """A scheme that has a rule for linear layers alone."""
    scheme = schemes.get("zero-2022")
    return replace(scheme, fill=lambda layer, *facts: scheme.fill(layer, *facts) if layer.kind == "linear" else None)


def assigned(net: nn.Module, scheme: Scheme | str = "zero-2022", **settings: object) -> dict[str, Assignment]:
    traced = trace(net, (ramp(3, 4),))
    known = schemes.get(scheme) if isinstance(scheme, str) else scheme
    options = schemes.complete_options(known, {})
    found = initialize(traced, analyze(traced), known, options, **settings)  # type: ignore[arg-type]
    return {a.tensor.name: a for a in found}


FACTORS = torch.tensor([0.3, 0.1, 0.7, 0.2, 0.9, 0.5])
STORED = FileValues((6,), Stored("extra", "F32", (6,)))
ZEROS = RecipeOptions(uncovered="zeros")

DECISIONS = {
    "empty layer": (lambda: Optional(extra=nn.Linear(0, 6)), {}, "extra.bias", Constant((6,), 0.0)),
    "scheme": (Net, {}, "stem.bias", Constant((6,), 0.0)),
    FROZEN: (through_a_frozen_matrix, {}, "extra.weight", AsConstructed((6, 6))),
    "beside fixed": (through_a_frozen_matrix, {}, "extra.bias", Constant((6,), 0.0)),
    "uncovered": (
        lambda: Zeta(extra=nn.Parameter(FACTORS.clone())), {"asked": ZEROS}, "extra", Constant((6,), 0.0)
    ),
    "buffer": (lambda: Shifted(extra=torch.ones(6)), {"scheme": without_buffers()}, "extra", AsConstructed((6,))),
    "extra state": (Counting, {}, "_extra_state", AsConstructed((3,))),
    "constant read": (lambda: Policy(extra=nn.Parameter(torch.ones(6))), {}, "extra", AsConstructed((6,))),
    "constant or else": (
        lambda: Scaled(extra=nn.Parameter(FACTORS.clone())), {"constructed": False}, "extra", Constant((6,), 1.0)
    ),
    "file value": (
        lambda: Scaled(extra=nn.Parameter(torch.ones(6))),
        {"file_values": {"extra": STORED}, "asked": RecipeOptions(uncovered="keep"), "write": False}, "extra", STORED,
    ),
    "drawn value": (
        lambda: Shifted(extra=torch.full((6,), torch.nan)), {"asked": ZEROS}, "extra", Constant((6,), 0.0)
    ),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:Initializing zero-element:UserWarning")
@pytest.mark.parametrize("rule", [name for name, _ in RULES])
def test_each_rule_decides_something_and_the_plan_says_which(rule: str) -> None:
    make, settings, tensor, formula = DECISIONS[rule]
    found = assigned(make(), **settings)  # type: ignore[arg-type]
    assert (found[tensor].decided_by, found[tensor].formula) == (rule, formula)
    assert found["head.weight"].decided_by == "scheme"


def test_a_constant_stays_where_another_value_would_not() -> None:
    found = assigned(Scaled(extra=nn.Parameter(torch.full((6,), 0.5))), constructed=False)["extra"]
    assert (found.decided_by, found.formula) == ("constant or else", AsConstructed((6,)))


def test_a_tie_decides_over_the_rules() -> None:
    found = assigned(twice())
    assert [found[name].decided_by for name in ("again.weight", "extra.weight")] == ["scheme", TIE]
    assert found["extra.weight"].rule == "tied to again.weight" and not found["extra.weight"].formula.is_zero


def test_notes_are_beside_the_formula() -> None:
    net = Net(extra=nn.Parameter(torch.ones(6)))
    net.stem.weight.requires_grad_(False).fill_(torch.nan)  # drawn
    found = assigned(net)
    assert found["stem.weight"].notes == ("frozen",)
    assert found["stem.weight"].rule == f"{found['stem.weight'].formula.rule} (frozen)"
    assert found["stem.weight"].kind == "Hadamard"
    assert found["extra"].notes == ("unused: the output does not depend on it",)
    assert (
        found["extra"].rule == found["extra"].kind == "kept as constructed (unused: the output does not depend on it)"
    )


# -- words -------------------------------------------------------------------------------------------------------------


def formulas(of: type[Formula] = Formula) -> Iterator[type[Formula]]:
    for one in of.__subclasses__():
        yield one
        yield from formulas(one)


class Attending(nn.Module):
    """Queries, keys and values from one layer; and layers that grow."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(6, 8), nn.Linear(8, 2)
        self.block = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True, norm_first=True)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.head(self.block(self.stem(x)))
        return made


class Kept(nn.Module):
    """A constant that is neither 0 nor 1, used in a way that no rule knows."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(6, 8), nn.Linear(8, 2)
        self.extra = nn.Parameter(torch.full((8,), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.head(torch.hypot(self.stem(x), self.extra))
        return made


def summary(make: type[nn.Module], inputs: Tensor, scheme: str) -> dict[str, object]:
    """Everything that is decided by what the formulas are."""
    torch.manual_seed(0)
    subject = subject_of(make(), inputs, scheme=scheme)
    answers = checks.run(subject, level="quick", device="cpu")
    scene = blocks.Scene(subject.traced.root, subject.traced.train, subject.structure, subject.assignments)
    marks = [[box.mark for box in kind.after or ()] for kind in blocks.kinds(None, scene, subject.structure.joins)]
    return {
        "decisions": [(a.tensor.name, type(a.formula), a.decided_by, a.notes) for a in subject.assignments],
        "checks": [(check.name, check.status, repr(check.numbers)) for check in answers],
        "marks": marks,
    }


@pytest.mark.parametrize(
    ("make", "inputs", "scheme"),
    [
        (nets.tiny_resnet, torch.zeros(1, 3, 32, 32), "zero-2021"),
        (Kept, torch.zeros(1, 6), "zero-2021"),
        (Attending, torch.zeros(1, 5, 6), "zero-2022"),
        (Attending, torch.zeros(1, 5, 6), "skipinit"),
    ],
)
def test_another_wording_changes_nothing(
    make: type[nn.Module], inputs: Tensor, scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = summary(make, inputs, scheme)
    for one in formulas():
        monkeypatch.setattr(one, "rule", property(lambda self: f"other words for {type(self).__name__}"))
    assert summary(make, inputs, scheme) == before
