"""ONNX: the initializers of the main graph, also those in a data file beside the model, and those in typed fields.
Tensors in nodes, their graphs, functions and training steps that may be weights are listed as well.

The format itself is read by `formats/onnx.py`. An ONNX file is a
graph of known operators: loading it runs no code from it, so it asks for no trust.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import replace
from math import prod

from zero_convert.formats.digests import brief
from zero_convert.formats.dtypes import DTYPES
from zero_convert.formats.onnx import header_of
from zero_convert.formats.onnx_nodes import StoredTensor
from zero_convert.formats.spans import opened, read_span

from .contents import Contents, Storage, Tensor
from .parsing.source import Source
from .parsing.state_dicts import CONSTANTS
from .parsing.views import tied

FORMAT = "ONNX"
_ALIGNED = 1 << 16  # bytes that writers align data to, at most
# kind and bits of a type → the typed field of its values; those of all others are in field 5
_FIELDS = {
    ("float", 32): 4, ("complex", 64): 4, ("int", 64): 7, ("float", 64): 10, ("complex", 128): 10, ("uint", 32): 11,
    ("uint", 64): 11,
}  # fmt: skip
_RAW = (4, 10)  # fields whose values are the bytes of their type; the others hold one protobuf number for each
_OPENINGS = (b"\x08", b"\x12", b"\x1a", b"\x22", b"\x2a", b"\x3a", b"\x42", b"\x72")  # fields 1 to 5, 7, 8, 14


def read(source: Source) -> Contents:
    """What is in the file."""
    source.file.seek(source.begin)
    header = header_of(source.file, source.path, source.budget.take)
    nodes = header.nodes
    outside = [] if header.ours else nodes.tensors
    source.budget.tensors(len(header.tensors) + len(nodes.sparse) + len(outside))
    own = [_tensor(source, each) for each in (*header.tensors, *nodes.sparse)]
    others = _renamed([_tensor(source, each) for each in outside], {each.name for each in own})
    tensors = tied([*own, *others])
    model, beside = own or others, others if own else []
    path = os.path.join(os.path.dirname(source.path), "")
    places = dict.fromkeys(each.location for each in (*header.tensors, *nodes.sparse, *nodes.tensors) if each.location)
    files = {name: os.stat(path + name).st_size for name in places}
    domains = [domain for domain in header.opsets if domain not in ("", "ai.onnx", "ai.onnx.ml")]
    notes = (f"operators that are not ONNX's own, of {', '.join(map(brief, domains))}",) if domains else ()
    spans = [Storage(source.path, *span) for span in (*nodes.spans, *_raw(nodes.tensors))]
    undigested = f"{beside[0].name}, a constant of the program, may be a weight as well" if beside else ""
    if nodes.sparse:
        undigested = f"{nodes.sparse[0].name} is part of a sparse tensor, and the digest is one of plain tensors"
    return Contents(
        path=source.path,
        format=FORMAT,
        size=source.size + sum(files.values()),
        tensors=tensors,
        weights={tensor.name: tensor.name for tensor in model},
        payload=(*(each.storage for each in tensors if each.storage is not None), *(() if header.ours else spans)),
        besides={tensor.name: CONSTANTS for tensor in beside},
        left_out={
            CONSTANTS: (*(Storage(source.path, *span) for span in nodes.small), *(spans if header.ours else ())),
            **{
                f"bytes of {name} that no tensor has": _gaps(path + name, size, tensors) for name, size in files.items()
            },
        },
        undigested=undigested,
        producer=header.producer,
        files=tuple(files),
        metadata=header.metadata,
        notes=notes,
        details={
            "ir_version": header.ir_version,
            "opsets": header.opsets,
            "inputs": header.inputs,
            "outputs": header.outputs,
            "operators": header.operators,
        },
    )


def _renamed(tensors: list[Tensor], taken: set[str]) -> list[Tensor]:
    """The tensors with names that no initializer has."""
    found = []
    for tensor in tensors:
        while tensor.name in taken:
            tensor = replace(tensor, name=f"{tensor.name}~")
        taken.add(tensor.name)
        found.append(tensor)
    return found


def _raw(tensors: Iterable[StoredTensor]) -> list[tuple[int, int]]:
    return [(each.begin, each.end) for each in tensors if each.begin >= 0 and not each.location]


def _gaps(path: str, size: int, tensors: Iterable[Tensor]) -> tuple[Storage, ...]:
    """The spans of a data file between its tensors; without those that only align the next tensor with zeros."""
    at, found = 0, []
    spans = (each.storage for each in tensors if each.storage is not None and each.storage.path == path)
    with opened(path) as file:
        for begin, end in [*sorted((span.begin, span.end) for span in spans), (size, size)]:
            if begin > at and (begin - at > _ALIGNED or any(read_span(file, at, begin - at, path))):
                found.append(Storage(path, at, begin))
            at = max(at, end)
    return tuple(found)


def _tensor(source: Source, stored: StoredTensor) -> Tensor:
    path = os.path.join(os.path.dirname(source.path), stored.location) if stored.location else source.path
    storage = None
    if stored.begin >= 0:
        storage = Storage(path, stored.begin, stored.end)
    elif stored.typed is not None:
        storage = _typed(source, stored, *stored.typed)
    return Tensor(stored.name, stored.dtype, stored.shape, storage=storage)


def _typed(source: Source, stored: StoredTensor, number: int, begin: int, end: int) -> Storage | None:
    """The values of a typed field, if they are stored in a form that is read here."""
    total, row = prod(stored.shape), DTYPES.get(stored.dtype)
    if row is None or row.kind == "packed" or number != _FIELDS.get((row.kind, row.bits), 5):
        return None
    if number in _RAW:
        if 8 * (end - begin) != total * row.bits:
            raise source.malformed(
                f"tensor {brief(stored.name)} does not fit its shape", f"{end - begin} bytes", brief(stored.shape)
            )
        return Storage(source.path, begin, end)
    if not total <= end - begin <= 10 * total:
        raise source.malformed(f"tensor {brief(stored.name)} does not fit its shape")
    return Storage(source.path, begin, end, varints=True)


def looks_like(head: bytes) -> bool:
    """Whether a model may begin so: with any field of the outermost message."""
    return head[:1] in _OPENINGS
