"""Values of an ONNX file that are in no initializer of the main graph: in nodes, their graphs, functions, training.

    NodeProto           2 outputs   3 name   4 operator   5 attributes   7 domain
    AttributeProto      1 name   4, 9 bytes   5, 10 tensors   6, 11 graphs   7 floats   22, 23 sparse tensors
    GraphProto          1 nodes   5 initializers   15 sparse initializers
    SparseTensorProto   1 values   2 indices          FunctionProto   1 name   7 nodes   10 domain   11 defaults
    TrainingInfoProto   1, 2 graphs

What may be a weight is listed as a tensor, what is only a size, a position or a single number as a span.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field

from .digests import is_plain_text
from .dtypes import may_be_weight
from .protobuf import DELIMITED, FOUR, Field, Message

_DEPTH = 32  # of graphs in one another; protobuf's own limit is about that
_FEW = 16  # floats that an operator of ONNX's own may have as settings
_BYTES = 1024  # of a text that is more than a setting
_LONG = 4096  # bytes of numbers, one a field, that are skipped at once; what follows them is the attribute's type
_FLOATS = re.compile(rb"(?:\x3d.{4})*+(?:\xa0\x01.)?", re.DOTALL)
_INTEGERS = re.compile(rb"(?:\x40[\x80-\xff]{0,9}[\x00-\x7f])*+(?:\xa0\x01.)?", re.DOTALL)
_INNER, _FOUND = 256, 1000  # bytes of memory that a field of an attribute and a tensor may cost


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor: bytes `begin:end` of the file, or of the file `location` beside it; -1 where it is not raw.

    Of one that is not raw, `typed` are number, begin and end of the field that holds its values, if one field does.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int
    location: str = ""
    typed: tuple[int, int, int] | None = None


@dataclass(slots=True)
class NodeValues:
    """What was found outside of the initializers.

    Attributes:
        tensors: that may be weights, each with a name of its own.
        sparse: values and indices of the sparse initializers of the main graph, likewise.
        spans: of the model file, where tensors that may be weights stand; those that are not raw are read no further.
        small: of the model file, where constants stand that are no weights.
    """

    tensors: list[StoredTensor] = field(default_factory=list)
    sparse: list[StoredTensor] = field(default_factory=list)
    spans: list[tuple[int, int]] = field(default_factory=list)
    small: list[tuple[int, int]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Node:
    label: str
    constant: bool
    own: bool  # an operator of ONNX's own
    output: str
    prefix: str


class NodeReader:
    """Collects the values of nodes.

    Args:
        tensor: reads a TensorProto.
        spend: is told of what is built, in bytes.
    """

    def __init__(self, tensor: Callable[[Message], StoredTensor], spend: Callable[[int], None]) -> None:
        self.found = NodeValues()
        self._tensor, self._spend = tensor, spend
        self._names: set[str] = set()

    def node(self, message: Message, prefix: str = "", depth: int = 0) -> str | None:
        """Reads a node; its operator."""
        texts: dict[int, Field] = {}
        attributes = []
        for part in message.fields():
            if part.number == 5:
                attributes.append(part)
            elif part.number in (2, 3, 4, 7):
                texts.setdefault(part.number, part)
        kind = message.text(texts[4]) if 4 in texts else None
        if attributes:
            output, name = (_plain(message, texts.get(number)) for number in (2, 3))
            domain = message.text(texts[7], lines=True) if 7 in texts else ""
            label = name or output or kind or "node"
            node = _Node(label, kind == "Constant", domain in ("", "ai.onnx"), output, prefix)
            for part in attributes:
                self._attribute(message.inside(part, "an attribute", self._lightly), part, node, depth)
        return kind

    def graph(self, message: Message, prefix: str, depth: int) -> None:
        """Reads a graph inside of a node, a function or a training step."""
        if depth > _DEPTH:
            raise message.malformed("graphs are nested too deeply", f"{_DEPTH} at most")
        for part in message.fields():
            if part.number == 1:
                self.node(message.inside(part, "a node"), prefix, depth)
            elif part.number == 5:
                self._add(self._tensor(message.inside(part, "an initializer")), prefix, part)
            elif part.number == 15:
                self._sparse(message.inside(part, "a sparse initializer"), prefix, part)

    def function(self, message: Message) -> None:
        """Reads a local function."""
        texts = {part.number: part for part in message.fields() if part.number in (1, 10)}
        names = [_plain(message, texts.get(number)) for number in (10, 1)]
        prefix = ".".join([*filter(None, names), ""])
        for part in message.fields():
            if part.number == 7:
                self.node(message.inside(part, "a node"), prefix, 1)
            elif part.number == 11:
                node = _Node("defaults", False, False, "", prefix)
                self._attribute(message.inside(part, "an attribute", self._lightly), part, node, 1)

    def training(self, message: Message) -> None:
        """Reads a training step."""
        for part in message.fields():
            if part.number in (1, 2):
                self.graph(message.inside(part, "a training graph"), "training.", 1)

    def sparse_initializer(self, message: Message, part: Field) -> None:
        """Reads one of the main graph."""
        self._sparse(message, "", part, self.found.sparse)

    def _lightly(self, _: int) -> None:
        """What a field costs that is not kept."""
        self._spend(_INNER)

    def _attribute(self, message: Message, whole: Field, node: _Node, depth: int) -> None:
        name, floats = "", 0
        values: list[Field] = []
        for part in message.fields():
            if part.number == 1:
                name = _plain(message, part)
            elif part.number == 7:
                floats += (part.end - part.begin) // 4 if part.kind == DELIMITED else part.kind == FOUR
                if part.kind == FOUR and whole.end - part.end > _LONG and _FLOATS.fullmatch(message.behind(part)):
                    floats += (whole.end - part.end) // 5
                    break
            elif part.number == 8:
                if whole.end - part.end > _LONG and _INTEGERS.fullmatch(message.behind(part)):
                    break
            elif part.number in (5, 6, 10, 11, 22, 23) or (
                part.number in (4, 9) and part.kind == DELIMITED and part.end - part.begin > _BYTES
            ):
                values.append(part)
        place = f"{node.prefix}{node.label}.{name}"
        if floats:
            known = StoredTensor(self._named(place), "F32", (floats,), -1, -1)
            self._keep(known, whole, floats > (1 if node.constant or not node.own else _FEW))
        for part in values:
            if part.number in (4, 9):
                self._keep(
                    StoredTensor(self._named(place), "U8", (part.end - part.begin,), part.begin, part.end), part, True
                )
                continue
            inner = message.inside(part, f"attribute {name}", self._spend)
            if part.number in (6, 11):
                self.graph(inner, f"{place}.", depth + 1)
            else:
                called = f"{node.prefix}{node.output}" if node.constant and node.output else place
                if part.number in (22, 23):
                    self._sparse(inner, f"{called}.", part)
                else:
                    self._add(self._tensor(inner), "", part, called)

    def _sparse(self, message: Message, prefix: str, whole: Field, into: list[StoredTensor] | None = None) -> None:
        parts = {part.number: self._tensor(message.inside(part)) for part in message.fields() if part.number in (1, 2)}
        if parts.keys() != {1, 2}:
            raise message.malformed("a sparse tensor without values or indices", "both")
        name = parts[1].name or "sparse"
        for number, what in ((1, "values"), (2, "indices")):
            self._add(parts[number], prefix, whole, f"{name}.{what}", True, into)

    def _add(
        self,
        tensor: StoredTensor,
        prefix: str,
        whole: Field,
        called: str = "",
        always: bool = False,
        into: list[StoredTensor] | None = None,
    ) -> None:
        """Lists a tensor that may be a weight, or one in any case."""
        count = 1
        for size in tensor.shape:
            count *= size
        kept = StoredTensor(
            self._named(f"{prefix}{called or tensor.name}"), tensor.dtype, tensor.shape, tensor.begin, tensor.end,
            tensor.location, tensor.typed,
        )  # fmt: skip
        self._keep(kept, whole, always or may_be_weight(tensor.dtype, count), into)

    def _keep(self, tensor: StoredTensor, whole: Field, weight: bool, into: list[StoredTensor] | None = None) -> None:
        self._spend(_FOUND)
        if weight:
            self._names.add(tensor.name)
            (self.found.tensors if into is None else into).append(tensor)
        if tensor.begin < 0 or not weight:
            (self.found.spans if weight else self.found.small).append((whole.begin, whole.end))

    def _named(self, name: str) -> str:
        while name in self._names:
            name += "~"
        return name


def _plain(message: Message, part: Field | None) -> str:
    """A name that may be shown; "" for any other."""
    text = message.text(part, lines=True) if part is not None else ""
    return text if is_plain_text(text) else ""
