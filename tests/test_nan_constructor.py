"""Nothing random slips through NaN-filled construction, and nothing else is touched."""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.init import trunc_normal_  # bound before any test: the quick replacement does not reach this name

from zero_convert import sources
from zero_convert.errors import LoadError
from zero_convert.sources import torchvision as zoo
from zero_convert.sources.building import nan_constructor as room
from zero_convert.sources.building.nan_constructor import nan_filled, nan_filled_names, skeleton

FAMILIES = [
    "resnet18",
    "regnet_y_400mf",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "efficientnet_b0",
    "convnext_tiny",
    "densenet121",
    "mnasnet0_5",
    "shufflenet_v2_x0_5",
    "googlenet",
    "squeezenet1_1",
    "swin_t",
]


def tensors(module: nn.Module) -> dict[str, Tensor]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


@pytest.mark.parametrize("name", FAMILIES)
def test_nan_marks_exactly_what_two_seeds_draw_differently(name: str) -> None:
    module = sources.load(f"torchvision:{name}").module
    with torch.random.fork_rng():
        torch.manual_seed(0)
        one = tensors(zoo.build(name, {}))
        torch.manual_seed(1)
        other = tensors(zoo.build(name, {}))
    drawn = {key for key in one if not torch.equal(one[key], other[key])}
    assert nan_filled_names(module) == drawn
    assert all(torch.equal(value, one[key]) for key, value in tensors(module).items() if key not in drawn)


FILLS: dict[str, Callable[[], Tensor]] = {
    "uniform_": lambda: torch.zeros(3, 4).uniform_(),
    "normal_": lambda: torch.zeros(3, 4).normal_(),
    "exponential_": lambda: torch.zeros(3, 4).exponential_(),
    "cauchy_": lambda: torch.zeros(3, 4).cauchy_(),
    "log_normal_": lambda: torch.zeros(3, 4).log_normal_(),
    "geometric_": lambda: torch.zeros(3, 4).geometric_(0.5),
    "random_": lambda: torch.zeros(3, 4).random_(2, 9),
    "bernoulli_": lambda: torch.zeros(3, 4).bernoulli_(0.5),
    "bernoulli": lambda: torch.bernoulli(torch.full((3, 4), 0.5)),
    "bernoulli of NaN": lambda: torch.bernoulli(torch.rand(3, 4)),
    "poisson": lambda: torch.poisson(torch.ones(3, 4)),
    "binomial": lambda: torch.binomial(torch.ones(3, 4), torch.full((3, 4), 0.5)),
    "rand": lambda: torch.rand(3, 4),
    "rand with a generator": lambda: torch.rand(3, 4, generator=torch.Generator()),
    "rand_like": lambda: torch.rand_like(torch.zeros(3, 4)),
    "randn": lambda: torch.randn(3, 4, dtype=torch.bfloat16),
    "randn_like": lambda: torch.randn_like(torch.zeros(3, 4, dtype=torch.float64)),
    "randn out": lambda: torch.randn(3, 4, out=torch.zeros(3, 4)),
    "complex": lambda: torch.randn(3, 4, dtype=torch.complex64),
    "randint as float": lambda: torch.randint(0, 9, (3, 4)).float(),
    "normal": lambda: torch.normal(0.0, 1.0, (3, 4)),
    "normal of tensors": lambda: torch.normal(torch.zeros(3, 1), torch.ones(4)),
    "dropout": lambda: nn.functional.dropout(torch.ones(3, 4), 0.5),
    "empty": lambda: torch.empty(3, 4),
    "empty_like": lambda: torch.empty_like(torch.ones(3, 4)),
    "new_empty": lambda: torch.ones(1).new_empty(3, 4),
    "legacy constructor": lambda: torch.Tensor(3, 4),
    "xavier_normal_": lambda: nn.init.xavier_normal_(torch.zeros(3, 4)),
    "kaiming_uniform_": lambda: nn.init.kaiming_uniform_(torch.zeros(3, 4)),
    "trunc_normal_": lambda: nn.init.trunc_normal_(torch.zeros(3, 4)),
    "trunc_normal_ imported earlier": lambda: trunc_normal_(torch.zeros(3, 4)),
    "orthogonal_": lambda: nn.init.orthogonal_(torch.zeros(3, 4)),
    "sparse_": lambda: nn.init.sparse_(torch.zeros(3, 4), 0.5),
    "scaled": lambda: 0.02 * torch.randn(3, 4) + 1,
}


