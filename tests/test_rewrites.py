"""Rewrites: each rewritten network against its new forward, written out by hand, with random weights in both.

The hand-written forwards call the layers of the rewritten module, so a layer of the wrong size, in the wrong place or
with the wrong input shows. Nothing is initialized here; equality holds for any weights.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import zero_convert as zc
from zero_convert import rewrites, schemes
from zero_convert.graph.traced import Traced
from zero_convert.nn.functional import pad_channels, subsample
from zero_convert.nn.layers import HadamardTransform
from zero_convert.nn.tree import Container
from zero_convert.records import Edit, Geometry
from zero_convert.rewrites.inner_skips import centre_sides
from zero_convert.structure import analyze
from zero_convert.tracing import trace

from .nets import BottleneckNet, PreActivationResNet, tiny_resnet
from .odd_nets import ODD, Head, Inplace, OddNames, Residual, SqueezeExcite, conv_net, gated_net, pooled_shortcut, ramp

SCHEME = schemes.get("zero-2021")
Forward = Callable[[nn.Module, Tensor], Tensor]


def r0(x: Tensor) -> Tensor:
    return torch.where(x >= 0, x, torch.zeros_like(x))


def r6(x: Tensor) -> Tensor:
    return r0(x).clamp(max=6)


def rewritten(
    net: nn.Module, inputs: Sequence[Tensor], names: Sequence[str] | None = None, **options: str
) -> tuple[Traced, tuple[Edit, ...]]:
    """The network after all rewrites of zero-2021 or the named ones, with random weights and running statistics."""
    chosen = schemes.complete_options(SCHEME, options)
    net = copy.deepcopy(net)
    made, edits = rewrites.apply(trace(net, inputs), SCHEME.rewrites(chosen) if names is None else names, chosen)
    randomize(made.root)
    return made, edits


def randomize(module: nn.Module) -> None:
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for value in (*module.parameters(), *module.buffers()):
            transform = any(
                value is b for m in module.modules() if isinstance(m, HadamardTransform) for b in m.buffers()
            )
            if value.is_floating_point() and not transform:
                value.copy_(torch.rand(value.shape, generator=generator) + 0.5)
        for m in module.modules():
            if isinstance(m, nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear):
                m.weight.copy_(torch.randn(m.weight.shape, generator=generator) / m.weight[0].numel() ** 0.5)


def agree(net: nn.Module, x: Tensor, forward: Forward, **options: str) -> Mapping[str, Edit]:
    """Asserts that the rewritten network is `forward` in both modes; the applied edits by target."""
    made, edits = rewritten(net, (x,), **options)
    for mode in (False, True):
        found = copy.deepcopy(made.root).train(mode)(x)
        expected = forward(copy.deepcopy(made.root).train(mode), x)
        assert found.abs().max() > 1e-3
        assert torch.allclose(found, expected, rtol=0, atol=1e-5 * float(expected.detach().abs().max()))
    return {edit.target: edit for edit in edits if edit.applied}


def stem(convolution: nn.Module, transform: nn.Module, x: Tensor) -> Tensor:
    """C0(x) + T(pad(x)) for a stem of stride 1."""
    return convolution(x) + transform(pad_channels(x, convolution.out_channels, 2))  # type: ignore[arg-type]


# -- residual blocks ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [8, 9])
def test_post_activation_basic_blocks(size: int) -> None:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        x = m.bn1(r0(stem(m.conv1, m.conv1_transform, x)))
        same, changes = m.blocks.get_submodule("0"), m.blocks.get_submodule("1")
        h = same.conv1(same.bn1(r0(x))) + x
        x = same.conv2(same.bn2(r0(h))) + h
        a = changes.bn1(r0(x))
        h = changes.conv1(a) + changes.shortcut.get_submodule("0_transform")(changes.shortcut.get_submodule("0")(a))
        x = changes.conv2(changes.bn2(r0(h))) + h
        return m.linear(changes.bn2_out(r0(x)).mean((2, 3)))

    edits = agree(tiny_resnet(), ramp(2, 3, size, size), forward)
    assert {"add", "add_1", "blocks.1.bn2_out", "blocks.1.shortcut.0", "conv1"} <= set(edits)


def bottleneck(m: nn.Module, x: Tensor, stride: int) -> Tensor:
    """g = C2(N2(r0(h))) + sub(h), y = C3(N3(r0(g))) + (T(P(a)) or x)."""
    part = m.get_submodule
    a = part("reduce.1")(r0(x))
    h = part("reduce.0")(a)
    g = part("spatial.0")(part("spatial.1")(r0(h))) + h[..., ::stride, ::stride]
    y = part("expand.0")(part("expand.1")(r0(g)))
    if isinstance(m.downsample, Container):
        return y + part("downsample.0_transform")(part("downsample.0")(a))
    return y + x


@pytest.mark.parametrize("size", [32, 33, 35])
def test_post_activation_bottlenecks_with_the_nets_own_pool_at_the_stem(size: int) -> None:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        part = m.stem.get_submodule
        pool = nn.MaxPool2d(3, 2, 1)
        x = part("0")(x) + part("0_transform")(pad_channels(pool(x), 8, 2))
        x = pool(part("1")(r0(x)))
        for i, stride in enumerate((1, 1, 2)):
            x = bottleneck(m.body.get_submodule(str(i)), x, stride)
        return m.head(m.get_submodule("body.2.expand.1_out")(r0(x)).mean((2, 3)))

    edits = agree(BottleneckNet(), ramp(2, 3, size, size), forward)
    assert "max-pool" in edits["stem.0"].action


def test_bottlenecks_without_norms_are_the_published_formula() -> None:
    def block(m: nn.Module, x: Tensor, stride: int) -> Tensor:
        part = m.get_submodule
        b = [part(f"{layer}.0_bias_{side}").bias for layer in ("reduce", "spatial", "expand") for side in ("in", "out")]
        a = r0(x) + b[0]
        h = part("reduce.0")(a) + b[1]
        g = part("spatial.0")(r0(h) + b[2]) + b[3] + h[..., ::stride, ::stride]
        y = part("expand.0")(r0(g) + b[4]) * part("expand.0_scale").scale + b[5]
        if isinstance(m.downsample, Container):
            return y + part("downsample.0_transform")(part("downsample.0")(a))
        return y + x

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        pool = nn.MaxPool2d(3, 2, 1)
        part = m.stem.get_submodule
        x = pool(r0(part("0")(x) + part("0_transform")(pad_channels(pool(x), 8, 2))))
        for i, stride in enumerate((1, 1, 2)):
            x = block(m.body.get_submodule(str(i)), x, stride)
        return m.head(r0(x).mean((2, 3)))

    agree(BottleneckNet(), ramp(2, 3, 33, 33), forward, norm="none")
    made, _ = rewritten(BottleneckNet(), (ramp(2, 3, 33, 33),), norm="none")
    assert not [m for m in made.root.modules() if isinstance(m, nn.BatchNorm2d)]
    assert sum(p.numel() == 1 for p in made.root.parameters()) == 3 * 7


@pytest.mark.parametrize("size", [8, 9, 11])
def test_shortcuts_that_pool_stay_and_those_that_pool_and_project_get_a_transform(size: int) -> None:
    pool = nn.AvgPool2d(2, 2, ceil_mode=True)

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        part = m.get_submodule
        x = part("0.1")(r0(stem(part("0.0"), part("0.0_transform"), x)))
        h = part("1.branch.0")(part("1.branch.1")(r0(x))) + pool(x)
        x = part("1.branch.3")(part("1.branch.4")(r0(h))) + h
        a = part("2.branch.1")(r0(x))
        h = part("2.branch.0")(a) + part("2.shortcut.1_transform")(part("2.shortcut.1")(pool(a)))
        x = part("2.branch.3")(part("2.branch.4")(r0(h))) + h
        return part("3.fc")(part("2.branch.4_out")(r0(x)).mean((2, 3)))

    agree(pooled_shortcut(pool), ramp(2, 3, size, size), forward)


class RegNetBlock(nn.Module):
    """1×1, grouped 3×3 of the block's stride, squeeze-excitation, 1×1; with its projection."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.project: nn.Module = nn.Identity()
        if inputs != width or stride > 1:
            self.project = nn.Sequential(nn.Conv2d(inputs, width, 1, stride, bias=False), nn.BatchNorm2d(width))
        self.a, self.na = nn.Conv2d(inputs, width, 1, bias=False), nn.BatchNorm2d(width)
        self.b, self.nb = nn.Conv2d(width, width, 3, stride, 1, groups=2, bias=False), nn.BatchNorm2d(width)
        self.gate = SqueezeExcite(width, 3)
        self.c, self.nc = nn.Conv2d(width, width, 1, bias=False), nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.na(self.a(x)), inplace=True)
        y = self.gate(F.relu(self.nb(self.b(y)), inplace=True))
        return F.relu(self.project(x) + self.nc(self.c(y)), inplace=True)


