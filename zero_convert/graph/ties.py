"""Which names of a state dict are one tensor, and the name it is stored under."""

from __future__ import annotations

from collections.abc import Hashable, Mapping

import torch


def ties(state: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """Every name of a state dict → the name it is stored under: the first, by its UTF-8 bytes, of the same tensor.

    Two tensors that show the same numbers in memory are one: what is written to either is in both.
    """
    names: dict[Hashable, str] = {}
    for name in sorted(state, key=lambda n: n.encode()):
        names.setdefault(_memory(state[name]), name)
    return {name: names[_memory(state[name])] for name in state}


def _memory(value: torch.Tensor) -> Hashable:
    if value.numel() == 0 or value.device.type == "meta" or value.layout is not torch.strided:
        return id(value)
    return value.data_ptr(), value.dtype, value.shape, value.stride()
