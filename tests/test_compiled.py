"""What was compiled or scripted converts like the Python that it was made of."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import zero_convert as zc
from zero_convert.errors import LoadError
from zero_convert.runtime.eager import eager

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning", "ignore:.*torch.jit:DeprecationWarning")


def gelu(x):
    return x * 0.5 * (1.0 + torch.erf(x / 1.41421))


def add_bias(x, bias, residual, prob: float, training: bool):
    return residual + F.dropout(x + bias, p=prob, training=training)


class Block(nn.Module):
    def __init__(self, activation=gelu, join=add_bias):
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(8), nn.Linear(8, 16), nn.Linear(16, 8, bias=False)
        self.bias = nn.Parameter(torch.zeros(8))
        self.activation, self.join = activation, join

    def forward(self, x):
        return self.join(self.down(self.activation(self.up(self.norm(x)))), self.bias, x, 0.1, self.training)


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(8)
        self.body = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 1))

    def forward(self, x):
        return x + self.body(self.norm(x))


def digest(net, size):
    result = zc.convert(net, (torch.zeros(4, *size),))
    assert not result.failed
    assert result.plan.captured == 1.0
    assert [join.residual for join in result.plan.joins] == [True]
    return result.weights_digest


@pytest.mark.parametrize("made", [torch.jit.script, torch.compile])
def test_a_function_that_was_scripted_or_compiled_is_captured(made):
    nets = [
        nn.Sequential(nn.Linear(5, 8), Block(*functions), nn.Linear(8, 3))
        for functions in ((gelu, add_bias), (made(gelu), made(add_bias)))
    ]
    assert digest(nets[0], (5,)) == digest(nets[1], (5,))


def test_scripts_are_scripts_again_afterwards():
    before = torch._C.ScriptFunction.__call__
    with eager():
        assert torch._C.ScriptFunction.__call__ is not before
    assert torch._C.ScriptFunction.__call__ is before


def convolutional(made):
    return nn.Sequential(nn.Conv2d(3, 8, 3), made(Plain()), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))


def test_a_scripted_part_becomes_layers_with_its_names():
    scripted = convolutional(torch.jit.script)
    assert digest(scripted, (3, 8, 8)) == digest(convolutional(lambda part: part), (3, 8, 8))
    assert isinstance(scripted[1], torch.jit.ScriptModule)
    result = zc.convert(scripted, (torch.zeros(4, 3, 8, 8),), scheme="zero-2022")
    scripted.load_state_dict(result.module.state_dict(), strict=True)


def test_a_compiled_part_keeps_its_names():
    compiled = convolutional(torch.compile)
    digest(compiled, (3, 8, 8))
    result = zc.convert(compiled, (torch.zeros(4, 3, 8, 8),), scheme="zero-2022")
    compiled.load_state_dict(result.module.state_dict(), strict=True)


def test_a_network_compiled_whole_is_the_network():
    net = convolutional(lambda part: part)
    assert digest(torch.compile(net), (3, 8, 8)) == digest(net, (3, 8, 8))


class Unused(nn.Module):
    def __init__(self):
        super().__init__()
        self.used, self.unused = nn.Linear(3, 3), torch.jit.script(nn.Linear(3, 3))

    def forward(self, x):
        return self.used(x)


def test_a_scripted_part_that_is_not_called_is_named():
    with pytest.raises(LoadError, match=r"unused.*Build the model without torch\.jit\.script"):
        zc.convert(Unused(), (torch.zeros(2, 3),))
