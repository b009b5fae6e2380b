"""Converted networks with everything that a check may ask about, and the checks' answers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from zero_convert import checks
from zero_convert.checks.harness.bench import CheckContext
from zero_convert.checks.harness.isolation import pinned
from zero_convert.checks.subject import Subject
from zero_convert.conversion import prepare
from zero_convert.options import Options
from zero_convert.records import Check

IMAGES = torch.zeros(1, 3, 32, 32)


def subject_of(net: nn.Module, *inputs: Any, scheme: str = "zero-2021", **options: str) -> Subject:
    """As `pipeline.convert` makes it, the original network beside it."""
    conversion = prepare(net, Options(inputs or (IMAGES,), scheme=scheme, options=options), compare=True)
    return conversion.subject(conversion.fill(write=True))


def ask(name: str, subject: Subject, level: str = "quick", train_steps: int | None = None) -> Check | None:
    """The answer of one check on the CPU."""
    with pinned("cpu"):
        return checks.answer(name, CheckContext(subject, level, "cpu", train_steps))


def parameter(subject: Subject, name: str) -> Tensor:
    return subject.traced.root.get_parameter(name).detach()


class Opaque(nn.Module):
    """Keeps a planted operation out of the graph's sight, as a custom kernel is.

    Args:
        where: the operation is applied in training mode alone, or out of it alone; None for both.
    """

    def __init__(self, operation: Callable[[Tensor], Tensor], where: bool | None = None) -> None:
        super().__init__()
        self.operation, self.where = operation, where

    def forward(self, x: Tensor) -> Tensor:
        return self.operation(x) if self.where in (None, self.training) else x


def with_gradient(change: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """The identity, whose gradient comes back as `change` makes it."""

    class Identity(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Tensor:
            return change(gradient)

    applied: Callable[[Tensor], Tensor] = Identity.apply
    return applied
