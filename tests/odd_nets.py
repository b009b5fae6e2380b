"""Tiny networks with unusual shapes, one for each thing that could go wrong. Widths are small and odd on purpose.

`ODD` maps a name to a builder and the shapes of its example inputs (batch first). Nothing here is random by intention:
the tests overwrite or ignore what the constructors draw.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def ramp(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Deterministic values in [-1, 1] without symmetry, any shape."""
    count = torch.Size(shape).numel()
    steps = torch.arange(count, dtype=torch.float64)
    return (torch.sin(steps * 0.7) * torch.cos(steps * 0.031)).reshape(shape).to(dtype)


class Residual(nn.Module):
    """x + branch(x), then `after`."""

    def __init__(self, branch: nn.Module, shortcut: nn.Module | None = None, after: nn.Module | None = None) -> None:
        super().__init__()
        self.branch, self.shortcut = branch, shortcut or nn.Identity()
        self.after = after or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.branch(x) + self.shortcut(x))


class Head(nn.Module):
    """Global average over every trailing dimension, then a linear layer."""

    def __init__(self, width: int, outputs: int = 5) -> None:
        super().__init__()
        self.fc = nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.flatten(2).mean(2))


def conv_net(
    norm: Callable[[int], nn.Module],
    act: Callable[[], nn.Module] = nn.ReLU,
    *,
    width: int = 8,
    conv: Callable[..., nn.Module] = nn.Conv2d,
    bias: bool = False,
) -> nn.Module:
    """Post-activation basic blocks, the second strided and growing to one and a half times the width."""

    def block(n: int, m: int, stride: int) -> nn.Module:
        branch = nn.Sequential(
            conv(n, m, 3, stride, 1, bias=bias), norm(m), act(), conv(m, m, 3, 1, 1, bias=bias), norm(m)
        )
        changes = n != m or stride > 1
        return Residual(branch, nn.Sequential(conv(n, m, 1, stride, bias=bias), norm(m)) if changes else None, act())

    wide = width + width // 2
    stem = nn.Sequential(conv(3, width, 3, 1, 1, bias=bias), norm(width), act())
    return nn.Sequential(stem, block(width, width, 1), block(width, wide, 2), block(wide, wide, 1), Head(wide))


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.image, self.vector = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(4, 8)
        self.mix = nn.Conv2d(8, 8, 3, padding=1)
        self.fc = nn.Linear(8, 5)

    def forward(self, image: Tensor, vector: Tensor) -> Tensor:
        x = self.image(image) + self.vector(vector)[:, :, None, None]
        x = x + self.mix(F.relu(x))
        return self.fc(x.mean((2, 3)))


class DictOutput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.block = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.classes, self.boxes = nn.Linear(8, 5), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> dict[str, Tensor | list[Tensor]]:
        x = F.relu(self.stem(x))
        x = x + F.relu(self.block(x))
        pooled = x.mean((2, 3))
        return {"classes": self.classes(pooled), "boxes": [self.boxes(pooled)], "features": x}


class SharedConv(nn.Module):
    """One convolution in two residual blocks; each block has norms of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.shared = nn.Conv2d(8, 8, 3, padding=1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(8) for _ in range(2))
        self.last = nn.Conv2d(8, 8, 3, padding=1)
        self.head = Head(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for norm in self.norms:
            x = x + self.last(F.relu(self.shared(F.relu(norm(x)))))
        return self.head(x)


class Looped(nn.Module):
    """One post-activation block, applied three times."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.conv1, self.bn1 = nn.Conv2d(8, 6, 1, bias=False), nn.BatchNorm2d(6)
        self.conv2, self.bn2 = nn.Conv2d(6, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.head = Head(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for _ in range(3):
            x = F.relu(x + self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))
        return self.head(x)


class ResidualMlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(7, 12)
        self.blocks = nn.Sequential(
            *(Residual(nn.Sequential(nn.LayerNorm(12), nn.Linear(12, 24), nn.GELU(), nn.Linear(24, 12))) for _ in "ab")
        )
        self.out = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.blocks(self.embed(x)))


