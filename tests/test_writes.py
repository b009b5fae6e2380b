"""What a forward does besides calling modules: methods of its parts, writes into parts of a tensor, derivatives."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import prune

import zero_convert as zc
from tests.odd_nets import ramp
from zero_convert.errors import CoverageError, TraceError


class Asked(nn.Module):
    """A part with a method that the Python around it calls, and that Python cannot be captured."""

    class Body(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(6, 6), nn.Linear(6, 6)

        @staticmethod
        def mask(size: int) -> Tensor:
            return torch.ones(size)

        def scaled(self, x: Tensor) -> Tensor:
            return x * self.mask(6)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.two(F.relu(self.one(x)))

    def __init__(self) -> None:
        super().__init__()
        self.body, self.out = self.Body(), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(self.body.scaled(x) * self.body.mask(x.shape[1]))
        return self.out(x if float(x.detach().sum()) > -1e9 else -x)


def test_a_rewritten_part_still_has_the_methods_that_are_called_from_outside() -> None:
    made = zc.convert(Asked(), (ramp(2, 6),), scheme="zero-2021", device="cpu", validate="none")
    assert made.plan.capture == "regions" and any(edit.applied for edit in made.plan.edits)
    for module in (made.module, copy.deepcopy(made.module)):
        assert module(ramp(2, 6)).shape == (2, 3)
        body = module.get_submodule("body")
        assert hasattr(body, "mask") and hasattr(body, "scaled") and not hasattr(body, "unknown")


class Scattered(nn.Module):
    """A mixture of experts that adds their rows to an output of zeros, and losses to each other."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.gates = nn.Linear(5, 6), nn.ModuleList(nn.Linear(6, 2) for _ in "ab")
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 6)) for _ in "abcd")
        self.out = nn.Linear(6, 3)

    def forward(self, x: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        x, loss = self.stem(x), x.new_zeros(())
        for i, gate in enumerate(self.gates):
            share = gate(x).softmax(-1)
            y = torch.zeros_like(x)
            for j in range(2):
                y.index_add_(0, rows, self.experts[2 * i + j](x[rows]) * share[:, j : j + 1])
            x, loss = x + y, loss + share.mean(0).pow(2).sum()
        return self.out(x), loss


FACTORY = """
import torch
from torch import nn


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(7, 6), nn.Bilinear(6, 11, 3)

    def forward(self, a, b):
        a = self.one(a)
        if torch.isnan(a).any():
            raise ValueError("not a number")
        return self.two(a, b)
"""


def test_a_factory_whose_inputs_no_convention_knows_loads_back_and_may_refuse_nan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("two.py").write_text(FACTORY)
    made = zc.convert("two.py:Two", (ramp(2, 7), ramp(2, 11)), scheme="zero-2022", validate="none")
    assert made.recipe.inputs == ("2x7:float32", "2x11:float32")
    made.save("two.safetensors")
    again = zc.load("two.safetensors", trust=True).state_dict()
    assert all(torch.equal(again[name], value) for name, value in made.module.state_dict().items())


class Forces(nn.Module):
    """The derivative of an energy, as in networks of molecules."""

    def __init__(self) -> None:
        super().__init__()
        self.energy = nn.Sequential(nn.Linear(3, 6), nn.SiLU(), nn.Linear(6, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = x.requires_grad_()
        (force,) = torch.autograd.grad(self.energy(x).sum(), x, create_graph=True)
        return force


def test_a_forward_that_takes_derivatives_is_told_what_to_convert_instead() -> None:
    net = Forces()
    with pytest.raises(TraceError, match=r"takes derivatives .*test_writes.py:\d+.*Convert the part"):
        zc.plan(net, (ramp(2, 3),), scheme="zero-2022")
    net.energy.load_state_dict(
        zc.convert(net.energy, (ramp(2, 3),), scheme="zero-2022", validate="none").module.state_dict()
    )
    assert bool(net(ramp(2, 3)).isfinite().all())


def test_a_pruned_layer_is_refused_with_a_way_out_that_works() -> None:
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    prune.l1_unstructured(net[0], "weight", amount=0.3)
    with pytest.raises(CoverageError, match=r"L1Unstructured; torch.nn.utils.prune.remove"):
        zc.plan(net, (ramp(2, 6),), scheme="zero-2022")
    prune.remove(net[0], "weight")
    rules = {a.tensor.name: a.rule for a in zc.plan(net, (ramp(2, 6),), scheme="zero-2022").assignments}
    assert rules["0.weight"].startswith("Hadamard 8×6")


def test_rows_added_to_zeros_are_a_branch_and_sums_of_losses_are_none() -> None:
    made = zc.plan(Scattered(), (ramp(4, 5), torch.tensor([2, 0, 3, 1])), scheme="zero-2022")
    joins = [join for join in made.joins if join.residual]
    assert len(joins) == 2 and {"experts.0.2", "experts.1.2"} <= set(joins[0].branch)
    assert all("numbers" in join.reason for join in made.joins if not join.residual)
