"""Networks whose authors fixed tensors in the constructor, and the tensors that have to stay as they were set there."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm


def frozen(values: Tensor) -> nn.Parameter:
    return nn.Parameter(values, requires_grad=False)


class Shift(nn.Conv2d):
    """EDSR's mean shift."""

    def __init__(self, sign: float) -> None:
        super().__init__(3, 3, 1)
        self.weight.data = torch.eye(3).view(3, 3, 1, 1)
        self.bias.data = sign * torch.tensor([0.4, 0.45, 0.5])
        self.requires_grad_(False)


class Around(nn.Module):
    """Images through a fixed part at either end, with layers that are trained in between."""

    def __init__(self, first: nn.Module, channels: int, last: nn.Module | None = None) -> None:
        super().__init__()
        self.first, self.last = first, last or nn.Identity()
        self.body = nn.Sequential(nn.Conv2d(channels, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 3, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.last(self.body(self.first(x)))
        return made


def shifts() -> nn.Module:
    return Around(Shift(-1), 3, Shift(1))


def sobel_kernels() -> Tensor:
    one = torch.tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]])
    return torch.stack([k for _ in range(3) for k in (one, one.T)])[:, None]


def sobel() -> nn.Module:
    """Written without a gradient, into a depthwise layer that has no bias."""
    conv = nn.Conv2d(3, 6, 3, padding=1, groups=3, bias=False)
    with torch.no_grad():
        conv.weight.copy_(sobel_kernels())
    conv.weight.requires_grad = False
    return Around(conv, 6)


