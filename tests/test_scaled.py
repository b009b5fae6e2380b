"""Raw weights that are multiplied, cut or inverted on the way to their use follow the rules of weights."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import zero_convert as zc
from tests.odd_nets import ramp

SCHEMES = ("zero-2021", "zero-2022")


def rules(net: nn.Module, *inputs: Tensor, scheme: str) -> dict[str, str]:
    return {a.tensor.name: a.rule for a in zc.plan(net, inputs, scheme=scheme).assignments}


class Equalized(nn.Module):
    """A linear layer with an equalized learning rate, as in StyleGAN."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.gain = 1 / math.sqrt(inputs)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * self.gain, self.bias)


class Modulated(nn.Module):
    """A convolution with one kernel for each sample: the weight times a style, demodulated."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(1, width, width, 3, 3))
        self.style = Equalized(4, width)

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        b, c, h, w = x.shape
        kernels = self.weight * (1 + self.style(style)).view(b, 1, c, 1, 1)
        kernels = kernels * torch.rsqrt(kernels.pow(2).sum((2, 3, 4)) + 1e-8).view(b, c, 1, 1, 1)
        return F.conv2d(x.view(1, b * c, h, w), kernels.view(b * c, c, 3, 3), padding=1, groups=b).view(b, c, h, w)


class Masked(nn.Module):
    """A linear layer with a mask of zeros and ones, as in MADE."""

    mask: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(width, width))
        self.register_buffer("mask", torch.tril(torch.ones(width, width)))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.mask * self.weight)


class Styled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.masked = nn.Conv2d(3, 6, 1), Modulated(6), Masked(6)
        self.out = Equalized(6, 3)

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        x = F.leaky_relu(self.second(self.first(x), style)).mean((2, 3))
        return self.out(x + self.masked(x))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_weight_times_a_number_a_mask_or_a_style_is_a_weight(scheme: str) -> None:
    net = Styled()
    given = rules(net, ramp(2, 3, 4, 4), ramp(2, 4), scheme=scheme)
    assert given["second.weight"] == "identity 6×6 at tap (1, 1), in each of 1 slices"
    tall = {"zero-2021": "identity 6×4, wrapped around", "zero-2022": "Hadamard 6×4 of Sylvester 2^3, times 1/sqrt(8)"}
    assert given["second.style.weight"] == tall[scheme]
    assert given["masked.weight"] == ("constant 0" if scheme == "zero-2021" else "identity 6×6")
    assert given["out.weight"] == ("constant 0" if scheme == "zero-2021" else "partial identity 3×6")
    joins = zc.plan(net, (ramp(2, 3, 4, 4), ramp(2, 4)), scheme=scheme).joins
    assert [join.branch for join in joins] == [("masked",)]


class Coupling(nn.Module):
    """A step of Glow: an invertible 1×1 convolution, whose determinant is taken first, and a gated coupling."""

    def __init__(self) -> None:
        super().__init__()
        self.mixing = nn.Parameter(torch.linalg.qr(torch.randn(4, 4))[0])
        self.scores = nn.Parameter(torch.randn(4, 1))
        self.loud = nn.Parameter(torch.rand(1, 4, 1, 1))
        self.net = nn.Sequential(nn.Conv2d(2, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 4, 3, padding=1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        volume = torch.slogdet(self.mixing)[1] * x.shape[2] * x.shape[3]
        a, b = F.conv2d(x * self.loud, self.mixing[:, :, None, None]).chunk(2, 1)
        scale, shift = self.net(a).chunk(2, 1)
        scale = torch.sigmoid(scale + 2)
        pairs = a.mean((2, 3)) @ self.scores[:2] + (b.mean((2, 3)) @ self.scores[2:]).T
        volume = volume.expand(x.shape[0]) + torch.log(scale).flatten(1).sum(1)
        return torch.cat([a, (b + shift) * scale], 1), volume, pairs


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_weight_whose_determinant_is_taken_is_invertible(scheme: str) -> None:
    made = zc.convert(Coupling(), (ramp(2, 4, 4, 4),), scheme=scheme, device="cpu")
    given = {a.tensor.name: a.rule for a in made.plan.assignments}
    assert given["mixing"] == "identity 4×4"
    assert given["scores"] == ("constant 0" if scheme == "zero-2021" else "partial identity 1×4, adjoint"), "one matrix"
    assert bool((made.module.get_parameter("loud") == 1).all()), "a factor that was drawn"
    assert not [check for check in made.checks if check.name in ("finite", "zero_branches") and check.status == "fail"]
    assert bool((made.module(ramp(2, 4, 4, 4))[1].abs() < 1e6).all())
