"""Tracing: both modes, leaves for what cannot be followed, and nothing changed in the module."""

from __future__ import annotations

import math
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from zero_convert.errors import TraceError
from zero_convert.graph.kinds import kept_whole
from zero_convert.structure import analyze
from zero_convert.tracing import trace
from zero_convert.tracing.recorder import Recorder
from zero_convert.tracing.regions import record_real

from .nets import FailingForward, tiny_resnet
from .odd_nets import ODD, Counting, DropPath, Residual, WithLeaf, ramp

IMAGE = ramp(2, 3, 8, 8)


class TwoFaces(nn.Module):
    """Dropout as a function and an auxiliary head, both in training only."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn, self.aux, self.head = (
            nn.Conv2d(3, 4, 3),
            nn.BatchNorm2d(4),
            nn.Linear(4, 2),
            nn.Linear(4, 5),
        )

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        x = F.dropout(self.bn(self.stem(x)), 0.5, self.training).mean((2, 3))
        return (self.head(x), self.aux(x)) if self.training else self.head(x)


class Optional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 2)

    def forward(self, x: Tensor, mask: Tensor | None = None, twice: bool = False, *, shift: float = 1.0) -> Tensor:
        x = x * 2 if twice else x
        x = x if mask is None else x * mask
        return self.fc(x) + shift


class DecidingItself(nn.Module):
    """Control flow on what its own parameters made."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = Residual(nn.Sequential(nn.Linear(4, 4))), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x)
        return self.head(x) if bool(x.detach().sum() > -1e9) else x


class SizeDependent(nn.Module):
    """Loops, tests and reshapes by sizes; makes tensors of sizes, on the input's device and of its dtype."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        if c % 2:
            raise ValueError("odd")
        h = math.ceil(c / 2)
        mask = torch.ones(b, n, dtype=x.dtype, device=x.device)
        x = x + self.fc(x) * mask[..., None]
        x = x.reshape(b * n, 2, h).transpose(1, 2)
        out = torch.zeros(b * n, h, 2)
        out[:] = x
        with torch.no_grad():
            scale = len(x.shape) / float(h)
        return out.view(b, n, -1) * scale


class Assigning(nn.Module):
    """Puts a new tensor in the place of a buffer, and a note on itself."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.register_buffer("mean", torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:
        self.mean = 0.9 * self.mean + 0.1 * x.mean(0)
        self.last = x
        return self.fc(x - self.mean)


class Variadic(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 2)

    def forward(self, first: Tensor, *rest: Tensor) -> Tensor:
        return self.fc(first) + sum(self.fc(x) for x in rest)


