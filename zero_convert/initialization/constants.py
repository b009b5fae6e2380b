"""Which values may stay as they are: constants and progressions, which no generator draws."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import nn

from zero_convert.errors import CoverageError
from zero_convert.graph.fixed import frozen_names, mark
from zero_convert.graph.state import stored_tensors
from zero_convert.records import Assignment, Tensor
from zero_convert.runtime.threads import one_thread

from .scheme import AsConstructed

MONOTONE = 8  # values in order: one draw in 20,000 is


def is_constant(value: torch.Tensor, tensor: Tensor, trusted: bool) -> bool:
    """Whether a tensor may stay as it is.

    A trainable one with different values may come from a generator that nobody saw, such as NumPy's: the user has to
    ask for it.
    """
    if not (value.is_floating_point() or value.is_complex()) or value.numel() == 0:
        return True
    value = value.detach().float() if value.element_size() == 1 else value.detach()  # 8-bit floats have no arithmetic
    if _has_nan(value):
        return False
    return trusted or not tensor.trainable or bool((value == value.reshape(-1)[0]).all()) or _is_progression(value)


def _is_progression(value: torch.Tensor) -> bool:
    """Whether a real tensor varies along one axis only, steadily: a formula, such as a state space's log(1 … n).

    A few values that do not stand there several times could be in order by chance.
    """
    if value.is_complex():
        return False
    axes = [i for i in range(value.ndim) if not bool((value == value.narrow(i, 0, 1)).all())]
    if len(axes) != 1 or (value.numel() == value.shape[axes[0]] < MONOTONE):
        return False
    steps = value.movedim(axes[0], 0).reshape(value.shape[axes[0]], -1)[:, 0].diff()
    return bool((steps > 0).all()) or bool((steps < 0).all())


def unverified_buffers(root: nn.Module, assignments: Iterable[Assignment]) -> list[str]:
    """Names of the buffers that keep varied values without a formula: tables, or drawn by a constructor."""
    state = stored_tensors(root)
    return [
        a.tensor.name
        for a in assignments
        if a.tensor.buffer
        and isinstance(a.formula, AsConstructed)
        and not is_constant(state[a.tensor.name], replace(a.tensor, trainable=True), False)
    ]


@one_thread()
def settle_frozen(root: nn.Module, source: str, *, meant: bool) -> None:
    """Marks what the author fixed.

    Args:
        meant: frozen values are the author's: of a NaN-filled construction, or because the user says so.

    Raises:
        CoverageError: with every frozen tensor of a live module, where data and drawn values look alike.
    """
    if not meant and (names := frozen_names(root)):
        raise CoverageError(
            f"{len(names)} tensors of the given module are frozen, and nothing tells meant values from drawn ones",
            where=f"{source}: {', '.join(names)}",
            expected="a factory, whose constructor shows it, or a word on what is to become of them",
            fix='Pass --uncovered keep (uncovered="keep" in Python): they keep their values. What the scheme is to '
            "fill: requires_grad_(True) before converting.",
        )
    mark(root)


@one_thread()
def nan_names(module: nn.Module) -> list[str]:
    """Names of parameters and buffers, stored or not, that hold a NaN: drawn at random, and no rule wrote them."""
    return [name for name, value in (*module.named_parameters(), *module.named_buffers()) if _has_nan(value)]


def _has_nan(value: torch.Tensor) -> bool:
    if not (value.is_floating_point() or value.is_complex()):
        return False
    value = value.float() if value.is_floating_point() and value.element_size() == 1 else value
    return bool(torch.isnan(value.sum())) and bool(torch.isnan(value).any())
