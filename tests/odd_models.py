"""Random odd models: each is a chain of odd parts with an odd argument and an odd result, all drawn from its seed.

`Odd.refused` says what a conversion must refuse, by the name that its message has to hold; `Odd.nothing` that no tensor
is returned; `Odd.weights` are the names that a file has to hold.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Categorical, Normal
from torch.nn import functional as F


class Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Linear(width, width), nn.LayerNorm(width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.b(torch.relu(self.norm(self.a(x))))


class InPlace(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.lin = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        y = self.lin(x)
        y[:, 0] = 0.5
        y[:, 1:2] += x[:, 1:2]
        y.relu_().add_(x)
        return y


class Counting(nn.Module):
    """A buffer that the forward writes to."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.lin = nn.Linear(width, width)
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))
        self.register_buffer("mean", torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.calls += 1
            with torch.no_grad():
                self.mean.mul_(0.9).add_(x.mean(0), alpha=0.1)
        return x + torch.tanh(self.lin(x - self.mean))


class Sharing(nn.Module):
    """One buffer under two names, and one weight in two layers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(width, width), nn.Linear(width, width)
        self.b.weight = self.a.weight
        shared = torch.linspace(0, 1, width)
        self.a.register_buffer("table", shared)
        self.b.register_buffer("table", shared)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.b(F.gelu(self.a(x))) * self.a.table + self.b.table


class Raw(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.w, self.gain = nn.Parameter(torch.randn(width, width)), nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x + F.silu(x @ self.w) * self.gain


class Deciding(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        return x + (self.b(torch.relu(y)) if float(y.sum()) >= 0 else torch.relu(self.b(y)))


class Mapped(nn.Module):
    """Takes and returns a dict that it also writes to, inside."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.lin = nn.Linear(width, width)

    def step(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        features["y"] = torch.sigmoid(self.lin(features["x"]))
        return features

    def forward(self, x: Tensor) -> Tensor:
        done = self.step({"x": x})
        return done["x"] * done["y"] + x


class Normed(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.lin = nn.utils.parametrizations.weight_norm(nn.Linear(width, width))

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.relu(self.lin(x))


class References(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(width, width), nn.Linear(width, width)
        self.order, self.mask = [self.b, self.a], torch.tril(torch.ones(width, width))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.order:
            x = x + torch.relu(layer(x @ self.mask))
        return x


class Idle(nn.Module):
    """A teacher in a list, which the forward leaves alone."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.lin, self.teacher = nn.Linear(width, width), [nn.Linear(width, width)]

    def forward(self, x: Tensor) -> Tensor:
        return x + self.lin(x)


SOUND: tuple[type[nn.Module], ...] = (
    *(Residual, InPlace, Counting, Sharing, Raw, Deciding, Mapped, Normed, References, Idle),
)


class ListedHidden(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.hidden = [nn.Linear(width, width)]

    def forward(self, x: Tensor) -> Tensor:
        return x + self.hidden[0](x)


class DictHidden(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.hidden = {"deep": {"layer": nn.Linear(width, width)}}

    def forward(self, x: Tensor) -> Tensor:
        return x + self.hidden["deep"]["layer"](x)


class ClosedHidden(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        layer = nn.Linear(width, width)
        self.hidden = lambda x: layer(x)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.hidden(x)


class DrawnHidden(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.hidden = torch.randn(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        return x + (x @ self.hidden).sum(1, keepdim=True)


class MadeHidden(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, x: Tensor) -> Tensor:
        return x + nn.Linear(self.width, self.width)(x)


# what must be refused → the word of its message
HIDDEN: tuple[tuple[type[nn.Module], str], ...] = (
    (ListedHidden, "hidden[0].weight"),
    (DictHidden, "hidden['deep']['layer'].weight"),
    (ClosedHidden, "closure `layer`.weight"),
    (DrawnHidden, "hidden"),
    (MadeHidden, "a layer that the forward makes"),
)


class WithState(nn.Module):
    def __init__(self, inner: nn.Module, state: Any) -> None:
        super().__init__()
        self.inner, self.state = inner, state

    def get_extra_state(self) -> Any:
        return self.state

    def set_extra_state(self, state: Any) -> None:
        self.state = state

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


STATES: tuple[Any, ...] = (
    {"a": [1, 2.5], "b": None},
    None,
    b"\x00\xff",
    torch.tensor([1, 2]),
    ("x", {3}),
    {"t": torch.ones(2)},
)


def _rename(module: nn.Module, state: Any, prefix: str, meta: Any) -> None:
    for name in [name for name in state if name.startswith(prefix)]:
        state[f"old.{name}"] = state.pop(name)


def _filter(module: nn.Module, state: Any, prefix: str, meta: Any) -> None:
    for name in [name for name in state if name.startswith(prefix) and name.endswith("weight")]:
        del state[name]


def _gather(module: nn.Module, state: Any, prefix: str, meta: Any) -> None:
    names = [name for name in state if name.startswith(prefix) and isinstance(state[name], Tensor)]
    state[f"{prefix}all"] = torch.cat([state.pop(name).flatten().float() for name in names]) if names else None


HOOKS = (_rename, _filter, _gather)


@dataclass
class Batch:
    x: Tensor
    scale: float = 1.0


@dataclass
class Scores:
    scores: Tensor
    text: str = "done"


class Holder:
    def __init__(self, y: Tensor) -> None:
        self.inner = {"y": [y]}


@dataclass
class Holds:
    """How a forward takes its argument: what the model is given, and how the tensor is found in it."""

    name: str
    given: Callable[[Tensor], tuple[Any, ...] | dict[str, Any]]
    find: Callable[..., Tensor]


ARGUMENTS = (
    Holds("a tensor", lambda x: (x,), lambda x: x),
    Holds("two", lambda x: (x, x), lambda x, other: x + other),
    Holds("a list", lambda x: ([x, x],), lambda xs: xs[0] - 0.5 * xs[1]),
    Holds("a tuple", lambda x: ((x, x),), lambda xs: xs[0] - 0.5 * xs[1]),
    Holds("a dict", lambda x: ({"x": x, "flag": True},), lambda d: d["x"] if d["flag"] else -d["x"]),
    Holds("by name", lambda x: {"x": x}, lambda x: x),
    Holds("a dataclass", lambda x: (Batch(x),), lambda batch: batch.x * batch.scale),
)
RESULTS: tuple[Callable[[Tensor], Any], ...] = (
    *(lambda y: y, lambda y: [y, None], lambda y: {"logits": y, "extra": (y * 2, 3)}, Scores, Holder),
    *(lambda y: Categorical(logits=y), lambda y: (Normal(y, torch.ones_like(y)), y.sum(-1))),
)
NOTHING: tuple[Callable[[Tensor], Any], ...] = (lambda y: None, lambda y: "done", lambda y: [])


class Odd(nn.Module):
    """The model of a seed."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        draw = random.Random(seed)
        self.width, self.features = draw.choice((4, 6, 8)), draw.choice((5, 8))
        self.argument = draw.choice(ARGUMENTS)
        self.refused, self.nothing, self.hooked = "", False, False
        self.stem = nn.Linear(self.features, self.width)
        parts: list[nn.Module] = [draw.choice(SOUND)(self.width) for _ in range(draw.randint(1, 4))]
        if draw.random() < 0.2:
            hidden, self.refused = draw.choice(HIDDEN)
            parts.insert(draw.randrange(len(parts) + 1), hidden(self.width))
        if draw.random() < 0.3:
            at = draw.randrange(len(parts))
            parts[at] = WithState(parts[at], draw.choice(STATES))
        elif draw.random() < 0.1:
            self.refused = self.refused or "_extra_state"
            parts.append(WithState(nn.ReLU(), object()))
            if self.refused != "_extra_state":
                parts.pop()
        self.parts = nn.Sequential(*parts)
        self.head = nn.Linear(self.width, draw.choice((1, 3)))
        self.make = draw.choice(RESULTS)
        if draw.random() < 0.1:
            self.make, self.nothing = draw.choice(NOTHING), True
        self.weights = {name for name, value in self.state_dict().items() if isinstance(value, Tensor)}
        if draw.random() < 0.3:
            self.hooked = True
            draw.choice([self, *self.parts])._register_state_dict_hook(draw.choice(HOOKS))

    @property
    def inputs(self) -> Any:
        return self.argument.given(torch.linspace(-1, 1, 3 * self.features).reshape(3, self.features))

    def forward(self, *args: Any, **named: Any) -> Any:
        x = self.argument.find(*args, **named)
        return self.make(self.head(self.parts(self.stem(x))))