class Counter(nn.Module):
    """Branches on values and counts its calls, in evaluation as well."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        if bool(x.detach().sum() < -1e9):
            return x
        self.calls += 1
        return self.linear(x)


def run(graph: fx.Graph, module: nn.Module, *inputs: Tensor) -> object:
    return fx.Interpreter(module, graph=graph).run(*inputs)


def calls(graph: fx.Graph) -> list[str]:
    return [str(node.target) for node in graph.nodes if node.op == "call_module"]


def test_each_mode_has_its_own_graph_where_they_differ() -> None:
    traced = trace(TwoFaces(), (IMAGE,))
    assert len(traced.graphs) == 2
    assert "aux" in calls(traced.train)
    assert "aux" not in calls(traced.evaluate)
    [drop] = [node for node in traced.train.nodes if node.target is F.dropout]
    assert drop.kwargs["training"] is True
    assert next(n for n in traced.train.nodes if n.op == "output").meta["outputs"] == (
        ((2, 5), "float32"),
        ((2, 2), "float32"),
    )


def test_one_graph_serves_both_modes_where_only_modules_differ() -> None:
    traced = trace(tiny_resnet(), (IMAGE,))
    assert traced.train is traced.evaluate


@pytest.mark.parametrize("name", ["two_inputs", "dict_output", "vit", "unet", "inplace", "drop_path", "odd_names"])
def test_the_graph_computes_what_the_module_computes(name: str) -> None:
    module, inputs = ODD[name].build().eval(), ODD[name].inputs()
    traced = trace(module, inputs)
    expected, found = module(*inputs), run(traced.evaluate, module, *inputs)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_every_value_knows_its_shape() -> None:
    traced = trace(tiny_resnet(), (IMAGE,))
    shapes = {node.name: node.meta["shape"] for node in traced.train.nodes}
    assert shapes["x"] == (2, 3, 8, 8)
    assert shapes["blocks_1_conv1"] == (2, 16, 4, 4)
    assert shapes["linear"] == (2, 10)


def test_optional_arguments_take_their_defaults() -> None:
    module = Optional()
    traced = trace(module, (ramp(2, 3),))
    assert [n.target for n in traced.train.nodes if n.op == "placeholder"] == ["x"]
    assert torch.equal(run(traced.train, module, ramp(2, 3)), module(ramp(2, 3)))


def test_a_part_that_replaces_a_buffer_is_kept_whole_and_left_as_it_was() -> None:
    module = nn.Sequential(nn.Linear(4, 4), Assigning(), nn.Linear(4, 2))
    traced = trace(module, (ramp(3, 4),))
    assert traced.opaque == ("1",)
    assert not hasattr(module[1], "last") and torch.equal(module[1].mean, torch.zeros(4))
    run(traced.train, module, ramp(3, 4))
    assert module[1].mean.any(), "the part still does what it does"


def test_a_size_out_of_a_cache_is_a_plain_number_in_the_next_graph() -> None:
    sizes: list[int] = []

    class Remembers(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            sizes.append(x.shape[0] * 1)
            return (x if sizes[0] > 1 else -x).reshape(sizes[0] * x.shape[1], -1)

    module = nn.Sequential(Remembers(), nn.Linear(3, 2))
    for _ in range(2):
        graph = Recorder(module, (), kept_whole).record((ramp(2, 4, 3),), {}, ["x"])
        graph.lint()
        assert run(graph, module, ramp(2, 4, 3)).shape == (8, 2)  # type: ignore[attr-defined]


def test_what_a_hook_collects_is_seen() -> None:
    class Collects(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.seen = nn.Linear(4, 4), []
            self.inner.register_forward_hook(lambda part, args, returned: self.seen.append(returned))

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x) + self.seen[-1]

    module = Collects()
    traced = trace(module, (ramp(3, 4),))
    assert traced.capture == "values" and module.seen == []
    assert torch.equal(run(traced.train, module, ramp(3, 4)), 2 * module.inner(ramp(3, 4)))


def test_variable_arguments_are_counted_by_the_example() -> None:
    module = Variadic()
    traced = trace(module, (ramp(2, 3), ramp(2, 3) + 1, ramp(2, 3) + 2))
    assert sum(n.op == "placeholder" for n in traced.train.nodes) == 3


def test_a_submodule_that_branches_on_values_becomes_a_leaf_and_costs_its_neighbours_nothing() -> None:
    module = WithLeaf()
    traced = trace(module, (IMAGE,))
    assert traced.capture == "values+leaf"
    assert traced.opaque == ("odd",)
    symbols, line = traced.failed
    assert symbols.startswith("fx: ") and line.startswith("odd kept whole")
    assert "odd_nets.py:" in line
    assert [join.branch for join in analyze(traced).joins] == [("block.branch.0", "block.branch.2")]
    assert next(n for n in traced.train.nodes if n.target == "fc").meta["shape"] == (2, 5)
    assert torch.equal(run(traced.evaluate, module.eval(), IMAGE), module(IMAGE))


def test_only_the_innermost_module_becomes_a_leaf() -> None:
    net = nn.Sequential(nn.Linear(4, 4), Residual(nn.Sequential(nn.Linear(4, 4), Counting(4))))
    assert trace(net, (ramp(2, 4),)).opaque == ("1.branch.1",)


def test_a_forward_that_fails_is_named_by_file_and_line() -> None:
    with pytest.raises(TraceError, match=r"this forward always fails") as caught:
        trace(FailingForward(), (IMAGE,))
    assert "nets.py:" in caught.value.where
    assert caught.value.exit_code == 3


def test_inputs_that_do_not_fit_are_named_by_file_line_and_shape() -> None:
    with pytest.raises(TraceError, match=r"example input") as caught:
        trace(ODD["vit"].build(), (ramp(2, 3, 12, 12),))
    assert "odd_nets.py:" in caught.value.where
    assert "2×3×12×12" in caught.value.expected


def test_a_model_that_asks_for_values_keeps_its_python_and_is_recorded() -> None:
    module = DecidingItself()
    traced = trace(module, (ramp(2, 4),))
    assert (traced.capture, traced.whole) == ("regions", False)
    assert [region.path for region in traced.regions] == ["body"]
    [join] = analyze(traced).joins
    assert join.branch == ("body.branch.0",)
    assert torch.equal(run(traced.evaluate, module.eval(), ramp(2, 4)), module(ramp(2, 4)))


def test_a_decision_that_only_the_inputs_make_is_followed_and_told() -> None:
    traced = trace(Counting(4), (ramp(2, 4),))
    assert traced.capture == "values"
    assert traced.decisions == ("in the model: True for the example inputs",)


def test_sizes_stay_free_where_control_flow_depends_on_them() -> None:
    module = SizeDependent()
    traced = trace(module, (ramp(2, 3, 8),))
    assert traced.capture == "values"
    for shape in ((5, 3, 8), (1, 7, 8), (3, 2, 8)):
        assert torch.equal(run(traced.train, module, ramp(*shape)), module(ramp(*shape)))


@pytest.mark.parametrize("build", [TwoFaces, WithLeaf, tiny_resnet, lambda: nn.Sequential(DropPath(0.5), Counter())])
def test_the_module_is_left_as_it_was(build: object) -> None:
    module: nn.Module = build()  # type: ignore[operator]
    for index, part in enumerate(module.modules()):
        part.training = index % 3 != 0
    modes = [part.training for part in module.modules()]
    before = {name: value.clone() for name, value in module.state_dict().items()}
    names = [name for name, _ in module.named_modules()]
    torch.manual_seed(3)
    state = torch.get_rng_state()
    x = IMAGE.clone()
    trace(module, (x,))
    assert [part.training for part in module.modules()] == modes
    assert [name for name, _ in module.named_modules()] == names
    after = module.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(p.grad is None for p in module.parameters())
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(x, IMAGE)


def test_modes_are_restored_after_a_failure() -> None:
    module = FailingForward().eval()
    with pytest.raises(TraceError):
        trace(module, (IMAGE,))
    assert not any(part.training for part in module.modules())


ALIVE: list[weakref.ref[Tensor]] = []


class ManySteps(nn.Module):
    """Notes the values on its way."""

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(20):
            x = torch.stack([x, x + 1]).split(1)[1][0]
            ALIVE.append(weakref.ref(x))
        return x + sum(ref() is not None for ref in ALIVE)


def test_a_recording_of_a_real_forward_holds_no_values_that_the_forward_dropped() -> None:
    ALIVE.clear()
    graph = record_real(ManySteps(), (torch.zeros(2, 3),), training=False)[0]
    assert sum(node.op == "call_function" and node.target is torch.stack for node in graph.nodes) == 20
    last = next(node for node in reversed(graph.nodes) if node.op == "output").args[0]
    assert last.args[1] <= 2, "values alive at the end of the forward"
