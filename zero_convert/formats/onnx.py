"""ONNX files as far as tensors, metadata, signature and digests go: no torch, no onnx, no code from the file.

    ModelProto    1 IR version   7 graph   8 opsets   14 metadata   20 training   25 functions
    GraphProto    1 nodes   5 initializers   11 inputs   12 outputs   15 sparse initializers
    TensorProto   1 sizes   2 type   8 name   9 data   13, 14 data in another file

The initializers of the main graph are the state dict; what else may be a weight, `onnx_nodes.py` finds. Data is never
taken into memory as a whole. Data in another file is looked for in the model's own folder only, links followed.
"""

from __future__ import annotations

import collections
import dataclasses
import os
import stat
from collections.abc import Callable, Mapping
from os import PathLike
from typing import BinaryIO

from ..errors import MalformedError, RefusedError, StorageError
from .digests import FileDigest, Written, brief, weights_digest
from .dtypes import find, stored
from .hashing_lanes import ParallelHasher
from .naming import DIGEST_KEY, FOLDED_KEY, data_path
from .onnx_nodes import NodeReader, NodeValues, StoredTensor
from .protobuf import Field, Message
from .safetensors import DIMENSIONS, check_tiling
from .spans import opened, read_pieces, size_of

TENSORS = 1_000_000  # at most, so that a small file cannot fill the memory
_TYPED_DATA = (4, 5, 6, 7, 10, 11)
_STRING = 8  # number of the only type whose elements have no width
_INITIALIZER = 1000  # bytes of memory that one costs besides its fields


@dataclasses.dataclass(frozen=True, slots=True)
class OnnxHeader:
    """What is in a file besides the data of its tensors, which are in the order of the file.

    Attributes:
        size: of the file in bytes, without that of a data file.
        inputs: name → type and sizes, "F32 batch×3×224×224"; outputs likewise.
        operators: how many nodes of each kind the main graph has, the most frequent first.
        producer: the tool that wrote it, and its version.
        nodes: values outside of the initializers.
    """

    metadata: Mapping[str, str]
    tensors: tuple[StoredTensor, ...]
    size: int
    ir_version: int
    opsets: Mapping[str, int]
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]
    operators: Mapping[str, int]
    producer: str = ""
    nodes: NodeValues = dataclasses.field(default_factory=NodeValues)

    @property
    def ours(self) -> bool:
        """Whether the file says which weights its initializers are: all others were put into nodes as no weights."""
        return DIGEST_KEY in self.metadata or FOLDED_KEY in self.metadata


def read_header(path: str | PathLike[str]) -> OnnxHeader:
    """The header of the file at `path`, checked against itself and against the sizes of the files.

    Raises:
        MalformedError: it is no ONNX file, or it claims what is not so.
        RefusedError: it names a data file outside of its folder.
        StorageError: it, or its data file, cannot be read.
    """
    with opened(path) as file:
        return header_of(file, str(path))


def read_metadata(path: str | PathLike[str]) -> Mapping[str, str]:
    """The metadata of the file at `path`; errors as `read_header`."""
    return read_header(path).metadata


def header_of(file: BinaryIO, where: str, spend: Callable[[int], None] = lambda _: None) -> OnnxHeader:
    """The header of an open file; errors as `read_header`, and what `spend` raises where it grows too large."""
    size = size_of(file)
    model = Message(file, 0, size, where, spend)
    ir_version, graph = 0, None
    reader = NodeReader(lambda message: _tensor(message, where), spend)
    producer: dict[int, str] = {}
    opsets: dict[str, int] = {}
    metadata: dict[str, str] = {}
    for field in model.fields(1, 2, 3, 7):
        if field.number == 1:
            ir_version = model.integer(field)
        elif field.number in (2, 3):
            producer[field.number] = model.text(field, lines=True)
        elif field.number == 7:
            graph = model.inside(field, "graph")
        elif field.number == 8:
            domain, version = _opset(model.inside(field, "opset"))
            opsets[domain] = version
        elif field.number == 14:
            key, value = _pair(model.inside(field, "metadata"), lines=True)
            if key in metadata:
                raise model.malformed(f"the metadata {brief(key)} comes twice")
            metadata[key] = value
        elif field.number == 20:
            reader.training(model.inside(field, "training"))
        elif field.number == 25:
            reader.function(model.inside(field, "a function"))
    if graph is None or not opsets:
        raise model.malformed("no graph, or no operator set", "an ONNX model")
    tensors, inputs, outputs, operators = _graph(graph, where, spend, reader)
    maker = " ".join(filter(None, (producer.get(2), producer.get(3))))
    known = tuple(tensors.values())
    return OnnxHeader(metadata, known, size, ir_version, opsets, inputs, outputs, operators, maker, reader.found)


