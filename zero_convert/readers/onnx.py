"""ONNX: the initializers of the main graph, also those in a data file beside the model, and those in typed fields.

The format itself is read by `formats/onnx.py`. An ONNX file is a
graph of known operators: loading it runs no code from it, so it asks for no trust.
"""

from __future__ import annotations

import os
from math import prod

from zero_convert.formats.digests import brief
from zero_convert.formats.dtypes import DTYPES
from zero_convert.formats.onnx import StoredTensor, header_of

from .contents import Contents, Storage, Tensor
from .parsing.source import Source
from .parsing.views import tied

FORMAT = "ONNX"
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
    source.budget.tensors(len(header.tensors))
    tensors = tied([_tensor(source, stored) for stored in header.tensors])
    files = tuple(dict.fromkeys(stored.location for stored in header.tensors if stored.location))
    beside = os.path.dirname(source.path)
    domains = [domain for domain in header.opsets if domain not in ("", "ai.onnx", "ai.onnx.ml")]
    notes = (f"operators that are not ONNX's own, of {', '.join(map(brief, domains))}",) if domains else ()
    return Contents(
        path=source.path,
        format=FORMAT,
        size=source.size + sum(os.stat(os.path.join(beside, name)).st_size for name in files),
        tensors=tensors,
        weights={tensor.name: tensor.name for tensor in tensors},
        payload=tuple(tensor.storage for tensor in tensors if tensor.storage is not None),
        producer=header.producer,
        files=files,
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
