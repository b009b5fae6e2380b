"""What torch's pickles mean: storages, tensors, and the few calls that only describe them. Imports nothing of torch.

A call that is not known stays a symbol, and its function a reason not to trust the file. `SAFE` is a part of what
`torch.load(weights_only=True)` takes without being asked. Source: torch/_utils.py, torch/_weights_only_unpickler.py.
"""

from __future__ import annotations

import builtins
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from zero_convert.formats.digests import brief
from zero_convert.formats.dtypes import DTYPES
from zero_convert.formats.safetensors import DIMENSIONS
from zero_convert.readers.contents import IMPORTS

from .pickle_symbols import Array, Call, Global, Parts, Sequence, StoredIn, Table
from .source import Source

STORAGES = {f"{row.storage}Storage": row.name for row in DTYPES.values() if row.storage}
TYPES = {row.torch: row.name for row in DTYPES.values() if row.torch}
_CLASSES = [value for value in vars(builtins).values() if isinstance(value, type)]
_ERRORS = dict.fromkeys(value.__name__ for value in _CLASSES if issubclass(value, BaseException))
SAFE = frozenset(
    [
        "collections.OrderedDict", "collections.Counter", "builtins.set", "builtins.bytearray", "builtins.complex",
        "_codecs.encode", "torch.Size", "torch.Tensor", "torch.device", "torch.nn.parameter.Parameter",
        "torch.serialization._get_layout", "torch.storage.UntypedStorage", "torch.storage.TypedStorage",
        "torch._tensor._rebuild_from_type_v2", "traceback.FrameSummary", "traceback.StackSummary",
        *(f"torch._utils._rebuild_{name}" for name in (
            "tensor", "tensor_v2", "tensor_v3", "parameter", "parameter_with_state", "qtensor", "sparse_tensor",
            "meta_tensor_no_storage", "nested_tensor", "wrapper_subclass", "device_tensor_from_numpy",
            "device_tensor_from_cpu_tensor",
        )),
        *(f"torch.nested._internal.nested_tensor.{name}" for name in ("NestedTensor", "_rebuild_njt")),
        *(f"torch.{name}" for name in STORAGES), *(f"torch.cuda.{name}" for name in STORAGES if name[0] != "Q"),
        *(f"torch.{name}" for name in TYPES), *(f"torch.{sign}int{n}" for sign in ("", "u") for n in range(1, 8)),
        *(f"torch.per_{name}" for name in (
            "tensor_affine", "channel_affine", "channel_affine_float_qparams", "channel_symmetric", "tensor_symmetric"
        )),
        *(f"builtins.{name}" for name in _ERRORS),
    ]
)  # fmt: skip
# what torch's restricted loader reads: (c R b, the stack, containers, texts and numbers of protocol 2, and {} of 4
_OPCODES = frozenset(bytes([code]) for code in b"c\x81RbaesuM(t\x85\x86\x87N\x88\x89)]}\x8fJKGXUQhjqr\x8a\x80.")
_RENAMED = {"__builtin__": "builtins", "exceptions": "builtins"}  # names of Python 2, which protocol 2 keeps
_PLAIN = ("torch.Tensor", "torch._tensor.Tensor", "torch.nn.parameter.Parameter", "torch.nn.parameter.Buffer")
_COMPRESSED = {
    "torch.sparse_coo": ("indices", "values"),
    **dict.fromkeys(("torch.sparse_csr", "torch.sparse_bsr"), ("crow_indices", "col_indices", "values")),
    **dict.fromkeys(("torch.sparse_csc", "torch.sparse_bsc"), ("ccol_indices", "row_indices", "values")),
}  # layout → names of the first tensors of a sparse one


_LITERAL = 150  # bytes that remembering a place costs


