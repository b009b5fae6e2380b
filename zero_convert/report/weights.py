"""Which weights a report shows, and as which matrix. Reads a module; changes nothing and draws nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from zero_convert.formulas.formula import FAMILIES, Formula
from zero_convert.graph.state import stored_tensors
from zero_convert.initialization.plan_summary import by_rule
from zero_convert.nn.layers import HadamardTransform
from zero_convert.records import Assignment

SIDE = 64  # rows and columns that are shown
MOST = 4  # matrices


@dataclass(frozen=True)
class Shown:
    """One matrix to look at.

    Attributes:
        name: of the tensor, or of the frozen transform.
        rule: what made it.
        part: which part of the tensor it is.
        values: (outputs, inputs), at most 64 × 64.
    """

    name: str
    rule: str
    part: str
    values: NDArray[np.float32]


def chosen(module: nn.Module, assignments: Sequence[Assignment]) -> tuple[Shown, ...]:
    """One matrix of each kind of rule, those that are not constant, Hadamard ones first; a frozen transform as well."""
    state = {name: value.detach() for name, value in stored_tensors(module).items()}
    found = []
    for name, one in module.named_modules():
        if isinstance(one, HadamardTransform):
            found.append(_shown(name, "frozen Hadamard transform, no parameter", _transform(one)))
            break
    groups = by_rule(assignments)
    for rule in sorted(groups, key=lambda rule: FAMILIES.index(_innermost(groups[rule][0].formula).family)):
        for each in groups[rule]:
            value = state.get(each.tensor.name)
            if value is None or value.ndim < 2 or not value.is_floating_point() or min(value.shape[:2]) < 4:
                continue
            if value.numel() and bool((value != value.reshape(-1)[0]).any()):
                found.append(_shown(each.tensor.name, each.rule, value))
                break
        if len(found) == MOST:
            break
    return tuple(found)


def _innermost(formula: Formula) -> Formula:
    """The first matrix in it that is not 0."""
    inside = (_innermost(operand) for operand in formula.operands if not operand.is_zero)
    return next(inside, formula)


def _transform(one: HadamardTransform) -> torch.Tensor:
    """Its matrix, by what it does to unit vectors.  # (outputs, inputs)"""
    units = torch.eye(one.channels)
    with torch.no_grad():
        made: torch.Tensor = one(units.reshape(one.channels, one.channels, *[1] * one.trailing))
        return made.flatten(1).T


def _shown(name: str, rule: str, value: torch.Tensor) -> Shown:
    whole: Any = value.detach().float().cpu().numpy()
    parts = []
    if whole.ndim > 2:
        flat = np.abs(whole).sum((0, 1))
        tap = np.unravel_index(int(flat.argmax()), flat.shape)
        whole = whole[(slice(None), slice(None), *tap)]
        if flat.size > 1:
            parts.append(f"tap ({', '.join(str(int(i)) for i in tap)})")
    rows, columns = whole.shape
    if rows > SIDE or columns > SIDE:
        parts.append(f"top left of {rows} × {columns}")
    return Shown(name, rule, ", ".join(parts), np.ascontiguousarray(whole[:SIDE, :SIDE], dtype=np.float32))