class Decoder(nn.Module):
    """Autoencoder: strided convolutions down, transposed convolutions up."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 12, 4, 2, 1), nn.ReLU())
        self.up = nn.Sequential(
            nn.ConvTranspose2d(12, 8, 4, 2, 1), nn.ReLU(), nn.ConvTranspose2d(8, 6, 2, 2), nn.ReLU(), nn.Conv2d(6, 3, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.up(self.down(x))


class UNetWithSums(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inc = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.down = nn.Sequential(nn.Conv2d(8, 12, 3, 2, 1), nn.BatchNorm2d(12), nn.ReLU(inplace=True))
        self.middle = nn.Sequential(nn.Conv2d(12, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(inplace=True))
        self.up = nn.ConvTranspose2d(12, 8, 2, 2)
        self.outc = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.inc(x)
        b = self.down(a)
        b = b + self.middle(b)
        return self.outc(F.relu(a + self.up(b)))


class Pyramid(nn.Module):
    """Feature pyramid: lateral 1×1 layers and upsampled sums, three outputs."""

    def __init__(self) -> None:
        super().__init__()
        widths = (6, 8, 10)
        self.stages = nn.ModuleList(
            nn.Sequential(nn.Conv2d(n, m, 3, 2, 1), nn.BatchNorm2d(m), nn.ReLU())
            for n, m in zip((3, *widths), widths, strict=False)
        )
        self.lateral = nn.ModuleList(nn.Conv2d(m, 8, 1) for m in widths)
        self.smooth = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1) for _ in widths)

    def forward(self, x: Tensor) -> list[Tensor]:
        levels = []
        for stage in self.stages:
            x = stage(x)
            levels.append(x)
        top = self.lateral[2](levels[2])
        sums = [top]
        for i in (1, 0):
            top = self.lateral[i](levels[i]) + F.interpolate(top, size=levels[i].shape[-2:], mode="nearest")
            sums.append(top)
        return [smooth(s) for smooth, s in zip(self.smooth, sums, strict=True)]


class PostNormEncoder(nn.Module):
    """Transformer encoder blocks with the norm after the sum."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.embed = nn.Linear(5, width)
        self.position = nn.Parameter(torch.randn(1, 6, width))
        self.attention = nn.MultiheadAttention(width, 2, batch_first=True)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 3 * width), nn.ReLU(), nn.Linear(3 * width, width))
        self.head = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x) + self.position
        x = self.norm1(x + self.attention(x, x, x, need_weights=False)[0])
        x = self.norm2(x + self.mlp(x))
        return self.head(x.mean(1))


class FusedAttention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        weights = (q @ k.transpose(-2, -1) * (c // self.heads) ** -0.5).softmax(-1)
        return self.proj((weights @ v).transpose(1, 2).reshape(b, n, c))


class TinyViT(nn.Module):
    """Patches, class token, fused queries, keys and values; attention and MLP in parallel where asked for."""

    def __init__(self, width: int = 12, parallel: bool = False) -> None:
        super().__init__()
        self.parallel = parallel
        self.patch = nn.Conv2d(3, width, 4, 4)
        self.cls = nn.Parameter(torch.randn(1, 1, width))
        self.pos = nn.Parameter(torch.randn(1, 5, width))
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = FusedAttention(width, 3)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        self.gamma = nn.Parameter(torch.full((width,), 0.1)) if not parallel else None
        self.head = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls.expand(x.shape[0], -1, -1), x], 1) + self.pos
        if self.parallel:
            y = self.norm1(x)
            x = x + self.attention(y) + self.mlp(y)
        else:
            x = x + self.attention(self.norm1(x))
            x = x + self.gamma * self.mlp(self.norm2(x))
        return self.head(x[:, 0])