class Rebuild:
    """Gives calls and persistent ids of one file their meaning.

    Attributes:
        storages: those that persistent ids name, by key.
        strings: byte strings in the pickle itself, as spans of the file; as text until protocol 2.
    """

    def __init__(self, source: Source) -> None:
        self.storages: dict[str, StoredIn] = {}
        self.strings: dict[tuple[int, int], None] = {}
        self._literals: dict[int, tuple[Any, int, int]] = {}
        self._source = source
        self._known: Mapping[str, Callable[..., Any]] = {
            "torch._utils._rebuild_tensor": self._tensor,
            "torch._utils._rebuild_tensor_v2": self._plain,
            "torch._utils._rebuild_tensor_v3": self._typed,
            "torch._utils._rebuild_parameter": self._parameter,
            "torch._utils._rebuild_parameter_with_state": self._parameter,
            "torch._utils._rebuild_qtensor": self._quantized,
            "torch._utils._rebuild_sparse_tensor": self._sparse,
            "torch._utils._rebuild_nested_tensor": self._nested,
            "torch._utils._rebuild_device_tensor_from_cpu_tensor": self._moved,
            "torch.serialization._get_layout": lambda name: name,
            "torch._utils._rebuild_meta_tensor_no_storage": self._meta,
            "torch._tensor._rebuild_from_type_v2": self._from_type,
            "torch.Size": self._size,
        }

    def call(self, function: Any, arguments: tuple[Any, ...]) -> Any:
        """The meaning of a call; None if it has none here."""
        name = named(function) if isinstance(function, Global) else ""
        if name in ("_codecs.encode", "builtins.bytearray") and arguments:
            place = self.place(arguments[0])
            if place is not None:
                self.strings[place] = None
        known = self._known.get(name)
        if known is None:
            return None
        try:
            return known(*arguments)
        except TypeError:  # another number of arguments
            raise self._source.malformed(f"a call of {function} has the wrong arguments") from None

    def literal(self, value: str | bytes, begin: int, end: int) -> None:
        """Remembers where a text or byte string stands in the file."""
        self._source.budget.take(_LITERAL)
        self._literals[id(value)] = value, begin, end
        if type(value) is bytes:
            self.strings[begin, end] = None

    def place(self, value: Any) -> tuple[int, int] | None:
        """Where a text or byte string stands in the file; None for a short one, and for what is none."""
        known = self._literals.get(id(value))
        return known[1:] if known is not None and known[0] is value else None

    def persistent(self, identity: Any) -> Any:
        """The storage that `("storage", type, key, device, count[, view])` names."""
        if type(identity) is not tuple or len(identity) not in (5, 6) or _text(identity[0]) != "storage":
            if type(identity) is tuple and len(identity) == 4 and _text(identity[0]) == "module":
                return identity[1]  # a class, with its source beside it
            raise self._source.malformed("a persistent id is no storage")
        _, kind, key, _, count, *view = identity
        key = str(key) if type(key) is int else key
        if not isinstance(kind, Global) or type(key) is not str or not _natural(count):
            raise self._source.malformed("a persistent id is malformed", brief(key))
        if str(kind) == "torch.storage.UntypedStorage":
            dtype = None
        elif kind.module in ("torch", "torch.cuda") and kind.name in STORAGES:
            dtype = STORAGES[kind.name]
        else:
            raise self._source.malformed("a storage has an unknown type", str(kind)[:80])
        found = StoredIn(self._source.name(key, "a storage's key"), dtype, count)
        if self.storages.setdefault(key, found) != found:
            raise self._source.malformed("a storage is described in two ways", brief(key))
        if view and view[0] is not None:
            return self._view(found, view[0])
        return found

    def _view(self, root: StoredIn, view: Any) -> StoredIn:
        """Part of a storage (until torch 0.3): key, first element, number."""
        if type(view) is not tuple or len(view) != 3 or not _natural(view[1]) or not _natural(view[2]):
            raise self._source.malformed("a view of a storage is malformed")
        if view[1] + view[2] > root.count:
            raise self._source.malformed("a view of a storage ends outside of it")
        return StoredIn(root.key, root.dtype, view[2], view[1])

    # -- calls

    def _plain(
        self, storage: Any, offset: Any, size: Any, stride: Any, grad: Any, hooks: Any, changes: Any = None
    ) -> Array:
        return self._changed(self._tensor(storage, offset, size, stride, grad, hooks), changes)

    def _changed(self, array: Array, changes: Any) -> Array:
        """A lazy view: its values are the conjugate or the negative of what is stored."""
        if not isinstance(changes, Table) or not changes.pairs:
            return array
        known = {key: value for key, value in changes.pairs if type(key) is str}
        row = DTYPES[array.dtype]
        if (
            len(known) < len(changes.pairs)
            or not known.keys() <= {"conj", "neg"}
            or row.kind not in ("complex", "float")
        ):
            raise self._source.malformed("a tensor is stored in another way than its values", brief(list(known)))
        conjugate, negative = known.get("conj") is True and row.kind == "complex", known.get("neg") is True
        flipped = ("real" if negative else "imaginary") if conjugate else "both" if negative else ""
        return replace(array, flipped=flipped)

    def _tensor(self, storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> Array:
        if not isinstance(storage, StoredIn) or storage.dtype is None:
            raise self._source.malformed("a tensor has no typed storage")
        return self._checked(storage.dtype, storage, offset, size, stride, storage.count)

    def _typed(
        self,
        storage: Any,
        offset: Any,
        size: Any,
        stride: Any,
        _grad: Any,
        _hooks: Any,
        dtype: Any,
        changes: Any = None,
    ) -> Array:
        name = self._type(dtype)
        if not isinstance(storage, StoredIn) or storage.dtype is not None:
            raise self._source.malformed("a tensor has no storage of bytes")
        if 8 * storage.count % DTYPES[name].bits:
            raise self._source.malformed("a storage does not end with an element", f"{storage.count} bytes of {name}")
        array = self._checked(name, storage, offset, size, stride, 8 * storage.count // DTYPES[name].bits)
        return self._changed(array, changes)

    def _meta(self, dtype: Any, size: Any, stride: Any, *_: Any) -> Array:
        return self._checked(self._type(dtype), None, 0, size, stride, None)

    def _checked(
        self, dtype: str, storage: StoredIn | None, offset: Any, size: Any, stride: Any, count: int | None
    ) -> Array:
        """A tensor whose every element is in its storage of `count` elements (None: it has no storage)."""
        sizes, strides = self._sizes(size), self._sizes(stride)
        if len(sizes) != len(strides) or len(sizes) > DIMENSIONS or not _natural(offset):
            raise self._source.malformed("a tensor has an impossible shape", brief([sizes, strides, offset]))
        if DTYPES[dtype].bits_of(sizes) is None:
            raise self._source.malformed("a tensor is too large", f"shape {brief(sizes)}", "fewer than 2**63 bytes")
        last = offset + sum((n - 1) * step for n, step in zip(sizes, strides, strict=True))
        if count is not None and (last if 0 not in sizes else offset - 1) >= count:
            raise self._source.malformed(
                "a tensor ends outside of its storage", f"element {last} for shape {brief(sizes)}", f"{count} elements"
            )
        self._source.budget.take(400)
        first = storage.first if storage else 0
        return Array(dtype, sizes, strides, storage, first + offset)

    def _sizes(self, value: Any) -> tuple[int, ...]:
        items = value.items if isinstance(value, Sequence) and value.ordered else value
        if not isinstance(items, list | tuple) or not all(map(_natural, items)):
            raise self._source.malformed("a shape or stride is no row of sizes")
        return tuple(items)

    def _type(self, dtype: Any) -> str:
        if isinstance(dtype, Global) and dtype.module == "torch" and dtype.name in TYPES:
            return TYPES[dtype.name]
        raise self._source.malformed("a tensor has an unknown dtype", brief(str(dtype)[:80]))

    def _parameter(self, data: Any, _grad: Any = None, _hooks: Any = None, state: Any = None, *_: Any) -> Any:
        if isinstance(data, Array):
            return self._extended("torch.nn.parameter.Parameter", replace(data, kind="parameter"), state)
        if isinstance(data, Call | Table | Parts):
            return data
        raise self._source.malformed("a parameter is no tensor")

    def _quantized(self, storage: Any, offset: Any, size: Any, stride: Any, scheme: Any, *_: Any) -> Any:
        array = self._tensor(storage, offset, size, stride)
        scales = [each for each in scheme if isinstance(each, Array)] if type(scheme) is tuple else []
        named = list(zip(("scales", "zero_points"), scales, strict=False))
        return Parts("a tensor quantized by channels", [(None, array), *named]) if named else array

    def _sparse(self, layout: Any, data: Any) -> Parts:
        parts = _COMPRESSED.get(layout) if type(layout) is str else None
        if parts is None or type(data) is not tuple or len(data) < len(parts):
            raise self._source.malformed("a sparse tensor is malformed")
        return Parts(f"a sparse tensor ({layout.removeprefix('torch.sparse_')})", list(zip(parts, data, strict=False)))

    def _nested(self, *data: Any) -> Parts:
        return Parts("a nested tensor", list(zip(("buffer", "sizes", "strides", "offsets"), data, strict=True)))

    def _moved(self, data: Any, dtype: Any, *_: Any) -> Any:
        if isinstance(data, Array) and data.dtype != self._type(dtype):
            return Parts(f"a tensor of type {self._type(dtype)} stored in another one", [(None, data)])
        return data

    def _from_type(self, function: Any, cls: Any, arguments: Any, state: Any) -> Any:
        if type(arguments) is not tuple:
            raise self._source.malformed("a tensor of a class is malformed")
        made = self.call(function, arguments)
        if isinstance(made, Array):
            return self._extended(str(cls), made, state)
        made = Call(function, arguments) if made is None else made
        return Parts(f"a tensor of the class {str(cls)[:80]}", [(None, each) for each in (made, *_states(state))])

    def _extended(self, cls: str, array: Array, state: Any) -> Any:
        """A tensor with attributes. Of torch's own classes only tensors among them count: a flag is no value."""
        if not any(_holds_tensors(each) for each in _states(state)):
            plain = cls in _PLAIN or not any(getattr(each, "pairs", True) for each in _states(state))
            return array if plain else Parts(f"a tensor of the class {cls[:80]} with attributes", [(None, array)])
        what = "a tensor with tensors as attributes" if cls in _PLAIN else f"a tensor of the class {cls[:80]}"
        return Parts(what, [(None, array), *((None, each) for each in _states(state))])

    def _size(self, sizes: Any) -> tuple[int, ...]:
        return self._sizes(sizes)


def reasons(
    found: Iterable[Global], safe: Callable[[str], bool] = SAFE.__contains__, opcodes: Iterable[bytes] = ()
) -> tuple[str, ...]:
    """Why a loader would have to trust the file: a line for each class and function that it would call.

    `opcodes` are those of the pickle; of the restricted loader's own there are fewer than pickle has.
    """
    unread = sorted({*opcodes} - _OPCODES)
    listed = f"{unread[0][0]:#04x}{f' and {len(unread) - 1} more' if len(unread) > 1 else ''}" if unread else ""
    kept = (f"torch's restricted loader reads pickles of protocol 2 only: it has no opcode {listed}",) if unread else ()
    return (*kept, *(f"{IMPORTS}{each}" for each in found if not safe(named(each))))


def named(found: Global) -> str:
    """The name of a global as Python 3 and torch's restricted loader know it."""
    return f"{_RENAMED.get(found.module, found.module)}.{found.name}"


def _states(state: Any) -> tuple[Any, ...]:
    """What an object's attributes are set from: a dict, or (dict, slots)."""
    return tuple(each for each in (state if type(state) is tuple else (state,)) if each is not None)


def _holds_tensors(value: Any) -> bool:
    """Whether a tensor or a storage is anywhere in it."""
    left, seen = [value], set()
    while left:
        at = left.pop()
        if isinstance(at, Array | Parts | StoredIn):
            return True
        if id(at) not in seen:
            seen.add(id(at))
            left.extend(inside(at))
    return False


def inside(value: Any) -> Iterator[Any]:
    """Everything that a symbol or tuple is made of."""
    if isinstance(value, tuple):
        yield from value
    elif isinstance(value, Sequence):
        yield from value.items
    elif isinstance(value, Table):
        for pair in value.pairs:
            yield from pair
    elif isinstance(value, Parts):
        yield from (part for _, part in value.pairs)
    elif isinstance(value, Call):
        yield from (value.function, value.arguments, *value.items, value.state)
        for pair in value.pairs:
            yield from pair


def _natural(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 63


def _text(value: Any) -> str:
    return value if type(value) is str else value.decode("latin-1") if type(value) is bytes else ""
