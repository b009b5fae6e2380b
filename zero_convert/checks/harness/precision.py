"""Torch's switches that let float32 products be rounded to less: all off inside, as they were after. Nothing runs here.

There are two generations of them, `fp32_precision` and, before 2.9, `allow_tf32` with `set_float32_matmul_precision`.
Where the two disagree torch raises an error for whoever reads the older one, as `torch.backends.cudnn.flags` in a
forward does; so both are turned off. Those of the CPU too, whatever the device: the references are computed there.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import backends

EXACT = ("none", "ieee")


@contextmanager
def full_float32() -> Iterator[None]:
    """Inside, every product of float32 is one, in convolutions and recurrent layers too."""
    owners = _owners()
    effective = [owner.fp32_precision for owner in owners]
    precisions = [_taken(owner) for owner in owners]  # without what they inherit: those above them are off by then
    older = _older()
    _set_older("highest", False)
    try:
        yield
    finally:
        _set_older(*older)
        for owner, precision in zip(owners, precisions, strict=True):
            owner.fp32_precision = precision
        for owner, precision in zip(owners, effective, strict=True):
            if owner.fp32_precision != precision:  # cuDNN's default gave way to a general switch, and is a choice now
                owner.fp32_precision = precision


def rounds_on_cpu() -> bool:
    """Whether products of float32 may be rounded on the CPU now."""
    mkldnn: Any = backends.mkldnn
    return any(owner.fp32_precision not in EXACT for owner in (mkldnn.matmul, mkldnn.conv, mkldnn.rnn))


def _owners() -> list[Any]:
    """What has a precision, the general ones first, from which the others inherit.

    Without mkldnn's general one: in torch 2.15 who sets that sets the one above it.
    """
    cuda, cudnn, mkldnn = backends.cuda.matmul, backends.cudnn, backends.mkldnn
    of_cudnn: list[Any] = [cudnn.conv, cudnn.rnn]  # type: ignore[attr-defined]
    of_mkldnn: list[Any] = [mkldnn.matmul, mkldnn.conv, mkldnn.rnn]  # type: ignore[attr-defined]
    return [backends, cudnn, cuda, *of_cudnn, *of_mkldnn]


def _taken(owner: Any) -> str:
    before: str = owner.fp32_precision
    owner.fp32_precision = "none"
    if owner.fp32_precision not in EXACT:
        owner.fp32_precision = "ieee"
    return before


def _older() -> tuple[str, bool]:
    """What the older switches say, which can be read only while the newer ones say that rounding is allowed."""
    newer: list[Any] = [backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn]  # type: ignore[attr-defined]
    for owner in newer:
        owner.fp32_precision = "tf32"
    try:
        matmul = torch.get_float32_matmul_precision()
    except RuntimeError:
        matmul = "highest"
    try:
        convolution = bool(backends.cudnn.allow_tf32)
    except RuntimeError:
        convolution = False
    return matmul, convolution


def _set_older(matmul: str, convolution: bool) -> None:
    """Sets some of the newer ones as well."""
    torch.set_float32_matmul_precision(matmul)
    backends.cudnn.allow_tf32 = convolution
