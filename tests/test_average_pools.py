"""Max-pooling becomes average pooling before the ReLU: the same window, and what it cannot do is said."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import zero_convert as zc
from zero_convert import rewrites
from zero_convert.records import Edit
from zero_convert.tracing import trace


class Net(nn.Module):
    def __init__(self, pool: Callable[[Tensor], Tensor], relu: Callable[[Tensor], Tensor] = F.relu) -> None:
        super().__init__()
        self.conv, self.pool, self.relu, self.head = nn.Conv2d(3, 4, 3), pool, relu, nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.pool(self.relu(self.conv(x))).mean((2, 3)))


class TwoReaders(Net):
    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.conv(x))
        return self.head(self.pool(x).mean((2, 3)) + x.mean((2, 3)))


def rewritten(net: nn.Module) -> tuple[nn.Module, list[Edit]]:
    traced, edits = rewrites.apply(trace(net, (torch.rand(1, 3, 12, 12),)), ("average_pools",), {})
    return traced.root, list(edits)


POOLS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "module": (nn.MaxPool2d(3, 2, 1), nn.AvgPool2d(3, 2, 1)),
    "stride left out": (nn.MaxPool2d(2), nn.AvgPool2d(2)),
    "rounded up": (nn.MaxPool2d(3, 2, ceil_mode=True), nn.AvgPool2d(3, 2, ceil_mode=True)),
    "adaptive": (nn.AdaptiveMaxPool2d(3), nn.AdaptiveAvgPool2d(3)),
    "function": (lambda x: F.max_pool2d(x, 3, 2, 1), lambda x: F.avg_pool2d(x, 3, 2, 1)),
    "by names": (lambda x: F.max_pool2d(x, kernel_size=2, padding=1), lambda x: F.avg_pool2d(x, 2, padding=1)),
    "adaptive function": (lambda x: F.adaptive_max_pool2d(x, (2, 3)), lambda x: F.adaptive_avg_pool2d(x, (2, 3))),
}


@pytest.mark.parametrize("relu", [F.relu, nn.ReLU(), torch.relu], ids=["function", "module", "torch"])
@pytest.mark.parametrize("pool", POOLS)
def test_the_average_stands_before_the_relu(pool: str, relu: Callable[[Tensor], Tensor]) -> None:
    given, wanted = POOLS[pool]
    net = Net(given, relu)
    made, edits = rewritten(net)
    x = torch.rand(2, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    assert [edit.action for edit in edits] == ["average pooling instead of a maximum, before the ReLU"]
    expected = net.head(F.relu(wanted(net.conv(x))).mean((2, 3)))
    for mode in (made.train(), made.eval()):
        assert torch.equal(mode(x), expected)


def test_other_readers_of_the_relu_keep_it() -> None:
    net = TwoReaders(nn.MaxPool2d(2))
    made, _ = rewritten(net)
    x = torch.rand(2, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    z = net.conv(x)
    assert torch.equal(made(x), net.head(F.relu(F.avg_pool2d(z, 2)).mean((2, 3)) + F.relu(z).mean((2, 3))))


def test_a_pooling_without_a_relu_before_it_stays_where_it_is() -> None:
    made, edits = rewritten(Net(nn.MaxPool2d(2), torch.tanh))
    assert [edit.action for edit in edits] == ["average pooling instead of a maximum"]
    assert isinstance(made.get_submodule("pool"), nn.AvgPool2d)


@pytest.mark.parametrize(
    "pool",
    [
        nn.MaxPool2d(3, dilation=2),
        lambda x: F.max_pool2d(x, 3, 1, 0, 2),
        lambda x: F.max_pool2d(x, 2, return_indices=True)[0],
    ],
)
def test_a_window_with_holes_or_positions_is_declined(pool: Callable[[Tensor], Tensor]) -> None:
    net = Net(pool)
    made, edits = rewritten(net)
    x = torch.rand(2, 3, 12, 12)
    assert not any(edit.applied for edit in edits) and torch.equal(made(x), net(x))
    with pytest.raises(zc.ZeroConvertError, match=r"max-pool|another function"):
        zc.plan(
            nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(3, dilation=2), nn.Conv2d(4, 2, 1)),
            (x,),
            scheme="risotto",
        )
