"""What rewrites put into a network: plain torch, trainable where it says so, no state outside the state dict rules."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from zero_convert.formulas import hadamard, hashing

from .functional import overridable


@overridable
def transformed(
    x: Tensor, left: Tensor, right: Tensor, mix: Tensor, channels: int, order: int, trailing: int, mixing: str
) -> Tensor:
    """What `HadamardTransform` returns; arguments as its attributes."""
    axis, layout = -1 - trailing, _layout(x)
    if mixing == "permute":
        x = x.index_select(axis, mix)
    elif mixing == "signs":
        x = x * mix.reshape(-1, *[1] * trailing).to(x.dtype)
    y = x.movedim(axis, -1)
    right = right.to(x.dtype)
    if not left.numel():
        y = torch.matmul(y, right)
    else:
        left = left.to(x.dtype)
        lead = y.shape[:-1]
        if order != channels:
            y = F.pad(y, (0, order - channels))
        y = left @ y.reshape(*lead, len(left), len(right)) @ right.T
        y = y.reshape(*lead, order)[..., :channels] * (1 / math.sqrt(order))
    return y.movedim(-1, axis).contiguous(memory_format=layout)


def _layout(x: Tensor) -> torch.memory_format:
    """Channels last where that is the tensor's only order, otherwise row-major."""
    last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(x.ndim, torch.contiguous_format)
    return last if not x.is_contiguous() and x.is_contiguous(memory_format=last) else torch.contiguous_format


@functools.lru_cache(maxsize=8)  # of 16 MB at most
def _transform(order: int, channels: int) -> NDArray[np.float32]:
    """The first `channels` rows and columns of Hᵀ/sqrt(order), which transforms of one width have in common."""
    first, *second = (factor.astype(np.float32) for factor in hadamard.kronecker_factors(order))
    whole = np.kron(first, second[0]) if second else first
    return np.ascontiguousarray(whole[:channels, :channels].T) * np.float32(1 / math.sqrt(order))


class HadamardTransform(nn.Module):
    """`T x = H Π x / sqrt(d)` over the d channels: frozen, no parameter, nothing in the state dict.

    H is the Sylvester matrix of order d, the Paley ⊗ Sylvester one where only that exists, and otherwise the top left
    d×d part of the next larger Sylvester matrix (then no isometry). Up to `DENSE` channels it is applied as in the
    authors' network, as one product with the float32 matrix H/sqrt(d), so that training follows theirs bit for bit;
    beyond that as a Kronecker product of two small ±1 matrices and one scaling, which needs d, not d², numbers.

    Args:
        channels: d.
        trailing: dimensions after the channel axis: 2 for (N, d, H, W), 0 for (…, d).
        mixing: "none": Π = 1, the publication. "permute": a fixed permutation of the input channels.
            "signs": a fixed sign for each input channel. Both come from the integer hash of `key`.
        key: the name of the layer the transform follows.
        like: transforms in the same network; one of the same width lends its numbers, which are in memory once.

    Shapes: (…, d, *spatial) → the same; channels last where x is, otherwise contiguous, since
    a forward may go on with a view.
    """

    DENSE = 2048

    left: Tensor
    right: Tensor
    mix: Tensor
    _moved = False

    def __init__(
        self,
        channels: int,
        trailing: int,
        mixing: str = "none",
        key: str = "",
        like: Iterable[HadamardTransform] = (),
    ) -> None:
        super().__init__()
        self.channels, self.trailing, self.mixing, self.key = channels, trailing, mixing, key
        self.order = channels if hadamard.exact_order(channels) else 1 << (channels - 1).bit_length()
        self.scale = 1 / math.sqrt(self.order)
        same = next((transform for transform in like if transform.channels == channels), None)
        for name, values in self._values(mixed_only=same is not None).items():
            self.register_buffer(name, values, persistent=False)
        if same is not None:
            self.left, self.right = same.left, same.right

    def _values(self, *, mixed_only: bool = False) -> dict[str, Tensor]:
        """The numbers, which follow from the arguments alone; with `mixed_only` empty tensors for H."""
        left = right = torch.empty(0)
        if mixed_only:
            pass
        elif self.channels <= self.DENSE:
            right = torch.from_numpy(_transform(self.order, self.channels).copy())
        else:
            first, *second = (torch.from_numpy(factor).float() for factor in hadamard.kronecker_factors(self.order))
            left, right = (first, second[0]) if second else (torch.ones(1, 1), first)
        mix = torch.empty(0)
        if self.mixing == "permute":
            mix = torch.from_numpy(hashing.permutation(0, self.key, self.channels))
        elif self.mixing == "signs":
            mix = torch.from_numpy(hashing.signs(0, self.key, 0, self.channels)).float()
        return {"left": left, "right": right, "mix": mix}

    def reset_parameters(self) -> None:
        """Writes the numbers anew: behind `to_empty` they are none."""
        with torch.no_grad():
            for name, values in self._values().items():
                getattr(self, name).copy_(values)
        self._moved = False

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> HadamardTransform:
        was_meta = self.right.is_meta
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if was_meta and not self.right.is_meta:
            self.reset_parameters()
        else:
            self._moved = True  # `to_empty` of what is no meta tensor looks like any other move
        return self

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        if self._moved and not self.right.is_meta:
            self.reset_parameters()
        super()._load_from_state_dict(*args, **kwargs)

    @property
    def isometry(self) -> bool:
        """Whether T keeps lengths: a Hadamard matrix of order d itself was used."""
        return self.order == self.channels

    def forward(self, x: Tensor) -> Tensor:
        numbers = self.left, self.right, self.mix
        y: Tensor = transformed(x, *numbers, self.channels, self.order, self.trailing, self.mixing)
        return y

    def extra_repr(self) -> str:
        return f"{self.channels}, mixing={self.mixing}"


class ScalarBias(nn.Module):
    """x + b with one trainable number b, shape (1,); any shape → the same."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.bias


class ScalarScale(nn.Module):
    """x · s with one trainable number s, shape (1,); any shape → the same."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale
