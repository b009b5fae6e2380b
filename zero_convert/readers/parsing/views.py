"""Which tensors are one, and which have bytes in common, by where their bytes are."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from zero_convert.formats.dtypes import DTYPES

from ..contents import Tensor


def tied(tensors: Iterable[Tensor]) -> tuple[Tensor, ...]:
    """The same tensors in the same order, with `tie` and `shares` set."""
    listed = list(tensors)
    order = sorted(range(len(listed)), key=lambda index: listed[index].name.encode("utf-8", "surrogatepass"))
    first: dict[object, str] = {}
    ties: dict[int, str] = {}
    spans: dict[tuple[str, int], list[tuple[int, int, int]]] = {}
    for index in order:
        tensor = listed[index]
        if tensor.storage is None or not tensor.values:
            continue
        view = (tensor.storage, tensor.offset, tensor.dtype, tensor.shape, _strides(tensor), tensor.flipped)
        if (known := first.setdefault(view, tensor.name)) != tensor.name:
            ties[index] = known
        else:
            begin = tensor.storage.begin + tensor.offset
            spans.setdefault((tensor.storage.path, tensor.storage.begin), []).append((begin, _end(tensor), index))
    shares: dict[int, str] = {}
    for group in spans.values():
        for one, other in _overlaps(group):
            shares.setdefault(other, listed[one].name)
    return tuple(
        replace(tensor, tie=ties.get(index, ""), shares=shares.get(index, "")) for index, tensor in enumerate(listed)
    )


def _overlaps(group: list[tuple[int, int, int]]) -> Iterable[tuple[int, int]]:
    """Pairs of which the second begins before an earlier one ends."""
    reach, owner = -1, -1
    for begin, end, index in sorted(group):
        if begin < reach:
            yield owner, index
        if end > reach:
            reach, owner = end, index


def _strides(tensor: Tensor) -> tuple[int, ...] | None:
    return None if tensor.strides is None or contiguous(tensor) else tensor.strides


def contiguous(tensor: Tensor) -> bool:
    """Whether the elements follow one another, row-major without gaps."""
    if tensor.strides is None:
        return True
    expected = 1
    for size, stride in zip(reversed(tensor.shape), reversed(tensor.strides), strict=True):
        if size != 1 and stride != expected:
            return False
        expected *= size
    return True


def _end(tensor: Tensor) -> int:
    """Of the span that its elements are in, in bytes of the file."""
    begin = (tensor.storage.begin if tensor.storage else 0) + tensor.offset
    if tensor.strides is None:
        return begin + (tensor.nbytes or 0)
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.strides, strict=True))
    return begin + (last + 1) * DTYPES[tensor.dtype].bits // 8