def _graph(
    graph: Message, where: str, spend: Callable[[int], None], reader: NodeReader
) -> tuple[dict[str, StoredTensor], dict[str, str], dict[str, str], dict[str, int]]:
    tensors: dict[str, StoredTensor] = {}
    inputs: dict[str, str] = {}
    outputs: dict[str, str] = {}
    operators: collections.Counter[str] = collections.Counter()
    for field in graph.fields():
        if field.number == 1:
            kind = reader.node(graph.inside(field, "a node"))
            operators.update(() if kind is None else (kind,))
        elif field.number == 5:
            spend(_INITIALIZER)
            tensor = _tensor(graph.inside(field, "an initializer"), where)
            if tensor.name in tensors or not tensor.name or len(tensors) == TENSORS:
                raise graph.malformed(
                    f"initializer {brief(tensor.name)}, number {len(tensors) + 1}",
                    f"names of their own, and at most {TENSORS}",
                )
            tensors[tensor.name] = tensor
        elif field.number in (11, 12):
            name, spelled = _signature(graph.inside(field, "an input" if field.number == 11 else "an output"))
            (inputs if field.number == 11 else outputs)[name] = spelled
        elif field.number == 15:
            reader.sparse_initializer(graph.inside(field, "a sparse initializer"), field)
    return tensors, inputs, outputs, dict(operators.most_common())


def _tensor(message: Message, where: str) -> StoredTensor:
    name, kind, elsewhere = "", 0, False
    typed: list[Field] = []
    shape: list[int] = []
    raw: Field | None = None
    external: dict[str, str] = {}
    for field in message.fields(2, 3, 8, 9, 14):
        if field.number == 1:
            shape += message.integers(field)
        elif field.number == 2:
            kind = message.integer(field)
        elif field.number == 3:
            raise message.malformed("a tensor in segments", "whole tensors")
        elif field.number == 8:
            name = message.text(field)
        elif field.number == 9:
            message.inside(field)  # a payload, not a number
            raw = field
        elif field.number == 13:
            key, value = _pair(message.inside(field))
            external[key] = value
        elif field.number == 14:
            elsewhere = message.integer(field) == 1
        elif field.number in _TYPED_DATA:
            typed.append(field)
    tensor, dtype = f"tensor {brief(name)}", _spelled_type(kind, f"type {kind}")
    if len(shape) > DIMENSIONS or any(size >= 1 << 63 for size in shape):
        raise message.malformed(f"{tensor} of shape {brief(shape)}", f"at most {DIMENSIONS} sizes below 2**63")
    if elsewhere:
        if raw is not None or typed:
            raise message.malformed(f"{tensor} is both in the file and in another")
        location, begin, end = _external(external, where, tensor)
    elif typed:
        span = (typed[0].number, typed[0].begin, typed[0].end) if len(typed) == 1 and typed[0].kind == 2 else None
        return StoredTensor(name, dtype, tuple(shape), -1, -1, typed=span)
    else:
        location, begin, end = ("", raw.begin, raw.end) if raw else ("", -1, -1)
        if raw is None and 0 not in shape:
            raise message.malformed(f"{tensor} has no data")
    if (row := stored(dtype)) is not None:
        if (bits := row.bits_of(shape)) is None:
            raise message.malformed(f"{tensor} of shape {brief(shape)}", "fewer than 2**63 bytes")
        if bits != 8 * (end - begin):
            raise message.malformed(f"{tensor} with {end - begin} bytes", f"{bits / 8:g} for {dtype} {brief(shape)}")
    return StoredTensor(name, dtype, tuple(shape), begin, end, location)


def _spelled_type(number: int, unknown: str) -> str:
    """The name of the element type with ONNX's number."""
    row = find("onnx", number)
    return "STRING" if number == _STRING else unknown if row is None else row.name


def _external(entries: Mapping[str, str], where: str, tensor: str) -> tuple[str, int, int]:
    """Where a tensor's data is: the file's name, first and last byte in it."""
    location = entries.get("location", "")
    folder = os.path.realpath(os.path.dirname(where) or ".")
    beside = os.path.realpath(os.path.join(folder, location))
    if (
        not location
        or os.path.isabs(location)
        or "\\" in location
        or ".." in location.split("/")
        or os.path.commonpath((folder, beside)) != folder
    ):
        raise RefusedError(
            f"{tensor} is said to be in a file outside of the model's folder",
            where=where,
            got=brief(location),
            expected="a file beside the model, no link that leads out",
        )
    try:
        state = os.stat(beside)
    except OSError as error:
        raise StorageError("cannot read the data file", where=beside, got=error.strerror or str(error)) from error
    spelled = [entries.get(key, default) for key, default in (("offset", "0"), ("length", str(state.st_size)))]
    if not all(text.isascii() and text.isdigit() and len(text) < 20 for text in spelled):
        raise MalformedError(f"{tensor} has an impossible offset or length", where=where, got=brief(spelled))
    begin, end = int(spelled[0]), int(spelled[0]) + int(spelled[1])
    if not stat.S_ISREG(state.st_mode) or end > state.st_size:
        raise MalformedError(
            f"{tensor} ends outside of its data file", where=where, got=f"byte {end}", expected=f"{state.st_size} bytes"
        )
    return location, begin, end


