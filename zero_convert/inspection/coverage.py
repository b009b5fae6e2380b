"""Which bytes of a file a weights digest stands for: those that it hashes, those named as left out, and the rest.

    payload = hashed ∪ left out ∪ uncovered

A digest is made only where nothing is uncovered. Bytes are counted as intervals, strided views element by element.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod

from zero_convert.formats.dtypes import DTYPES

from ..readers import Contents, Storage, Tensor
from ..readers.parsing.views import contiguous

GAPS = "bytes of storages that no tensor shows"
_MOST = 1 << 16  # intervals of one view; of a view with more its span is counted
_Spans = dict[str, list[tuple[int, int]]]  # path → intervals, in order and apart from one another


@dataclass(frozen=True, slots=True)
class Uncovered:
    """Bytes `begin:end` of a file, by its name."""

    file: str
    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class Coverage:
    """What becomes of the bytes that may hold values.

    Attributes:
        payload: how many there are.
        hashed: how many of them the digest stands for.
        left_out: what is named as no weight of the model → how many bytes it has besides.
        uncovered: those in neither.
    """

    payload: int
    hashed: int
    left_out: Mapping[str, int]
    uncovered: tuple[Uncovered, ...]

    def __str__(self) -> str:
        """ "bytes 64:128 of model.pt are in no tensor"."""
        first, count = self.uncovered[0], sum(each.end - each.begin for each in self.uncovered)
        more = f" and others, {count:,} in all," if len(self.uncovered) > 1 else ""
        return f"bytes {first.begin}:{first.end} of {first.file}{more} are in no tensor"


def coverage(contents: Contents) -> Coverage:
    """What a digest of the model's own tensors would stand for."""
    named = [(label, _joined(spans)) for label, spans in contents.left_out.items()]
    rest = _joined([*contents.payload, *(span for spans in contents.left_out.values() for span in spans)])
    total = _size(rest)
    by_label: dict[str, list[Tensor]] = {"": []}
    for tensor in contents.tensors:
        by_label.setdefault(contents.besides.get(tensor.name, ""), []).append(tensor)
    rest, hashed = _taken(rest, _views(by_label.pop("")))
    left_out: dict[str, int] = {}
    gaps = _joined(tensor.storage for tensor in contents.tensors if tensor.storage is not None)
    for label, spans in (*((label, _views(own)) for label, own in by_label.items()), *named, (GAPS, gaps)):
        rest, size = _taken(rest, spans)
        if size:
            left_out[label] = left_out.get(label, 0) + size
    for tensor in contents.tensors:
        if (wide := _step_by_step(tensor)) and prod(size for _, size in wide[1]) > _MOST:
            left_out[f"bytes between the elements of {tensor.name}"] = _reach(wide) - (tensor.nbytes or 0)
    uncovered = tuple(Uncovered(os.path.basename(path), *span) for path, own in rest.items() for span in own)
    return Coverage(total, hashed, left_out, uncovered)


def _views(tensors: Iterable[Tensor]) -> _Spans:
    found: _Spans = {}
    for tensor in tensors:
        if tensor.storage is not None:
            found.setdefault(tensor.storage.path, []).extend(_intervals(tensor, tensor.storage))
    return {path: _merged(spans) for path, spans in found.items()}


def _intervals(tensor: Tensor, storage: Storage) -> Iterator[tuple[int, int]]:
    """The bytes of the file that the elements are in."""
    if storage.varints or storage.text or tensor.dtype not in DTYPES:
        yield storage.begin, storage.end
        return
    begin = storage.begin + tensor.offset
    steps = _step_by_step(tensor)
    if not tensor.values:
        return
    if steps is None:
        yield begin, begin + (tensor.nbytes or 0)
    elif prod(size for _, size in steps[1]) > _MOST:
        yield begin, begin + _reach(steps)
    else:
        for place in itertools.product(*(range(0, step * size, step) for step, size in steps[1])):
            yield begin + sum(place), begin + sum(place) + steps[0]


def _step_by_step(tensor: Tensor) -> tuple[int, list[tuple[int, int]]] | None:
    """(bytes that follow one another, [(step in bytes, how often)]) of a view with strides; None for one without."""
    if tensor.strides is None or tensor.storage is None or not tensor.values or contiguous(tensor):
        return None
    width = DTYPES[tensor.dtype].bits // 8
    run = width
    outer: list[tuple[int, int]] = []
    axes = zip(tensor.strides, tensor.shape, strict=True)
    for step, size in sorted((stride * width, size) for stride, size in axes if stride and size > 1):
        if step <= run and not outer:
            run += step * (size - 1)
        else:
            outer.append((step, size))
    return run, outer


def _reach(steps: tuple[int, Sequence[tuple[int, int]]]) -> int:
    return steps[0] + sum(step * (size - 1) for step, size in steps[1])


# ---------------------------------------------------------------------------------------------------------------------
# intervals


def _joined(spans: Iterable[Storage]) -> _Spans:
    found: _Spans = {}
    for span in spans:
        found.setdefault(span.path, []).append((span.begin, span.end))
    return {path: _merged(intervals) for path, intervals in found.items()}


def _merged(spans: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    merged: list[tuple[int, int]] = []
    for begin, end in sorted(spans):
        if merged and begin <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(end, merged[-1][1])
        elif begin < end:
            merged.append((begin, end))
    return merged


def _taken(spans: _Spans, taken: _Spans) -> tuple[_Spans, int]:
    """What is left of the first without the second, and how many bytes went."""
    left = {path: _without(own, taken.get(path, [])) for path, own in spans.items()}
    return left, _size(spans) - _size(left)


def _without(spans: list[tuple[int, int]], taken: list[tuple[int, int]]) -> list[tuple[int, int]]:
    left, index = [], 0
    for begin, end in spans:
        while index < len(taken) and taken[index][1] <= begin:
            index += 1
        at = index
        while at < len(taken) and taken[at][0] < end:
            if begin < taken[at][0]:
                left.append((begin, taken[at][0]))
            begin = max(begin, taken[at][1])
            at += 1
        if begin < end:
            left.append((begin, end))
    return left


def _size(spans: _Spans) -> int:
    return sum(end - begin for own in spans.values() for begin, end in own)
