"""`as_strided`: a view of all elements is a Reshape or nothing; every other one reads the elements that torch reads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zero_convert.errors import ModelError

from .onnx_graphs import answers, parsed, written

X = torch.arange(24.0).reshape(2, 3, 4)


class Net(nn.Module):
    """A forward of its own."""

    def __init__(self, forward: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.run = [forward]

    def forward(self, x: Tensor) -> Tensor:
        return self.run[0](x)


def _turned(x: Tensor) -> Tensor:
    """Values with an order of their own in memory."""
    return x.permute(0, 2, 1) * 2


def _pooled(x: Tensor) -> Tensor:
    return F.adaptive_avg_pool2d((x * 8).permute(0, 2, 1)[..., None].contiguous(memory_format=torch.channels_last), 1)


def _pooled_twice(x: Tensor) -> Tensor:
    volume = (x * 8).unsqueeze(2).unsqueeze(4).contiguous(memory_format=torch.channels_last_3d)
    return F.adaptive_avg_pool3d(volume, 1) + 1


# name → forward, and the operators that stand for the view
ALL_ELEMENTS: dict[str, tuple[Callable[[Tensor], Tensor], list[str]]] = {
    "itself": (lambda x: x.as_strided(x.shape, x.stride()) + 1, ["Add"]),
    "an input that is the output": (lambda x: x.as_strided(x.shape, x.stride()), ["Identity"]),
    "other sizes": (lambda x: x.as_strided((len(x), 2, 2, 3), (12, 6, 3, 1)), ["Reshape"]),
    "one axis": (lambda x: x.as_strided((12 * len(x),), (1,)) * 1, ["Reshape", "Mul"]),
    "axes of one element": (lambda x: x.as_strided((len(x), 3, 1, 4), (12, 4, 77, 1)) + 1, ["Reshape", "Add"]),
    "back from a permuted view": (
        lambda x: x.permute(0, 2, 1).as_strided((len(x), 12), (12, 1)), ["Transpose", "Transpose", "Reshape"],
    ),
    "back from permuted memory": (
        lambda x: _turned(x).as_strided((len(x), 3, 4), (12, 4, 1)) + 1, ["Transpose", "Mul", "Transpose", "Add"],
    ),
    "as the memory lies": (
        lambda x: _turned(x).as_strided((len(x), 4, 3), (12, 1, 4)) + 1,
        ["Transpose", "Mul", "Transpose", "Transpose", "Add"],
    ),
    "permuted by its strides": (
        lambda x: x.as_strided((len(x), 6, 2), (12, 1, 6)) + 1, ["Reshape", "Transpose", "Add"],
    ),
    "a pool in channels-last": (_pooled, ["Mul", "Transpose", "Unsqueeze", "ReduceMean"]),
    "a pool of volumes in channels-last": (_pooled_twice, ["Mul", "Unsqueeze", "Unsqueeze", "ReduceMean", "Add"]),
}  # fmt: skip
SOME_ELEMENTS: dict[str, Callable[[Tensor], Tensor]] = {
    "windows that overlap": lambda x: x.as_strided((len(x), 2, 2, 4), (12, 4, 4, 1)),
    "behind an offset": lambda x: x.as_strided((len(x), 2, 3), (12, 4, 1), 1),
    "of permuted memory": lambda x: _turned(x).as_strided((len(x), 2, 3), (12, 4, 1), 1),
    "a diagonal": lambda x: x.as_strided((len(x), 3), (12, 5)),
    "one element over and over": lambda x: x.as_strided((len(x), 3, 4), (12, 0, 1)),
    "half of each row": lambda x: _turned(x).as_strided((len(x), 3, 2), (12, 4, 2)),
}


def file(forward: Callable[[Tensor], Tensor]) -> bytes:
    return written(Net(forward), (X,))[0]


def check(model: bytes, forward: Callable[[Tensor], Tensor]) -> None:
    """ONNX Runtime returns what torch returns, for any number of samples."""
    for batch in (1, 2, 5):
        x = torch.arange(12.0 * batch).reshape(batch, 3, 4)
        (found,), expected = answers(model, x), forward(x).numpy()
        assert found.shape == expected.shape and found.tobytes() == expected.tobytes()


@pytest.mark.parametrize("case", ALL_ELEMENTS)
def test_a_view_of_all_elements_gathers_nothing(case: str) -> None:
    forward, expected = ALL_ELEMENTS[case]
    model = file(forward)
    kinds = [node.op_type for node in parsed(model).graph.node if node.op_type not in ("Constant", "Identity")]
    assert kinds == [kind for kind in expected if kind != "Identity"]
    check(model, forward)


@pytest.mark.parametrize("case", SOME_ELEMENTS)
def test_a_view_of_some_elements_reads_those_that_torch_reads(case: str) -> None:
    check(file(SOME_ELEMENTS[case]), SOME_ELEMENTS[case])


@pytest.mark.parametrize(
    "forward",
    [
        lambda x: x[:, 1:].as_strided((len(x), 2, 4), (12, 4, 1), 4),
        lambda x: x[..., ::2].as_strided((len(x), 3, 4), (12, 4, 1)),
        lambda x: x[:1].expand(2, 3, 4).as_strided((3, 4), (4, 1)),
    ],
)
def test_a_view_of_a_view_with_gaps_is_refused(forward: Any) -> None:
    with pytest.raises(ModelError, match=r"strided view.*without gaps.*slices, `unfold` or `reshape`") as caught:
        written(Net(forward), (X,))
    assert caught.value.exit_code == 3