def _pair(message: Message, lines: bool = False) -> tuple[str, str]:
    found = {field.number: message.text(field, lines and field.number == 2) for field in message.fields(1, 2)}
    return found.get(1, ""), found.get(2, "")


def _opset(message: Message) -> tuple[str, int]:
    domain, version = "", 0
    for field in message.fields(1, 2):
        if field.number == 1:
            domain = message.text(field)
        elif field.number == 2:
            version = message.integer(field)
    return domain, version


def _signature(message: Message) -> tuple[str, str]:
    """Name and spelling of an input or output: ValueInfoProto 1 name, 2 type → 1 tensor → 1 element, 2 shape."""
    name, spelled = "", "no tensor"
    for field in message.fields(1, 2):
        if field.number == 1:
            name = message.text(field)
        elif field.number == 2:
            kind = message.inside(field)
            for tensor in (kind.inside(part) for part in kind.fields() if part.number == 1):
                spelled = _spelled(tensor)
    return name, spelled


def _spelled(tensor: Message) -> str:
    dtype, sizes = "", None
    for field in tensor.fields(1, 2):
        if field.number == 1:
            dtype = _spelled_type(tensor.integer(field), "?")
        elif field.number == 2:
            shape = tensor.inside(field)
            sizes = [_size(shape.inside(dimension)) for dimension in shape.fields() if dimension.number == 1]
    return f"{dtype} {'×'.join(sizes)}".rstrip() if sizes is not None else f"{dtype} of any shape"


def _size(dimension: Message) -> str:
    for field in dimension.fields(1, 2):
        if field.number in (1, 2):
            return str(dimension.integer(field)) if field.number == 1 else dimension.text(field)
    return "?"


# ---------------------------------------------------------------------------------------------------------------------
# digests


def file_digests(path: str | PathLike[str]) -> Written:
    """The digests of the file at `path`, made again from its bytes and those of its data file.

    A data file has to hold the tensors that the model has in it, end to end, and nothing besides.

    Raises:
        MalformedError, RefusedError, StorageError: as `read_header`; or a tensor is not stored as raw bytes.
    """
    where = str(path)
    with opened(path) as file:
        header = header_of(file, where)
        hidden = [] if header.ours else header.nodes.tensors
        for one in (*header.nodes.sparse, *hidden):
            raise MalformedError(
                f"the file has no digest: {brief(one.name)} is no dense initializer, and may be a weight",
                where=where,
                got=f"{len(header.nodes.sparse) + len(hidden)} such tensors",
                expected="weights that are initializers of the main graph",
                fix="The file was not written by zero-convert; `zero-convert inspect FILE` lists what is in it.",
            )
        for tensor in header.tensors:
            if tensor.begin < 0 or stored(tensor.dtype) is None:
                raise MalformedError(
                    f"tensor {brief(tensor.name)} has no digest",
                    where=where,
                    got=f"{tensor.dtype}, not stored as raw bytes" if tensor.begin < 0 else tensor.dtype,
                    expected="raw bytes of a type that safetensors has",
                    fix="The file was not written by zero-convert.",
                )
        whole = _digests(file, 0, header.size, [t for t in header.tensors if not t.location], where)
    found, files = dict(whole.tensors), [*whole.files]
    for location in dict.fromkeys(t.location for t in header.tensors if t.location):
        beside = os.path.join(os.path.dirname(where), location)
        with opened(beside) as file:
            size = size_of(file)
            own = sorted((t for t in header.tensors if t.location == location), key=lambda t: (t.begin, t.end))
            if (tiled := check_tiling(((t.name, t.begin, t.end) for t in own), beside)) != size:
                what = "bytes follow the last tensor"
                raise MalformedError(what, where=beside, got=f"{size} bytes", expected=str(tiled))
            part = _digests(file, 0, size, own, beside)
            found |= part.tensors
        name = "" if location == data_path(path).name else location
        files.append(FileDigest(part.sha256, part.size, "data", name))
    leaves = {name: bytes.fromhex(leaf.digest) for name, leaf in found.items()}
    return Written(tuple(files), {t.name: found[t.name] for t in header.tensors}, weights_digest(leaves))


def _digests(file: BinaryIO, begin: int, end: int, tensors: list[StoredTensor], where: str) -> Written:
    """The digests of a whole file and of the tensors in it, which are in its order."""
    with ParallelHasher() as hasher:
        position = begin
        for tensor in tensors:
            for piece in read_pieces(file, position, tensor.begin, where):
                hasher.file(piece)
            hasher.tensor(tensor.name, tensor.dtype, tensor.shape, read_pieces(file, tensor.begin, tensor.end, where))
            position = tensor.end
        for piece in read_pieces(file, position, end, where):
            hasher.file(piece)
    return hasher.written()