def gated(m: nn.Module, x: Tensor) -> Tensor:
    return x * torch.sigmoid(m.fc2(r0(m.fc1(x.mean((2, 3), keepdim=True)))))


@pytest.mark.parametrize("size", [8, 9])
def test_regnet_blocks_with_gates(size: int) -> None:
    """The first block grows and strides: its skip strides. The second keeps everything: all layers get skips."""

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        part = m.get_submodule
        x = part("0.1")(r0(stem(part("0.0"), part("0.0_transform"), x)))
        one, two = part("1"), part("2")
        a = one.na(r0(x))
        h = one.a_transform(one.a(a))
        g = one.b(one.nb(r0(h))) + h[..., ::2, ::2]
        shortcut = one.get_submodule("project.0_transform")(one.get_submodule("project.0")(a))
        x = one.c(one.nc(gated(one.gate, r0(g)))) + shortcut
        h = two.a(two.na(r0(x))) + x
        g = two.b(two.nb(r0(h))) + h
        x = two.c(two.nc(gated(two.gate, r0(g)))) + g
        return part("3.fc")(two.nc_out(r0(x)).mean((2, 3)))

    start = nn.Sequential(nn.Conv2d(3, 8, 3, 1, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
    net = nn.Sequential(start, RegNetBlock(8, 12, 2), RegNetBlock(12, 12, 1), Head(12))
    agree(net, ramp(2, 3, size, size), forward)


@pytest.mark.parametrize("before_norm", [True, False])
def test_gates_before_and_after_the_last_norm(before_norm: bool) -> None:
    """A norm directly behind its layer moves before it; one behind a gate stays behind it."""

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        part = m.get_submodule
        x = part("0.1")(r0(stem(part("0.0"), part("0.0_transform"), x)))
        for i in "12":
            block = part(f"{i}.branch").get_submodule
            h = block("0")(block("1")(r0(x))) + x
            if before_norm:
                x = block("5")(gated(block("4"), block("3")(r0(h)))) + h
            else:
                x = gated(block("5"), block("3")(block("4")(r0(h)))) + h
        out = part("2.branch.1_out" if before_norm else "2.branch.4_out")
        return part("3.fc")(out(r0(x)).mean((2, 3)))

    agree(gated_net(before_norm), ramp(2, 3, 8, 8), forward)


class InvertedResidual(nn.Module):
    """MobileNet's block: expand, depthwise, project; no activation after the sum."""

    def __init__(self, width: int, stride: int) -> None:
        super().__init__()
        self.expand = nn.Sequential(nn.Conv2d(width, 4 * width, 1, bias=False), nn.BatchNorm2d(4 * width), nn.ReLU6())
        self.depthwise = nn.Sequential(
            nn.Conv2d(4 * width, 4 * width, 3, stride, 1, groups=4 * width, bias=False),
            nn.BatchNorm2d(4 * width),
            nn.ReLU6(inplace=True),
        )
        self.project = nn.Sequential(nn.Conv2d(4 * width, width, 1, bias=False), nn.BatchNorm2d(width))
        self.residual = stride == 1

    def forward(self, x: Tensor) -> Tensor:
        y = self.project(self.depthwise(self.expand(x)))
        return x + y if self.residual else y


def test_inverted_residuals_keep_their_order_and_skip_the_depthwise_layer() -> None:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        part = m.get_submodule
        x = stem(part("0"), part("0_transform"), x)
        for i in "12":
            block = part(i).get_submodule
            h = r6(block("expand.1")(block("expand.0_transform")(block("expand.0")(x))))
            g = block("depthwise.0")(h) + h if i == "1" else block("depthwise.0")(h)
            y = block("project.1")(block("project.0")(r6(block("depthwise.1")(g))))
            x = y + x if i == "1" else y
        return part("3.fc")(x.mean((2, 3)))

    net = nn.Sequential(nn.Conv2d(3, 8, 3, 1, 1), InvertedResidual(8, 1), InvertedResidual(8, 2), Head(8))
    edits = agree(net, ramp(2, 3, 9, 9), forward)
    assert {t for t, e in edits.items() if e.rewrite == "growth_transforms"} == {"1.expand.0", "2.expand.0"}


def test_pre_activation_blocks_get_the_basic_form() -> None:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        x = stem(m.stem, m.stem_transform, x)
        for i in "012":
            block = m.body.get_submodule(i)
            a = r0(block.norm1(x))
            h = block.conv1(a) + (block.project_transform(block.project(a)) if i == "1" else x)
            x = block.conv2(r0(block.norm2(h))) + h
        return m.head(r0(m.norm(x)).mean((2, 3)))

    agree(PreActivationResNet(), ramp(2, 3, 9, 9), forward)


class DoubleBottleneck(nn.Module):
    """Pre-activation order without norms, with two layers in its middle that see more than one position."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.reduce, self.expand = nn.Conv2d(channels, 4, 1), nn.Conv2d(4, channels, 1)
        self.one, self.two = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for layer in (self.reduce, self.one, self.two, self.expand):
            y = layer(F.relu(y))
        return x + y


def test_the_skip_of_the_second_of_two_layers_carries_the_skip_of_the_first() -> None:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        block = m.get_submodule("1")
        x = m.get_submodule("0")(x)
        h = block.reduce(r0(x))
        h = block.one(r0(h)) + h
        h = block.two(r0(h)) + h
        return m.get_submodule("2.fc")((x + block.expand(r0(h))).mean((2, 3)))

    net = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), DoubleBottleneck(8), Head(8))
    agree(net, ramp(2, 8, 7, 7), forward)
    result = zc.convert(net, (ramp(2, 8, 7, 7),), scheme="zero-2021", device="cpu")
    assert not result.failed, [check.summary for check in result.failed]


def test_the_order_is_kept_where_a_norm_cannot_move() -> None:
    net = conv_net(lambda c: nn.LocalResponseNorm(2))
    _, edits = rewritten(net, (ramp(2, 3, 8, 8),))
    declined = [e for e in edits if not e.applied and e.rewrite == "preactivation"]
    assert [e.reason for e in declined] == ["its LocalResponseNorm cannot be moved before its layer"] * 3


def test_a_norm_used_after_layers_of_different_widths_is_not_moved() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
            self.a, self.down, self.up = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)
            self.head = Head(8)

        def forward(self, x: Tensor) -> Tensor:
            x = F.relu(self.stem(x))
            x = F.relu(x + self.norm(self.a(x)))
            return self.head(F.relu(x + self.norm(self.up(F.relu(self.down(x))))))

    x = ramp(2, 3, 8, 8)
    made, edits = rewritten(Shared(), (x,))
    assert made.root(x).shape == (2, 5)
    assert {e.reason for e in edits if not e.applied} == {"norm is used after layers of different widths"}


# -- the stem ----------------------------------------------------------------------------------------------------------


def delta(g: nn.Conv2d) -> nn.Conv2d:
    """The convolution with a 1 at the centre tap k // 2 of channel i → i."""
    made = nn.Conv2d(
        g.in_channels, g.in_channels, g.kernel_size, g.stride, g.padding, g.dilation, g.in_channels, bias=False
    )
    nn.init.zeros_(made.weight)
    made.weight.data[:, :, made.kernel_size[0] // 2, made.kernel_size[1] // 2] = 1
    return made


STEMS = {
    "3x3": nn.Conv2d(3, 8, 3, 1, 1),
    "no padding": nn.Conv2d(3, 8, 3, 1, 0),
    "stride 2": nn.Conv2d(3, 8, 3, 2, 1),
    "even kernel": nn.Conv2d(3, 8, 4, 2, 1),
    "even kernel, no padding": nn.Conv2d(3, 8, 2, 1, 0),
    "7x7 stride 4": nn.Conv2d(3, 8, 7, 4, 3),
    "dilated": nn.Conv2d(3, 8, 3, 2, 2, dilation=2),
    "more padding than the centre": nn.Conv2d(3, 8, 3, 2, 3),
    "not square": nn.Conv2d(3, 8, (5, 2), (2, 1), (2, 1)),
}


@pytest.mark.parametrize("convolution", STEMS.values(), ids=STEMS)
@pytest.mark.parametrize("size", [12, 13])
def test_the_stems_skip_reads_under_its_centre_tap(convolution: nn.Conv2d, size: int) -> None:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        part = m.get_submodule
        x = part("0")(x) + part("0_transform")(pad_channels(delta(convolution)(x), 8, 2))
        return part("2.fc")(r0(x).mean((2, 3)))

    net = nn.Sequential(copy.deepcopy(convolution), nn.ReLU(), Head(8))
    assert "0" in agree(net, ramp(2, 3, size, size), forward)


def test_a_pool_of_another_size_is_not_taken_for_the_stem() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.MaxPool2d(2, 2), Head(8))
    _, edits = rewritten(net, (ramp(2, 3, 12, 12),))
    [edit] = [e for e in edits if e.rewrite == "stem_skip"]
    assert "subsampling" in edit.action


@pytest.mark.parametrize(
    "layer", [nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 8, 4, 4), nn.ConvTranspose2d(3, 8, 2, 2)]
)
def test_stems_that_keep_their_channels_cut_patches_or_grow_the_image_get_no_skip(layer: nn.Module) -> None:
    _, edits = rewritten(nn.Sequential(layer, Head(layer.out_channels)), (ramp(2, 3, 8, 8),))  # type: ignore[arg-type]
    assert "stem_skip" not in {edit.rewrite for edit in edits}


@st.composite
def geometries(draw: st.DrawFn) -> tuple[Geometry, tuple[int, ...]]:
    """A geometry of one or two dimensions and an input size that gives at least one output."""
    dims = draw(st.integers(1, 2))
    kernel = tuple(draw(st.integers(1, 6)) for _ in range(dims))
    stride = tuple(draw(st.integers(1, 4)) for _ in range(dims))
    dilation = tuple(draw(st.integers(1, 3)) for _ in range(dims))
    padding = tuple((draw(st.integers(0, 7)), draw(st.integers(0, 7))) for _ in range(dims))
    least = [max(1, d * (k - 1) + 1 - sum(p)) for k, d, p in zip(kernel, dilation, padding, strict=True)]
    size = tuple(n + draw(st.integers(0, 9)) for n in least)
    return Geometry(1, 1, kernel, stride, padding, dilation), size


@settings(max_examples=200)
@given(geometries())
def test_subsampling_by_centre_sides_is_the_convolution_with_a_one_at_the_centre(
    case: tuple[Geometry, tuple[int, ...]],
) -> None:
    g, size = case
    x = ramp(1, 1, *size) + 2
    weight = torch.zeros(1, 1, *g.kernel)
    weight[(0, 0, *(k // 2 for k in g.kernel))] = 1
    padded = F.pad(x, [p for pair in reversed(g.padding) for p in pair])
    convolution = F.conv1d if len(size) == 1 else F.conv2d
    expected = convolution(padded, weight, None, g.stride, 0, g.dilation)
    found = subsample(x, g.stride, centre_sides(g))
    assert found.shape == expected.shape
    assert torch.equal(found, expected)


# -- growth, activations, in-place operations, names ------------------------------------------------------------------


def test_layers_that_grow_on_the_trunk_are_mixed_and_the_others_are_not() -> None:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        part = m.get_submodule
        x = r0(part("0_transform")(pad_channels(x, 8, 0)) + part("0")(x))
        x = r0(part("2_transform")(part("2")(x)))
        x = r0(part("4")(x))
        return part("6")(x)

    net = nn.Sequential(
        nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 7), nn.ReLU(), nn.Linear(7, 9)
    )
    edits = agree(net, ramp(4, 5), forward)
    assert {t for t, e in edits.items() if e.rewrite == "growth_transforms"} == {"2"}


@pytest.mark.parametrize("mixing", ["none", "permute", "signs"])
def test_every_transform_mixes_as_asked_and_by_its_own_name(mixing: str) -> None:
    made, _ = rewritten(BottleneckNet(), (ramp(2, 3, 32, 32),), mixing=mixing)
    found = {path: m for path, m in made.root.named_modules() if isinstance(m, HadamardTransform)}
    assert len(found) == 3
    assert {m.mixing for m in found.values()} == {mixing}
    assert [f"{m.key}_transform" for m in found.values()] == list(found)


@pytest.mark.parametrize(
    "act", [nn.ReLU(), nn.ReLU6(), nn.Hardtanh(0.0, 6.0), nn.ReLU(inplace=True)], ids=lambda m: str(m)
)
def test_relus_let_the_gradient_through_at_zero(act: nn.Module) -> None:
    made, edits = rewritten(nn.Sequential(nn.Linear(2, 2), act, nn.Linear(2, 2)), (ramp(1, 2),), ["relu_derivative"])
    assert edits[0].action == "1 ReLUs with derivative 1 at 0"
    with torch.no_grad():
        made.root.get_submodule("0").weight.zero_()
        made.root.get_submodule("0").bias.zero_()
    made.root(torch.ones(1, 2)).sum().backward()
    assert made.root.get_submodule("0").weight.grad.abs().min() > 0


@pytest.mark.parametrize("act", [nn.GELU(), nn.SiLU(), nn.LeakyReLU(), nn.Hardtanh(-1.0, 1.0)], ids=lambda m: str(m))
def test_other_activations_stay(act: nn.Module) -> None:
    made, edits = rewritten(nn.Sequential(nn.Linear(2, 2), act, nn.Linear(2, 2)), (ramp(1, 2),), ["relu_derivative"])
    assert not edits
    assert isinstance(made.root.get_submodule("1"), type(act))


def test_the_activation_of_each_block_moves_with_it() -> None:
    made, _ = rewritten(conv_net(nn.BatchNorm2d, nn.SiLU), (ramp(2, 3, 8, 8),), ["preactivation"])
    joins = [node for node in made.train.nodes if str(node.target) == "<built-in function add>"]
    assert len(joins) == 3
    assert all(join.order == "pre-activation" for join in analyze(made).joins)


class Aliases(nn.Module):
    """Results of in-place operations that nobody takes: the value itself is read afterwards."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.act, self.gate = nn.Conv2d(3, 3, 1), nn.ELU(inplace=True), nn.Hardsigmoid(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        self.act(y)
        z = y + 1
        z.mul_(2).sub_(y)
        torch.relu_(z)
        w = z * 1
        w /= 3
        w.clamp_(max=0.5)
        self.gate(w)
        return w + z + F.hardswish(y, inplace=True) + y


class Views(nn.Module):
    """An in-place operation on a view, and one on the whole whose views are read later."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        flat = y.flatten(2)
        F.elu_(flat)
        left, right = y[:, :2], y[:, 2:]
        right.neg_()
        return left * y.mean() + right


@pytest.mark.parametrize("build", [Inplace, Aliases, Views], ids=lambda c: c.__name__)
@pytest.mark.parametrize("training", [True, False])
def test_operations_out_of_place_compute_the_same(build: type[nn.Module], training: bool) -> None:
    net, x = build().train(training), ramp(2, 3, 6, 6)
    expected = copy.deepcopy(net)(x)
    options = schemes.complete_options(SCHEME, {})
    made, _ = rewrites.apply(trace(copy.deepcopy(net), (x,)), ["out_of_place"], options)
    assert torch.equal(made.root(x), expected)


def test_nothing_works_in_place_afterwards_unless_it_is_said() -> None:
    made, edits = rewritten(Inplace(), (ramp(2, 3, 6, 6),), ["out_of_place"])
    left = [n for n in made.train.nodes if str(n.target).endswith("_") or n.kwargs.get("inplace")]
    assert not left
    made, edits = rewritten(Aliases(), (ramp(2, 3, 6, 6),), ["out_of_place"])
    assert not [m for m in made.root.modules() if getattr(m, "inplace", False)]
    made, edits = rewritten(Views(), (ramp(2, 3, 6, 6),), ["out_of_place"])
    assert {e.reason for e in edits if not e.applied} == {"other views of its value are read later"}


def test_names_that_the_model_uses_itself_are_not_taken() -> None:
    net, x = OddNames(), ramp(2, 3, 8, 8)
    for norm in ("keep", "none"):
        made, _ = rewritten(net, (x,), norm=norm)
        for name, module in net.named_modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                assert type(made.root.get_submodule(name)) is type(module), name
        assert isinstance(made.root.get_submodule("project_transform_"), HadamardTransform)
        assert made.root(x).shape == (2, 5)


@pytest.mark.parametrize("name", ["drop_path", "shared_conv", "looped", "multi_scale"])
@pytest.mark.parametrize("norm", ["keep", "none"])
def test_both_modes_are_rewritten_alike(name: str, norm: str) -> None:
    made, _ = rewritten(ODD[name].build(), ODD[name].inputs(), norm=norm)
    train, evaluate = (
        sorted(str(n.target) for n in graph.nodes if n.op == "call_module" and "drop" not in str(n.target).lower())
        for graph in (made.train, made.evaluate)
    )
    dropped = {name for name in train if isinstance(made.root.get_submodule(name), nn.Dropout)}
    assert [n for n in train if n not in dropped] == [n for n in evaluate if n not in dropped]


def test_rewriting_keeps_the_original_names() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), Residual(nn.Conv2d(4, 4, 3, padding=1)), Head(4))
    made, _ = rewritten(net, (ramp(2, 3, 8, 8),))
    assert list(made.root.state_dict()) == list(net.state_dict())
