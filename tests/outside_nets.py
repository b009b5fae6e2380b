"""Networks whose forward reads weights that no state dict holds, and such that only look like it.

They are run as a file, so that what is drawn while it is imported is drawn under the constructor that writes NaN.
"""

from __future__ import annotations

import functools
import weakref
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

W = 6
GLOBAL_LAYER = nn.Linear(W, W)
GLOBAL_TABLE = torch.rand(W, W)


class Net(nn.Module):
    """A registered stem and head; `middle` is what the others change."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(4, W), nn.Linear(W, 3)

    def middle(self, x: Tensor) -> Tensor:
        return x

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(x + self.middle(x))


class Listed(Net):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = [nn.Linear(W, W), nn.Linear(W, W)]

    def middle(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x


class Paired(Net):
    def __init__(self) -> None:
        super().__init__()
        self.pair = (nn.Linear(W, W), nn.LayerNorm(W))

    def middle(self, x: Tensor) -> Tensor:
        return self.pair[1](self.pair[0](x))


class Named(Net):
    def __init__(self) -> None:
        super().__init__()
        self.table = {"a": nn.Linear(W, W)}

    def middle(self, x: Tensor) -> Tensor:
        return self.table["a"](x)


class Nested(Net):
    def __init__(self) -> None:
        super().__init__()
        self.levels = [{"gate": (nn.Linear(W, W),)}]

    def middle(self, x: Tensor) -> Tensor:
        return self.levels[0]["gate"][0](x)


@dataclass
class Parts:
    layer: nn.Module
    names: list[str] = field(default_factory=list)


class Described(Net):
    def __init__(self) -> None:
        super().__init__()
        self.parts = Parts(nn.Linear(W, W))

    def middle(self, x: Tensor) -> Tensor:
        return self.parts.layer(x)


class Helper:
    __slots__ = ("layer",)

    def __init__(self) -> None:
        self.layer = nn.Linear(W, W)


class Slotted(Net):
    def __init__(self) -> None:
        super().__init__()
        self.helper = Helper()

    def middle(self, x: Tensor) -> Tensor:
        return self.helper.layer(x)


class Closed(Net):
    def __init__(self) -> None:
        super().__init__()
        layer = nn.Linear(W, W)
        self.act = lambda x: torch.tanh(layer(x))

    def middle(self, x: Tensor) -> Tensor:
        return self.act(x)


class Partial(Net):
    def __init__(self) -> None:
        super().__init__()
        self.mix = functools.partial(F.linear, weight=nn.Parameter(torch.randn(W, W)))

    def middle(self, x: Tensor) -> Tensor:
        return self.mix(x)


class Hooked(Net):
    def __init__(self) -> None:
        super().__init__()
        extra = nn.Linear(W, W)
        self.stem.register_forward_hook(lambda module, args, out: extra(out))


class ClassLevel(Net):
    shared: ClassVar = [nn.Linear(W, W)]

    def middle(self, x: Tensor) -> Tensor:
        return self.shared[0](x)


class Global(Net):
    def middle(self, x: Tensor) -> Tensor:
        return GLOBAL_LAYER(x)


class Bypassed(Net):
    def __init__(self) -> None:
        super().__init__()
        object.__setattr__(self, "side", nn.Linear(W, W))

    def middle(self, x: Tensor) -> Tensor:
        return self.side(x)


class Inside(Net):
    def __init__(self) -> None:
        super().__init__()
        self.part = nn.Sequential(nn.ReLU(), _Part())

    def middle(self, x: Tensor) -> Tensor:
        return self.part(x)


class _Part(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.own, self.more = nn.Linear(W, W), [nn.Linear(W, W)]

    def forward(self, x: Tensor) -> Tensor:
        return self.own(x) + self.more[0](x)


class LayerOfOwn(nn.Linear):
    """Tracing keeps it whole, as the linear layer that it is."""

    def __init__(self) -> None:
        super().__init__(W, W)
        self.more = [nn.Linear(W, W)]

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.more[0](x)


class InLayer(Net):
    def __init__(self) -> None:
        super().__init__()
        self.layer = LayerOfOwn()

    def middle(self, x: Tensor) -> Tensor:
        return self.layer(x)


class Deciding(Net):
    """Its own Python has to stay, since values decide in it."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.ways = nn.Linear(W, W), [nn.Linear(W, W), nn.Linear(W, W)]

    def middle(self, x: Tensor) -> Tensor:
        return self.ways[int(self.gate(x).sum() > 0)](x)


class MadeThere(Net):
    def middle(self, x: Tensor) -> Tensor:
        return nn.Linear(W, W)(x)


class NormThere(Net):
    """Nothing is drawn for it: a norm starts with ones."""

    def middle(self, x: Tensor) -> Tensor:
        return nn.LayerNorm(W)(x)