class DropPath(nn.Module):
    """Stochastic depth as people write it."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        keep = x.new_empty((x.shape[0],) + (1,) * (x.ndim - 1)).bernoulli_(1 - self.p)
        return x.div(1 - self.p) * keep


class SqueezeExcite(nn.Module):
    def __init__(self, width: int, squeezed: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Conv2d(width, squeezed, 1), nn.Conv2d(squeezed, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.fc2(F.relu(self.fc1(F.adaptive_avg_pool2d(x, 1)))))


def gated_net(before_norm: bool) -> nn.Module:
    """Post-activation blocks with squeeze-excitation before or after the last norm."""

    def block() -> nn.Module:
        tail: list[nn.Module] = [SqueezeExcite(8, 2), nn.BatchNorm2d(8)]
        branch = nn.Sequential(
            nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
            nn.Conv2d(8, 8, 3, padding=1, bias=False), *(tail if before_norm else tail[::-1]),
        )  # fmt: skip
        return Residual(branch, after=nn.ReLU())

    stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
    return nn.Sequential(stem, block(), block(), Head(8))


def nested() -> nn.Module:
    """Residual in residual, as in super-resolution: a long skip around blocks that have skips."""

    def block() -> nn.Module:
        return Residual(nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1)))

    body = Residual(nn.Sequential(block(), block(), nn.Conv2d(8, 8, 3, padding=1)))
    tail = nn.Sequential(nn.Conv2d(8, 12, 3, padding=1), nn.PixelShuffle(2), nn.Conv2d(3, 3, 3, padding=1))
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), body, tail)


class OddNames(nn.Module):
    """Children named "0", "weight", "bias", and names that a rewrite might want to use itself."""

    def __init__(self) -> None:
        super().__init__()
        self.add_module("0", nn.Conv2d(3, 8, 3, padding=1))
        self.fc = nn.Module()
        self.fc.weight = nn.ModuleDict({"bias": nn.Linear(8, 5), "0": nn.Conv2d(8, 8, 3, padding=1)})
        self.conv, self.norm = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.project, self.project_transform = nn.Conv2d(8, 12, 1), nn.Conv2d(12, 8, 1)
        self.conv_transform, self.norm_out = nn.Conv2d(8, 12, 3, padding=1), nn.BatchNorm2d(12)
        self.conv_bias_in, self.conv_scale = nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(getattr(self, "0")(x))
        x = F.relu(x + self.norm(self.conv(x)))
        x = x + self.conv_scale(self.fc.weight["0"](F.relu(self.conv_bias_in(x))))
        x = F.relu(self.norm_out(self.conv_transform(x)) + self.project(x))
        x = self.project_transform(x)
        return self.fc.weight["bias"](x.mean((2, 3)))


class Inplace(nn.Module):
    """Every operation that can be in place is."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv1 = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.conv2, self.conv3 = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.bn = nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        out = self.conv1(F.relu(x, inplace=True))  # the skip carries the activated signal
        out += x
        x = out.relu_()
        out = self.bn(self.conv2(x))
        out.add_(x)
        x = F.relu_(out)
        y = self.conv3(x)
        y.mul_(0.5).add_(x)
        return self.fc(y.clamp_(-4, 4).mean((2, 3)))


class Branchy(nn.Module):
    """Inception-like residual branch: two paths, concatenated, projected, added."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.left, self.right = nn.Conv2d(8, 4, 1), nn.Sequential(nn.Conv2d(8, 3, 1), nn.Conv2d(3, 4, 3, padding=1))
        self.join = nn.Conv2d(8, 8, 1)
        self.head = Head(8)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = F.relu(x + self.join(torch.cat([self.left(x), self.right(x)], 1)))
        return self.head(x)


class Split(nn.Module):
    """Reversible coupling: halves of the channels add to each other."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.f, self.g = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.head = Head(8)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.stem(x).chunk(2, 1)
        a = a + self.f(F.relu(b))
        b = b + self.g(F.relu(a))
        return self.head(torch.cat([a, b], 1))


class Counting(nn.Module):
    """Control flow on values: fx cannot follow it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) if bool(x.detach().sum() > -1e9) else x


class WithLeaf(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.block = Residual(nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1)))
        self.odd = Counting(8)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.odd(self.block(self.stem(x)).mean((2, 3))))


class TiedLanguageModel(nn.Module):
    """Token embedding, causal block, and an output layer that shares the embedding's weight."""

    def __init__(self, vocabulary: int = 11, width: int = 8) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.norm = nn.LayerNorm(width)
        self.attention = FusedAttention(width, 2)
        self.out = nn.Linear(width, vocabulary, bias=False)
        self.out.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        x = x + self.attention(self.norm(x))
        return self.out(x)


