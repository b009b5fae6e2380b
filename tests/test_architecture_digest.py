"""`za1`: equal however a network is spelled, different for what changes its function; training moves nothing."""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import combinations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zero_convert.formats.digests import canonical_json
from zero_convert.formats.identity import architecture_digest, start_digest
from zero_convert.graph.architecture import describe_network
from zero_convert.graph.architecture.leaves import constant, describe
from zero_convert.tracing import trace

IMAGE = (2, 4, 8, 8)
Forward = Callable[[nn.Module, Tensor], Tensor]


class Net(nn.Module):
    """A few layers, and a forward that is given."""

    def __init__(self, forward: Forward, **parts: nn.Module) -> None:
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)
        self.way = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.way(self, x)


def net(forward: Forward, **parts: nn.Module) -> nn.Module:
    usual = {"conv": nn.Conv2d(4, 4, 3, padding=1), "bn": nn.BatchNorm2d(4), "fc": nn.Linear(4, 4)}
    return Net(forward, **{**usual, **parts})


def digest(module: nn.Module, shape: tuple[int, ...] = IMAGE, dtype: torch.dtype = torch.float32) -> str:
    return architecture_digest(describe_network(trace(module, (torch.ones(shape).to(dtype),))))


class Reshaped(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.view(x.shape[0], -1, 2, 4, 4).reshape(x.shape)


def _in_place(m: nn.Module, x: Tensor) -> Tensor:
    y = m.conv(x)
    F.relu_(y)
    return y * 2


def _rebound(m: nn.Module, x: Tensor) -> Tensor:
    y = torch.relu(m.conv(x))
    return 2 * y


def _other_order(m: nn.Module, x: Tensor) -> Tensor:
    b = m.bn(x)
    a = m.conv(x)
    return torch.add(b, a)


def _dead_code(m: nn.Module, x: Tensor) -> Tensor:
    m.fc(x.mean((2, 3)))
    return m.conv(x) + m.bn(x)


def _heads_of_attention(heads: int) -> Forward:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        q, k, v = (m.fc(tokens).view(x.shape[0], -1, heads, 4 // heads).transpose(1, 2) for _ in range(3))
        return F.scaled_dot_product_attention(q, k, v, scale=1.0).transpose(1, 2).reshape(tokens.shape)

    return forward


def _other_heads(m: nn.Module, x: Tensor) -> Tensor:
    tokens = x.permute(0, 2, 3, 1).flatten(1, 2)
    batch, count, _ = tokens.size()
    q, k, v = (m.fc(tokens).reshape(batch, count, 2, -1).permute(0, 2, 1, 3) for _ in range(3))
    y = F.scaled_dot_product_attention(q, k, v, is_causal=False, scale=1.0)
    return y.swapaxes(1, 2).contiguous().view(batch, count, -1)


SAME: dict[str, tuple[nn.Module, ...]] = {
    "activation": (
        net(lambda m, x: F.relu(m.conv(x))),
        net(lambda m, x: torch.relu(m.conv(x))),
        net(lambda m, x: m.conv(x).relu()),
        net(lambda m, x: F.relu(m.conv(x), inplace=True)),
        net(lambda m, x: m.act(m.conv(x)), act=nn.ReLU()),
        net(lambda m, x: m.another(m.conv(x)), another=nn.ReLU(inplace=True)),
    ),
    "names and order": (
        net(lambda m, x: m.conv(x) + m.bn(x)),
        net(lambda m, x: m.bn(x) + m.conv(x)),
        net(_other_order),
        net(_dead_code),
    ),
    "in place": (net(_in_place), net(_rebound)),
    "views": (
        net(lambda m, x: m.fc(m.conv(x).mean((2, 3)))),
        net(lambda m, x: m.fc(m.conv(x).contiguous().mean(dim=[-2, -1], keepdim=True).flatten(1))),
        net(lambda m, x: m.fc(F.adaptive_avg_pool2d(m.conv(x), 1).view(x.size(0), -1))),
        net(lambda m, x: m.fc(torch.flatten(m.pool(m.conv(x)), 1)), pool=nn.AdaptiveAvgPool2d((1, 1))),
        net(lambda m, x: m.fc(m.flat(m.pool(m.conv(m.shape(x))))), pool=nn.AdaptiveAvgPool2d(1), flat=nn.Flatten(),
            shape=Reshaped()),
        net(lambda m, x: m.fc(m.conv(x.float()).to(x.dtype).mean((2, 3))[:, :, None].squeeze(-1))),
    ),
    "functions of layers": (
        net(lambda m, x: m.bn(m.conv(x)).flatten(2).mean(2) @ torch.ones(4, 4) + 0 * m.fc(x.mean((2, 3)))),
        net(
            lambda m, x: (
                F.batch_norm(
                    F.conv2d(x, m.conv.weight, m.conv.bias, 1, 1), m.bn.running_mean, m.bn.running_var, m.bn.weight,
                    m.bn.bias, m.training, 0.1, 1e-5,
                ).flatten(2).mean(2) @ torch.ones(4, 4) + 0 * F.linear(x.mean((2, 3)), m.fc.weight, m.fc.bias)
            )
        ),
    ),
    "pooling": (
        net(lambda m, x: F.max_pool2d(x, 2)),
        net(lambda m, x: F.max_pool2d(x, kernel_size=(2, 2), stride=2, padding=0)),
        net(lambda m, x: m.pool(x), pool=nn.MaxPool2d(2)),
        net(lambda m, x: m.pool(x), pool=nn.MaxPool2d((2, 2), (2, 2), dilation=1)),
    ),
    "axes": (
        net(lambda m, x: F.softmax(m.conv(x).flatten(2).transpose(1, 2), dim=-1)),
        net(lambda m, x: m.conv(x).permute(0, 2, 3, 1).reshape(x.shape[0], -1, 4).softmax(2)),
        net(lambda m, x: torch.softmax(m.conv(x).movedim(1, -1).flatten(1, 2), -1)),
        net(lambda m, x: m.soft(m.conv(x).transpose(1, 2).transpose(2, 3).flatten(1, 2)), soft=nn.Softmax(-1)),
    ),
    "heads": (
        net(_heads_of_attention(2)),
        net(_other_heads),
    ),
    "axes back": (net(lambda m, x: m.conv(x)), net(lambda m, x: m.conv(x.permute(0, 2, 3, 1).permute(0, 3, 1, 2)))),
    "concatenation": (
        net(lambda m, x: torch.cat([x, m.conv(x)], 1)),
        net(lambda m, x: torch.concat((x, m.conv(x)), dim=-3)),
    ),
    "dropout of nothing": (net(lambda m, x: m.conv(x)), net(lambda m, x: F.dropout(m.conv(x), 0.0, m.training))),
    "dropout": (
        net(lambda m, x: F.dropout(m.conv(x), 0.2, m.training)),
        net(lambda m, x: m.drop(m.conv(x)), drop=nn.Dropout(0.2)),
    ),
    "operators": (
        net(lambda m, x: (m.conv(x) - x) / 3 * 0.5),
        net(lambda m, x: 0.5 * torch.div(torch.sub(m.conv(x), x), 3)),
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", SAME)
def test_spelling_is_not_told(kind: str) -> None:
    digests = [digest(module) for module in SAME[kind]]
    assert digests == [digests[0]] * len(digests)


def _shared(m: nn.Module, x: Tensor) -> Tensor:
    return m.conv(m.conv(x))


def _shuffled(x: Tensor, groups: int) -> Tensor:
    b, c, h, w = x.shape
    return x.view(b, groups, c // groups, h, w).transpose(1, 2).reshape(b, c, h, w)


def _heads_of_einsum(heads: int) -> Forward:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        t = m.fc(x.flatten(2).transpose(1, 2)).unflatten(-1, (heads, -1))
        return torch.einsum("bnhd,bmhd->bhnm", t, t)

    return forward


def _groups_of_mean(groups: int) -> Forward:
    return lambda m, x: m.conv(x).reshape(x.shape[0], groups, -1).mean(2)


def _groups_of_softmax(groups: int) -> Forward:
    return lambda m, x: m.fc(x.mean((2, 3))).view(-1, groups, 4 // groups).softmax(-1)


def conv(**options: object) -> nn.Module:
    return net(lambda m, x: m.conv(x), conv=nn.Conv2d(4, 4, 3, **options))  # type: ignore[arg-type]


def with_scale(shape: tuple[int, ...], used: str, unused: str = "") -> nn.Module:
    module = net(lambda m, x: x * getattr(m, used))
    for name in sorted(filter(None, (used, unused))):
        module.register_parameter(name, nn.Parameter(torch.ones(shape)))
    return module


def with_constant(value: Tensor) -> nn.Module:
    module = net(lambda m, x: x * m.table)
    module.register_buffer("table", value, persistent=False)
    return module


class OneNorm(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x / x.abs().mean()


class OtherNorm(OneNorm):
    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x / x.square().mean()


def _self_attention(m: nn.Module, x: Tensor) -> Tensor:
    y = x.flatten(1, 2)
    return m.a(y, y, y, need_weights=False)[0]


# Within a group no two networks compute the same; all of them have the same tensors unless that is the difference.
DIFFERENT: dict[str, tuple[nn.Module, ...]] = {
    "geometry": (
        conv(), conv(stride=2), conv(padding=1), conv(dilation=2), conv(padding=(1, 0)), conv(groups=2),
        conv(padding=1, padding_mode="circular"), conv(bias=False), conv(padding="same", dilation=2),
    ),
    "transposed geometry": tuple(
        net(lambda m, x: m.conv(x), conv=nn.ConvTranspose2d(4, 4, 3, stride=2, output_padding=p)) for p in (0, 1)
    ),
    "activation": tuple(
        net(lambda m, x: m.act(m.conv(x)), act=act)
        for act in (
            nn.Identity(), nn.ReLU(), nn.ReLU6(), nn.GELU(), nn.GELU("tanh"), nn.SiLU(), nn.LeakyReLU(),
            nn.LeakyReLU(0.2), nn.Hardtanh(), nn.Hardtanh(-2, 2), nn.ELU(), nn.ELU(0.5), nn.Softplus(), nn.Softplus(2),
            nn.Softmax(1), nn.Softmax(2), nn.Tanh(), nn.Sigmoid(), nn.Hardswish(), nn.Hardsigmoid(), nn.Mish(),
        )
    ),
    "pooling": tuple(
        net(lambda m, x: m.pool(x), pool=pool)
        for pool in (
            nn.MaxPool2d(2), nn.MaxPool2d(3), nn.MaxPool2d(3, 2), nn.MaxPool2d(3, 2, 1), nn.AvgPool2d(2),
            nn.MaxPool2d(3, 2, ceil_mode=True), nn.AvgPool2d(3, 2, 1), nn.AvgPool2d(3, 2, 1, count_include_pad=False),
            nn.AvgPool2d(2, divisor_override=3), nn.MaxPool2d(2, 2, dilation=2), nn.AdaptiveAvgPool2d(1),
            nn.AdaptiveAvgPool2d(2), nn.AdaptiveMaxPool2d(1), nn.AdaptiveAvgPool2d((1, 2)), nn.PixelUnshuffle(2),
            nn.Upsample(scale_factor=2), nn.Upsample(scale_factor=2, mode="bilinear"), nn.Upsample(scale_factor=4),
            nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True),
        )
    ),
    "norm": tuple(
        net(lambda m, x: m.norm(x), norm=norm)
        for norm in (
            nn.BatchNorm2d(4), nn.BatchNorm2d(4, eps=1e-3), nn.BatchNorm2d(4, momentum=0.2), nn.InstanceNorm2d(4),
            nn.BatchNorm2d(4, affine=False), nn.BatchNorm2d(4, track_running_stats=False), nn.GroupNorm(2, 4),
            nn.GroupNorm(4, 4), nn.GroupNorm(1, 4), nn.GroupNorm(1, 4, eps=1e-3), nn.LayerNorm(8),
            nn.LayerNorm((8, 8), elementwise_affine=False), nn.LayerNorm(8, elementwise_affine=False),
            nn.RMSNorm(8), nn.LocalResponseNorm(2), nn.LocalResponseNorm(3),
        )
    ),
    "dropout": tuple(
        net(lambda m, x: m.drop(m.conv(x)), drop=drop)
        for drop in (nn.Identity(), nn.Dropout(0.1), nn.Dropout(0.2), nn.Dropout2d(0.1), nn.AlphaDropout(0.1))
    ),
    "edges": (
        net(lambda m, x: m.conv(x)), net(_shared), net(lambda m, x: m.conv(x) + x), net(lambda m, x: m.conv(x) - x),
        net(lambda m, x: x - m.conv(x)), net(lambda m, x: m.bn(m.conv(x))), net(lambda m, x: m.conv(m.bn(x))),
        net(lambda m, x: m.conv(x) * x), net(lambda m, x: m.conv(x).detach() + x), net(lambda m, x: m.bn(x) + x),
    ),
    "which layer": tuple(
        Net(f, a=nn.Conv2d(4, 4, 1), b=nn.Conv2d(4, 4, 1))
        for f in (lambda m, x: m.b(m.a(x)), lambda m, x: m.a(m.b(x)), lambda m, x: m.a(m.a(x)))
    ),
    "names of tensors": (
        Net(lambda m, x: m.a(x), a=nn.Linear(8, 8)), Net(lambda m, x: m.b(x), b=nn.Linear(8, 8)),
        Net(lambda m, x: m.a(x), a=nn.Linear(8, 8), b=nn.Linear(8, 8)), Net(lambda m, x: m.a(x), a=nn.Linear(8, 9)),
    ),
    "shapes": tuple(with_scale(shape, "p") for shape in ((1,), (4, 1, 1), (8,), (4, 8, 8))),
    "which tensor": (with_scale((1,), "p", "q"), with_scale((1,), "q", "p")),
    "scalars": tuple(
        net(lambda m, x, s=s: m.conv(x) * s + x) for s in (1.0, 0.5, 0.125, -1.0)  # type: ignore[misc]
    ),
    "axes": (
        net(lambda m, x: x), net(lambda m, x: x.transpose(2, 3)), net(lambda m, x: x.permute(0, 2, 1, 3)),
        net(lambda m, x: x.transpose(1, 3)),
        net(lambda m, x: x.flip(2)), net(lambda m, x: x.flip(3)), net(lambda m, x: x.roll(1, 2)),
        net(lambda m, x: _shuffled(x, 2)), net(lambda m, x: _shuffled(x.repeat(1, 2, 1, 1), 4)[:, :4]),
        net(lambda m, x: _shuffled(x.repeat(1, 2, 1, 1), 2)[:, :4]), net(lambda m, x: x.cumsum(1)),
        net(lambda m, x: x.cumsum(2)),
    ),
    "heads": tuple(
        net(f(heads))
        for heads in (1, 2, 4)
        for f in (_heads_of_attention, _heads_of_einsum, _groups_of_mean, _groups_of_softmax)
    ),
    "parts": (
        net(lambda m, x: x[:, :2]), net(lambda m, x: x[:, 2:]), net(lambda m, x: x[:, ::2]),
        net(lambda m, x: x.chunk(2, 1)[0]), net(lambda m, x: x.chunk(2, 1)[1]), net(lambda m, x: x.chunk(2, 2)[0]),
        net(lambda m, x: x.chunk(4, 1)[0]), net(lambda m, x: torch.cat([x, m.conv(x)], 1)),
        net(lambda m, x: torch.cat([m.conv(x), x], 1)), net(lambda m, x: torch.cat([x, m.conv(x)], 2)),
        net(lambda m, x: F.pad(x, (1, 0))), net(lambda m, x: F.pad(x, (0, 1))),
        net(lambda m, x: F.pad(x, (0, 1), value=1.0)),
    ),
    "attention": tuple(
        net(lambda m, x, o=o: F.scaled_dot_product_attention(x, m.conv(x), x, **o))  # type: ignore[misc]
        for o in ({}, {"is_causal": True}, {"scale": 0.5}, {"dropout_p": 0.1})
    ),
    "modules of attention": tuple(
        net(_self_attention, a=nn.MultiheadAttention(8, heads, dropout, add_zero_attn=zero, batch_first=True))
        for heads, dropout, zero in ((1, 0.0, False), (2, 0.0, False), (2, 0.1, False), (2, 0.0, True))
    ),
    "recurrent": tuple(
        net(lambda m, x: m.r(x[:, 0])[0], r=cls(8, 8, **options))
        for cls, options in (
            (nn.GRU, {}), (nn.LSTM, {}), (nn.RNN, {}), (nn.RNN, {"nonlinearity": "relu"}), (nn.GRU, {"num_layers": 2}),
            (nn.GRU, {"batch_first": True}), (nn.GRU, {"bidirectional": True}), (nn.LSTM, {"proj_size": 4}),
            (nn.GRU, {"num_layers": 2, "dropout": 0.5}), (nn.GRU, {"bias": False}),
        )
    ),
    "embedding": tuple(
        net(lambda m, x: m.e(x[:, 0, :, 0].abs().long()), e=nn.Embedding(4, 8, **options))
        for options in ({}, {"padding_idx": 0}, {"padding_idx": 1}, {"max_norm": 1.0}, {"max_norm": 2.0})
    ),
    "computed weights": (
        conv(),
        net(lambda m, x: m.conv(x), conv=nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 4, 3))),
        net(lambda m, x: m.conv(x), conv=nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 4, 3), dim=1)),
        net(lambda m, x: m.conv(x), conv=nn.utils.parametrizations.spectral_norm(nn.Conv2d(4, 4, 3))),
        *(
            net(lambda m, x: m.fc(x), fc=nn.utils.parametrizations.spectral_norm(nn.Linear(8, 8), dim=dim))
            for dim in (0, 1)
        ),
        net(lambda m, x: F.conv2d(x, m.conv.weight * 2, m.conv.bias)),
        net(lambda m, x: F.conv2d(x, m.conv.weight * 3, m.conv.bias)),
    ),
    "classes of one's own": tuple(net(lambda m, x: m.norm(x), norm=cls(4)) for cls in (OneNorm, OtherNorm)),
    "modes": (
        net(lambda m, x: m.conv(x) if m.training else x), net(lambda m, x: x if m.training else m.conv(x)),
        net(lambda m, x: m.conv(x)), net(lambda m, x: x),
        net(lambda m, x: F.dropout(x, 0.1)), net(lambda m, x: F.dropout(x, 0.1, m.training)),
        net(lambda m, x: F.batch_norm(x, m.bn.running_mean, m.bn.running_var)),
        net(lambda m, x: F.batch_norm(x, m.bn.running_mean, m.bn.running_var, training=True)),
    ),
    "outputs": (
        net(lambda m, x: (x, m.conv(x))), net(lambda m, x: (m.conv(x), x)), net(lambda m, x: m.conv(x)),
        net(lambda m, x: {"a": x, "b": m.conv(x)}), net(lambda m, x: {"a": m.conv(x), "b": x}),
    ),
    "drawn twice or once": (
        net(lambda m, x: F.dropout(x, 0.5) + F.dropout(x, 0.5)), net(lambda m, x: (lambda y: y + y)(F.dropout(x, 0.5))),
    ),
    "in place": (
        net(_in_place), net(lambda m, x: m.conv(x) * 2), net(lambda m, x: (lambda y: F.relu(y) + y)(m.conv(x))),
        net(lambda m, x: (lambda y: F.relu_(y) + y)(m.conv(x))),
        net(lambda m, x: (lambda y: (m.act(y), y)[1] * 3)(m.conv(x)), act=nn.ReLU(inplace=True)),
        net(lambda m, x: (lambda y: (m.act(y), y)[1] * 3)(m.conv(x)), act=nn.ReLU()),
    ),
    "filled": tuple(net(lambda m, x, v=v: x + torch.full_like(x, v)) for v in (1.0, 2.0)),  # type: ignore[misc]
    "constants": tuple(
        map(
            with_constant,
            (torch.ones(8), torch.arange(8.0), torch.ones(1), torch.arange(8.0).sin(), torch.arange(8.0).cos(),
             torch.arange(8).flip(0), torch.arange(8.0) / 7),
        )
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", DIFFERENT)
def test_what_changes_the_function_is_told(kind: str) -> None:
    digests = [digest(module) for module in DIFFERENT[kind]]
    same = [pair for pair in combinations(range(len(digests)), 2) if len({digests[i] for i in pair}) == 1]
    assert not same


def test_frozen_transforms_are_told_by_order_channels_and_permutation() -> None:
    from zero_convert.nn.layers import HadamardTransform

    settings = [(8, "none", ""), (8, "permute", "a"), (8, "permute", "b"), (8, "signs", "a"), (8, "signs", "b")]
    settings += [(4, "none", ""), (6, "none", "")]
    made = [(channels, HadamardTransform(channels, 2, mixing, key)) for channels, mixing, key in settings]
    made += [(8, HadamardTransform(8, 0)), (8, HadamardTransform(8, 2))]
    made[-1][1].order = 16
    digests = [digest(net(lambda m, x: m.t(x), t=transform), (2, size, 8, 8)) for size, transform in made]
    assert len(set(digests)) == len(made)


def test_which_input_is_read_is_told() -> None:
    class Two(nn.Module):
        def __init__(self, swapped: bool) -> None:
            super().__init__()
            self.fc, self.swapped = nn.Linear(8, 8), swapped

        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return self.fc(b) - a if self.swapped else self.fc(a) - b

    inputs = (torch.ones(2, 8), torch.ones(2, 8))
    one, other = (architecture_digest(describe_network(trace(Two(swapped), inputs))) for swapped in (False, True))
    assert one != other


class Mystery(nn.Module):
    """What no tracer can follow."""

    def __init__(self, strength: float = 1.0, width: int = 4, act: nn.Module | None = None, mask: int = 0) -> None:
        super().__init__()
        self.strength, self.fc, self.act = strength, nn.Linear(width, width), act or nn.ReLU()
        self.register_buffer("mask", torch.full((2,), mask), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.fc(x)) * self.strength if x.detach().numpy().sum() > 0 else x


class OtherMystery(Mystery):
    pass


@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")
def test_a_module_that_is_kept_whole_is_told_by_class_and_content() -> None:
    made = [Mystery(), Mystery(2.0), Mystery(width=5), Mystery(act=nn.GELU()), Mystery(mask=1), OtherMystery()]
    made.append(Mystery(act=nn.LeakyReLU(0.3)))
    names = {name: name for name in made[0].state_dict()}
    told = [canonical_json(describe(module, "", names)) for module in made]
    assert len(set(told)) == len(made)
    assert told[0] == canonical_json(describe(trained(Mystery()), "", names))
    inside = net(lambda m, x: m.odd(m.fc(x.mean((2, 3)))), odd=Mystery())
    other = net(lambda m, x: m.odd(m.fc(x.mean((2, 3)))), odd=Mystery(2.0))
    assert trace(inside, (torch.ones(IMAGE),)).opaque == ("odd",)
    assert digest(inside) != digest(other)


def trained(module: nn.Module) -> nn.Module:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(1)
    return module


def test_a_tie_is_told() -> None:
    both = {"a": nn.Linear(8, 8, bias=False), "b": nn.Linear(8, 8, bias=False)}
    apart = Net(lambda m, x: m.b(m.a(x)), **copy.deepcopy(both))
    tied = Net(lambda m, x: m.b(m.a(x)), **copy.deepcopy(both))
    tied.b.weight = tied.a.weight
    assert digest(apart) != digest(tied)
    for module in (apart, tied):
        module.way = lambda m, x: m.a(x)  # the other one is only in the state dict
    assert digest(apart) != digest(tied)


def test_training_and_precision_move_nothing() -> None:
    module = net(lambda m, x: m.fc(F.dropout(m.bn(m.conv(x)), 0.1, m.training).mean((2, 3))))
    before = digest(module)
    optimizer = torch.optim.SGD(module.parameters(), 0.1)
    for _ in range(2):
        module(torch.randn(IMAGE)).square().sum().backward()
        optimizer.step()
    assert module.bn.num_batches_tracked == 2
    assert digest(module) == before
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    assert digest(module.eval()) == before
    assert digest(module.double(), dtype=torch.float64) == before


@pytest.mark.parametrize("shape", [(1, 4, 8, 8), (3, 4, 8, 8), (2, 4, 12, 8), (2, 4, 5, 5)])
def test_sizes_of_the_example_are_not_told(shape: tuple[int, ...]) -> None:
    module = net(lambda m, x: m.fc(m.bn(m.conv(x)).flatten(2).transpose(1, 2).reshape(x.shape[0], -1, 4)).mean(1))
    assert digest(module, shape) == digest(module)


def test_values_that_a_library_may_compute_otherwise_are_told_roughly() -> None:
    table = torch.arange(1000.0).sin()
    nudged = torch.nextafter(table, torch.full_like(table, 2.0))
    assert constant(table) == constant(nudged)
    assert constant(table) != constant(table.flip(0))
    assert constant(torch.tensor(0.3)) != constant(torch.tensor(0.7))
    assert constant(torch.tensor([1, 2])) != constant(torch.tensor([2, 1]))


def test_the_mathematics_of_both_digests() -> None:
    import hashlib

    description = {"version": 1, "train": [["input", {"index": "0"}]]}
    expected = hashlib.sha256(b'za1\0{"train":[["input",{"index":"0"}]],"version":1}').hexdigest()
    assert architecture_digest(description) == expected
    weights = "ab" * 32
    assert (
        start_digest(expected, weights)
        == hashlib.sha256(b"zs1\0" + bytes.fromhex(expected) + bytes.fromhex(weights)).hexdigest()
    )
    assert start_digest("", weights) == "" == start_digest(expected, "")


def test_a_description_is_plain_text_and_numbers() -> None:
    for module in SAME["functions of layers"]:
        text = canonical_json(describe_network(trace(module, (torch.ones(IMAGE),))))
        assert "lambda" not in text and "object at" not in text and " 0x" not in text
