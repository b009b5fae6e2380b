"""Odd models: what a forward keeps, what a class holds, sparse buffers, frozen parametrizations."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Base(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm, self.head = nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 3)
        self.a, self.b = nn.Linear(8, 16), nn.Linear(16, 8)

    def odd(self, x: Tensor) -> Tensor:
        return x

    def forward(self, x: Tensor) -> Tensor:
        x = self.odd(self.stem(x))
        return self.head(x + self.b(F.relu(self.a(self.norm(x)))))


class CachedLayer(Base):
    @functools.cached_property
    def layer(self) -> nn.Module:
        return nn.Linear(8, 8)

    def odd(self, x: Tensor) -> Tensor:
        return self.layer(x)


class CachedTensor(Base):
    @functools.cached_property
    def weight(self) -> Tensor:
        return torch.randn(8, 8)

    def odd(self, x: Tensor) -> Tensor:
        return x @ self.weight


class Remembered(Base):
    @functools.lru_cache  # noqa: B019
    def weight(self) -> Tensor:
        return torch.randn(8, 8)

    def odd(self, x: Tensor) -> Tensor:
        return x @ self.weight()


class OfTheClass(Base):
    function = functools.partial(F.linear, weight=torch.randn(8, 8))

    def odd(self, x: Tensor) -> Tensor:
        return type(self).function(x)


class ObjectOfTheClass(Base):
    class Holder:
        def __init__(self) -> None:
            self.layer = nn.Linear(8, 8)

    held = Holder()

    def odd(self, x: Tensor) -> Tensor:
        return self.held.layer(x)


class CachedTable(Base):
    """What it keeps is computed, not drawn."""

    @functools.cached_property
    def table(self) -> Tensor:
        return torch.arange(8.0).sin()

    def odd(self, x: Tensor) -> Tensor:
        return x + self.table


class Noise(Base):
    """Draws anew each time, and keeps nothing."""

    def odd(self, x: Tensor) -> Tensor:
        return x + 0.1 * torch.randn(8) if self.training else x


class Decides(Base):
    """Values of tensors decide, so that its Python stays; a layer is in a list."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = [nn.Linear(8, 8)]

    def odd(self, x: Tensor) -> Tensor:
        return self.layers[0](x) if float(x.abs().sum()) >= 0 else x


class DecidesByTensor(Decides):
    def __init__(self) -> None:
        super().__init__()
        self.layers = []
        self.matrix = torch.randn(8, 8)

    def odd(self, x: Tensor) -> Tensor:
        return x @ self.matrix if float(x.abs().sum()) >= 0 else x


class Pair:
    def __init__(self, one: Tensor, other: Tensor) -> None:
        self.one, self.other = one, other


class Part(nn.Module):
    """Takes an object of a class that nobody knows."""

    def __init__(self) -> None:
        super().__init__()
        self.layers, self.own = [nn.Linear(8, 8)], nn.Linear(8, 8)

    def forward(self, pair: Pair) -> Tensor:
        return pair.one + self.own(self.layers[0](pair.other))


class TakesObjects(Base):
    def __init__(self) -> None:
        super().__init__()
        self.part = Part()

    def odd(self, x: Tensor) -> Tensor:
        return x if float(x.sum()) < -1e9 else self.part(Pair(x, x))


class Sparse(Base):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("adjacency", torch.eye(8).to_sparse())

    def odd(self, x: Tensor) -> Tensor:
        return torch.sparse.mm(self.adjacency, x.t()).t()


class Frozen(Base):
    """A frozen layer, set by its constructor or drawn, with its weight parametrized."""

    def __init__(self, how: str, drawn: bool) -> None:
        super().__init__()
        layer = nn.Linear(8, 8, bias=False)
        if not drawn:
            layer.weight.data = torch.arange(64.0).reshape(8, 8).sin()
        ways: dict[str, Any] = {
            "spectral_norm": nn.utils.parametrizations.spectral_norm,
            "old spectral_norm": nn.utils.spectral_norm,
            "weight_norm": nn.utils.parametrizations.weight_norm,
            "old weight_norm": nn.utils.weight_norm,
            "orthogonal": nn.utils.parametrizations.orthogonal,
        }
        self.layer = ways[how](layer)
        self.layer.requires_grad_(False)

    def odd(self, x: Tensor) -> Tensor:
        return self.layer(x)


class States(nn.Module):
    """Final states of both layers are added to the signal."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(8, 8), nn.Linear(8, 3)
        self.recurrent = nn.GRU(8, 8, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        _, states = self.recurrent(x[:, None])
        return self.head(x + states.sum(0))


def built(name: str, **arguments: Any) -> nn.Module:
    made: nn.Module = globals()[name](**arguments)
    return made
