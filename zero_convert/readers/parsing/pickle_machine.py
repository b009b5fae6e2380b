"""A pickle machine that only writes down what a real one would do: protocols 0 to 5, all symbols, no execution.

Every opcode is in one table; what is not there is refused. Refused are also: the extension registry (what its numbers
mean is not in the file), buffers outside of the file, and whatever makes a real machine fail. Memory is accounted for
before it is taken, so that a short file cannot ask for much. Source: CPython, Lib/pickletools.py.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from functools import partial
from typing import Any, NoReturn, Protocol

from zero_convert.errors import ZeroConvertError
from zero_convert.formats.digests import brief, is_plain_text

from .pickle_symbols import Array, Call, Global, Parts, Sequence, Table
from .source import Source

_GLOBAL = 1000  # bytes that a class or function costs: few files name more than a hundred
_LINE = 4096  # bytes of an argument that is a line of text
_STEP, _PIECE, _MEMO, _PAIR = 100, 128, 96, 160  # bytes that an opcode, a value, a memo and a pair of a dict cost


class Interpreter(Protocol):
    """What gives symbols their meaning."""

    def persistent(self, identity: Any) -> Any:
        """What a persistent id stands for."""

    def call(self, function: Any, arguments: tuple[Any, ...]) -> Any:
        """What a call stands for, or None if that is not known."""

    def literal(self, value: str | bytes, begin: int, end: int) -> None:
        """Told of each text and byte string, and where it stands in the file."""


class Machine:
    """Reads pickles one after another from a span of a file.

    Attributes:
        globals: every class and function that a loader would import, in order.
        opcodes: those that were met.
    """

    def __init__(self, source: Source, interpreter: Interpreter, stream: io.BufferedIOBase | None = None) -> None:
        self.globals: dict[Global, None] = {}
        self.opcodes: set[bytes] = set()
        self._source, self._take = source, source.budget.take
        self._interpreter = interpreter
        self._in: Any = stream or io.BytesIO(source.small(source.begin, source.end))
        self._size, self._base = (source.size, source.begin) if stream is None else (source.end, 0)
        self._stack: list[Any] = []
        self._marks: list[list[Any]] = []
        self._memo: dict[int, Any] = {}

    @property
    def position(self) -> int:
        """Of the byte that comes next."""
        return int(self._in.tell())

    def load(self) -> Any:
        """What the next pickle describes."""
        self._stack, self._marks, self._memo = [], [], {}
        read, steps = self._in.read, 0
        try:
            while True:
                code = read(1)
                if code == b".":
                    break
                steps += 1
                if not steps & 255:
                    self._take(256 * _STEP)
                step = _STEPS.get(code)
                if step is None:
                    if not code:
                        self._fail("the pickle ends early")
                    self._fail(f"opcode {code[0]:#04x} is not one that can be read safely")
                self.opcodes.add(code)
                step(self)
            if self._marks or len(self._stack) != 1:
                self._fail("the pickle leaves more or less than one value")
            return self._stack.pop()
        except ZeroConvertError:
            raise
        except (IndexError, KeyError, ValueError, struct.error, RecursionError, OverflowError) as error:
            self._fail(f"{type(error).__name__} at this opcode")

    def end(self) -> None:
        """Check that nothing follows."""
        if self.position != self._size:
            self._fail("bytes follow the pickle")

    def _fail(self, what: str) -> NoReturn:
        raise self._source.malformed(what, f"byte {self.position}")

    # -- arguments

    def _bytes(self, size: int) -> bytes:
        if size < 0 or size > self._size - self.position:
            self._fail("an argument is longer than the file")
        self._take(size)
        data: bytes = self._in.read(size)
        if len(data) != size:
            self._fail("the pickle ends early")
        return data

    def _number(self, kind: str) -> Any:
        number = _NUMBERS[kind]
        return number.unpack(self._in.read(number.size))[0]  # too few bytes are a struct.error

    def _line(self) -> bytes:
        line: bytes = self._in.readline(_LINE)
        if not line.endswith(b"\n"):
            self._fail("a line does not end")
        self._take(len(line))
        return line[:-1]

    def _text(self, data: bytes, encoding: str = "utf-8") -> str:
        self._take(4 * len(data))
        return data.decode(encoding, "surrogatepass" if encoding == "utf-8" else "strict")

    def _literal(self, kind: str, text: bool) -> None:
        data = self._bytes(size := self._number(kind))
        value = self._text(data) if text else data
        end = self._base + self.position
        self._interpreter.literal(value, end - size, end)
        self._push(value)

    # -- the stack

    def _push(self, value: Any, cost: int = _PIECE) -> None:
        if cost:
            self._take(cost)
        self._stack.append(value)

    def _marked(self) -> list[Any]:
        items = self._stack
        self._stack = self._marks.pop()
        return items

    def _mark(self) -> None:
        self._take(_PIECE)
        self._marks.append(self._stack)
        self._stack = []

    def _tuple(self, items: list[Any]) -> None:
        self._push(tuple(items), _PIECE + 8 * len(items))

    # -- containers

    def _extend(self, items: list[Any]) -> None:
        target = self._stack[-1]
        self._take(16 * len(items))
        if (isinstance(target, Sequence) and target.ordered) or isinstance(target, Call):
            target.items.extend(items)
        else:
            self._fail("something is appended to what is no list")

    def _add(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if not isinstance(target, Sequence) or target.ordered:
            self._fail("something is added to what is no set")
        self._take(16 * len(items))
        target.items.extend(items)

    def _set(self, flat: list[Any]) -> None:
        target = self._stack[-1]
        if len(flat) % 2:
            self._fail("a key has no value")
        pairs = list(zip(flat[::2], flat[1::2], strict=True))
        if isinstance(target, Table):
            self._insert(target, pairs)
        elif isinstance(target, Call):
            self._take(_PAIR * len(pairs))
            target.pairs.extend(pairs)
        else:
            self._fail("a key is set in what is no dict")

    def _insert(self, table: Table, pairs: list[tuple[Any, Any]]) -> None:
        self._take(_PAIR * len(pairs))
        for key, value in pairs:
            if isinstance(key, Sequence | Table):
                self._fail("a key cannot be one")
            if type(key) in (str, int, float, bool, bytes):
                spelled = (str, key) if type(key) is str else (bytes, key) if type(key) is bytes else (float, key)
                if spelled in table.known:
                    raise self._source.malformed("a key of a dict comes twice", brief(key), "unique keys")
                table.known.add(spelled)
            table.pairs.append((key, value))

    # -- what a real machine would import and call

    def _global(self, module: Any, name: Any) -> Global:
        if type(module) is not str or type(name) is not str or not module or not name:
            self._fail("a global has no name")
        if not (is_plain_text(module) and is_plain_text(name)) or max(len(module), len(name)) > _LINE:
            self._fail("a global's name is no plain text")
        found = Global(module, name)
        if found not in self.globals:
            self._take(_GLOBAL + 4 * len(module) + 4 * len(name))
            self.globals[found] = None
        return found

    def _call(self, function: Any, arguments: Any) -> Any:
        if type(arguments) is not tuple:
            self._fail("a call has no arguments")
        if not isinstance(function, Global | Call):
            self._fail("something is called that is no function")
        self._take(2 * _PIECE)
        if function == Global("collections", "OrderedDict"):
            return self._ordered(arguments)
        if function in (Global("builtins", "set"), Global("__builtin__", "set")) and len(arguments) == 1:
            if isinstance(arguments[0], Sequence):
                return Sequence(list(arguments[0].items), ordered=False)
            self._fail("a set is made of what is no list")
        known = self._interpreter.call(function, arguments)
        if known is not None:
            return known
        self._take(4 * _PIECE)
        return Call(function, arguments)

    def _ordered(self, arguments: tuple[Any, ...]) -> Table:
        listed = arguments[0].items if len(arguments) == 1 and isinstance(arguments[0], Sequence) else arguments
        pairs = [pair.items if isinstance(pair, Sequence) else pair for pair in listed]
        if not all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in pairs):
            self._fail("an OrderedDict is made of what is no list of pairs")
        table = Table(attributes=True)
        self._insert(table, [(key, value) for key, value in pairs])
        return table

    def _build(self) -> None:
        state, target = self._stack.pop(), self._stack[-1]
        if isinstance(target, Call):
            if target.state is not None:
                self._fail("a state is set twice")
            target.state = state
        elif isinstance(target, Table) and target.attributes:
            if not isinstance(state, Table):
                self._fail("an OrderedDict has an impossible state")
        elif isinstance(target, Array | Parts):
            self._fail("a tensor is changed after it was made")
        else:
            self._fail("a state is set on what has none")

    def _get(self, index: int) -> None:
        self._push(self._memo[index], 0)

    def _put(self, index: int) -> None:
        if index < 0:
            self._fail("a memo has a negative number")
        self._take(_MEMO)
        self._memo[index] = self._stack[-1]

    # -- opcodes with more than one step

    def _proto(self) -> None:
        if self._number("B") > 5:
            self._fail("the protocol is later than 5")

    def _frame(self) -> None:
        if self._number("<Q") > self._size - self.position:
            self._fail("a frame is longer than the file")

    def _pop(self) -> None:
        if self._stack:
            self._stack.pop()
        else:
            self._marked()

    def _integer(self) -> None:
        line = self._line()
        self._push({b"00": False, b"01": True}[line] if line in (b"00", b"01") else int(line))

    def _long(self) -> None:
        line = self._line()
        self._push(int(line.removesuffix(b"L")))

    def _long_bytes(self, size: int) -> None:
        self._push(int.from_bytes(self._bytes(size), "little", signed=True))

    def _quoted(self) -> None:
        line = self._line().strip()
        if len(line) < 2 or line[:1] != line[-1:] or line[:1] not in (b"'", b'"') or b"\\" in line:
            self._fail("a text is not quoted, or has escapes")
        self._push(self._text(line[1:-1], "ascii"))

    def _named(self) -> None:
        module, name = (self._text(self._line()) for _ in range(2))
        self._push(self._global(module, name), 0)

    def _stacked(self) -> None:
        name, module = self._stack.pop(), self._stack.pop()
        self._push(self._global(module, name), 0)

    def _reduce(self) -> None:
        arguments, function = self._stack.pop(), self._stack.pop()
        self._push(self._call(function, arguments), 0)

    def _new(self, keywords: bool) -> None:
        named = self._stack.pop() if keywords else None
        arguments, cls = self._stack.pop(), self._stack.pop()
        made = self._call(cls, arguments)
        if named is not None and (not isinstance(named, Table) or named.pairs):
            made = Call(cls, (*arguments, named))
        self._push(made, 0)

    def _instance(self) -> None:
        module, name = (self._text(self._line()) for _ in range(2))
        self._push(self._call(self._global(module, name), tuple(self._marked())), 0)

    def _object(self) -> None:
        cls, *arguments = self._marked()
        self._push(self._call(cls, tuple(arguments)), 0)

    def _dict(self) -> None:
        flat = self._marked()
        self._push(Table(), 2 * _PIECE)
        self._set(flat)

    def _list(self) -> None:
        self._push(Sequence(self._marked()))

    def _frozen(self) -> None:
        self._push(Sequence(self._marked(), ordered=False))

    def _persistent(self, identity: Any) -> None:
        self._push(self._interpreter.persistent(identity))

    def _last(self, count: int) -> None:
        if len(self._stack) < count:
            self._fail("a tuple has too few items")
        items = self._stack[-count:]
        del self._stack[-count:]
        self._tuple(items)


_NUMBERS = {kind: struct.Struct(kind) for kind in ("B", "<H", "<I", "<i", "<Q", ">d")}
_STEPS: dict[bytes, Callable[[Machine], Any]] = {
    b"\x80": Machine._proto,
    b"\x95": Machine._frame,
    b"(": Machine._mark,
    b"0": Machine._pop,
    b"1": Machine._marked,
    b"2": lambda m: m._push(m._stack[-1], 0),
    b"N": lambda m: m._push(None, 0),
    b"\x88": lambda m: m._push(True, 0),
    b"\x89": lambda m: m._push(False, 0),
    b"I": Machine._integer,
    b"J": lambda m: m._push(m._number("<i")),
    b"K": lambda m: m._push(m._number("B"), 0),
    b"M": lambda m: m._push(m._number("<H")),
    b"L": Machine._long,
    b"\x8a": lambda m: m._long_bytes(m._number("B")),
    b"\x8b": lambda m: m._long_bytes(m._number("<i")),
    b"F": lambda m: m._push(float(m._line())),
    b"G": lambda m: m._push(m._number(">d")),
    b"S": Machine._quoted,
    b"T": lambda m: m._push(m._text(m._bytes(m._number("<i")), "latin-1")),
    b"U": lambda m: m._push(m._text(m._bytes(m._number("B")), "latin-1")),
    b"V": lambda m: m._push(m._text(m._line(), "raw-unicode-escape")),
    b")": lambda m: m._push((), 0),
    b"t": lambda m: m._tuple(m._marked()),
    b"\x85": lambda m: m._last(1),
    b"\x86": lambda m: m._last(2),
    b"\x87": lambda m: m._last(3),
    b"]": lambda m: m._push(Sequence(), 3 * _PIECE),
    b"l": Machine._list,
    b"a": lambda m: m._extend([m._stack.pop()]),
    b"e": lambda m: m._extend(m._marked()),
    b"}": lambda m: m._push(Table(), 3 * _PIECE),
    b"d": Machine._dict,
    b"s": lambda m: m._set([m._stack.pop(), m._stack.pop()][::-1]),
    b"u": lambda m: m._set(m._marked()),
    b"\x8f": lambda m: m._push(Sequence(ordered=False), 3 * _PIECE),
    b"\x90": lambda m: m._add(m._marked()),
    b"\x91": Machine._frozen,
    b"p": lambda m: m._put(int(m._line())),
    b"q": lambda m: m._put(m._number("B")),
    b"r": lambda m: m._put(m._number("<I")),
    b"\x94": lambda m: m._put(len(m._memo)),
    b"g": lambda m: m._get(int(m._line())),
    b"h": lambda m: m._get(m._number("B")),
    b"j": lambda m: m._get(m._number("<I")),
    b"P": lambda m: m._persistent(m._text(m._line())),
    b"Q": lambda m: m._persistent(m._stack.pop()),
    b"c": Machine._named,
    b"\x93": Machine._stacked,
    b"R": Machine._reduce,
    b"\x81": lambda m: m._new(False),
    b"\x92": lambda m: m._new(True),
    b"i": Machine._instance,
    b"o": Machine._object,
    b"b": Machine._build,
}
for _codes, _text in ((b"X\x8c\x8d", True), (b"BC\x8e\x96", False)):
    for _code, _size in zip(_codes, ("<I", "B", "<Q", "<Q"), strict=False):
        _STEPS[bytes([_code])] = partial(Machine._literal, kind=_size, text=_text)
