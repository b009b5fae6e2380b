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