class Functional(nn.Module):
    """Weights that a function reads."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 3, 3, 3))
        self.scale, self.shift = nn.Parameter(torch.ones(8, 1, 1)), nn.Parameter(torch.zeros(8, 1, 1))
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.conv2d(x, self.weight, padding=1) * self.scale + self.shift
        return F.linear(F.relu(x).mean((2, 3)), self.fc.weight, self.fc.bias)


class MultiScale(nn.Module):
    """Joins that are read by the next block and by the output."""

    def __init__(self) -> None:
        super().__init__()
        self.net = conv_net(nn.BatchNorm2d)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        stem, one, two, three, head = self.net
        a = one(stem(x))
        b = three(two(a))
        return a, b, head(b)


class DilatedGroups(nn.Module):
    """Depthwise, grouped, dilated, even and flat kernels, in bottlenecks without order to keep."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(4, 8, (5, 2), (2, 1), (2, 1), bias=False)
        self.one = Residual(
            nn.Sequential(
                nn.Conv2d(8, 12, 1, bias=False), nn.BatchNorm2d(12), nn.ReLU6(),
                nn.Conv2d(12, 12, 5, 1, 2, groups=12, bias=False), nn.BatchNorm2d(12), nn.ReLU6(),
                nn.Conv2d(12, 8, 1, bias=False), nn.BatchNorm2d(8),
            )
        )  # fmt: skip
        self.two = Residual(
            nn.Sequential(
                nn.Conv2d(8, 8, 3, 1, 2, dilation=2, groups=4), nn.ReLU(), nn.Conv2d(8, 8, (1, 3), padding=(0, 1))
            ),
            after=nn.ReLU(),
        )
        self.three = Residual(
            nn.Sequential(nn.Conv2d(8, 16, 3, 2, 1, groups=2), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1)),
            nn.Conv2d(8, 16, 1, 2),
            nn.ReLU(),
        )
        self.head = Head(16)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.three(self.two(self.one(self.stem(x)))))


def one_channel() -> nn.Module:
    block = Residual(nn.Sequential(nn.Conv2d(1, 1, 3, padding=1), nn.ReLU(), nn.Conv2d(1, 1, 3, padding=1)))
    return nn.Sequential(
        nn.Conv2d(1, 1, 3, padding=1), block, nn.Conv2d(1, 1, 3, 2, 1), nn.Flatten(1, 2), nn.Linear(4, 1)
    )


