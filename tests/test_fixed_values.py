"""What an author fixed in the constructor stays; of a live module only the user can say so; a part that never learns
is a failure."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import zero_convert as zc
from zero_convert.conversion import prepare
from zero_convert.errors import CoverageError, DeclinedError
from zero_convert.initialization.resolve import FROZEN
from zero_convert.options import Options

from . import fixed_nets
from .fixed_nets import CASES, Case
from .test_checks import answers

pytestmark = pytest.mark.usefixtures("one_thread")

SCHEMES = ("zero-2021", "zero-2022", "fixup", "skipinit", "rezero", "idinit", "constnet")
DECLINED = {("Positions", "constnet"), ("tied", "constnet")}  # layer norms
NAMED = {case.make: case for case in CASES}


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.make)
def test_what_the_constructor_froze_and_set_stays_and_the_plan_says_so(case: Case, scheme: str) -> None:
    if (case.make, scheme) in DECLINED:
        with pytest.raises(DeclinedError):
            zc.plan(case.model, (case.inputs(),), scheme=scheme)
        return
    result = zc.convert(case.model, (case.inputs(),), scheme=scheme, validate="none")
    state, rules = result.module.state_dict(), {a.tensor.name: a for a in result.plan.assignments}
    for name, values in case.stays().items():
        assert torch.equal(state[name], values), name
        frozen = not rules[name].tensor.trainable
        assert not frozen or "tied" in rules[name].rule or rules[name].decided_by == FROZEN, rules[name]
        assert "unused" not in rules[name].rule
    for name in case.filled:
        assert not state[name].isnan().any() and rules[name].decided_by != FROZEN


@pytest.mark.parametrize("scheme", ["zero-2021", "zero-2022"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.make)
def test_the_rest_of_such_a_network_learns(case: Case, scheme: str) -> None:
    result = zc.convert(case.model, (case.inputs(),), scheme=scheme, device="cpu")
    assert not result.failed, [(check.name, check.summary) for check in result.failed]


def test_the_layer_before_a_fixed_end_is_the_head_and_no_transform_follows_a_fixed_layer() -> None:
    plan = zc.plan(NAMED["shifts"].model, (fixed_nets.images(),))
    roles = {a.tensor.name: a.role for a in plan.assignments}
    assert roles["body.2.weight"] == "head" and roles["first.weight"] == roles["last.weight"] == "trunk"
    plan = zc.plan(NAMED["haar"].model, (fixed_nets.images(),))
    assert not [edit for edit in plan.edits if edit.target in ("first", "branch-last")]


def test_the_last_layer_of_a_branch_is_the_one_before_a_fixed_kernel() -> None:
    result = zc.convert(NAMED["Blur"].model, (fixed_nets.images(),), scheme="zero-2022", validate="none")
    assert not result.module.get_parameter("conv2.weight").any()


def test_a_raw_fixed_kernel_is_no_head() -> None:
    result = zc.convert("tests.fixed_nets:RawEnd", (fixed_nets.images(),), validate="none")
    assert result.structure.layer("conv").role == "head" and not result.module.get_parameter("conv.weight").any()


def test_a_weight_that_is_set_and_trained_gets_a_rule() -> None:
    result = zc.convert("tests.fixed_nets:Trained", (fixed_nets.rows(6)(),), validate="none")
    assert result.structure.layer("first").kind == "linear"
    assert not torch.equal(result.module.get_parameter("first.weight"), torch.full((6, 6), 0.5))


# -- live modules ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("uncovered", ["error", "zeros"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.make)
def test_every_frozen_tensor_of_a_live_module_is_named_with_the_way_out(case: Case, uncovered: str) -> None:
    module = getattr(fixed_nets, case.make)()
    frozen = [name for name, p in module.named_parameters() if not p.requires_grad]
    if not frozen and case.make == "input_norm":
        frozen = ["first.running_mean", "first.running_var"]
    with pytest.raises(CoverageError) as refused:
        zc.plan(module, (case.inputs(),), uncovered=uncovered)
    assert refused.value.exit_code == 3
    assert all(name in str(refused.value) for name in frozen) and "--uncovered keep" in str(refused.value)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.make)
def test_with_keep_they_stay_as_they_are(case: Case) -> None:
    torch.manual_seed(1)
    module = getattr(fixed_nets, case.make)()
    kept = {name: p.detach().clone() for name, p in module.named_parameters() if not p.requires_grad}
    state = zc.convert(module, (case.inputs(),), uncovered="keep", validate="none").module.state_dict()
    for name, values in {**kept, **case.stays()}.items():
        assert torch.equal(state[name], values), name


def test_a_given_module_without_frozen_tensors_needs_no_word() -> None:
    zc.plan(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)), (torch.zeros(3, 4),))


# -- gradients ---------------------------------------------------------------------------------------------------------


class Stopped(nn.Module):
    """Two stages; what stands between them, or at the end, hands no gradient on."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 6))
        self.second = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 6))
        self.third = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))
        self.last = nn.Linear(4, 3, bias=False)
        self.last.weight.data.fill_(0.0)
        self.last.weight.requires_grad = False
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        if self.how == "no_grad":
            with torch.no_grad():
                x = self.second(x)
        elif self.how == "detach":
            x = self.second(x).detach()
        elif self.how == "factor":
            x = x + self.second(x) * torch.zeros(6)
        else:
            x = self.second(x)
        x = self.third(x)
        return self.last(x) if self.how == "frozen zero" else x


@pytest.mark.parametrize(
    ("how", "silent"),
    [
        ("frozen zero", ["the network"]),
        ("detach", ["first", "second"]),
        ("no_grad", ["first", "second"]),
        ("factor", ["second"]),
        ("nothing", []),
    ],
)
def test_a_network_or_a_stage_in_which_nothing_gets_a_gradient_fails(how: str, silent: list[str]) -> None:
    module = Stopped(how)
    if how != "frozen zero":
        del module.last
    x = torch.linspace(-1, 1, 24).reshape(4, 6)
    conversion = prepare(module, Options((x,), scheme="zero-2022", uncovered="keep"), compare=True)
    found = answers(conversion.subject(conversion.fill(write=True)))["gradients"]
    assert found.numbers["silent_parts"] == silent, found
    assert found.status == ("fail" if silent else "pass")
    assert not silent or ("without any gradient" in found.summary and "requires_grad_(False)" in found.remedy)
