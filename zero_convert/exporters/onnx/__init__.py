"""ONNX files in canonical form: the network in evaluation mode, and the state dict as its initializers. No torch here.

    initializers   exactly the tensors of the state dict (ties resolved), same names, types, sizes and bits, by name
    nodes          `/Conv_12`: numbered in order; constants first, each once; everything that is no state is a node
    metadata       `zero_convert`: the recipe, `zero_convert.weights_digest`: "zc1:" and the digest

So the weights digest can be made again from the file alone. A file that was folded for inference has other tensors;
instead of the digest it has `zero_convert.folded_from`: "zc1:" and that of the conversion, which is not its own.

Initializers that no node needs (`num_batches_tracked`) have a reader of their own, an `Identity` that leads nowhere:
runtimes drop it without a word, and warn without it. No paths, doc strings, versions of producers, shapes of values in
between.

`graph.py` makes the graph. It is written here as a stream, as protobuf itself would write it: the tensors go by
once and are never in memory together. Beyond `INLINE` bytes, or where asked for, tensors of 1024 bytes or more go to
the file `NAME.onnx.data` beside the model, end to end and by name; what is smaller stays, because readers may need its
values to tell shapes. Both files are complete on the disk before one of them takes its name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import BinaryIO

from zero_convert.errors import ModelError, UsageError
from zero_convert.exporters.safetensors import Entry, force_to_disk, raw_bytes
from zero_convert.formats.digests import FileDigest, Written, brief, is_plain_text, weights_digest
from zero_convert.formats.dtypes import DTYPES
from zero_convert.formats.hashing_lanes import ParallelHasher, pieces
from zero_convert.formats.naming import DIGEST_KEY, FOLDED_KEY, data_path
from zero_convert.formats.protobuf import VARINT, opening, varint

OPSETS = range(18, 26)  # what torch writes and ONNX Runtime reads
OPSET = 20  # where none is asked for
IR_VERSION = 10
INLINE = 1_800_000_000  # bytes of tensors; readers of protobuf end at 2 GiB

_LIMIT = 1 << 31  # bytes; no reader of protobuf goes further
SMALL = 1024  # bytes; below it a tensor stays in the model, whose readers tell shapes from it
_IR_VERSION, _PRODUCER, _GRAPH, _OPSET, _METADATA = 1, 2, 7, 8, 14  # ModelProto
_INITIALIZER = 5  # GraphProto
_DIMS, _TYPE, _NAME, _RAW, _EXTERNAL, _LOCATION = 1, 2, 8, 9, 13, 14  # TensorProto


@dataclass(frozen=True, slots=True)
class Graph:
    """A network without its weights: GraphProto in two parts, what stands before the initializers and after them.

    Attributes:
        raised: what the opset is a later one than `OPSET` for, "bfloat16 in Conv".
    """

    head: bytes
    tail: bytes
    opset: int
    raised: str = ""


def checked_opset(opset: int | None) -> int:
    """The version of the operators to write, `OPSET` for None.

    Raises:
        UsageError: not one of `OPSETS`.
    """
    if opset is not None and opset not in OPSETS:
        expected = f"{OPSETS.start} to {OPSETS.stop - 1}"
        raise UsageError("this version of the ONNX operators cannot be written", got=str(opset), expected=expected)
    return OPSET if opset is None else opset


def checked_data_path(path: str | PathLike[str]) -> Path:
    """Where the data file of a model lies: beside it, `NAME.onnx.data`.

    Raises:
        UsageError: a model cannot name such a file.
    """
    beside = data_path(path)
    if not is_plain_text(beside.name) or "\\" in beside.name:
        raise UsageError(
            "a model cannot name a data file like this",
            where=brief(str(path)),
            expected="an output whose name has neither backslashes nor control characters",
        )
    return beside


def wants_data_file(entries: Sequence[Entry], external_data: bool) -> bool:
    """Whether there is to be a data file: it is needed, or asked for and not empty."""
    return needs_data_file(entries) or (external_data and any(entry.size >= SMALL for entry in entries))


def needs_data_file(entries: Sequence[Entry]) -> bool:
    """Whether the tensors are too large for one file."""
    return sum(entry.size for entry in entries) > INLINE


def write(
    stream: BinaryIO,
    graph: Graph,
    entries: Sequence[Entry],
    metadata: Mapping[str, str],
    data: BinaryIO | None = None,
    location: str = "",
) -> Written:
    """The digests of the model that was written to `stream`.

    Args:
        graph: reads the entries by their names.
        entries: the state dict, ties resolved.
        metadata: besides the digest; written with sorted keys.
        data: takes the tensors, where the model has a data file.
        location: the name of that file.
    Raises:
        ModelError: a tensor of a name or type that ONNX does not have, a model too large for one file, or one that the
            onnx library's full check refuses. Nothing is written then.
    """
    from .validity import check

    if strange := [entry.name for entry in entries if not is_plain_text(entry.name)]:
        raise ModelError("a tensor's name cannot be written", got=brief(strange[0]), expected="plain text")
    ordered = [_read_once(entry) for entry in sorted(entries, key=lambda entry: entry.name.encode())]
    heads, offset = [], 0
    for entry in ordered:
        outside = data is not None and entry.size >= SMALL
        heads.append((entry, outside, _tensor_head(entry, location if outside else "", offset)))
        offset += entry.size if outside else 0
    size = len(graph.head) + len(graph.tail)
    for entry, outside, head in heads:
        whole = len(head) + (0 if outside else entry.size)
        size += len(opening(_INITIALIZER, whole)) + whole
    if size >= _LIMIT:
        fix = "" if data else "Give it a data file with --external-data."
        raise ModelError(
            "the model is too large for protobuf", got=f"{size} bytes", expected=f"below {_LIMIT}", fix=fix
        )
    own = {} if FOLDED_KEY in metadata else {DIGEST_KEY: ""}  # known at the end
    check(graph, ordered, {**metadata, **own}, IR_VERSION)
    with ParallelHasher() as model, ParallelHasher() as beside:

        def put(piece: bytes) -> None:
            stream.write(piece)
            model.file(piece)

        put(_number(_IR_VERSION, IR_VERSION) + _bytes(_PRODUCER, b"zero-convert"))
        put(opening(_GRAPH, size) + graph.head)
        for entry, outside, head in heads:
            put(opening(_INITIALIZER, len(head) + (0 if outside else entry.size)) + head)
            target, hasher = (data, beside) if outside and data is not None else (stream, model)
            raw = raw_bytes(entry)
            hasher.tensor(entry.name, entry.dtype, entry.shape, pieces(raw))
            target.write(raw)
        put(graph.tail + _bytes(_OPSET, _bytes(1, b"") + _number(2, graph.opset)))
        digest = weights_digest(model.leaves() | beside.leaves())
        own = dict.fromkeys(own, f"zc1:{digest}")
        for key, value in sorted({**metadata, **own}.items()):
            put(_bytes(_METADATA, _bytes(1, key.encode()) + _bytes(2, value.encode())))
        for file in (stream, data):
            if file is not None:
                force_to_disk(file)  # while the hashes finish
    first, second = model.written(), beside.written()
    found = {**first.tensors, **second.tensors}
    files = first.files if data is None else (*first.files, FileDigest(second.sha256, second.size, "data"))
    return Written(files, {e.name: found[e.name] for e in ordered}, digest)


def _read_once(entry: Entry) -> Entry:
    """The same, with its values if they are few: the check reads them as well."""
    if entry.size >= SMALL:
        return entry
    values = bytes(raw_bytes(entry))
    return Entry(entry.name, entry.dtype, entry.shape, lambda: values)


def _tensor_head(entry: Entry, location: str, offset: int) -> bytes:
    """A TensorProto up to its data, or whole if that is in another file."""
    number = DTYPES[entry.dtype].onnx
    if number is None:
        raise ModelError(
            "ONNX has no such element type",
            where=entry.name,
            got=entry.dtype,
            expected=", ".join(sorted(name for name, row in DTYPES.items() if row.onnx)),
            fix="Write safetensors, which has it.",
        )
    sizes = b"".join(_number(_DIMS, size) for size in entry.shape)
    head = sizes + _number(_TYPE, number) + _bytes(_NAME, entry.name.encode())
    if not location:
        return head + opening(_RAW, entry.size)
    for key, value in (("location", location), ("offset", str(offset)), ("length", str(entry.size))):
        head += _bytes(_EXTERNAL, _bytes(1, key.encode()) + _bytes(2, value.encode()))
    return head + _number(_LOCATION, 1)


def _number(number: int, value: int) -> bytes:
    return varint(number << 3 | VARINT) + varint(value)


def _bytes(number: int, payload: bytes) -> bytes:
    return opening(number, len(payload)) + payload
