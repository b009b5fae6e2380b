"""Values that a constructor drew from Python's or numpy's generators, which no NaN marks.

These generators are seeded while a model is built. Built once more with another seed, the model shows what follows the
draw: whatever differs. It is marked as drawn then, as torch's own random values are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from zero_convert.graph import unregistered
from zero_convert.graph.fixed import is_set
from zero_convert.runtime.patches import replaced

STEP = 1_000_003  # between the seeds of two constructions


class Notes(Protocol):
    """What takes notes of a construction."""

    seeded: bool

    def note(self, text: str) -> None: ...


@contextmanager
def numpy_generators(fill: Notes, shift: int) -> Iterator[None]:
    """`numpy.random.default_rng` gives generators of which a note is taken: of seed 0 where none is given.

    Args:
        shift: is added to every seed.
    """

    def make(original: Any) -> Callable[..., Any]:
        def default_rng(seed: Any = None) -> Any:
            fill.seeded = True
            fill.note("the constructor draws from a generator of numpy (default_rng)")
            plain = seed is None or isinstance(seed, (int, np.integer))
            return original((seed or 0) + shift) if plain else original(seed)

        return default_rng

    with replaced(np.random, "default_rng", make):
        yield


def holds_values(module: nn.Module) -> bool:
    """Whether the constructor set values that are not all the same, where nothing is to be trained."""
    held = (t for t in _tensors(module).values() if t.is_floating_point() and is_set(t))
    trained = {p.data_ptr() for p in module.parameters() if p.requires_grad}
    return any(bool((t != t.flatten()[0]).any()) for t in held if t.data_ptr() not in trained)


def mark_drawn(module: nn.Module, twin: nn.Module) -> tuple[str, ...] | None:
    """Floating tensors that differ between two constructions become NaN; the names of the others that do.

    None where the two cannot be compared, since the architecture follows the draw, or the second is the first.
    """
    own, other = _tensors(module), _tensors(twin)
    if own.keys() != other.keys() or any(own[n].shape != other[n].shape for n in own):
        return None
    if any(own[n] is other[n] for n in own):
        return None
    drawn = [n for n in own if not torch.equal(_bits(own[n]), _bits(other[n]))]
    with torch.no_grad():
        for name in drawn:
            if own[name].is_floating_point() or own[name].is_complex():
                own[name].fill_(torch.nan)
    return tuple(n for n in drawn if not (own[n].is_floating_point() or own[n].is_complex()))


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    outside = {each.name: each.tensor for each in unregistered.find(module)}
    known = {**dict(module.named_parameters()), **dict(module.named_buffers()), **outside}
    return {
        name: t.detach()
        for name, t in known.items()
        if t.layout is torch.strided and not t.is_meta and not nn.parameter.is_lazy(t) and not t.is_quantized
    }


def _bits(value: Tensor) -> Tensor:
    """The value with 0 for NaN, which torch's random numbers are in both."""
    if value.element_size() == 1 and value.is_floating_point():
        value = value.float()
    return torch.nan_to_num(value) if value.is_floating_point() else value
