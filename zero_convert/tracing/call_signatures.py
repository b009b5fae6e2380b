"""How a module was called, without the memory of its arguments."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map


@dataclass(frozen=True)
class Like:
    """What a tensor was like: its sizes, strides and dtype, without its memory."""

    size: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype

    def zeros(self) -> Tensor:
        return torch.empty_strided(self.size, self.stride, dtype=self.dtype).zero_()


@dataclass(frozen=True)
class Call:
    """The arguments that a module was called with, `Like` in the place of tensors."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    @classmethod
    def of(cls, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Call:
        return cls(
            *tree_map(lambda x: Like(x.shape, x.stride(), x.dtype) if isinstance(x, Tensor) else x, (args, kwargs))
        )

    def among(self, calls: Iterable[Call]) -> bool:
        """Whether one of the calls is equal to this one; False where values do not say whether they are equal."""
        try:
            return self in tuple(calls)
        except (RuntimeError, TypeError, ValueError):
            return False
