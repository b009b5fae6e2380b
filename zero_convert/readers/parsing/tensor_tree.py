"""Every tensor in what a pickle describes, with its keys: first as a state dict has them, then whatever else is there.

A pickled module is walked as `state_dict()` would: its `_parameters`, `_buffers` and `_modules`. Everything else is
named by its keys. What is its own ancestor ends there; sharing ends with the depth and the budget.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from .numpy_pickles import Arrays
from .pickle_symbols import Array, Call, Parts, Sequence, StoredIn, Table
from .source import Source
from .torch_pickles import inside

DEPTH = 64  # of keys; containers without a key of their own may be as deep between two
_VISIT, _OPEN = 100, 1000  # bytes that a visited value costs, and one more container that is open at once
_NAME = 200  # characters of a key that is shown
_GROUPS = ("_parameters", "_buffers", "_modules")
NOT_PERSISTENT, ATTRIBUTE = "buffers that are not persistent", "attributes that are no state"

Path = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Found:
    """A tensor.

    Attributes:
        path: its keys.
        part_of: what it is a part of: "a sparse tensor (csr)"; "" for a plain tensor.
        hidden: why no state dict has it; "" if one does.
    """

    path: Path
    array: Array
    part_of: str = ""
    hidden: str = ""


def tensors(root: Any, source: Source, arrays: Arrays) -> list[Found]:
    """Every tensor below `root`, in order; those that a state dict would not have are last."""
    found: list[Found] = []
    for each in _walk(root, (), "", set(), source, arrays):
        found.append(each)
        source.budget.tensors(len(found))
    seen = {_view(each.array) for each in found}
    for each in _others(root, source, arrays):
        if (view := _view(each.array)) not in seen:
            seen.add(view)
            found.append(each)
            source.budget.tensors(len(found))
    return found


def _view(array: Array) -> tuple[Any, ...]:
    return array.storage, array.offset, array.dtype, array.shape, array.strides


def whole_storage(stored: StoredIn) -> Array:
    """A storage that stands for itself, as a row of its elements; of bytes where no type is known."""
    return Array(stored.dtype or "U8", (stored.count,), (1,), stored, stored.first)


def _walk(value: Any, path: Path, part_of: str, above: set[int], source: Source, arrays: Arrays) -> Iterator[Found]:
    source.budget.take(_VISIT)
    if isinstance(value, StoredIn):
        value = whole_storage(value)
    elif isinstance(value, Call) and (made := arrays.array(value, path)) is not None:
        value = made
    if isinstance(value, Array):
        yield Found(path, value, part_of)
        return
    if id(value) in above:
        return
    if max(len(path), len(above) - DEPTH) > DEPTH:
        raise source.malformed("containers are nested too deeply", f"{DEPTH} or more")
    above.add(id(value))
    inner_part = part_of or (value.what if isinstance(value, Parts) else "")
    for key, kind, inner in _children(value, source):
        for found in _walk(inner, path if key is None else (*path, key), inner_part, above, source, arrays):
            yield replace(found, array=replace(found.array, kind=kind)) if kind else found
    above.discard(id(value))


def _children(value: Any, source: Source) -> Iterator[tuple[str | None, str, Any]]:
    """(key, kind, value) of each part that may hold tensors."""
    if isinstance(value, Table):
        for index, (key, inner) in enumerate(value.pairs):
            if isinstance(inner, Array | Call | Parts | Sequence | StoredIn | Table | tuple):
                yield _key(key, index, source), "", inner
    elif isinstance(value, Sequence | tuple):
        for index, inner in enumerate(value.items if isinstance(value, Sequence) else value):
            yield str(index), "", inner
    elif isinstance(value, Parts):
        for name, inner in value.pairs:
            yield name, "", inner
    elif isinstance(value, Call):
        if (state := module_state(value)) is not None:
            yield from _module_children(state, source)
            return
        for part in (value.arguments, tuple(value.items), Table(value.pairs)):
            yield from _children(part, source)
        for part in value.state if type(value.state) is tuple else (value.state,):  # (dict, slots) is one
            if isinstance(part, Table | tuple):
                yield from _children(part, source)


def module_state(value: Call) -> Table | None:
    """The state of a pickled `nn.Module`."""
    state = value.state
    if isinstance(state, Table) and isinstance(state.get("_modules"), Table):
        return state
    return None


def _module_children(state: Table, source: Source) -> Iterator[tuple[str, str, Any]]:
    hidden = _not_persistent(state)
    for group, kind in (("_parameters", "parameter"), ("_buffers", "buffer"), ("_modules", "")):
        members = state.get(group)
        for index, (key, inner) in enumerate(members.pairs if isinstance(members, Table) else ()):
            if inner is not None and not (kind == "buffer" and type(key) is str and key in hidden):
                yield _key(key, index, source), kind if isinstance(inner, Array) else "", inner


def _not_persistent(state: Table) -> set[str]:
    transient = state.get("_non_persistent_buffers_set")
    return {name for name in getattr(transient, "items", ()) if type(name) is str}


def _key(key: Any, index: int, source: Source) -> str:
    if type(key) is str:
        return source.name(key, "a key")
    if type(key) in (int, bool, float) or key is None:
        spelled = repr(key) if type(key) is not int or abs(key) < 1 << 64 else "a number"
        return spelled if len(spelled) < 80 else f"({index})"
    return f"({index})"


def _others(root: Any, source: Source, arrays: Arrays) -> Iterator[Found]:
    """Every tensor that can be reached at all, each container visited once."""
    open_: list[Iterator[tuple[Path, Any]]] = [iter([((), root)])]
    seen: set[int] = set()
    deepest = 0
    while open_:
        if (pair := next(open_[-1], None)) is None:
            open_.pop()
            continue
        path, at = pair
        if isinstance(at, StoredIn):
            at = whole_storage(at)
        elif isinstance(at, Call) and (made := arrays.array(at)) is not None:
            at = made
        if isinstance(at, Array):
            names = tuple(name for name in path if name not in _GROUPS)
            yield Found(names, at, hidden=NOT_PERSISTENT if "_buffers" in path[-2:-1] else ATTRIBUTE)
        elif isinstance(at, Call | Parts | Sequence | Table | tuple) and id(at) not in seen:
            seen.add(id(at))
            open_.append(_named(at, path))
            source.budget.take(_VISIT if len(open_) <= deepest else _OPEN)
            deepest = max(deepest, len(open_))


def _named(value: Any, path: Path) -> Iterator[tuple[Path, Any]]:
    """What is in a container, with the first keys that lead there."""
    full = len(path) >= DEPTH
    if isinstance(value, Table):
        for key, inner in value.pairs:
            plain = not full and type(key) is str and key.isprintable() and len(key) < _NAME
            yield (*path, key) if plain else path, inner
            yield path, key
    elif isinstance(value, Sequence | tuple):
        for index, inner in enumerate(inside(value)):
            yield path if full else (*path, str(index)), inner
    else:
        for inner in inside(value):
            yield path, inner
