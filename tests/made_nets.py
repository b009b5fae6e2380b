"""Networks whose weights are made in the forward, by hand: lengths and directions, normalized, sums and products."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

RANK = 2


class Linear(nn.Module):
    """A linear layer whose weight `make` computes from its parameters."""

    def __init__(self, ins: int, outs: int, make: Callable[[Linear], Tensor], more: str) -> None:
        super().__init__()
        self.make = make
        self.b = nn.Parameter(torch.zeros(outs))
        shapes = {"v": (outs, ins), "g": (outs, 1), "s": (), "r": (outs,), "A": (RANK, ins), "B": (outs, RANK)}
        for name in more:
            self.register_parameter(name, nn.Parameter(torch.randn(shapes[name])))

    def weight(self) -> Tensor:
        return self.make(self)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight(), self.b)


def _standardized(m: Linear) -> Tensor:
    w = m.v - m.v.mean(1, keepdim=True)
    return w / (w.std(1, keepdim=True) + 1e-5)


def _adapted(m: Linear) -> Tensor:
    w = m.v + m.B @ m.A
    return m.g * w / w.norm(dim=1, keepdim=True)


# How a weight is made → the function, the parameters it is made of.
LENGTHS: dict[str, tuple[Callable[[Linear], Tensor], str]] = {
    "v·(g/‖v‖)": (lambda m: m.v * (m.g / m.v.norm(dim=1, keepdim=True)), "vg"),
    "g·v/‖v‖": (lambda m: m.g * m.v / m.v.norm(dim=1, keepdim=True), "vg"),
    "g·normalize(v)": (lambda m: m.g * F.normalize(m.v, dim=1), "vg"),
    "diag(r)·normalize(v)": (lambda m: m.r[:, None] * F.normalize(m.v), "vr"),
    "a root of squares": (lambda m: m.g * m.v / torch.sqrt((m.v**2).sum(1, keepdim=True) + 1e-6), "vg"),
    "torch's function": (lambda m: torch._weight_norm(m.v, m.g, 0), "vg"),
    "low-rank and a length": (_adapted, "vgAB"),
}
WHOLE = {"one length": (lambda m: m.v * (m.s / m.v.norm()), "vs")}
DIRECTIONS: dict[str, tuple[Callable[[Linear], Tensor], str]] = {
    "normalize(v)": (lambda m: F.normalize(m.v), "v"),
    "v/‖v‖": (lambda m: m.v / m.v.norm(dim=1, keepdim=True), "v"),
    "rsqrt": (lambda m: m.v * torch.rsqrt(m.v.square().sum(1, keepdim=True) + 1e-12), "v"),
}
SUMS: dict[str, tuple[Callable[[Linear], Tensor], str]] = {
    "v + B·A": (lambda m: m.v + m.B @ m.A, "vAB"),
    "v + 0.5·matmul": (lambda m: torch.add(m.v, torch.matmul(m.B, m.A), alpha=0.5), "vAB"),
    "v + einsum": (lambda m: m.v + torch.einsum("or,ri->oi", m.B, m.A) * 4, "vAB"),
}
PRODUCTS: dict[str, tuple[Callable[[Linear], Tensor], str]] = {
    "B·A": (lambda m: m.B @ m.A, "AB"),
    "einsum": (lambda m: torch.einsum("or,ri->oi", m.B, m.A), "AB"),
    "turned": (lambda m: (m.A.t() @ m.B.t()).t(), "AB"),
}
REFUSED: dict[str, tuple[Callable[[Linear], Tensor], str]] = {
    "exp": (lambda m: m.v.exp(), "v"),
    "softplus": (lambda m: F.softplus(m.v), "v"),
    "sigmoid": (lambda m: torch.sigmoid(m.v), "v"),
    "softmax": (lambda m: torch.softmax(m.v, 1), "v"),
    "abs": (lambda m: m.v.abs(), "v"),
    "relu": (lambda m: m.v.relu(), "v"),
    "square": (lambda m: m.v**2, "v"),
    "exp of the length": (lambda m: m.g.exp() * F.normalize(m.v), "vg"),
}


class Net(nn.Module):
    """Two residual branches of two layers, the second wider inside, and a head, all of them made by hand."""

    def __init__(self, make: Callable[[Linear], Tensor], more: str) -> None:
        super().__init__()
        self.stem, self.norm, self.norm2 = nn.Linear(8, 8), nn.LayerNorm(8), nn.LayerNorm(8)
        self.a, self.c = Linear(8, 8, make, more), Linear(8, 8, make, more)
        self.d, self.e = Linear(8, 16, make, more), Linear(16, 8, make, more)
        self.head = Linear(8, 4, make, more)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.c(F.relu(self.a(self.norm(x))))
        x = x + self.e(F.relu(self.d(self.norm2(x))))
        return self.head(x)


class Standardized(nn.Conv2d):
    """Weight standardization (Qiao et al., arXiv 1903.10520), with the epsilon outside of the root."""

    def forward(self, x: Tensor) -> Tensor:
        w = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        w = w / (w.flatten(1).std(1).view(-1, 1, 1, 1) + 1e-5)
        return F.conv2d(x, w, self.bias, self.stride, self.padding)


class Cosine(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(F.normalize(x), F.normalize(self.weight))


class Lengths(nn.Linear):
    def __init__(self, ins: int, outs: int) -> None:
        super().__init__(ins, outs)
        self.g = nn.Parameter(torch.ones(outs, 1))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * (self.g / self.weight.norm(dim=1, keepdim=True)), self.bias)


class Adapter(nn.Linear):
    """Low-rank adapters beside the layer (Hu et al., arXiv 2106.09685)."""

    def __init__(self, ins: int, outs: int) -> None:
        super().__init__(ins, outs)
        self.A = nn.Parameter(torch.randn(RANK, ins))
        self.B = nn.Parameter(torch.randn(outs, RANK))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias) + 2 * (x @ self.A.t() @ self.B.t())


class Merged(Adapter):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight + self.B @ self.A, self.bias)


class Layers(nn.Module):
    """One residual branch of two such layers, for images where they are convolutions."""

    def __init__(self, layer: type[nn.Module]) -> None:
        super().__init__()
        self.image = issubclass(layer, nn.Conv2d)
        more = {"kernel_size": 3, "padding": 1} if self.image else {}
        self.stem = nn.Conv2d(3, 8, 3, padding=1) if self.image else nn.Linear(8, 8)
        self.a, self.c = layer(8, 8, **more), layer(8, 8, **more)
        self.norm: nn.Module = nn.BatchNorm2d(8) if self.image else nn.LayerNorm(8)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.c(F.relu(self.a(self.norm(x))))
        return self.head(x.mean((2, 3)) if self.image else x)


def standardized() -> Net:
    return Net(_standardized, "v")


def exponential() -> Net:
    return Net(*REFUSED["exp"])


def softmaxed() -> Net:
    return Net(*REFUSED["softmax"])
