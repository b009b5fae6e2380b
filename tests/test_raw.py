"""Raw parameters: what the graph does with a tensor of no known layer decides its rule."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import zero_convert as zc
from zero_convert.structure import analyze
from zero_convert.tracing import trace

from .odd_nets import ramp
from .test_families import SCHEMES


class Resampled(nn.Module):
    """A table of positions for another size, read in parts, and one of complex numbers."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(5, 8), nn.Linear(8, 3)
        self.positions = nn.Parameter(torch.randn(1, 5, 8))
        self.shift = nn.Parameter(torch.randn(8, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        first, grid = self.positions[:, :1], self.positions[:, 1:]
        grid = F.interpolate(grid.mT, size=x.shape[1] - 1).mT
        y = self.embed(x) + torch.cat([first, grid], 1).expand(len(x), -1, -1)
        return self.head(torch.relu(y + self.shift.real).mT.mean(2))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_table_that_is_resampled_and_joined_of_its_parts_is_added(scheme: str) -> None:
    result = zc.convert(Resampled(torch.float32), (ramp(3, 7, 5),), scheme=scheme, device="cpu")
    assert not result.failed, [check.summary for check in result.failed]
    assert not result.module.positions.any() and not result.module.shift.any()


def test_the_real_part_of_a_parameter_is_a_use_of_it() -> None:
    structure = analyze(trace(Resampled(torch.complex64), (ramp(3, 7, 5),)))
    uses = next(dict(layer.uses) for layer in structure.layers if layer.uses)
    assert uses == {"positions": "added", "shift": "added"}


class Mixed(nn.Module):
    """Kernels mixed for each sample of a batch, which are groups of one convolution (Yang et al., CondConv, 2019)."""

    def __init__(self, experts: int, groups: int = 1, bias: bool = True) -> None:
        super().__init__()
        self.kernels = nn.Parameter(torch.randn(experts, 8 * (8 // groups) * 9))
        self.biases = nn.Parameter(torch.randn(experts, 8)) if bias else None
        self.groups = groups

    def forward(self, x: Tensor, shares: Tensor) -> Tensor:
        n, c, *size = x.shape
        kernel = (shares @ self.kernels).view(n * 8, 8 // self.groups, 3, 3)
        bias = None if self.biases is None else torch.matmul(shares, self.biases).view(n * 8)
        y = F.conv2d(x.reshape(1, n * c, *size), kernel, bias, padding=1, groups=n * self.groups)
        return y.view(n, 8, *size)


class MixedBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.route = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 4)
        self.depthwise, self.last = Mixed(4, groups=8, bias=False), Mixed(4)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        shares = torch.sigmoid(self.route(x.mean((2, 3))))
        x = x + self.last(torch.tanh(self.depthwise(x, shares)), shares)
        return self.head(x.mean((2, 3)))


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("samples", [1, 3])
def test_kernels_mixed_of_flat_rows_follow_the_rules_of_kernels(samples: int, scheme: str) -> None:
    result = zc.convert(MixedBlock(), (ramp(samples, 3, 6, 6),), scheme=scheme, device="cpu")
    assert not result.failed, [check.summary for check in result.failed]
    net, centre = result.module, torch.zeros(3, 3)
    centre[1, 1] = 1
    assert torch.equal(net.depthwise.kernels.view(4, 8, 3, 3), centre.expand(4, 8, 3, 3))
    assert not net.last.kernels.any() and not net.last.biases.any()
    (join,) = [join for join in result.structure.joins if "last" in join.branch]
    assert join.residual and join.branch == ("route", "depthwise", "last")


class JoinedBiases(nn.Module):
    """Attention whose queries, keys and values are one product; its bias is joined of two parameters and zeros.

    A class token is joined of two parameters as well, and then with the signal.
    """

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm, self.qkv = nn.Linear(5, 8), nn.LayerNorm(8), nn.Linear(8, 24, bias=False)
        self.q_bias, self.v_bias = nn.Parameter(torch.randn(8)), nn.Parameter(torch.randn(8))
        self.first, self.second = nn.Parameter(torch.randn(1, 1, 8)), nn.Parameter(torch.randn(1, 1, 8))
        self.out, self.head = nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        tokens = torch.cat([self.first, self.second], 1)
        x = torch.cat([tokens.expand(len(x), -1, -1), self.embed(x)], 1)
        bias = torch.cat([self.q_bias, torch.zeros_like(self.v_bias), self.v_bias])
        q, k, v = F.linear(self.norm(x), self.qkv.weight, bias).chunk(3, -1)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v))
        return self.head(x.mean(1))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_biases_that_are_joined_are_biases_and_tokens_tokens(scheme: str) -> None:
    result = zc.convert(JoinedBiases(), (ramp(3, 6, 5),), scheme=scheme, device="cpu")
    assert not result.failed, [check.summary for check in result.failed]
    net = result.module
    assert not net.q_bias.any() and not net.v_bias.any()
    assert net.first.any() and net.second.any()


class Constant(nn.Module):
    """An image that is learned, one for each sample (Karras et al., StyleGAN), then made kernels."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.style, self.head = nn.Parameter(torch.randn(1, 4, 6, 6)), nn.Linear(5, 16), nn.Conv2d(4, 3, 1)

    def forward(self, z: Tensor) -> Tensor:
        x = self.image.repeat(len(z), 1, 1, 1)
        kernels = self.style(z).view(-1, 4, 1, 1) + torch.eye(4).repeat(len(z), 1).view(-1, 4, 1, 1)
        x = F.conv2d(x.reshape(1, -1, 6, 6), kernels, groups=len(z)).reshape(len(z), 4, 6, 6)
        return self.head(torch.tanh(x))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_learned_image_is_a_signal(scheme: str) -> None:
    result = zc.convert(Constant(), (ramp(3, 5),), scheme=scheme, device="cpu")
    assert not result.failed, [check.summary for check in result.failed]
    assert result.module.image.any()


class Affine(nn.Module):
    """beta + alpha·x in one operation (Touvron et al., ResMLP, 2021)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(5, 8), nn.Linear(8, 3)
        self.alpha, self.beta = nn.Parameter(torch.randn(1, 1, 8)), nn.Parameter(torch.randn(1, 1, 8))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.addcmul(self.beta, self.alpha, self.stem(x)))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_factor_of_a_sum_is_one_and_its_summand_zero(scheme: str) -> None:
    net = Affine()
    nn.init.constant_(net.alpha, 0.5)
    result = zc.convert(net, (ramp(3, 6, 5),), scheme=scheme, device="cpu")
    assert not result.failed, [check.summary for check in result.failed]
    assert not result.module.beta.any()
    assert bool((result.module.alpha == (1.0 if scheme == "zero-2021" else 0.5)).all())


class Heads(nn.Module):
    """Attention whose projections are einsums over heads; stored with inputs first, and with inputs of two axes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(5, 6), nn.Linear(6, 3)
        self.query, self.key, self.value = (nn.Parameter(torch.randn(6, 2, 3)) for _ in range(3))
        self.out = nn.Parameter(torch.randn(2, 3, 6))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        query, key, value = (torch.einsum("btd,dhk->bthk", x, w) for w in (self.query, self.key, self.value))
        scores = torch.einsum("bthk,bshk->bhts", query, key).softmax(-1)
        mixed = torch.einsum("bhts,bshk->bthk", scores, value)
        return self.head((x + torch.einsum("bthk,hkd->btd", mixed, self.out)).mean(1))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_projections_onto_heads_are_one_matrix_whose_axes_are_split(scheme: str) -> None:
    result = zc.convert(Heads(), (ramp(2, 4, 5),), scheme=scheme, device="cpu")
    assert not result.failed, [check.summary for check in result.failed]
    assert [join.shortcut for join in result.structure.joins][-1] == "identity"
    x = ramp(2, 4, 6)
    assert torch.equal(torch.einsum("btd,dhk->bthk", x, result.module.value).flatten(2), x)
    out = result.module.out.detach().reshape(6, 6)
    assert torch.equal(out, torch.zeros(6, 6) if scheme == "zero-2021" else torch.eye(6))


class Spectral(nn.Module):
    """A Fourier layer (Li et al., 2021): a complex matrix for each frequency, beside a convolution of kernel 1."""

    def __init__(self) -> None:
        super().__init__()
        self.lift, self.point, self.head = nn.Conv2d(1, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 1, 1)
        self.weight = nn.Parameter(torch.rand(4, 4, 3, 2, dtype=torch.cfloat))

    def forward(self, x: Tensor) -> Tensor:
        x = self.lift(x)
        waves = torch.fft.rfft2(x)
        low = torch.zeros_like(waves)
        low[:, :, :3, :2] = torch.einsum("bixy,ioxy->boxy", waves[:, :, :3, :2], self.weight)
        return self.head(F.gelu(torch.fft.irfft2(low, s=x.shape[-2:]) + self.point(x)))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_frequency_has_the_same_matrix(scheme: str) -> None:
    result = zc.convert(Spectral(), (ramp(2, 1, 6, 6),), scheme=scheme, device="cpu")
    assert not result.failed, [check.summary for check in result.failed]
    weight = result.module.weight.detach()
    assert weight.dtype is torch.cfloat
    assert torch.equal(weight, weight[:, :, :1, :1].expand_as(weight))
    if scheme == "zero-2022":
        assert torch.equal(weight[..., 0, 0], torch.eye(4, dtype=torch.cfloat))
