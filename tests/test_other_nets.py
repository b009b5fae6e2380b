"""Networks of kinds that no zoo has, each with the one thing that once stood in a conversion's way."""

from __future__ import annotations

import operator
from pathlib import Path
from textwrap import dedent

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

import zero_convert as zc
from zero_convert.graph.editing import resort
from zero_convert.graph.queries import signal_of
from zero_convert.pipeline import Result

from .odd_nets import ramp


def sound(result: Result) -> None:
    """Every check holds."""
    assert [check.summary for check in result.checks if check.status == "fail"] == []


def applied(result: Result, rewrite: str) -> list[str]:
    return [edit.target for edit in result.plan.edits if edit.rewrite == rewrite and edit.applied]


# ---------------------------------------------------------------------------------------------------------------------


class MaskedConv(nn.Conv1d):
    """Returns the lengths beside the features, as the convolutions of speech networks do."""

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        return super().forward(x), lengths


class Lengths(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.grow, self.out = MaskedConv(3, 6, 3, padding=1), MaskedConv(6, 12, 1), nn.Conv1d(12, 4, 1)

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        x, lengths = self.stem(x, lengths)
        x, lengths = self.grow(F.relu(x), lengths)
        return self.out(F.relu(x)), lengths


def test_a_layer_that_returns_lengths_as_well_gets_its_transform() -> None:
    result = zc.convert(Lengths(), (ramp(2, 3, 8), torch.tensor([8, 5])))
    sound(result)
    assert applied(result, "stem_skip") == ["stem"]
    assert applied(result, "growth_transforms") == ["grow"]


def test_a_value_that_is_handed_on_whole_has_no_one_tensor() -> None:
    graph = fx.Graph()
    several = graph.call_module("grow", (graph.placeholder("x"),))
    assert signal_of(several) is None  # nothing reads its first item
    first = graph.call_function(operator.getitem, (several, 0))
    first.meta["shape"] = (2, 3)
    assert signal_of(several) is first
    graph.output((several, first))
    assert signal_of(several) is None


# ---------------------------------------------------------------------------------------------------------------------


class Keywords(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleDict({"in": nn.Linear(3, 8), "inner": nn.Linear(8, 8), "from": nn.Linear(8, 2)})
        self.scales = nn.ParameterDict({"in": nn.Parameter(torch.ones(8))})

    def forward(self, x: Tensor) -> Tensor:
        x = self.parts["in"](x) * self.scales["in"]
        x = x + self.parts["inner"](F.relu(x))
        return self.parts["from"](x)


def test_modules_named_like_keywords_of_python_are_called() -> None:
    result = zc.convert(Keywords(), (ramp(4, 3),))
    sound(result)
    assert [join.branch for join in result.plan.joins] == [("parts.inner",)]


# ---------------------------------------------------------------------------------------------------------------------


class Rotary(nn.Module):
    """Two blocks that take the same angles, computed in the forward."""

    def __init__(self) -> None:
        super().__init__()
        self.inputs = nn.Linear(3, 8)
        self.blocks = nn.ModuleList(nn.ModuleDict({n: nn.Linear(8, 8) for n in "qkvo"}) for _ in range(2))
        self.out = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inputs(x)
        steps = torch.arange(x.shape[1], device=x.device).float()
        angles = torch.outer(steps, torch.tensor([1.0, 0.5, 1.0, 0.5]))
        cos, sin = angles.cos(), angles.sin()

        def heads(y: Tensor) -> Tensor:
            return y.view(y.shape[0], y.shape[1], 2, 4).transpose(1, 2)

        def turned(y: Tensor) -> Tensor:
            return y * cos + torch.cat((-y[..., 2:], y[..., :2]), -1) * sin

        for block in self.blocks:
            q, k, v = (heads(block[n](x)) for n in "qkv")
            mixed = F.scaled_dot_product_attention(turned(q), turned(k), v)
            x = x + block["o"](mixed.transpose(1, 2).flatten(2))
        return self.out(x)


def test_angles_of_positions_are_no_signal_with_a_gate() -> None:
    assert zc.inspect_model(Rotary(), None, (ramp(2, 5, 3),)).structure.gates == ()
    result = zc.convert(Rotary(), (ramp(2, 5, 3),))
    sound(result)
    roles = {layer.name: layer.role for layer in result.structure.layers}
    assert roles["blocks.0.q"] == roles["blocks.1.q"] == roles["blocks.1.k"] == "branch"


class Rescaled(nn.Module):
    """Its input is standardized, and its output gets mean and spread back."""

    def __init__(self) -> None:
        super().__init__()
        self.inputs, self.inner, self.out = (
            nn.Conv1d(2, 8, 3, padding=1),
            nn.Conv1d(8, 8, 3, padding=1),
            nn.Conv1d(8, 2, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        mean, spread = x.mean((1, 2), keepdim=True), x.std((1, 2), keepdim=True)
        x = self.inputs((x - mean) / (spread + 1e-5))
        x = F.relu(self.inner(x)) + x
        return self.out(x) * spread + mean


@pytest.mark.parametrize("scheme", ["zero-2021", "zero-2022"])
def test_the_spread_given_back_to_the_output_is_no_signal_with_a_gate(scheme: str) -> None:
    result = zc.convert(Rescaled(), (ramp(2, 2, 9),), scheme=scheme)
    sound(result)  # the ReLU before the join is seen: its layer would be dead at 0
    assert result.structure.gates == ()


# ---------------------------------------------------------------------------------------------------------------------


class Again(nn.Module):
    """A branch of two layers, each called twice, each time with a ReLU behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.inputs, self.out = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1)
        self.convs = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        y = x = self.inputs(x)
        for conv in self.convs:
            y = F.relu(conv(y + F.relu(conv(y))))
        return self.out(x + y)


@pytest.mark.parametrize("scheme", ["zero-2021", "zero-2022"])
def test_a_branch_of_layers_that_are_called_again_promises_no_zero(scheme: str) -> None:
    sound(zc.convert(Again(), (ramp(2, 3, 6, 6),), scheme=scheme))


# ---------------------------------------------------------------------------------------------------------------------


class Padded(nn.Module):
    """Shortcuts are filled up with as many zeros as the branch has channels more."""

    def __init__(self, n: int, m: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(n), nn.Conv2d(n, m, 3, padding=1)
        self.norm2, self.conv2 = nn.BatchNorm2d(m), nn.Conv2d(m, m, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv2(F.relu(self.norm2(self.conv1(F.relu(self.norm1(x))))))
        size = y.size()
        return y + torch.cat((x, torch.zeros(size[0], size[1] - x.size(1), size[2], size[3])), 1)


def test_a_shortcut_with_zeros_of_the_branchs_size_stays_behind_the_branch() -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), Padded(8, 10), Padded(10, 12), nn.Conv2d(12, 4, 1))
    result = zc.convert(network, (ramp(2, 3, 6, 6),))
    sound(result)
    assert sum(join.residual for join in result.plan.joins) == 2


def test_a_value_that_would_be_computed_from_itself_is_told() -> None:
    graph = fx.Graph()
    x = graph.placeholder("x")
    a = graph.call_function(torch.relu, (x,))
    b = graph.call_function(torch.relu, (a,))
    graph.output(b)
    a.args = (b,)
    with pytest.raises(ValueError, match="computed from itself"):
        resort(graph)


# ---------------------------------------------------------------------------------------------------------------------


def test_a_forward_unrolled_for_its_inputs_is_loaded_with_their_sizes(tmp_path: Path) -> None:
    source = """
        import torch
        from torch import nn

        class Steps(nn.Module):
            def __init__(self):
                super().__init__()
                self.inputs, self.cell, self.out = nn.Linear(3, 8), nn.Linear(8, 8), nn.Linear(8, 4)

            def forward(self, x):
                x = self.inputs(x)
                state = torch.zeros_like(x[:, 0])
                for t in range(x.size(1)):
                    state = state + self.cell(x[:, t])
                return self.out(state)
    """
    file = tmp_path / "steps.py"
    file.write_text(dedent(source))
    x = ramp(2, 5, 3)
    result = zc.convert(f"{file}:Steps", (x,), validate="none")
    result.save(tmp_path / "steps.safetensors")
    loaded = zc.load(tmp_path / "steps.safetensors", trust=True)
    assert torch.equal(loaded(x), result.module(x))


# ---------------------------------------------------------------------------------------------------------------------


class Folded(nn.Module):
    """Folds the sequence by lengths that its own values decide, and asks one part about each folding."""

    def __init__(self) -> None:
        super().__init__()
        self.part = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.GELU(), nn.Conv2d(8, 4, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        strongest = x.abs().mean((0, 1)).topk(1)[1].numpy()
        sums = x
        for length in (2, 4 if int(strongest[0]) >= 0 else 3):
            sums = sums + self.part(x.unflatten(2, (-1, length))).flatten(2)
        return sums


class Folding(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inputs, self.block, self.out = nn.Conv1d(2, 4, 1), Folded(), nn.Conv1d(4, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.block(self.inputs(x)))


@pytest.mark.parametrize("scheme", ["zero-2021", "zero-2022"])
def test_a_part_that_is_called_with_several_sizes_is_captured(scheme: str) -> None:
    result = zc.convert(Folding(), (ramp(2, 2, 8),), scheme=scheme)
    sound(result)
    assert result.plan.capture == "regions"
    assert result.plan.captured > 0.9
    assert sum(join.residual for join in result.plan.joins) == 2


# ---------------------------------------------------------------------------------------------------------------------


class Like(nn.Module):
    """The branch takes shape and type from the shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.inputs, self.inner, self.outer, self.out = (nn.Linear(*n) for n in ((3, 8), (8, 16), (16, 8), (8, 2)))

    def forward(self, x: Tensor) -> Tensor:
        x = self.inputs(x)
        branch = self.outer(F.gelu(self.inner(x.flatten(0, 1))))
        return self.out(x + branch.view_as(x).type_as(x))


@pytest.mark.parametrize("scheme", ["zero-2021", "zero-2022"])
def test_a_branch_with_the_shape_and_type_of_the_shortcut_is_one(scheme: str) -> None:
    result = zc.convert(Like(), (ramp(2, 5, 3),), scheme=scheme)
    sound(result)
    assert [join.branch for join in result.plan.joins if join.residual] == [("inner", "outer")]


class Recurrence(nn.Module):
    """Gates from a raw tensor that is multiplied with the state of the step before."""

    def __init__(self) -> None:
        super().__init__()
        self.inputs, self.recurrent, self.out = nn.Linear(3, 16), nn.Parameter(torch.randn(2, 8, 8)), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        given = self.inputs(x).unflatten(2, (2, 8))
        state = torch.zeros_like(given[:, 0, 0])
        for t in range(x.shape[1]):
            new, gate = (given[:, t] + torch.einsum("bd,gde->bge", state, self.recurrent)).unbind(1)
            state = state + torch.sigmoid(gate) * torch.tanh(new)
        return self.out(state)


@pytest.mark.parametrize("scheme", ["zero-2021", "zero-2022"])
def test_a_recurrence_with_a_raw_weight_promises_no_zero(scheme: str) -> None:
    sound(zc.convert(Recurrence(), (ramp(2, 4, 3),), scheme=scheme))


# ---------------------------------------------------------------------------------------------------------------------


class Product(nn.Module):
    """Two towers whose outputs are multiplied with each other."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = (nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 4)) for _ in range(2))

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return torch.einsum("id,jd->ij", self.left(a), self.right(b))


@pytest.mark.parametrize("scheme", ["zero-2021", "zero-2022"])
def test_of_two_heads_that_are_multiplied_one_is_no_zero(scheme: str) -> None:
    sound(zc.convert(Product(), (ramp(4, 3), ramp(5, 3)), scheme=scheme))


# ---------------------------------------------------------------------------------------------------------------------


class Projection(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.linear(x))


class Reader(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query, self.memory = Projection(), Projection()

    def forward(self, state: Tensor, memory: Tensor) -> Tensor:
        return (memory + self.query(state)[:, None]).mean(1)


class Reading(nn.Module):
    """Calls a part of another part once, and the part itself as often as a value says."""

    def __init__(self) -> None:
        super().__init__()
        self.reader, self.out = Reader(), nn.Linear(4, 3)

    def forward(self, x: Tensor, steps: Tensor) -> Tensor:
        memory, state = self.reader.memory(x), x[:, 0]
        for _ in range(int(steps.max())):
            state = self.reader(state, memory)
        return self.out(state)


@pytest.mark.parametrize("scheme", ["zero-2021", "zero-2022"])
def test_a_part_of_which_others_call_a_part_keeps_its_forward(scheme: str) -> None:
    result = zc.convert(Reading(), (ramp(2, 5, 4), torch.tensor([2, 3])), scheme=scheme)
    assert result.plan.capture == "regions"
    assert result.module(ramp(2, 5, 4), torch.tensor([1])).shape == (2, 3)