class Gabor(nn.Module):
    """A raw parameter that the forward convolves with."""

    def __init__(self) -> None:
        super().__init__()
        y, x = torch.meshgrid(torch.linspace(-1, 1, 5), torch.linspace(-1, 1, 5), indexing="ij")
        angles = torch.arange(4) * math.pi / 4
        waves = [torch.cos(4 * (x * a.cos() + y * a.sin())) * torch.exp(-x * x - y * y) for a in angles]
        self.kernel = frozen(torch.stack(waves)[:, None].repeat(1, 3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.kernel, padding=2)


def gabor() -> nn.Module:
    return Around(Gabor(), 4)


def dct_matrix(n: int) -> Tensor:
    rows, columns = torch.arange(n)[:, None], torch.arange(n)[None]
    return torch.cos(math.pi / n * (columns + 0.5) * rows) * math.sqrt(2 / n)


class Spectrum(nn.Module):
    """A DCT as a linear layer on the columns, with a bias that is trained."""

    def __init__(self) -> None:
        super().__init__()
        self.dct = nn.Linear(8, 8)
        self.dct.weight = frozen(dct_matrix(8))
        self.net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.net(self.dct(x))
        return made


def haar_kernels() -> Tensor:
    low, high = torch.tensor([0.5, 0.5]), torch.tensor([0.5, -0.5])
    return torch.stack([torch.outer(a, b) for a in (low, high) for b in (low, high)])[:, None].repeat(3, 1, 1, 1)


def haar() -> nn.Module:
    """A wavelet at the front and its inverse, a transposed convolution, at the end."""
    net = Around(
        nn.Conv2d(3, 12, 2, 2, groups=3, bias=False), 12, nn.ConvTranspose2d(12, 3, 2, 2, groups=3, bias=False)
    )
    net.body[2] = nn.Conv2d(8, 12, 3, padding=1)
    for layer in (net.first, net.last):
        layer.weight.data.copy_(haar_kernels())
        layer.requires_grad_(False)
    return net


def sinusoids(n: int, d: int) -> Tensor:
    angles = torch.arange(n)[:, None] / 10000 ** (torch.arange(0, d, 2) / d)
    return torch.cat((angles.sin(), angles.cos()), 1)


class Positions(nn.Module):
    """A table of positions, frozen, as of Marian and Whisper's encoder, and one that is a raw parameter, as of MAE."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.table = nn.Embedding(11, 8), nn.Embedding(6, 8)
        self.table.weight = frozen(sinusoids(6, 8))
        self.more = frozen(0.5 * sinusoids(6, 8)[None])
        self.net = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 3)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.words(ids) + self.table(torch.arange(ids.shape[1])) + self.more
        return self.head((x + self.net(self.norm(x))).mean(1))


class Prototypes(nn.Module):
    """A simplex of frozen class vectors as the last layer."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.classes = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4)), nn.Linear(4, 4, bias=False)
        self.classes.weight.data = torch.eye(4) - 0.25
        self.classes.weight.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.classes(self.net(x))
        return made


class StillNorm(nn.Module):
    """Statistics of the data, as buffers."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.ones(channels))
        self.register_buffer("bias", torch.zeros(channels))
        self.register_buffer("running_mean", torch.arange(1, channels + 1) / 10)
        self.register_buffer("running_var", torch.arange(1, channels + 1) / 4)

    def forward(self, x: Tensor) -> Tensor:
        scale = self.weight * (self.running_var + 1e-5).rsqrt()
        return x * scale[:, None, None] + (self.bias - self.running_mean * scale)[:, None, None]


class FrozenBatchNorm(StillNorm):
    pass


def still_norm() -> nn.Module:
    return Around(FrozenBatchNorm(3), 3)


def input_norm() -> nn.Module:
    """A batch norm without factors whose statistics the constructor set."""
    norm = nn.BatchNorm2d(3, affine=False)
    norm.running_mean.copy_(torch.tensor([0.4, 0.5, 0.6]))
    return Around(norm.eval(), 3)


class Blur(nn.Module):
    """A fixed kernel at the end of a residual branch, and one in its shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv1, self.conv2 = (
            nn.Conv2d(3, 8, 3, padding=1),
            nn.Conv2d(8, 8, 3, padding=1),
            nn.Conv2d(8, 8, 1),
        )
        self.blur, self.down = (nn.Conv2d(8, 8, 3, 2, 1, groups=8, bias=False) for _ in "ab")
        for layer in (self.blur, self.down):
            layer.weight.data.fill_(1 / 8)
            layer.weight.requires_grad = False
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = self.blur(self.conv2(self.conv1(x).relu())) + self.down(x)
        return self.head(x.relu().mean((2, 3)))


def unit_length() -> nn.Module:
    """DINO's last layer: the lengths of its rows are frozen at 1."""
    head = weight_norm(nn.Linear(8, 6, bias=False))
    length = head.parametrizations.weight.original0
    length.data.fill_(1)
    length.requires_grad = False
    return nn.Sequential(nn.Linear(5, 8), nn.GELU(), head)


def tied() -> nn.Module:
    """A frozen code of the words that is the classifier as well."""
    net = Positions()
    net.words.weight = frozen(sinusoids(11, 8))
    net.head = nn.Linear(8, 11, bias=False)
    net.head.weight = net.words.weight
    return net


class Reservoir(nn.Module):
    """A projection that was drawn before it was frozen, with a bias of 0: random features."""

    def __init__(self) -> None:
        super().__init__()
        self.random = nn.Linear(6, 8)
        nn.init.normal_(self.random.weight)
        nn.init.zeros_(self.random.bias)
        self.random.requires_grad_(False)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.head(torch.cos(self.random(x)))
        return made


class Followed(nn.Module):
    """A frozen copy of a drawn network."""

    def __init__(self) -> None:
        super().__init__()
        self.own = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
        self.copy = copy.deepcopy(self.own).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.own(x) - self.copy(x).detach()


@dataclass(frozen=True)
class Case:
    """A factory of this file, its input, and what stays: name → values. `filled` got a rule, though it is frozen."""

    make: str
    inputs: Callable[[], Tensor]
    stays: Callable[[], dict[str, Tensor]]
    filled: tuple[str, ...] = ()

    @property
    def model(self) -> str:
        return f"tests.fixed_nets:{self.make}"


def images() -> Tensor:
    return torch.linspace(-1, 1, 2 * 3 * 16 * 16).reshape(2, 3, 16, 16)


def rows(n: int) -> Callable[[], Tensor]:
    return lambda: torch.linspace(-1, 1, 4 * n).reshape(4, n)


def ids() -> Tensor:
    return torch.arange(12).reshape(2, 6) % 11


CASES = (
    Case(
        "shifts",
        images,
        lambda: {
            "first.weight": torch.eye(3).view(3, 3, 1, 1),
            "first.bias": -torch.tensor([0.4, 0.45, 0.5]),
            "last.weight": torch.eye(3).view(3, 3, 1, 1),
            "last.bias": torch.tensor([0.4, 0.45, 0.5]),
        },
    ),
    Case("sobel", images, lambda: {"first.weight": sobel_kernels()}),
    Case("gabor", images, lambda: {"first.kernel": Gabor().kernel.detach()}),
    Case("Spectrum", rows(8), lambda: {"dct.weight": dct_matrix(8), "dct.bias": torch.zeros(8)}),
    Case("haar", images, lambda: {"first.weight": haar_kernels(), "last.weight": haar_kernels()}),
    Case("Positions", ids, lambda: {"table.weight": sinusoids(6, 8), "more": 0.5 * sinusoids(6, 8)[None]}),
    Case("Prototypes", rows(6), lambda: {"classes.weight": torch.eye(4) - 0.25}),
    Case(
        "still_norm",
        images,
        lambda: {f"first.{name}": value for name, value in FrozenBatchNorm(3).state_dict().items()},
    ),
    Case("input_norm", images, lambda: {"first.running_mean": torch.tensor([0.4, 0.5, 0.6])}),
    Case("Blur", images, lambda: {f"{name}.weight": torch.full((8, 1, 3, 3), 1 / 8) for name in ("blur", "down")}),
    Case("unit_length", rows(5), lambda: {"2.parametrizations.weight.original0": torch.ones(6, 1)}),
    Case("tied", ids, lambda: {"words.weight": sinusoids(11, 8), "head.weight": sinusoids(11, 8)}),
    Case("Reservoir", rows(6), lambda: {"random.bias": torch.zeros(8)}, ("random.weight",)),
    Case("Followed", rows(6), dict, ("copy.0.weight", "copy.0.bias", "copy.2.weight", "copy.2.bias")),
)


class RawEnd(nn.Module):
    """A raw frozen kernel behind the last trained layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.kernel = frozen(torch.full((4, 1, 3, 3), 1 / 8))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(self.conv(self.stem(x).relu()), self.kernel, padding=1, groups=4)


class Trained(nn.Module):
    """Nothing is frozen, though the constructor set a weight: where training begins is a scheme's to say."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(6, 6), nn.Linear(6, 3)
        nn.init.constant_(self.first.weight, 0.5)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.head(self.first(x).relu())
        return made