def pooled_shortcut(pool: nn.Module) -> nn.Module:
    """A strided block whose shortcut only pools, then one whose shortcut pools and projects."""

    def branch(n: int, m: int) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(n, m, 3, 2, 1, bias=False), nn.BatchNorm2d(m), nn.ReLU(),
            nn.Conv2d(m, m, 3, 1, 1, bias=False), nn.BatchNorm2d(m),
        )  # fmt: skip

    stem = nn.Sequential(nn.Conv2d(3, 8, 3, 1, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
    project = nn.Sequential(nn.AvgPool2d(2, 2, ceil_mode=True), nn.Conv2d(8, 12, 1, bias=False), nn.BatchNorm2d(12))
    return nn.Sequential(
        stem, Residual(branch(8, 8), pool, nn.ReLU()), Residual(branch(8, 12), project, nn.ReLU()), Head(12)
    )


def drop_path_net() -> nn.Module:
    def block() -> nn.Module:
        return Residual(
            nn.Sequential(
                nn.LayerNorm(12), nn.Linear(12, 24), nn.ReLU(), nn.Linear(24, 12), nn.Dropout(0.1), DropPath(0.2)
            )
        )

    return nn.Sequential(nn.Linear(7, 12), block(), block(), nn.Linear(12, 3))


class Highway(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.h, self.t, self.fc = nn.Linear(7, 8), nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inner(x)
        t = torch.sigmoid(self.t(x))
        return self.fc(F.relu(self.h(x)) * t + x * (1 - t))


class TwoStems(nn.Module):
    """Two convolutions read the input, and a first layer that shrinks."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.small = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(3, 8, 5, 2, 2), nn.Conv2d(3, 2, 1, 2)
        self.mix = nn.Conv2d(18, 8, 1)
        self.head = Head(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.mix(torch.cat([F.relu(self.a(x)), self.b(x), self.small(x)], 1))))


class DenseConcat(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.BatchNorm2d(6 + 4 * i), nn.ReLU(inplace=True), nn.Conv2d(6 + 4 * i, 4, 3, padding=1))
            for i in range(3)
        )
        self.head = Head(18)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for layer in self.layers:
            x = torch.cat([x, layer(x)], 1)
        return self.head(x)


def separate_attention() -> nn.Module:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.k, self.v, self.o = (nn.Linear(8, 8) for _ in range(4))

        def forward(self, x: Tensor) -> Tensor:
            return self.o(F.scaled_dot_product_attention(self.q(x), self.k(x), self.v(x)))

    return nn.Sequential(
        nn.Linear(5, 8),
        Residual(nn.Sequential(nn.LayerNorm(8), Attention())),
        Residual(nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))),
        nn.Linear(8, 3),
    )


class InnerSumLast(nn.Module):
    """A branch that ends in a residual sum of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b = (nn.Conv2d(n, 8, 3, padding=1) for n in (3, 8, 8))
        self.head = Head(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.a(F.relu(x))
        y = y + self.b(F.relu(y))
        return self.head(x + y)


class NamedArguments(nn.Module):
    """Operands given by name."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv1, self.conv2 = (nn.Conv2d(n, 8, 3, padding=1) for n in (3, 8, 8))
        self.norm1, self.norm2 = nn.BatchNorm2d(8), nn.BatchNorm2d(8)
        self.head = Head(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.conv1(F.relu(input=self.norm1(x)))
        x = torch.add(input=x, other=self.conv2(F.gelu(input=self.norm2(y))))
        return self.head(F.relu(input=x))


class SharedNorm(nn.Module):
    """One norm behind layers of different widths."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.down, self.up, self.norm = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1), nn.BatchNorm2d(8)
        self.head = Head(8)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = F.relu(x + self.norm(self.a(x)))
        return self.head(F.relu(x + self.norm(self.up(F.relu(self.down(x))))))


class GatedMlp(nn.Module):
    """Two layers multiplied inside the branch, as in SwiGLU."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm, self.out = nn.Linear(7, 8), nn.LayerNorm(8), nn.Linear(8, 3)
        self.gate, self.up, self.down = nn.Linear(8, 12), nn.Linear(8, 12), nn.Linear(12, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        y = self.norm(x)
        return self.out(x + self.down(F.silu(self.gate(y)) * self.up(y)))


class Denoiser(nn.Module):
    """The input minus what the network makes of it."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
            nn.Conv2d(8, 3, 3, padding=1),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return x - self.net(x)


class WaveNet(nn.Module):
    """Dilated causal convolutions, gates of two layers, a sum of skips beside the residual path."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv1d(3, 8, 1)
        self.filters, self.gates = (
            nn.ModuleList(nn.Conv1d(8, 8, 2, dilation=2**i) for i in range(3)) for _ in range(2)
        )
        self.project = nn.ModuleList(nn.Conv1d(8, 8, 1) for _ in range(3))
        self.head = Head(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        skips = torch.zeros_like(x)
        for i in range(3):
            y = F.pad(x, (2**i, 0))
            y = self.project[i](torch.tanh(self.filters[i](y)) * torch.sigmoid(self.gates[i](y)))
            skips, x = skips + y, x + y
        return self.head(x + skips)


class TwoModes(nn.Module):
    """Dropout as a function, and an auxiliary head in training."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.block = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.aux, self.head = nn.Linear(8, 2), Head(8)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        x = F.dropout(F.relu(self.stem(x)), 0.1, self.training)
        x = x + self.block(x)
        return (self.head(x), self.aux(x.mean((2, 3)))) if self.training else self.head(x)


class ConvNeXt(nn.Module):
    """Patches, depthwise 7×7, channels-last linear layers, layer scale."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.depthwise = nn.Conv2d(3, 8, 2, 2), nn.Conv2d(8, 8, 7, padding=3, groups=8)
        self.norm, self.up, self.down = nn.LayerNorm(8), nn.Linear(8, 32), nn.Linear(32, 8)
        self.gamma = nn.Parameter(1e-6 * torch.ones(8))
        self.head = Head(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        y = (self.gamma * self.down(F.gelu(self.up(y)))).permute(0, 3, 1, 2)
        return self.head(x + y)


class SamePadding(nn.Module):
    """padding="same" for even and dilated kernels, and "valid"."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 8, 4, padding="same")
        self.b = nn.Conv2d(8, 8, (2, 5), padding="same", dilation=2)
        self.c = nn.Conv2d(8, 8, 3, padding="valid")
        self.head = Head(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        return self.head(F.relu(self.c(x + self.b(F.relu(x)))))


class ActivatedBranch(nn.Module):
    """Branches that end in an activation."""

    def __init__(self, act: type[nn.Module]) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.block = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), act())
        self.head = Head(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(x + self.block(x))


@dataclass(frozen=True)
class Odd:
    """How to build a network, shapes of its inputs, and whether they are indices below 11."""

    build: Callable[[], nn.Module]
    shapes: Sequence[tuple[int, ...]]
    tokens: bool = False

    def inputs(self, batch: int = 0, grow: int = 0) -> tuple[Tensor, ...]:
        """Example inputs; another batch size, or spatial sizes larger by `grow`, where asked for."""
        made = []
        for shape in self.shapes:
            spatial = tuple(n + grow for n in shape[2:])
            full = (batch or shape[0], *shape[1:2], *spatial)
            made.append(torch.arange(torch.Size(full).numel()).reshape(full) % 11 if self.tokens else ramp(*full))
        return tuple(made)


IMAGE = ((2, 3, 8, 8),)
ODD: dict[str, Odd] = {
    "two_inputs": Odd(TwoInputs, ((2, 3, 8, 8), (2, 4))),
    "dict_output": Odd(DictOutput, IMAGE),
    "shared_conv": Odd(SharedConv, IMAGE),
    "looped": Odd(Looped, IMAGE),
    "batch_norm": Odd(lambda: conv_net(nn.BatchNorm2d), IMAGE),
    "group_norm": Odd(lambda: conv_net(lambda c: nn.GroupNorm(4, c)), IMAGE),
    "layer_norm_images": Odd(lambda: conv_net(lambda c: nn.GroupNorm(1, c)), IMAGE),
    "instance_norm": Odd(lambda: conv_net(lambda c: nn.InstanceNorm2d(c, affine=True)), IMAGE),
    "no_norm": Odd(lambda: conv_net(lambda c: nn.Identity(), bias=True), IMAGE),
    "not_affine": Odd(lambda: conv_net(lambda c: nn.BatchNorm2d(c, affine=False)), IMAGE),
    "local_response": Odd(lambda: conv_net(lambda c: nn.LocalResponseNorm(3)), IMAGE),
    "silu": Odd(lambda: conv_net(nn.BatchNorm2d, nn.SiLU), IMAGE),
    "gelu": Odd(lambda: conv_net(nn.BatchNorm2d, nn.GELU), IMAGE),
    "hardswish": Odd(lambda: conv_net(nn.BatchNorm2d, nn.Hardswish), IMAGE),
    "relu6": Odd(lambda: conv_net(nn.BatchNorm2d, nn.ReLU6), IMAGE),
    "leaky": Odd(lambda: conv_net(nn.BatchNorm2d, lambda: nn.LeakyReLU(0.1, inplace=True)), IMAGE),
    "width_7": Odd(lambda: conv_net(nn.BatchNorm2d, width=7), IMAGE),
    "conv1d": Odd(lambda: conv_net(nn.BatchNorm1d, conv=nn.Conv1d), ((2, 3, 9),)),
    "conv3d": Odd(lambda: conv_net(nn.BatchNorm3d, conv=nn.Conv3d), ((2, 3, 5, 6, 4),)),
    "residual_mlp": Odd(ResidualMlp, ((4, 7),)),
    "decoder": Odd(Decoder, IMAGE),
    "unet": Odd(UNetWithSums, IMAGE),
    "pyramid": Odd(Pyramid, ((2, 3, 16, 16),)),
    "post_norm": Odd(PostNormEncoder, ((2, 6, 5),)),
    "vit": Odd(TinyViT, IMAGE),
    "parallel_vit": Odd(lambda: TinyViT(parallel=True), IMAGE),
    "separate_attention": Odd(separate_attention, ((2, 6, 5),)),
    "gate_before_norm": Odd(lambda: gated_net(True), IMAGE),
    "gate_after_norm": Odd(lambda: gated_net(False), IMAGE),
    "nested": Odd(nested, IMAGE),
    "odd_names": Odd(OddNames, IMAGE),
    "inplace": Odd(Inplace, IMAGE),
    "branchy": Odd(Branchy, IMAGE),
    "split": Odd(Split, IMAGE),
    "with_leaf": Odd(WithLeaf, IMAGE),
    "tied_language_model": Odd(TiedLanguageModel, ((2, 6),), tokens=True),
    "functional": Odd(Functional, IMAGE),
    "multi_scale": Odd(MultiScale, IMAGE),
    "dilated_groups": Odd(DilatedGroups, ((2, 4, 9, 8),)),
    "one_channel": Odd(one_channel, ((2, 1, 8, 8),)),
    "max_pool_shortcut": Odd(lambda: pooled_shortcut(nn.MaxPool2d(3, 2, 1)), IMAGE),
    "avg_pool_shortcut": Odd(lambda: pooled_shortcut(nn.AvgPool2d(2, 2, ceil_mode=True)), ((2, 3, 9, 7),)),
    "drop_path": Odd(drop_path_net, ((4, 7),)),
    "highway": Odd(Highway, ((4, 7),)),
    "two_stems": Odd(TwoStems, IMAGE),
    "dense_concat": Odd(DenseConcat, IMAGE),
    "inner_sum_last": Odd(InnerSumLast, IMAGE),
    "named_arguments": Odd(NamedArguments, IMAGE),
    "shared_norm": Odd(SharedNorm, IMAGE),
    "gated_mlp": Odd(GatedMlp, ((4, 7),)),
    "denoiser": Odd(Denoiser, IMAGE),
    "wavenet": Odd(WaveNet, ((2, 3, 9),)),
    "two_modes": Odd(TwoModes, IMAGE),
    "convnext": Odd(ConvNeXt, IMAGE),
    "same_padding": Odd(SamePadding, IMAGE),
    "activated_branch": Odd(lambda: ActivatedBranch(nn.SiLU), IMAGE),
    "relu_branch": Odd(lambda: ActivatedBranch(nn.ReLU), IMAGE),
    "first_block": Odd(lambda: nn.Sequential(Residual(nn.Conv2d(3, 3, 3, padding=1), after=nn.ReLU()), Head(3)), IMAGE),
    "encoder_layers": Odd(
        lambda: nn.Sequential(nn.Linear(5, 8), nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), nn.Linear(8, 3)),
        ((2, 6, 5),),
    ),
    "transposed": Odd(
        lambda: nn.Sequential(
            nn.ConvTranspose2d(3, 8, 2, 2), nn.ReLU(), nn.ConvTranspose2d(8, 16, 3, 2, 1, 1, groups=2), Head(16)
        ),
        IMAGE,
    ),
    "grouped_growth": Odd(
        lambda: nn.Sequential(
            nn.Conv2d(3, 9, 3, 1, 1, groups=3), nn.ReLU(), nn.Conv2d(9, 12, 3, 1, 1, groups=3), Head(12)
        ),
        IMAGE,
    ),
    "circular": Odd(
        lambda: conv_net(nn.BatchNorm2d, conv=lambda *a, **k: nn.Conv2d(*a, padding_mode="circular", **k)), IMAGE
    ),
    "double": Odd(lambda: conv_net(nn.BatchNorm2d).double(), IMAGE),
    "only_linear": Odd(lambda: nn.Linear(7, 3), ((4, 7),)),
    "plain_mlp": Odd(
        lambda: nn.Sequential(nn.Linear(7, 16), nn.ReLU(), nn.Linear(16, 6), nn.Tanh(), nn.Linear(6, 3)), ((4, 7),)
    ),
}
