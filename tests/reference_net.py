"""The networks of ZerO's first version, written down from the formulas and nothing else.

    stem        t = C0(x) + T(pad(q(x))), r0, N, the net's own pooling
    basic       a = N1(r0(x));  s = T(P(a)) or x;  h = C1(a) + s;  y = C2(N2(r0(h))) + h
    bottleneck  a = N1(r0(x));  h = C1(a);  g = C2(N2(r0(h))) + sub_s(h);  y = C3(N3(r0(g))) + (T(P(a)) or x)
    end         r0, N, global pooling, classifier

It shares no code with the package: its matrices come from the recursion H_2n = [[H, H], [H, -H]], and its r0 is an
autograd function with the derivative written out.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class _Rectify(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.clamp(min=0)

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return torch.where(x >= 0, grad, torch.zeros_like(grad))


r0 = _Rectify.apply


class T(nn.Module):
    def __init__(self, d: int) -> None:
        super().__init__()
        h = torch.ones(1, 1)
        while len(h) < d:
            h = torch.cat([torch.cat([h, h], 1), torch.cat([h, -h], 1)])
        self.register_buffer("h", h / d**0.5, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.matmul(x.permute(0, 2, 3, 1), self.h).permute(0, 3, 1, 2)


def conv(n: int, m: int, k: int, stride: int = 1, start: str = "zero") -> nn.Conv2d:
    layer = nn.Conv2d(n, m, k, stride, k // 2, bias=False)
    nn.init.zeros_(layer.weight)
    if start == "identity":
        for i in range(min(m, n)):
            layer.weight.data[i, i] = 1
    return layer


class Scalar(nn.Module):
    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.full((1,), value))


class Basic(nn.Module):
    growth = 1

    def __init__(self, n: int, width: int, stride: int, norm: bool) -> None:
        super().__init__()
        assert norm
        self.n1, self.c1 = nn.BatchNorm2d(n), conv(n, width, 3, stride)
        self.n2, self.c2 = nn.BatchNorm2d(width), conv(width, width, 3)
        self.p = conv(n, width, 1, stride, "identity") if stride != 1 or n != width else None
        self.t = T(width) if self.p else None

    def forward(self, x: Tensor) -> Tensor:
        a = self.n1(r0(x))
        h = self.c1(a) + (self.t(self.p(a)) if self.p else x)
        return self.c2(self.n2(r0(h))) + h


class Bottleneck(nn.Module):
    growth = 4

    def __init__(self, n: int, width: int, stride: int, norm: bool) -> None:
        super().__init__()
        m = 4 * width
        self.stride, self.norm = stride, norm
        self.c1, self.c2, self.c3 = conv(n, width, 1, 1, "identity"), conv(width, width, 3, stride), conv(width, m, 1)
        self.p = conv(n, m, 1, stride, "identity") if stride != 1 or n != m else None
        self.t = T(m) if self.p else None
        if norm:
            self.n1, self.n2, self.n3 = nn.BatchNorm2d(n), nn.BatchNorm2d(width), nn.BatchNorm2d(width)
        else:
            self.b = nn.ModuleList(Scalar(0.0) for _ in range(6))
            self.scale = Scalar(1.0)

    def forward(self, x: Tensor) -> Tensor:
        if self.norm:
            a = self.n1(r0(x))
            h = self.c1(a)
            g = self.c2(self.n2(r0(h))) + h[..., :: self.stride, :: self.stride]
            y = self.c3(self.n3(r0(g)))
        else:
            b1a, b1b, b2a, b2b, b3a, b3b = (scalar.value for scalar in self.b)
            a = r0(x) + b1a
            h = self.c1(a) + b1b
            g = self.c2(r0(h) + b2a) + b2b + h[..., :: self.stride, :: self.stride]
            y = self.c3(r0(g) + b3a) * self.scale.value + b3b
        return y + (self.t(self.p(a)) if self.p else x)


class ReferenceResNet(nn.Module):
    """torchvision's stem (7×7, stride 2, max-pool) or, with `small`, the 3×3 stem of the CIFAR networks."""

    def __init__(self, block, depths: list[int], classes: int, *, norm: bool = True, small: bool = False) -> None:
        super().__init__()
        self.norm, self.small = norm, small
        self.c0 = conv(3, 64, 3) if small else conv(3, 64, 7, 2)
        self.t0 = T(64)
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.blocks = nn.Sequential()
        n = 64
        for i, depth in enumerate(depths):
            for j in range(depth):
                self.blocks.append(block(n, 64 * 2**i, 2 if i and not j else 1, norm))
                n = 64 * 2**i * block.growth
        if norm:
            self.n0, self.n_end = nn.BatchNorm2d(64), nn.BatchNorm2d(n)
        self.head = nn.Linear(n, classes)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def features(self, x: Tensor) -> Tensor:
        q = x if self.small else self.pool(x)
        t = r0(self.c0(x) + self.t0(F.pad(q, (0, 0, 0, 0, 0, 61))))
        t = self.n0(t) if self.norm else t
        t = r0(self.blocks(t if self.small else self.pool(t)))
        t = self.n_end(t) if self.norm else t
        return t.mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))
