"""The tensors of a state dict as the exporters take them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import nn

from zero_convert.formats.dtypes import of_torch
from zero_convert.graph.state import stored_tensors
from zero_convert.graph.ties import ties

from .safetensors import Entry


def entries_of(module: nn.Module, instead: Mapping[str, torch.Tensor] | None = None) -> list[Entry]:
    """The tensors of a state dict, ties resolved; those in `instead` with other values."""
    state = stored_tensors(module)
    entries = []
    for name in dict.fromkeys(ties(state).values()):
        value = (instead or {}).get(name, state[name])
        row = of_torch(value.dtype)
        assert row is not None  # the structure was refused otherwise
        entries.append(Entry(name, row.name, tuple(value.shape), partial(_bytes, value)))
    return entries


def _bytes(tensor: torch.Tensor) -> Any:
    plain = tensor.detach().cpu().contiguous()
    return plain.reshape(-1).view(torch.uint8).numpy() if plain.dtype is not torch.bool else plain.numpy()
