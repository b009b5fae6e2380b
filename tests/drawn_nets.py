"""Factories whose constructors draw with Python's or numpy's generators, and freeze or register what they drew."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


def _python(rows: int, columns: int) -> Any:
    return [[random.gauss(0, 1) for _ in range(columns)] for _ in range(rows)]


def _global(rows: int, columns: int) -> Any:
    return np.random.randn(rows, columns)


def _unseeded(rows: int, columns: int) -> Any:
    return np.random.default_rng().standard_normal((rows, columns))


def _seeded(rows: int, columns: int) -> Any:
    return np.random.default_rng(7).standard_normal((rows, columns))


def _old(rows: int, columns: int) -> Any:
    return np.random.RandomState().randn(rows, columns)


def _table(rows: int, columns: int) -> Any:
    return np.sin(np.arange(rows * columns).reshape(rows, columns))


class Projection(nn.Module):
    """A frozen projection, then a head."""

    def __init__(self, draw: Any, kind: str) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(6, 6), nn.Linear(8, 3)
        value = torch.tensor(np.array(draw(8, 6)), dtype=torch.float32)
        self.kind = kind
        if kind == "layer":
            self.projection = nn.Linear(6, 8, bias=False)
            self.projection.weight = nn.Parameter(value, requires_grad=False)
        elif kind == "parameter":
            self.projection = nn.Parameter(value, requires_grad=False)
        elif kind == "buffer":
            self.register_buffer("projection", value)
        else:
            self.projection = value

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(torch.cos(self.projection(x) if self.kind == "layer" else x @ self.projection.t()))


DRAWS = {"python": _python, "global": _global, "unseeded": _unseeded, "seeded": _seeded, "old": _old, "table": _table}


def build(draw: str, kind: str) -> nn.Module:
    return Projection(DRAWS[draw], kind)


class Trained(nn.Module):
    """Its trainable weight is drawn by numpy."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(np.random.randn(8, 6), dtype=torch.float32))
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(x @ self.weight.t()))
