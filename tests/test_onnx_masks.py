"""Transformers of torch whose forward makes its masks are exported, and return what torch returns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from .onnx_graphs import answers, written

SIZES: dict[str, Any] = {"d_model": 8, "nhead": 2, "dim_feedforward": 12, "dropout": 0.0, "batch_first": True}


class Masked(nn.Module):
    """A transformer that is called with masks over 5 tokens."""

    def __init__(self, part: nn.Module, call: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.part, self.call = part, [call]

    def forward(self, x: Tensor) -> Tensor:
        return self.call[0](self.part, x)


def causal() -> Tensor:
    return torch.full((5, 5), float("-inf")).triu(1)


def later() -> Tensor:
    return torch.ones(5, 5).triu(1).bool()


def window() -> Tensor:
    """No causal one: two tokens before and after."""
    return torch.where((torch.arange(5)[:, None] - torch.arange(5)).abs() > 2, float("-inf"), 0.0)


def encoder(**more: Any) -> nn.Module:
    return nn.TransformerEncoder(nn.TransformerEncoderLayer(**SIZES, **more), 1, enable_nested_tensor=False)


def decoder(**more: Any) -> nn.Module:
    return nn.TransformerDecoder(nn.TransformerDecoderLayer(**SIZES, **more), 1)


CASES: dict[str, tuple[Callable[[], nn.Module], Callable[[Any, Tensor], Tensor]]] = {
    "encoder": (encoder, lambda part, x: part(x, causal())),
    "encoder, norms first": (lambda: encoder(norm_first=True), lambda part, x: part(x, causal())),
    "encoder, bool": (encoder, lambda part, x: part(x, later())),
    "encoder, window": (encoder, lambda part, x: part(x, window())),
    "encoder, hint": (encoder, lambda part, x: part(x, causal(), is_causal=True)),
    "decoder": (decoder, lambda part, x: part(x, x * 2, causal())),
    "decoder, norms first": (lambda: decoder(norm_first=True), lambda part, x: part(x, x * 2, causal())),
    "decoder, both masks": (decoder, lambda part, x: part(x, x * 2, causal(), window())),
    "decoder, bool": (decoder, lambda part, x: part(x, x * 2, tgt_mask=later())),
    "whole": (
        lambda: nn.Transformer(**SIZES, num_encoder_layers=1, num_decoder_layers=1),
        lambda part, x: part(x, x * 2, tgt_mask=part.generate_square_subsequent_mask(5)),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_transformer_that_makes_its_masks_returns_what_torch_returns(case: str) -> None:
    build, call = CASES[case]
    torch.manual_seed(0)
    module = Masked(build(), call).eval()
    x = torch.randn(3, 5, 8)
    (found,) = answers(written(module, (x,))[0], x[:2])
    with torch.no_grad():
        expected = module(x[:2]).numpy()
    assert np.ptp(expected) > 1 and np.allclose(found, expected, atol=1e-5)


def test_torch_compares_masks_again_after_an_export() -> None:
    before = torch.nn.modules.transformer._detect_is_causal_mask
    build, call = CASES["decoder"]
    module = Masked(build(), call).eval()
    written(module, (torch.ones(3, 5, 8),))
    assert torch.nn.modules.transformer._detect_is_causal_mask is before
    assert before(causal(), None, 5) and not before(window(), None, 5)
