"""Which part of a tensor this process holds: all of it, or the shards that a `DTensor`'s placements give it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor

from zero_convert.errors import UsageError

Ranges = tuple[tuple[int, int], ...]  # (start, stop) along each axis


@dataclass(frozen=True, slots=True)
class Part:
    """A block of a tensor, and where it lies in this process' own storage."""

    ranges: Ranges  # in the whole tensor
    target: Tensor  # a view of the local tensor


def local_parts(value: Tensor, name: str) -> list[Part]:
    """The blocks that this process holds, none twice; nothing is communicated.

    A shard is one block, except where an axis is split by two meshes in turn and pieces of it alternate.

    Raises:
        UsageError: the placements do not say which values are here, or the tensor is of a kind that cannot be written.
    """
    from torch.distributed.tensor import DTensor

    indices = [torch.arange(size) for size in value.shape]
    local = value.detach()
    if isinstance(value, DTensor):
        local = value.to_local().detach()
        coordinate = value.device_mesh.get_coordinate()
        for axis, placement in enumerate(value.placements):
            if placement.is_replicate() or coordinate is None:
                continue
            dim = getattr(placement, "dim", None)
            if dim is None or placement.is_partial():
                raise UsageError(
                    "a sharded tensor's values are a sum over processes",
                    where=name,
                    got=str(placement),
                    expected="Shard or Replicate placements",
                    fix="Redistribute it first: parameter.redistribute(placements=[Replicate()]).",
                )
            split: Any = placement._split_tensor  # type: ignore[attr-defined]  # what distribute_tensor splits by
            along = indices[dim].reshape([-1 if at == dim else 1 for at in range(value.dim())])
            shards, _ = split(along, value.device_mesh.size(axis), with_padding=False, contiguous=False)
            indices[dim] = shards[coordinate[axis]].reshape(-1)
    sizes = tuple(len(part) for part in indices)
    if type(local) not in (Tensor, torch.nn.Parameter) or local.layout is not torch.strided or local.shape != sizes:
        raise UsageError(
            "this tensor is not stored as plain numbers",
            where=name,
            got=f"{type(local).__name__} {tuple(local.shape)}, {local.layout}",
            expected=f"a dense tensor {sizes}",
            fix="Fill the network before its tensors are flattened, packed or quantized.",
        )
    runs = [list(_runs(part.tolist())) for part in indices]
    return [
        Part(tuple((first, first + count) for first, count, _ in choice), _cut(local, [run[1:] for run in choice]))
        for choice in product(*runs)
        if all(count for _, count, _ in choice)
    ]


def _runs(indices: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """(first index, how many in a row, position of the first one) of every run of successive indices."""
    begin = 0
    for position in range(1, len(indices) + 1):
        if position == len(indices) or indices[position] != indices[position - 1] + 1:
            yield indices[begin], position - begin, begin
            begin = position


def _cut(local: Tensor, runs: Sequence[tuple[int, int]]) -> Tensor:
    for axis, (count, position) in enumerate(runs):
        local = local.narrow(axis, position, count)
    return local


def pieces(part: Part, elements: int) -> Iterator[Part]:
    """The part in slices of its first axis of at most so many elements each, but of one row at least."""
    rows = part.target.shape[0] if part.target.dim() else 1
    step = max(1, elements // max(1, math.prod(part.target.shape[1:])))
    if step >= rows:
        yield part
        return
    start = part.ranges[0][0]
    for at in range(0, rows, step):
        target = part.target[at : at + step]
        yield Part(((start + at, start + at + len(target)), *part.ranges[1:]), target)
