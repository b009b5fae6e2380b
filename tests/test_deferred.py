"""The main job loads no part of torch.compile; and what needs it still finds it."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from zero_convert.tracing.known_shapes import known_output

RUN = """
import sys
import zero_convert as zc
zc.convert("torchvision:resnet18", scheme="{scheme}", validate="none", device="cpu")
print(*(name for name in ("torch._dynamo", "torch._inductor", "sympy") if name in sys.modules))
import torch
from torchvision.ops import roi_align
print(roi_align(torch.ones(1, 2, 8, 8), [torch.tensor([[0.0, 0.0, 4.0, 4.0]])], 2).shape == (1, 2, 2, 2))
print(roi_align.__globals__["is_compile_supported"]("cpu") in (True, False), "torch._dynamo" in sys.modules)
import torch._dynamo.utils
print(torch._dynamo.utils.is_compile_supported is sys.modules["torch._dynamo.utils"].is_compile_supported)
print(torch.compile(lambda x: x + 1, backend="eager")(torch.ones(1)).item())
"""


@pytest.mark.parametrize("scheme", ["zero-2021", "zero-2022"])
def test_the_main_job_does_not_load_torch_compile_and_others_still_can(scheme: str) -> None:
    run = subprocess.run([sys.executable, "-c", RUN.format(scheme=scheme)], capture_output=True, text=True, check=True)
    loaded, pooled, deferred, same, compiled = run.stdout.split("\n")[:5]
    assert loaded == ""
    assert (pooled, deferred, same, compiled) == ("True", "True True", "True", "2.0")


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv1d(3, 4, 4, stride=3, padding=2, dilation=2), (2, 3, 29)),
        (nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding="valid", groups=2), (1, 4, 9, 7)),
        (nn.Conv2d(3, 5, (5, 3), padding="same", dilation=(1, 2)), (1, 3, 8, 9)),
        (nn.Conv3d(2, 3, 2, stride=2), (1, 2, 5, 6, 7)),
        (nn.MaxPool2d(3, 2, 1), (1, 3, 7, 8)),
        (nn.MaxPool1d(2), (1, 3, 7)),
        (nn.AvgPool3d((1, 2, 3), padding=(0, 1, 1)), (1, 2, 3, 6, 7)),
        (nn.AdaptiveAvgPool2d((None, 3)), (2, 4, 5, 7)),
        (nn.AdaptiveAvgPool1d(1), (4, 9)),
        (nn.Linear(5, 3), (2, 7, 5)),
        (nn.BatchNorm2d(4), (1, 4, 2, 2)),
        (nn.LayerNorm((3, 2)), (4, 3, 2)),
        (nn.GroupNorm(2, 4), (1, 4, 6)),
        (nn.GELU(), (2, 3)),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else str(value),
)
def test_known_shapes_are_those_that_torch_returns(layer: nn.Module, shape: tuple[int, ...]) -> None:
    x = torch.zeros(shape)
    expected = layer(x)
    found = known_output(layer, x.to("meta"))
    assert found is not None and found.is_meta
    assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        again = known_output(layer, mode.from_tensor(x))
    assert again is not None and again.shape == expected.shape


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv2d(3, 4, 3), (1, 4, 8, 8)),
        (nn.Conv2d(3, 4, 9), (1, 3, 8, 8)),
        (nn.Linear(5, 3), (2, 4)),
        (nn.BatchNorm2d(4), (1, 4, 8)),
        (nn.MaxPool2d(2, ceil_mode=True), (1, 3, 7, 7)),
        (nn.LSTM(3, 4), (2, 3)),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else str(value),
)
def test_what_does_not_fit_or_is_not_known_is_left_to_torch(layer: nn.Module, shape: tuple[int, ...]) -> None:
    assert known_output(layer, torch.zeros(shape, device="meta")) is None
    assert known_output(nn.ReLU(), torch.zeros(2)) is None, "it has values, and they count"
