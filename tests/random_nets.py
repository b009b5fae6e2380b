"""Random residual networks: a hypothesis strategy of designs, and the modules that a design builds.

A `Design` is plain data that prints as it was drawn, so that a failing example can be typed in again. `build` makes the
module with random values; `joins` is the number of residual joins that one forward runs through, known because the
generator put them there. Everything is tiny: widths of 4 to 12, sides of 8.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor, nn

SIDE = 8
CONVS: dict[int, Callable[..., nn.Module]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED: dict[int, Callable[..., nn.Module]] = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
BATCH_NORMS: dict[int, Callable[..., nn.Module]] = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
INSTANCE_NORMS: dict[int, Callable[..., nn.Module]] = {
    1: nn.InstanceNorm1d,
    2: nn.InstanceNorm2d,
    3: nn.InstanceNorm3d,
}
AVG_POOLS: dict[int, Callable[..., nn.Module]] = {1: nn.AvgPool1d, 2: nn.AvgPool2d, 3: nn.AvgPool3d}
ADAPTIVE: dict[int, Callable[..., Tensor]] = {
    1: F.adaptive_avg_pool1d,
    2: F.adaptive_avg_pool2d,
    3: F.adaptive_avg_pool3d,
}

# -- designs -----------------------------------------------------------------------------------------------------------

ACTIVATIONS = (
    *("relu", "relu_", "f.relu", "torch.relu", "method", "gelu", "f.gelu", "silu", "leaky", "relu6"),
    *("elu", "hardswish", "tanh", "prelu"),
)
ADDS = ("+", "+=", "torch.add", "add", "add_", "operator", "module", "float functional", "swapped")
KINDS = (
    *("basic", "bottleneck", "inverted", "depthwise", "parallel", "nested", "dense", "shared", "unet", "transformer"),
    *("single", "branches", "shared activation"),
)
PLAIN_KINDS = tuple(kind for kind in KINDS if kind not in ("nested", "unet", "shared"))  # with no block inside


class Brief:
    """Prints the fields that are not at their defaults, as one would type them."""

    def __repr__(self) -> str:
        given = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}  # type: ignore[arg-type]
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in given.items())})"


@dataclass(frozen=True, repr=False)
class Style(Brief):
    """What all blocks of a network have in common."""

    dims: int = 2
    norm: str = "batch"  # "batch", "group", "instance", "layer", "weight" (of the convolutions) or "none"
    act: str = "relu"  # one of ACTIVATIONS
    add: str = "+"  # one of ADDS
    order: str = "post"  # "pre", "post" or "plain"
    bias: bool = False
    checked: bool = False  # the block compares shapes before it adds: control flow that depends on sizes


@dataclass(frozen=True, repr=False)
class Block(Brief):
    """One block. `inner` are the blocks inside of a nested block or a U-Net; `width` 0 keeps the width."""

    kind: str  # one of KINDS
    width: int = 0
    stride: int = 1
    kernel: tuple[int, ...] = (3,)  # one size for all dimensions, or one for each of the first
    dilation: int = 1
    groups: int = 1
    shortcut: str = "projection"  # where the shape changes: "projection", "pooled" or "padded"
    gate: bool = False  # squeeze-and-excitation in the branch; in a U-Net, a transposed convolution up
    scale: str = ""  # "layer" scale or a "scalar" at the end of the branch, or a "sum" that is scaled
    drop: bool = False  # drop path at the end of the branch
    attention: str = "fused"  # of a transformer block: "fused", "separate" or "module"
    scores: str = ""  # attention scores with a "table" of biases, a "causal" mask, or "rotary" embeddings
    mlp: str = "plain"  # or "gated", "none" (an attention block alone), "beside" (parallel to the attention)
    inner: tuple[Block, ...] = ()


@dataclass(frozen=True, repr=False)
class Design(Brief):
    """A whole network."""

    style: Style
    width: int
    stem: str  # "plain", "strided", "patches" or "tokens" (embedded ids instead of an image)
    blocks: tuple[Block, ...]
    head: str = "linear"  # "linear", "convolution", "tied" (to the embedding) or "none"
    pool: str = "mean"  # "mean", "functional" or "max"
    container: str = "sequential"  # or "list", "nested", "dict"
    tied: bool = False  # the second layer of the first two equal convolutions uses the weight of the first


@st.composite
def _blocks(draw: st.DrawFn, dims: int, depth: int) -> Block:
    """A block with up to `depth` levels of blocks inside. Draws only what this kind of block looks at."""
    kind = draw(st.sampled_from(KINDS if depth else PLAIN_KINDS))
    drawn: dict[str, Any] = {}
    convolutional = ("basic", "bottleneck", "inverted", "depthwise", "single", "shared activation")
    if kind in (*convolutional, "parallel", "branches", "dense"):
        one = st.sampled_from([(3,), (1,), (5,), (2,), (4,)])
        drawn["kernel"] = draw(one | st.tuples(*[st.sampled_from((3, 1, 5))] * dims))
        drawn["dilation"] = draw(st.sampled_from((1, 1, 2)))
    if kind in (*convolutional, "dense"):
        drawn["width"] = draw(st.sampled_from((0, 0, 0, 4, 6, 8, 12, 7)))
    if kind in convolutional:
        drawn["stride"] = draw(st.sampled_from((1, 1, 2)))
        drawn["groups"] = draw(st.sampled_from((1, 1, 2, 4)))
        drawn["shortcut"] = draw(st.sampled_from(("projection", "pooled", "padded")))
        drawn["gate"] = draw(st.booleans())
    if kind in (*convolutional, "transformer"):
        drawn["scale"] = draw(st.sampled_from(("", "", "layer", "scalar", "sum")))
        drawn["drop"] = draw(st.booleans())
    if kind == "transformer":
        drawn["attention"] = draw(st.sampled_from(("fused", "separate", "module")))
        drawn["scores"] = draw(st.sampled_from(("", "", "table", "causal", "rotary")))
        drawn["mlp"] = draw(st.sampled_from(("plain", "gated", "none", "beside")))
    if kind == "unet":
        drawn["gate"] = draw(st.booleans())
    if kind in ("nested", "unet", "shared"):
        most = 1 if kind == "shared" else 2
        drawn["inner"] = tuple(draw(st.lists(_blocks(dims, depth - 1), min_size=1, max_size=most)))
    return Block(kind, **drawn)


@st.composite
def designs(draw: st.DrawFn) -> Design:
    """Networks for images of one, two or three dimensions, and for token ids."""
    dims = draw(st.sampled_from((2, 2, 2, 1, 3)))
    stem = draw(st.sampled_from(("plain", "plain", "strided", "patches", "tokens")))
    dims = 1 if stem == "tokens" else dims
    style = Style(
        dims=dims,
        norm=draw(st.sampled_from(("batch", "batch", "group", "layer", "none", "instance", "weight"))),
        act=draw(st.sampled_from(ACTIVATIONS)),
        add=draw(st.sampled_from(ADDS)),
        order=draw(st.sampled_from(("post", "pre", "plain"))),
        bias=draw(st.booleans()),
        checked=draw(st.sampled_from((False, False, True))),
    )
    return Design(
        style=style,
        width=draw(st.sampled_from((8, 4, 6, 12, 5))),
        stem=stem,
        blocks=tuple(draw(st.lists(_blocks(dims, 2), min_size=1, max_size=3))),
        head=draw(
            st.sampled_from(("linear", "linear", "convolution", "none", "tied" if stem == "tokens" else "linear"))
        ),
        pool=draw(st.sampled_from(("mean", "functional", "max"))),
        container=draw(st.sampled_from(("sequential", "list", "nested", "dict"))),
        tied=draw(st.sampled_from((False, False, True))),
    )


# -- small parts -------------------------------------------------------------------------------------------------------


class Adder(nn.Module):
    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return a + b


class FloatFunctional(nn.Module):
    """As in networks prepared for quantization: a module whose method adds."""

    def __init__(self) -> None:
        super().__init__()
        self.after = nn.Identity()

    def add(self, a: Tensor, b: Tensor) -> Tensor:
        return self.after(torch.add(a, b))


def _iadd(a: Tensor, b: Tensor) -> Tensor:
    a += b
    return a


PLAIN_ADDS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "+": lambda a, b: a + b,
    "+=": _iadd,
    "torch.add": torch.add,
    "add": lambda a, b: a.add(b),
    "add_": lambda a, b: a.add_(b),
    "operator": operator.add,
    "swapped": lambda a, b: b + a,
}


class ChannelsLast(nn.Module):
    """Layer norm over the channels of an image.

    Contiguous afterwards: torch 2.15 writes beyond its memory in the gradient of a strided 1×1 convolution of an odd
    number of channels that come last.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.movedim(1, -1)).movedim(-1, 1).contiguous()


