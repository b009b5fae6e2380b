"""Random generators that a forward may draw from, torch's, Python's and numpy's: their states. No number is drawn."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

SEED = 20211021  # any constant does

States = tuple[Any, ...]


def states(device: str = "cpu") -> States:
    """The states of torch's generators for the CPU and the device, and of Python's and numpy's."""
    own: torch.Tensor | None = None
    if device.startswith("cuda"):
        own = torch.cuda.get_rng_state(torch.device(device))
    elif device == "mps":
        own = torch.mps.get_rng_state()
    return torch.get_rng_state(), own, random.getstate(), np.random.get_state()


def restore(before: States, device: str = "cpu") -> None:
    """Gives the generators the states that `states` told of."""
    torch.set_rng_state(before[0])
    if device.startswith("cuda"):
        torch.cuda.set_rng_state(before[1], torch.device(device))
    elif device == "mps":
        torch.mps.set_rng_state(before[1])
    random.setstate(before[2])
    np.random.set_state(before[3])


def seed(device: str = "cpu") -> None:
    """The same start for every run of a module that draws numbers.

    Only the generators that a forward on the device can draw from: `torch.manual_seed` would reach all devices.
    """
    torch.default_generator.manual_seed(SEED)
    random.seed(SEED)
    np.random.seed(SEED)
    if device.startswith("cuda"):
        torch.cuda.init()  # type: ignore[no-untyped-call]
        torch.cuda.default_generators[torch.device(device).index or 0].manual_seed(SEED)
    elif device == "mps":
        torch.mps.manual_seed(SEED)


def drew(before: States, after: States) -> bool:
    """Whether a random number was drawn between two `states`."""
    tensors = zip(before[:2], after[:2], strict=True)
    return (
        any(a is not None and not torch.equal(a, b) for a, b in tensors)
        or before[2] != after[2]
        or before[3][2] != after[3][2]
        or not np.array_equal(before[3][1], after[3][1])
    )


@contextmanager
def seeded() -> Iterator[None]:
    """Inside: the generators of the CPU begin anew; afterwards they go on where they were."""
    before = states()
    seed()
    try:
        yield
    finally:
        restore(before)
