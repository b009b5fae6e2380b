"""Shapes come from fake tensors: the same as from a real run, and a forward that fails is refused all the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import fx, nn

from zero_convert.errors import TraceError
from zero_convert.tracing import trace


class Widths(nn.Module):
    """Batch norms of all three dimensions, one of them with a forward of its own."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.first, self.norm, self.flat = nn.Conv2d(3, 8, 3, stride=2), norm, nn.BatchNorm1d(8)
        self.volume = nn.BatchNorm3d(8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(self.first(x))
        y = self.volume(y[:, :, None])[:, :, 0]
        return self.flat(y.mean((2, 3)))


class Halving(nn.BatchNorm2d):
    """A batch norm that pools: its output has another shape than its input."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input)[:, :, ::2, ::2]


@pytest.mark.parametrize("norm", [nn.BatchNorm2d(8), Halving(8), nn.BatchNorm2d(8, affine=False)])
def test_shapes_are_those_of_a_real_run(norm: nn.Module) -> None:
    module, x = Widths(norm), torch.zeros(2, 3, 17, 17)
    graph = trace(module, (x,)).evaluate
    real: dict[str, Any] = {}

    class Real(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            value = super().run_node(n)
            real[n.name] = tuple(value.shape) if isinstance(value, torch.Tensor) else None
            return value

    Real(module.eval(), graph=graph).run(x)
    assert {node.name: node.meta["shape"] for node in graph.nodes} == real


@pytest.mark.parametrize("norm", [nn.BatchNorm2d(7), nn.BatchNorm1d(8), nn.BatchNorm3d(8)])
def test_a_batch_norm_that_does_not_fit_is_refused(norm: nn.Module) -> None:
    with pytest.raises(TraceError, match="forward fails"):
        trace(Widths(norm), (torch.zeros(2, 3, 17, 17),))