class DropPath(nn.Module):
    """Drops the branch for some of the examples while training."""

    def __init__(self, rate: float = 0.1) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0.0:
            return x
        keep = 1 - self.rate
        return x * x.new_empty((x.shape[0],) + (1,) * (x.ndim - 1)).bernoulli_(keep).div_(keep)


class EvenConv(nn.Module):
    """Pads one side more than the other, so that even kernels keep the sides of the image."""

    def __init__(self, conv: Any) -> None:
        super().__init__()
        self.conv, self.in_channels, self.out_channels = conv, conv.in_channels, conv.out_channels
        spans = [d * (k - 1) for k, d in zip(conv.kernel_size, conv.dilation, strict=True)]
        self.pad = [p for span in reversed(spans) for p in (span // 2, span - span // 2)]

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, self.pad))


class Scale(nn.Module):
    """Layer scale."""

    def __init__(self, width: int, dims: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((width, *[1] * dims), 0.1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class Scalar(nn.Module):
    """One number on the whole branch, 0 at the start, as in ReZero."""

    def __init__(self) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.alpha * x


class Gate(nn.Module):
    """Squeeze-and-excitation."""

    def __init__(self, width: int, dims: int) -> None:
        super().__init__()
        self.dims = tuple(range(2, 2 + dims))
        self.reduce, self.expand = CONVS[dims](width, max(1, width // 4), 1), CONVS[dims](max(1, width // 4), width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.expand(F.relu(self.reduce(x.mean(self.dims, keepdim=True)))).sigmoid()


class Padded(nn.Module):
    """The parameter-free shortcut: every stride-th pixel, zero channels up to the new width."""

    def __init__(self, inputs: int, outputs: int, stride: int, dims: int) -> None:
        super().__init__()
        self.window = (slice(None), slice(None), *[slice(None, None, stride)] * dims)
        self.pad = (*[0, 0] * dims, 0, outputs - inputs)

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[self.window], self.pad)


class Interpolate(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(x, scale_factor=2)


# -- blocks ------------------------------------------------------------------------------------------------------------


class Residual(nn.Module):
    """after((branch(x) + shortcut(x)) factor), the addition and the activation spelled as the style says.

    With `before`, branch and projection both see before(x), as in pre-activation networks.
    """

    def __init__(
        self,
        maker: Maker,
        branch: nn.Module,
        shortcut: nn.Module | None,
        after: Any = None,
        before: nn.Module | None = None,
        factor: float = 1.0,
    ) -> None:
        super().__init__()
        self.branch, self.shortcut, self.after, self.before, self.factor = branch, shortcut, after, before, factor
        self.checked = maker.style.checked
        self.total = maker.adder()

    def forward(self, x: Tensor) -> Tensor:
        start = x if self.before is None else self.before(x)
        side = x if self.shortcut is None else self.shortcut(start)
        y = self.branch(start)
        if self.checked and y.shape != side.shape:
            raise ValueError("branch and shortcut do not fit")
        y = self.total.add(y, side) if isinstance(self.total, FloatFunctional) else self.total(y, side)
        if self.factor != 1.0:
            y = y * self.factor
        return y if self.after is None else self.after(y)


class Parallel(nn.Module):
    """x + a(n(x)) + b(n(x))"""

    def __init__(self, norm: nn.Module, one: nn.Module, other: nn.Module) -> None:
        super().__init__()
        self.norm, self.one, self.other = norm, one, other

    def forward(self, x: Tensor) -> Tensor:
        n = self.norm(x)
        return x + self.one(n) + self.other(n)


class TwoBranches(nn.Module):
    """x + (a(x) + b(x)): an inner sum of two branches, and a residual join around it."""

    def __init__(self, one: nn.Module, other: nn.Module) -> None:
        super().__init__()
        self.one, self.other = one, other

    def forward(self, x: Tensor) -> Tensor:
        return x + (self.one(x) + self.other(x))


class Dense(nn.Module):
    """A concatenation shortcut and a transition back to the width."""

    def __init__(self, grow: nn.Module, transition: nn.Module) -> None:
        super().__init__()
        self.grow, self.transition = grow, transition

    def forward(self, x: Tensor) -> Tensor:
        return self.transition(torch.cat([x, self.grow(x)], 1))


class Twice(nn.Module):
    """One block, applied two times."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(2):
            x = self.block(x)
        return x


class Attention(nn.Module):
    def __init__(self, width: int, heads: int, kind: str, scores: str, tokens: int) -> None:
        super().__init__()
        self.kind, self.heads, self.scores = kind, heads, scores
        if scores == "table" and kind != "module":
            self.bias = nn.Parameter(torch.randn(heads, tokens, tokens))
        if kind == "module":
            self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
            return
        if kind == "fused":
            self.qkv = nn.Linear(width, 3 * width)
        else:
            self.q, self.k, self.v = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:  # (batch, tokens, width)
        if self.kind == "module":
            return self.attention(x, x, x, need_weights=False)[0]
        batch, tokens, width = x.shape
        shape = (batch, tokens, self.heads, width // self.heads)
        if self.kind == "fused":
            qkv = self.qkv(x).reshape(batch, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
            q, k, v = qkv[0], qkv[1], qkv[2]
            if self.scores == "rotary":
                q, k = self.turned(q), self.turned(k)
            bias = self.bias if self.scores == "table" else None
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, is_causal=self.scores == "causal")
        else:
            q, k, v = (part(x).view(shape).transpose(1, 2) for part in (self.q, self.k, self.v))
            if self.scores == "rotary":
                q, k = self.turned(q), self.turned(k)
            scores = q @ k.transpose(-2, -1) * shape[-1] ** -0.5
            if self.scores == "table":
                scores = scores + self.bias
            if self.scores == "causal":
                hidden = torch.ones(tokens, tokens, dtype=torch.bool, device=x.device).triu(1)
                scores = scores.masked_fill(hidden, float("-inf"))
            y = scores.softmax(-1) @ v
        return self.proj(y.transpose(1, 2).reshape(batch, tokens, width))

    @staticmethod
    def turned(x: Tensor) -> Tensor:
        """Rotary embeddings: each half of the channels turned by the token's position."""
        angle = torch.arange(x.shape[-2], device=x.device, dtype=x.dtype)[:, None]
        return x * angle.cos() + torch.cat([-x[..., x.shape[-1] // 2 :], x[..., : x.shape[-1] // 2]], -1) * angle.sin()


class GatedMlp(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.gate, self.up = nn.Linear(width, 2 * width, bias=False), nn.Linear(width, 2 * width, bias=False)
        self.down = nn.Linear(2 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


class OnTokens(nn.Module):
    """A sequence model over the pixels of an image."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        y = self.block(x.flatten(2).transpose(1, 2))
        return y.transpose(1, 2).reshape(x.shape)


class Maker:
    """Builds the parts of one network. `joins` and `sums` count what a forward through the part just built adds up:
    residual joins, and sums of two branches that are none."""

    def __init__(self, style: Style) -> None:
        self.style, self.dims = style, style.dims

    def conv(
        self, n: int, m: int, kernel: Sequence[int] = (1,), stride: int = 1, dilation: int = 1, groups: int = 1
    ) -> nn.Module:
        """Keeps the sides at stride 1, also for even kernels; halves even ones at stride 2."""
        sizes = [kernel[min(i, len(kernel) - 1)] for i in range(self.dims)]
        common = next(g for g in range(groups, 0, -1) if n % g == 0 and m % g == 0)
        given = {"dilation": dilation, "groups": common, "bias": self.style.bias}
        if stride == 1 and not all(k % 2 for k in sizes):
            return EvenConv(self.normed(CONVS[self.dims](n, m, tuple(sizes), **given)))
        if all(k % 2 for k in sizes):
            padding = tuple(dilation * (k - 1) // 2 for k in sizes)
            return self.normed(CONVS[self.dims](n, m, tuple(sizes), stride, padding, **given))
        return self.normed(CONVS[self.dims](n, m, stride, stride, **given | {"dilation": 1}))

    def normed(self, conv: nn.Module) -> nn.Module:
        return nn.utils.parametrizations.weight_norm(conv) if self.style.norm == "weight" else conv

    def norm(self, width: int) -> nn.Module:
        kind = self.style.norm
        if kind == "batch":
            return BATCH_NORMS[self.dims](width)
        if kind == "group":
            return nn.GroupNorm(2 if width % 2 == 0 else 1, width)
        if kind == "instance":
            return INSTANCE_NORMS[self.dims](width, affine=True)
        return ChannelsLast(width) if kind == "layer" else nn.Identity()

    def act(self) -> Any:
        """A module, or a plain function; not in place where the shortcut still needs what it would overwrite."""
        name = self.style.act
        if self.style.order == "pre" and self.style.norm in ("none", "weight"):
            name = {"relu_": "relu", "relu6": "silu"}.get(name, name)
        return {
            "relu": nn.ReLU,
            "relu_": lambda: nn.ReLU(inplace=True),
            "f.relu": lambda: F.relu,
            "torch.relu": lambda: torch.relu,
            "method": lambda: lambda x: x.relu(),
            "gelu": nn.GELU,
            "f.gelu": lambda: F.gelu,
            "silu": nn.SiLU,
            "leaky": lambda: nn.LeakyReLU(0.1),
            "relu6": lambda: nn.ReLU6(inplace=True),
            "elu": nn.ELU,
            "hardswish": lambda: F.hardswish,
            "tanh": lambda: torch.tanh,
            "prelu": nn.PReLU,
        }[name]()

    def adder(self) -> Any:
        if self.style.add == "module":
            return Adder()
        return FloatFunctional() if self.style.add == "float functional" else PLAIN_ADDS[self.style.add]

    def units(self, *convs: nn.Module, order: str = "") -> list[Any]:
        """Each convolution with its norm and activation, in the order of the style."""
        parts: list[Any] = []
        order = order or self.style.order
        for i, conv in enumerate(convs):
            last = i == len(convs) - 1
            before, after = conv.in_channels, conv.out_channels  # type: ignore[union-attr]
            if order == "pre":
                parts += [self.norm(before), self.act(), conv]
            else:
                parts += [conv, self.norm(after), *([] if last else [self.act()])]
        return parts

    def chain(self, parts: Sequence[Any]) -> nn.Module:
        return Chain([p for p in parts if not isinstance(p, nn.Identity)])

    def block(self, block: Block, width: int, side: int) -> tuple[nn.Module, int, int, int, int]:
        """The module, its output width and side, its residual joins, and its other sums."""
        out = block.width or width
        stride = block.stride if side % 2 == 0 and side >= 4 else 1
        if block.kind in ("basic", "bottleneck", "inverted", "depthwise", "single", "shared activation"):
            return self.plain(block, width, out, side, stride)
        if block.kind == "parallel":
            one, other = self.conv(width, width, block.kernel, 1, block.dilation), self.conv(width, width)
            return (
                Parallel(self.norm(width), one, self.chain([other, self.act(), self.conv(width, width)])),
                width,
                side,
                2,
                0,
            )
        if block.kind == "branches":
            one = self.chain(self.units(self.conv(width, width, block.kernel), self.conv(width, width, (3,))))
            return (
                TwoBranches(one, self.chain(self.units(self.conv(width, width), self.conv(width, width)))),
                width,
                side,
                1,
                1,
            )
        if block.kind == "dense":
            grown = self.chain(self.units(self.conv(width, 4, block.kernel, 1, block.dilation)))
            return Dense(grown, self.conv(width + 4, out)), out, side, 0, 0
        if block.kind == "transformer":
            return self.transformer(block, width, side)
        return self.containing(block, width, side)

    def plain(self, block: Block, n: int, m: int, side: int, stride: int) -> tuple[nn.Module, int, int, int, int]:
        kernel, dilation, groups = block.kernel, block.dilation, block.groups
        if block.kind in ("basic", "shared activation"):
            convs = [self.conv(n, m, kernel, stride, dilation, groups), self.conv(m, m, (3,))]
        elif block.kind == "bottleneck":
            middle = max(2, m // 2)
            convs = [
                self.conv(n, middle),
                self.conv(middle, middle, kernel, stride, dilation, groups),
                self.conv(middle, m),
            ]
        elif block.kind == "inverted":
            middle = 2 * n
            convs = [
                self.conv(n, middle),
                self.conv(middle, middle, kernel, stride, dilation, middle),
                self.conv(middle, m),
            ]
        elif block.kind == "depthwise":
            convs = [self.conv(n, n, kernel, stride, dilation, n), self.conv(n, 2 * m), self.conv(2 * m, m)]
        else:
            convs = [self.conv(n, m, kernel, stride, dilation, groups)]
        shared = block.kind == "shared activation"
        parts = self.units(*convs, order="pre" if shared else "")
        before = self.chain([parts.pop(0), parts.pop(0)]) if shared else None
        if block.gate:
            parts.append(Gate(m, self.dims))
        if block.scale in ("layer", "scalar"):
            parts.append(Scale(m, self.dims) if block.scale == "layer" else Scalar())
        if block.drop:
            parts.append(DropPath())
        after = self.act() if self.style.order == "post" and not shared else None
        shortcut = self.shortcut(block, n, m, stride)
        factor = 0.5 if block.scale == "sum" else 1.0
        made = Residual(self, self.chain(parts), shortcut, after, before, factor)
        # Two single 1×1 layers that meet: nothing says which of them is the shortcut.
        twins = len(convs) == 1 and max(kernel) == 1 and _has_layer(shortcut)
        return made, m, side // stride, int(not twins), int(twins)

    def shortcut(self, block: Block, n: int, m: int, stride: int) -> nn.Module | None:
        if (n, stride) == (m, 1):
            return None
        if block.shortcut == "padded" and m >= n:
            return Padded(n, m, stride, self.dims)
        if block.shortcut == "pooled" and stride > 1:
            pool = AVG_POOLS[self.dims](2)
            return pool if n == m else self.chain([pool, self.conv(n, m), self.norm(m)])
        return self.chain(
            [self.conv(n, m, (1,), stride) if stride == 1 else self.pointwise(n, m, stride), self.norm(m)]
        )

    def pointwise(self, n: int, m: int, stride: int) -> nn.Module:
        return CONVS[self.dims](n, m, 1, stride, bias=self.style.bias)

    def transformer(self, block: Block, width: int, side: int) -> tuple[nn.Module, int, int, int, int]:
        heads = 2 if width % 2 == 0 else 1
        attention = Attention(width, heads, block.attention, block.scores, side**self.dims)
        mlp: nn.Module = (
            GatedMlp(width)
            if block.mlp == "gated"
            else nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        )
        if block.mlp == "beside":
            return OnTokens(Parallel(nn.LayerNorm(width), attention, mlp)), width, side, 2, 0
        parts = []
        for branch in [attention] if block.mlp == "none" else [attention, mlp]:
            more = [
                *({"layer": [Scale(width, 0)], "scalar": [Scalar()]}.get(block.scale, [])),
                *([DropPath()] if block.drop else []),
            ]
            if self.style.order == "post":
                parts.append(Residual(self, Chain([branch, *more]), None, nn.LayerNorm(width)))
            else:
                parts.append(Residual(self, Chain([nn.LayerNorm(width), branch, *more]), None))
        return OnTokens(nn.Sequential(*parts)), width, side, len(parts), 0

    def containing(self, block: Block, width: int, side: int) -> tuple[nn.Module, int, int, int, int]:
        """Blocks with blocks inside: applied twice, as the branch of another, or below a long skip."""
        if block.kind == "shared":
            keeping = self._keeping(block.inner[0])
            inner, _, _, joins, sums = self.block(keeping, width, side)
            return Twice(inner), width, side, 2 * joins, 2 * sums
        low = block.kind == "unet" and side % 2 == 0 and side >= 4
        parts: list[Any] = [self.pointwise(width, width, 2)] if low else []
        now, joins, sums = side // 2 if low else side, 0, 0
        for one in block.inner:
            made, _, _, more, others = self.block(self._keeping(one), width, now)
            parts.append(made)
            joins, sums = joins + more, sums + others
        if low:
            up = TRANSPOSED[self.dims](width, width, 2, 2)
            parts += [up] if block.gate else [Interpolate(), self.conv(width, width, (3,))]
        else:
            parts.append(self.conv(width, width, (3,)))
        return Residual(self, self.chain(parts), None), width, side, joins + 1, sums

    def _keeping(self, block: Block) -> Block:
        """The block without a change of shape."""
        values = {name: getattr(block, name) for name in Block.__dataclass_fields__}
        return Block(**values | {"width": 0, "stride": 1})


def _has_layer(shortcut: nn.Module | None) -> bool:
    return shortcut is not None and any(isinstance(m, nn.modules.conv._ConvNd) for m in shortcut.modules())


class Chain(nn.Module):
    """Modules and plain functions, one after the other."""

    def __init__(self, parts: Sequence[Any]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(part for part in parts if isinstance(part, nn.Module))
        self.order = [part if not isinstance(part, nn.Module) else None for part in parts]

    def forward(self, x: Tensor) -> Tensor:
        modules = iter(self.parts)
        for function in self.order:
            x = next(modules)(x) if function is None else function(x)
        return x


# -- networks ----------------------------------------------------------------------------------------------------------


class Net(nn.Module):
    """The network of a design.

    Attributes:
        joins: residual joins of one forward.
        sums: sums of two branches that are no residual joins.
    """

    def __init__(self, design: Design) -> None:
        super().__init__()
        maker = Maker(design.style)
        self.design, dims, width = design, design.style.dims, design.width
        self.joins = self.sums = 0
        side = SIDE
        if design.stem == "tokens":
            self.embed = nn.Embedding(11, width)
            self.places = nn.Parameter(torch.randn(1, SIDE, width))
        elif design.stem == "patches":
            self.stem: nn.Module = CONVS[dims](3, width, 2, 2)
            side = SIDE // 2
        else:
            stride = 2 if design.stem == "strided" else 1
            self.stem = nn.Sequential(maker.conv(3, width, (3,), stride), maker.norm(width), nn.ReLU())
            side = SIDE // stride
        made = []
        for block in design.blocks:
            module, width, side, joins, sums = maker.block(block, width, side)
            made.append(module)
            self.joins, self.sums = self.joins + joins, self.sums + sums
        self.body = _contained(made, design.container)
        self.last = maker.norm(width)
        self.width = width
        if design.head == "convolution":
            self.head: nn.Module = CONVS[dims](width, 5, 1)
        elif design.head == "tied" and width == design.width:
            self.head = nn.Linear(width, 11, bias=False)
            self.head.weight = self.embed.weight
        elif design.head != "none":
            self.head = nn.Linear(width, 5)
        if design.tied:
            _tie(self)

    def forward(self, x: Tensor) -> Tensor:
        x = (self.embed(x) + self.places).transpose(1, 2) if self.design.stem == "tokens" else self.stem(x)
        for block in _in_order(self.body):
            x = block(x)
        x = F.relu(self.last(x))
        if self.design.head == "convolution":
            return self.head(x)
        if self.design.pool == "functional":
            x = ADAPTIVE[self.design.style.dims](x, 1).flatten(1)
        else:
            x = x.flatten(2).mean(2) if self.design.pool == "mean" else x.flatten(2).amax(2)
        return x if self.design.head == "none" else self.head(x)


def _contained(blocks: list[nn.Module], container: str) -> nn.Module:
    if container == "sequential":
        return nn.Sequential(*blocks)
    if container == "dict":
        return nn.ModuleDict({f"block{i}": block for i, block in enumerate(blocks)})
    if container == "nested":
        return nn.ModuleList([nn.ModuleList(blocks[:1]), nn.ModuleList(blocks[1:])])
    return nn.ModuleList(blocks)


def _in_order(body: nn.Module) -> list[Any]:
    if isinstance(body, nn.Sequential):
        return [body]
    if isinstance(body, nn.ModuleDict):
        return list(body.values())
    return [block for part in body for block in (part if isinstance(part, nn.ModuleList) else [part])]  # type: ignore[attr-defined]


def _tie(net: nn.Module) -> None:
    """The first two convolutions inside the body with weights of one shape share one parameter."""
    seen: dict[torch.Size, nn.Module] = {}
    for module in net.body.modules():  # type: ignore[union-attr]
        if isinstance(module, nn.modules.conv._ConvNd) and "weight" in module._parameters:
            first = seen.setdefault(module.weight.shape, module)
            if first is not module:
                module.weight = first.weight  # type: ignore[assignment]
                return


def build(design: Design, seed: int = 0) -> Net:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Net(design)


def inputs_of(design: Design, batch: int = 2) -> tuple[Tensor]:
    """An image (batch, 3, 8, …), or token ids (batch, 8)."""
    if design.stem == "tokens":
        return ((torch.arange(batch * SIDE) * 7 % 11).reshape(batch, SIDE),)
    shape = (batch, 3, *[SIDE] * design.style.dims)
    return (torch.sin(torch.arange(torch.Size(shape).numel()) * 0.7).reshape(shape),)