@pytest.mark.parametrize("fill", FILLS.values(), ids=FILLS.keys())
def test_every_random_fill_is_nan_all_over(fill: Callable[[], Tensor]) -> None:
    with nan_filled():
        made = fill()
    assert made.shape == (3, 4)
    assert bool(made.isnan().all())


@pytest.mark.parametrize("name", ["trunc_normal_", "orthogonal_", "sparse_"])
def test_the_quick_initializers_are_for_speed_only(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "_quick_inits", contextlib.nullcontext)
    extra = (0.5,) if name == "sparse_" else ()
    with nan_filled():
        made = getattr(nn.init, name)(torch.zeros(6, 4), *extra)
    assert bool(made.isnan().all())


def test_constants_keep_their_values() -> None:
    with nan_filled() as fill:
        made = [
            nn.init.ones_(torch.empty(2, 3)),
            nn.init.eye_(torch.empty(2, 3)),
            nn.init.dirac_(torch.empty(2, 3, 1)),
            torch.linspace(0, 1, 5),
            torch.linalg.qr(torch.eye(3))[0].abs(),
            nn.functional.dropout(torch.ones(3), 0.5, training=False),
        ]
        index = torch.arange(6).view(2, 3).t().contiguous()
    assert not any(t.isnan().any() for t in made)
    assert torch.equal(made[1], torch.tensor([[1.0, 0, 0], [0, 1, 0]]))
    assert torch.equal(made[4], torch.eye(3))
    assert torch.equal(index, torch.tensor([[0, 3], [1, 4], [2, 5]]))
    assert fill.notes == []