class MadeInLayer(nn.Linear):
    def __init__(self) -> None:
        super().__init__(W, W)

    def forward(self, x: Tensor) -> Tensor:
        return nn.Linear(W, W)(super().forward(x))


class MadeInside(Net):
    def __init__(self) -> None:
        super().__init__()
        self.layer = MadeInLayer()

    def middle(self, x: Tensor) -> Tensor:
        return self.layer(x)


class Parameters(Net):
    def __init__(self) -> None:
        super().__init__()
        self.gains = [nn.Parameter(torch.ones(W))]

    def middle(self, x: Tensor) -> Tensor:
        return x * self.gains[0]


class Trainable(Net):
    def __init__(self) -> None:
        super().__init__()
        self.gain = torch.ones(W, requires_grad=True)

    def middle(self, x: Tensor) -> Tensor:
        return x * self.gain


class Drawn(Net):
    def __init__(self) -> None:
        super().__init__()
        self.mix = torch.rand(W, W)

    def middle(self, x: Tensor) -> Tensor:
        return x @ self.mix


class DrawnInList(Net):
    def __init__(self) -> None:
        super().__init__()
        self.mixes = [torch.randn(W, W)]

    def middle(self, x: Tensor) -> Tensor:
        return x @ self.mixes[0].t()


class DrawnDefault(Net):
    def middle(self, x: Tensor, table: Tensor = torch.randn(W, W)) -> Tensor:  # noqa: B008
        return x @ table


class DrawnGlobal(Net):
    def middle(self, x: Tensor) -> Tensor:
        return x @ GLOBAL_TABLE


class DrawnOrder(Net):
    """A permutation cannot be NaN. Of a live module nobody can tell it from a table of indices."""

    def __init__(self) -> None:
        super().__init__()
        self.order = torch.randperm(W)

    def middle(self, x: Tensor) -> Tensor:
        return x[:, self.order]


# ---------------------------------------------------------------------------------------------------------------------
# what must not be refused


class References(Net):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(W, W), nn.Linear(W, W)
        self.order = [self.a, self.b]
        self.by_name = {"a": self.a}
        self.weights = (self.a.weight, self.b.weight)
        self.call = functools.partial(self.a.forward)

    def middle(self, x: Tensor) -> Tensor:
        for layer in self.order:
            x = layer(x)
        return self.call(self.by_name["a"](x))


class Mask(Net):
    def __init__(self) -> None:
        super().__init__()
        self.mask = torch.tril(torch.ones(W, W))

    def middle(self, x: Tensor) -> Tensor:
        return x @ self.mask


class Masks(Net):
    def __init__(self) -> None:
        super().__init__()
        self.masks = {"low": torch.tril(torch.ones(W, W)), "high": torch.eye(W) * 0.5}

    def middle(self, x: Tensor) -> Tensor:
        return x @ self.masks["low"] + x @ self.masks["high"]


class Normalizing(Net):
    def __init__(self) -> None:
        super().__init__()
        self.mean = torch.tensor([0.485, 0.456, 0.406, 0.5, 0.1, 0.3])
        self.std = torch.tensor([0.229, 0.224, 0.225, 0.25, 1.0, 0.2261])

    def middle(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std


class Positions(Net):
    """A progression is a formula."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = torch.linspace(0, 1, 40)

    def middle(self, x: Tensor) -> Tensor:
        return x * self.steps[:W]


class Teacher(Net):
    def __init__(self) -> None:
        super().__init__()
        self.teacher = [nn.Linear(4, 3)]


class Parent(Net):
    def __init__(self) -> None:
        super().__init__()
        self.child = _Child()
        self.child.parent = [self]
        self.child.back = weakref.ref(self)

    def middle(self, x: Tensor) -> Tensor:
        return self.child(x)


class _Child(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(W, W)
        self.parent: Any = None

    def forward(self, x: Tensor) -> Tensor:
        return self.lin(x) + self.parent[0].head.bias.sum()


class Cached(Net):
    """A table that the first forward makes, and keeps."""

    def __init__(self) -> None:
        super().__init__()
        self.cache: dict[int, Tensor] = {}

    def middle(self, x: Tensor) -> Tensor:
        if x.shape[-1] not in self.cache:
            self.cache[x.shape[-1]] = torch.sin(torch.arange(x.shape[-1]).float())
        return x * self.cache[x.shape[-1]]


class Literals(Net):
    def middle(self, x: Tensor) -> Tensor:
        return x * torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.5]) + torch.zeros(W)


class Vocabulary:
    """As a tokenizer is: large, and without tensors."""

    def __init__(self) -> None:
        self.index = {f"token{i}": i for i in range(50_000)}
        self.reverse = dict(enumerate(self.index))


class Tokenized(Net):
    def __init__(self) -> None:
        super().__init__()
        self.tokenizer = Vocabulary()

    @property
    def size(self) -> int:
        raise RuntimeError("asked for before it was set")
