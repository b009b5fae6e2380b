"""Converted networks with everything that a check may ask about, and the checks' answers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from zero_convert import checks
from zero_convert.checks._bench import Bench
from zero_convert.checks._guard import pinned
from zero_convert.live import Subject
from zero_convert.prepared import prepare
from zero_convert.records import Check

IMAGES = torch.zeros(1, 3, 32, 32)


def subject_of(net: nn.Module, *inputs: Any, scheme: str = "zero-2021", **options: str) -> Subject:
    """As `pipeline.convert` makes it, the original network beside it."""
    made = prepare(net, inputs or (IMAGES,), scheme, options, None, "error", None, compare=True)
    rules = made.fill(write=True)
    made.traced.root.train(made.training)
    return Subject(
        made.traced, made.structure, made.scheme, made.options, rules, made.inputs, made.outputs, made.original
    )


def ask(name: str, subject: Subject, level: str = "quick", train_steps: int | None = None) -> Check | None:
    """The answer of one check on the CPU."""
    with pinned("cpu"):
        return checks._answer(name, Bench(subject, level, "cpu", train_steps))


def parameter(subject: Subject, name: str) -> Tensor:
    return subject.traced.root.get_parameter(name).detach()
