"""The wire format of protobuf, as far as large messages need it: framing on the way out, spans on the way in.

    message   fields one after another
    field     varint(number << 3 | kind), then   kind 0: a varint   1: 8 bytes   2: varint(size) and that many bytes
                                                      5: 4 bytes

A message that embeds hundreds of megabytes can so be written from its pieces, and be read without taking them into
memory. Knows no schema. Source: https://protobuf.dev/programming-guides/encoding/.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import BinaryIO, NamedTuple

from ..errors import MalformedError
from .digests import is_plain_text
from .spans import DAMAGED, read_span

VARINT, EIGHT, DELIMITED, FOUR = 0, 1, 2, 5
_LONGEST = 10  # bytes of a varint
_WINDOW = 4096  # bytes that are looked at together
_FIELD = 512  # bytes of memory that a field may cost
_TEXT = 1 << 20  # bytes; no name or metadata of ours comes near


class Field(NamedTuple):
    """One field of a message: its number, its kind, the value of a varint, and the span of its payload in the file."""

    number: int
    kind: int
    value: int
    begin: int
    end: int


def varint(value: int) -> bytes:
    """A number from 0 to 2^64 - 1, seven bits a byte, lowest first."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def opening(number: int, size: int) -> bytes:
    """What stands before `size` bytes that are field `number`."""
    return varint(number << 3 | DELIMITED) + varint(size)


class Message:
    """A span of an open file that holds a message. Nothing is believed: what does not fit raises MalformedError.

    `spend` is told of every field, in bytes of memory that it may cost, and raises where there are too many.
    """

    def __init__(
        self, file: BinaryIO, begin: int, end: int, where: str, spend: Callable[[int], None] = lambda _: None
    ) -> None:
        self._file, self._begin, self._end, self._where, self._spend = file, begin, end, where, spend
        self._start, self._window = begin, b""  # bytes of the file that were read already, and where they begin

    def fields(self, *once: int) -> Iterator[Field]:
        """The fields in order. Those whose number is among `once` may come once only: readers would not agree."""
        position = self._begin
        seen: set[int] = set()
        while position < self._end:
            known = self._start + len(self._window)
            if position + 2 * _LONGEST > known < self._end or position > known:
                data = self._read(position, min(_WINDOW, self._end - position))
                self._start, self._window = position, data
            field = self._field(position, self._window, position - self._start)
            if field.number in once and field.number in seen:
                raise self.malformed(f"field {field.number} comes twice")
            seen.add(field.number)
            yield field
            position = field.end

    def inside(self, field: Field, what: str = "", spend: Callable[[int], None] | None = None) -> Message:
        """The message that a field holds; `spend` is the same as here where none is given."""
        if field.kind != DELIMITED:
            raise self.malformed(f"field {field.number} is no message")
        where = f"{self._where}, {what}" if what else self._where
        inner = Message(self._file, field.begin, field.end, where, spend or self._spend)
        if self._start <= field.begin and field.end <= self._start + len(self._window):
            inner._start, inner._window = field.begin, self._window[field.begin - self._start : field.end - self._start]
        return inner

    def integer(self, field: Field) -> int:
        """The value of a number below 2^63."""
        if field.kind != VARINT or field.value >= 1 << 63:
            raise self.malformed(f"field {field.number} is no natural number")
        return field.value

    def integers(self, field: Field) -> list[int]:
        """The values of a repeated number, packed or not."""
        if field.kind == VARINT:
            return [self.integer(field)]
        data, values, position = self.payload(field), [], 0
        while position < len(data):
            value, position = self._varint(data, position)
            values.append(value)
        return values

    def text(self, field: Field, lines: bool = False) -> str:
        """The value of a text; control characters are refused, unless `lines`: then whoever shows it escapes it."""
        try:
            text = self.payload(field).decode("utf-8")
        except UnicodeDecodeError:
            raise self.malformed(f"field {field.number} is no text") from None
        if not lines and not is_plain_text(text):
            raise self.malformed(f"the text in field {field.number} holds control characters")
        return text

    def payload(self, field: Field) -> bytes:
        """The payload of a small field."""
        if field.kind != DELIMITED or field.end - field.begin > _TEXT:
            raise self.malformed(f"field {field.number} is no text, or longer than {_TEXT} bytes")
        self._spend(field.end - field.begin)
        return self._read(field.begin, field.end - field.begin)

    def behind(self, field: Field) -> bytes:
        """Everything that follows a field."""
        self._spend(self._end - field.end)
        return self._read(field.end, self._end - field.end)

    def malformed(self, what: str, expected: str = "") -> MalformedError:
        """The error that says so, for whoever knows the schema as well."""
        return MalformedError(
            "the file does not hold together", where=self._where, got=what, expected=expected, fix=DAMAGED
        )

    def _field(self, position: int, window: bytes, at: int) -> Field:
        """The field at byte `position` of the file, which is byte `at` of `window`."""
        self._spend(_FIELD)
        key, used = self._varint(window, at)
        number, kind = key >> 3, key & 7
        value = size = 0
        if kind in (VARINT, DELIMITED):
            value, used = self._varint(window, used)
            size = value if kind == DELIMITED else 0
        elif kind in (EIGHT, FOUR):
            size = 8 if kind == EIGHT else 4
        else:
            raise self.malformed(f"byte {position} begins no field")
        begin = position + used - at
        if number == 0 or begin + size > self._end:
            raise self.malformed(f"the field at byte {position} ends outside of its message")
        return Field(number, kind, value, begin, begin + size)

    def _varint(self, data: bytes, position: int) -> tuple[int, int]:
        if position < len(data) and data[position] < 0x80:
            return data[position], position + 1
        value = 0
        for index, byte in enumerate(data[position : position + _LONGEST]):
            value |= (byte & 0x7F) << 7 * index
            if byte < 0x80 and value < 1 << 64:
                return value, position + index + 1
        raise self.malformed("a number does not end")

    def _read(self, begin: int, size: int) -> bytes:
        if self._start <= begin and begin + size <= self._start + len(self._window):
            return self._window[begin - self._start : begin - self._start + size]
        return read_span(self._file, begin, size, self._where)