class DrawnIntegers(nn.Module):
    """Buffers a constructor may draw; NaN fits into none of them."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("fixed", torch.arange(4))
        self.register_buffer("order", torch.randperm(4))
        self.register_buffer("part", torch.randperm(8)[2:6].sort().values)
        self.register_buffer("pick", torch.randint(3, 9, (4,)) + 1)
        self.register_buffer("mask", torch.rand(4) < 0.5)
        self.register_buffer("whole", (torch.randn(4) * 9).long())
        self.register_buffer("written", torch.zeros(4, dtype=torch.long).random_(10))
        self.register_buffer("mixed", torch.ones(4)[torch.randperm(4)])
        pruned = torch.ones(4)
        pruned[torch.randint(0, 4, (1,))] = 0
        self.register_buffer("pruned", pruned)


def test_drawn_integers_are_fixed_and_found_by_name() -> None:
    with nan_filled() as fill:
        module, twin = DrawnIntegers(), DrawnIntegers()
    assert fill.drawn_names(module) == ("mask", "order", "part", "pick", "whole", "written")
    assert nan_filled_names(module) == {"mixed", "pruned"}
    assert torch.equal(module.get_buffer("order"), torch.arange(4))
    assert torch.equal(module.get_buffer("pick"), torch.full((4,), 4))
    assert all(torch.equal(t, twin.get_buffer(n)) for n, t in module.named_buffers() if not t.is_floating_point())
    assert len(fill.notes) == 1
    assert "random integers" in fill.notes[0]


def test_all_generators_are_where_they_were() -> None:
    def states() -> tuple[object, ...]:
        return torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()

    before = states()
    with nan_filled():
        torch.manual_seed(7)
        nn.Linear(3, 3)
        random.random()
        np.random.rand(3)
    assert states() == before
    with contextlib.suppress(ZeroDivisionError), nan_filled():
        np.random.rand(3)
        _ = 1 / 0
    assert states() == before


def test_other_generators_repeat_themselves_and_are_noted() -> None:
    values = []
    for _ in range(2):
        with nan_filled() as fill:
            values.append((random.random(), float(np.random.rand())))
        assert len(fill.notes) == 2
        random.random()
    assert values[0] == values[1]


def test_a_random_number_read_into_python_is_noted() -> None:
    with nan_filled() as fill:
        assert not torch.rand(1).item() < 0.5
        assert torch.full((1,), 0.25).item() == 0.25
    assert fill.notes == [
        "the constructor reads a random number into Python; it saw NaN, or a fixed value for an integer"
    ]


def test_redrawing_until_a_condition_holds_ends_with_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "MAX_READS", 50)

    def redraw() -> None:
        while not (torch.randn(4).abs() < 2).all():
            pass

    with nan_filled(), pytest.raises(LoadError, match="until they satisfy a condition"):
        redraw()


def test_factorizations_of_NaN_neither_raise_nor_pass_for_constants() -> None:
    with nan_filled():
        module = nn.Module()
        module.orthogonal = nn.utils.parametrizations.orthogonal(nn.Linear(4, 4))
        module.spectral = nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4))
        u, s, v = torch.linalg.svd(torch.randn(4, 3), full_matrices=False)
        inverse = torch.linalg.inv(torch.randn(4, 4))
    assert [t.shape for t in (u, s, v)] == [(4, 3), (3,), (3, 3)]
    assert all(bool(t.isnan().all()) for t in (u, s, v, inverse))
    assert "spectral.parametrizations.weight.original" in nan_filled_names(module)


def test_code_imported_meanwhile_draws_again_afterwards() -> None:
    with nan_filled():
        from torch.nn.init import trunc_normal_ as kept
    assert nn.init.trunc_normal_ is trunc_normal_
    made = kept(torch.zeros(300), mean=5.0, a=4.0, b=6.0)
    assert 4 <= made.min() < made.max() <= 6


def test_one_nan_anywhere_is_found_and_infinities_are_not_nan() -> None:
    module = nn.Module()
    for name, values in {
        "middle": torch.ones(1000).index_fill(0, torch.tensor([500]), torch.nan),
        "first": torch.ones(2, 2, dtype=torch.bfloat16).index_fill(0, torch.tensor([0]), torch.nan),
        "infinities": torch.tensor([torch.inf, -torch.inf]),
        "complex": torch.full((2,), complex(0, torch.nan)),
        "eight": torch.full((3,), torch.nan).to(torch.float8_e4m3fn),
        "nothing": torch.ones(0, 3),
        "index": torch.arange(3),
    }.items():
        module.register_buffer(name, values, persistent=name != "middle")
    assert nan_filled_names(module) == {"middle", "first", "complex", "eight"}


def test_a_skeleton_has_the_structure_and_the_index_tables() -> None:
    with skeleton():
        module = zoo.build("swin_t", {})
    whole = sources.load("swin_t").module
    assert [(n, t.shape, t.dtype) for n, t in tensors(module).items()] == [
        (n, t.shape, t.dtype) for n, t in tensors(whole).items()
    ]
    key = "features.1.0.attn.relative_position_index"
    assert torch.equal(module.get_buffer(key), whole.get_buffer(key))


def test_NaN_filled_construction_is_no_slower_than_drawing() -> None:
    def seconds(build: Callable[[], object]) -> float:
        start = time.perf_counter()
        build()
        return time.perf_counter() - start

    def build() -> None:
        with nan_filled():
            zoo.build("resnet50", {})

    zoo.build("resnet18", {})  # imports are not what is compared
    pairs = [(seconds(build), seconds(lambda: zoo.build("resnet50", {}))) for _ in range(3)]
    assert min(p for p, _ in pairs) <= min(d for _, d in pairs)
