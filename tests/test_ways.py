"""Ways: what made a signal, and what it passed before the next layer or join."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests import nets
from zero_convert.records import SignalPath, Structure
from zero_convert.structure import analyze
from zero_convert.tracing import trace


def structure(net: nn.Module, *shape: int) -> Structure:
    return analyze(trace(net, (torch.zeros(*shape),)))


def test_blocks_of_both_orders() -> None:
    after = structure(nets.tiny_resnet(), 1, 3, 32, 32)
    stem, first, second = after.layers[0], after.layer("blocks.0.conv1"), after.layer("blocks.0.conv2")
    assert stem.way == SignalPath("input", "x")
    assert first.way == SignalPath("layer", "conv1", ("norm", "relu"))
    assert second.way == SignalPath("layer", "blocks.0.conv1", ("norm", "relu"))
    assert after.joins[0].shortcut_path == SignalPath("layer", "conv1", ("norm", "relu"))
    assert after.joins[0].branch_path == SignalPath("layer", "blocks.0.conv2", ("norm",))
    before = structure(nets.PreActivationResNet(), 1, 3, 32, 32)
    assert before.layer("body.2.conv1").way == SignalPath("join", before.joins[1].node, ("norm", "relu"))
    assert before.joins[2].shortcut_path == SignalPath("join", before.joins[1].node)
    assert before.layer("head").way == SignalPath("join", before.joins[2].node, ("norm", "relu", "average pool"))


class Passing(nn.Module):
    def __init__(self, what: str) -> None:
        super().__init__()
        self.what, self.a, self.b = what, nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1)
        self.c, self.norm, self.shift = nn.Conv2d(3, 4, 3), nn.GroupNorm(1, 4), nn.Parameter(torch.zeros(4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        a, c = self.a(x), self.c(x)
        passed = {
            "max": lambda: F.max_pool2d(F.relu6(a), 2),
            "mean": lambda: F.avg_pool2d(torch.tanh(a), 2),
            "layer norm": lambda: F.layer_norm(a, a.shape[1:]),
            "group norm": lambda: self.norm(a),
            "shift": lambda: a + self.shift,
            "factor": lambda: a * 2,
            "views": lambda: F.dropout(a.flatten(2).reshape(a.shape), 0.1, self.training),
            "softmax": lambda: a.softmax(1),
            "cat": lambda: torch.cat([a, c], 1)[:, :4],
            "product": lambda: a * c,
            "sum": lambda: a + c,
        }
        return self.b(passed[self.what]())


@pytest.mark.parametrize(
    ("what", "source", "passed"),
    [
        ("max", "layer", ("relu6", "max pool")),
        ("mean", "layer", ("activation", "average pool")),
        ("layer norm", "layer", ("norm across channels",)),
        ("group norm", "layer", ("norm",)),
        ("shift", "layer", ("bias",)),
        ("factor", "layer", ("scale",)),
        ("views", "layer", ()),
        ("softmax", "layer", ("other",)),
        ("cat", "concatenation", ()),
        ("product", "product", ()),
        ("sum", "sum", ()),
    ],
)
def test_what_a_signal_passes_is_named(what: str, source: str, passed: tuple[str, ...]) -> None:
    way = structure(Passing(what), 1, 3, 9, 9).layer("b").way
    assert way is not None and (way.source, way.passed) == (source, passed)
    assert (way.name == "a") == (source == "layer")


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(F.relu(self.b(self.a(x))))


def test_a_layer_that_is_used_twice_has_several_ways() -> None:
    assert structure(Twice(), 2, 4).layer("b").way == SignalPath("several")
