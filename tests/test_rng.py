"""Numbers that are drawn inside a block: those of its seed, whoever draws, and no default generator moves."""

from __future__ import annotations

import copy
import pickle
import random
from collections.abc import Callable
from functools import partial
from random import random as held
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from zero_convert.graph.copies import copy_of
from zero_convert.runtime import rng

DRAWS: dict[str, Callable[[], Any]] = {
    "dropout": lambda: nn.functional.dropout(torch.ones(50)),
    "dropout of a recurrent layer": partial(nn.LSTM(4, 4, num_layers=2, dropout=0.5), torch.ones(3, 1, 4)),
    "dropout of an attention": lambda: nn.functional.scaled_dot_product_attention(
        *[torch.ones(1, 2, 4, 8)] * 3, dropout_p=0.5
    ),
    "native_dropout": lambda: torch.native_dropout(torch.ones(50), 0.5, True),
    "rrelu": lambda: nn.functional.rrelu(-torch.ones(9), training=True),
    "alpha_dropout": lambda: nn.functional.alpha_dropout(torch.ones(9), training=True),
    "gumbel_softmax": lambda: nn.functional.gumbel_softmax(torch.ones(4)),
    "fractional_max_pool": lambda: nn.functional.fractional_max_pool2d(
        torch.arange(81.0).reshape(1, 1, 9, 9), 2, output_size=3
    ),
    "rand": lambda: torch.rand(3),
    "rand out": lambda: torch.rand(3, out=torch.zeros(3)),
    "randn_like": lambda: torch.randn_like(torch.ones(3)),
    "randint": lambda: torch.randint(0, 99, (5,)),
    "randint_like": lambda: torch.randint_like(torch.ones(5), 99),
    "randperm": lambda: torch.randperm(20),
    "multinomial": lambda: torch.multinomial(torch.ones(9), 3),
    "poisson": lambda: torch.poisson(torch.ones(9) * 5),
    "binomial": lambda: torch.binomial(torch.ones(9) * 5, torch.full((9,), 0.5)),
    "normal": lambda: torch.normal(torch.zeros(3), torch.ones(3)),
    "normal of numbers": lambda: torch.normal(0.0, 1.0, (3,)),
    "beta": lambda: torch.distributions.Beta(1.0, 2.0).sample((3,)),
    **{name: partial(lambda name: getattr(torch.zeros(5), name)(), name) for name in ("exponential_", "cauchy_")},
    "bernoulli_": lambda: torch.zeros(9).bernoulli_(0.5),
    "trunc_normal_": lambda: nn.init.trunc_normal_(torch.zeros(9)),
    "the default generator, named": lambda: torch.rand(3, generator=torch.default_generator),
    "manual_seed": lambda: (torch.manual_seed(3), torch.rand(2))[1],
    "random": lambda: random.random(),
    "random, held by a module": lambda: held(),
    "gauss": lambda: random.gauss(0, 1),
    "random.seed": lambda: (random.seed(3), random.random())[1],
    "numpy": lambda: np.random.rand(),
    "numpy.permutation": lambda: np.random.permutation(9),
    "numpy.ranf": lambda: np.random.ranf(),
    "numpy.seed": lambda: (np.random.seed(1), np.random.rand())[1],
}


def plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(plain, value))
    return value.tolist() if isinstance(value, Tensor | np.ndarray) else value


@pytest.mark.parametrize("name", DRAWS)
def test_numbers_of_a_block_are_those_of_its_seed_and_no_default_generator_moves(name: str) -> None:
    draw, before = DRAWS[name], rng.states()
    with rng.seeded(7):
        begin = rng.states()
        first = plain(draw())
        assert rng.states().changed(begin)
        rng.seed(7)
        assert plain(draw()) == first
        with rng.seeded(8):
            assert name.endswith("seed") or plain(draw()) != first
    assert not rng.states().changed(before)
    for seed in (torch.manual_seed, random.seed, np.random.seed):
        seed(7)
    assert plain(draw()) == first, "the numbers that the default generators give after that seed"


def test_a_copied_network_draws_from_the_threads_generators_while_there_are_some() -> None:
    net = nn.Module()
    net.draw, net.part, number = random.random, [partial(random.uniform, 1, 2)], random.random
    net.closure = lambda: number()
    twin = copy_of(net)
    before = rng.states()
    with rng.seeded():
        twin.draw(), twin.part[0](), twin.closure()
    assert not rng.states().changed(before)
    for other in (twin, copy.deepcopy(twin)):
        random.seed(4)
        drawn = other.draw(), other.part[0](), other.closure()
        random.seed(4)
        assert drawn == (random.random(), random.uniform(1, 2), random.random())
    assert 0 <= pickle.loads(pickle.dumps(twin.draw))() < 1
