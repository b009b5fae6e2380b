"""One step of the trainings in the checks: every parameter moves by a set length against its own gradient."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .harness.recorder import largest


def largest_of(gradient: Tensor | None) -> float:
    """The largest magnitude; NaN if there is one; 0 for none."""
    return 0.0 if gradient is None else largest(gradient)


@torch.no_grad()
def move(parameter: nn.Parameter, gradient: Tensor, largest: float, size: float) -> None:
    """The parameter moves by `size` in the Euclidean norm."""
    if not 1e-15 < largest < 1e15:  # else squares could under- or overflow
        gradient = gradient / largest
    parameter.sub_(gradient, alpha=size / float(torch.linalg.vector_norm(gradient)))
