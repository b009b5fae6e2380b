"""What torch's pickles mean: storages, tensors, and the few calls that only describe them. Imports nothing of torch.

A call that is not known stays a symbol, and its function a reason not to trust the file. `SAFE` is a part of what
`torch.load(weights_only=True)` takes without being asked. Source: torch/_utils.py, torch/_weights_only_unpickler.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from zero_convert.formats.digests import brief
from zero_convert.formats.dtypes import DTYPES
from zero_convert.formats.safetensors import DIMENSIONS

from .pickle_symbols import Array, Call, Global, Sequence, StoredIn, Table
from .source import Source

STORAGES = {f"{row.storage}Storage": row.name for row in DTYPES.values() if row.storage}
TYPES = {row.torch: row.name for row in DTYPES.values() if row.torch}
SAFE = frozenset(
    [
        "collections.OrderedDict", "collections.Counter", "builtins.set", "builtins.bytearray", "builtins.complex",
        "__builtin__.set", "_codecs.encode", "torch.Size", "torch.Tensor", "torch.device",
        "torch.nn.parameter.Parameter",
        "torch.serialization._get_layout", "torch.storage.UntypedStorage", "torch._tensor._rebuild_from_type_v2",
        *(f"torch._utils._rebuild_{name}" for name in (
            "tensor", "tensor_v2", "tensor_v3", "parameter", "parameter_with_state", "qtensor", "sparse_tensor",
            "meta_tensor_no_storage", "wrapper_subclass", "device_tensor_from_numpy", "device_tensor_from_cpu_tensor",
        )),
        *(f"torch.{name}" for name in STORAGES), *(f"torch.cuda.{name}" for name in STORAGES if name[0] != "Q"),
        *(f"torch.{name}" for name in TYPES),
        *(f"torch.per_{name}" for name in (
            "tensor_affine", "channel_affine", "channel_affine_float_qparams", "channel_symmetric", "tensor_symmetric"
        )),
    ]
)  # fmt: skip


IMPORTS = "loading it would import and run "  # what a reason for trust begins with that names a global


class Rebuild:
    """Gives calls and persistent ids of one file their meaning, and remembers its storages."""

    def __init__(self, source: Source) -> None:
        self.storages: dict[str, StoredIn] = {}
        self._source = source
        self._known: Mapping[str, Callable[..., Any]] = {
            "torch._utils._rebuild_tensor": self._tensor,
            "torch._utils._rebuild_tensor_v2": self._plain,
            "torch._utils._rebuild_tensor_v3": self._typed,
            "torch._utils._rebuild_parameter": self._parameter,
            "torch._utils._rebuild_parameter_with_state": self._parameter,
            "torch._utils._rebuild_qtensor": self._tensor,
            "torch._utils._rebuild_sparse_tensor": self._sparse,
            "torch._utils._rebuild_meta_tensor_no_storage": self._meta,
            "torch._tensor._rebuild_from_type_v2": self._from_type,
            "torch.Size": self._size,
        }

    def call(self, function: Any, arguments: tuple[Any, ...]) -> Any:
        """The meaning of a call; None if it has none here."""
        known = self._known.get(str(function)) if isinstance(function, Global) else None
        if known is None:
            return None
        try:
            return known(*arguments)
        except TypeError:  # another number of arguments
            raise self._source.malformed(f"a call of {function} has the wrong arguments") from None

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
        self._unchanged(changes)
        return self._tensor(storage, offset, size, stride, grad, hooks)

    def _unchanged(self, changes: Any) -> None:
        """Refuse a tensor whose values are the conjugate or the negative of what is stored."""
        if isinstance(changes, Table) and changes.pairs:
            raise self._source.malformed("a tensor is stored as the conjugate or negative of its values")

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
        self._unchanged(changes)
        name = self._type(dtype)
        if not isinstance(storage, StoredIn) or storage.dtype is not None:
            raise self._source.malformed("a tensor has no storage of bytes")
        if 8 * storage.count % DTYPES[name].bits:
            raise self._source.malformed("a storage does not end with an element", f"{storage.count} bytes of {name}")
        return self._checked(name, storage, offset, size, stride, 8 * storage.count // DTYPES[name].bits)

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

    def _parameter(self, data: Any, *_: Any) -> Any:
        if isinstance(data, Array):
            return Array(data.dtype, data.shape, data.strides, data.storage, data.offset, "parameter")
        if isinstance(data, Call | Table):
            return data
        raise self._source.malformed("a parameter is no tensor")

    def _sparse(self, layout: Any, data: Any) -> Table:
        parts = ("indices", "values") if type(data) is tuple and len(data) in (3, 4) else ("first", "second", "values")
        if type(data) is not tuple or len(data) < len(parts):
            raise self._source.malformed("a sparse tensor is malformed")
        return Table(list(zip(parts, data, strict=False)))

    def _from_type(self, function: Any, cls: Any, arguments: Any, state: Any) -> Any:
        if type(arguments) is not tuple:
            raise self._source.malformed("a tensor of a class is malformed")
        made = self.call(function, arguments)
        if made is None:
            return Call(function, arguments, state=state)
        tensors_in_state = isinstance(state, Table | Call | Sequence) or (type(state) is tuple and any(state))
        return Call(cls, (made,), state=state) if tensors_in_state else made

    def _size(self, sizes: Any) -> tuple[int, ...]:
        return self._sizes(sizes)


def reasons(found: Iterable[Global], safe: Callable[[str], bool] = SAFE.__contains__) -> tuple[str, ...]:
    """Why a loader would have to trust the file: a line for each class and function that it would call."""
    return tuple(f"{IMPORTS}{name}" for name in map(str, found) if not safe(name))


def _natural(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 63


def _text(value: Any) -> str:
    return value if type(value) is str else value.decode("latin-1") if type(value) is bytes else ""
