"""From the tree of symbols that a pickle describes to named tensors, to those that are the model's own, to `Contents`.

A pickled module is walked as `state_dict()` would: its `_parameters`, `_buffers` and `_modules`. Everything else is
named by its keys. Cycles and sharing end with the depth and the budget.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from zero_convert.formats.digests import brief
from zero_convert.formats.dtypes import DTYPES

from ..contents import Contents, Storage, Tensor
from .pickle_symbols import Array, Call, Global, Sequence, Table
from .source import Source
from .views import tied

DEPTH = 64  # of containers in one another
WEIGHTS = (
    "state_dict", "model_state_dict", "model_state", "model", "module", "net", "network", "params", "weights",
    "ema", "model_ema", "state_dict_ema", "ema_state_dict", "ema_model", "params_ema",
)  # fmt: skip # keys that hold a model's tensors, the first of them counts
PREFIXES = ("module.", "_orig_mod.", "model._orig_mod.")  # of DistributedDataParallel and torch.compile
_FACTS, _SHORT = 40, 200  # entries of a checkpoint that are told, and characters of one
_VISIT = 100  # bytes that a visited value costs

Path = tuple[str, ...]


def contents_of(
    source: Source,
    name: str,
    producer: str,
    root: Any,
    arrays: list[tuple[Path, Array]],
    storages: Mapping[str, Storage],
    globals_: Mapping[Global, None],
    trust: tuple[str, ...],
    *,
    program: bool = False,
) -> Contents:
    """The record of a file with a pickle.

    Args:
        name: of the format.
        root: what the pickle describes.
        arrays: its tensors, as `tensors` finds them.
        storages: where their data are, by key.
        trust: why loading it would mean to run code from it, besides that it is a network.
        program: its classes are code in the file, and no network of importable ones.
    """
    spelled = _names(arrays, source)
    at, prefix, own, others = _weights(root, arrays)
    module, inside = ("", ()) if program else _network(root)
    if module:
        verb = "holds" if inside else "is"
        trust = (f"it {verb} a whole network, pickled: loading it imports and calls its classes", *trust)
    views = tied(_tensor(text, array, storages) for text, (_, array) in zip(spelled, arrays, strict=True))
    _refuse_repeated(source, views)
    return Contents(
        path=source.path,
        format=name,
        size=source.size,
        tensors=views,
        weights=own,
        producer=producer,
        weights_at=at,
        weights_prefix=prefix,
        sections=others,
        metadata=_facts(root),
        globals=tuple(map(str, globals_)),
        trust=trust,
        details={"module": module},
    )


def _tensor(name: str, array: Array, storages: Mapping[str, Storage]) -> Tensor:
    storage = None if array.storage is None else storages[array.storage.key]
    offset = array.offset * DTYPES[array.dtype].bits // 8
    return Tensor(name, array.dtype, array.shape, array.strides, storage, offset, array.kind)


def _refuse_repeated(source: Source, views: tuple[Tensor, ...]) -> None:
    """Refuse views that repeat their storage beyond what the limit for memory could hold: nobody could load them."""
    beyond = 0
    for tensor in views:
        if tensor.storage is not None and tensor.strides is not None:
            beyond += max(0, (tensor.nbytes or 0) - (tensor.storage.end - tensor.storage.begin))
    source.budget.take(beyond)


def tensors(root: Any, source: Source) -> list[tuple[Path, Array]]:
    """Every tensor below `root` with its keys, in order."""
    found: list[tuple[Path, Array]] = []
    for path, array in _walk(root, (), source):
        found.append((path, array))
        source.budget.tensors(len(found))
    return found


def _walk(value: Any, path: Path, source: Source) -> Iterator[tuple[Path, Array]]:
    source.budget.take(_VISIT)
    if isinstance(value, Array):
        yield path, value
        return
    if len(path) > DEPTH:
        raise source.malformed("containers are nested too deeply", f"{DEPTH} or more")
    for key, kind, inner in _children(value, source):
        for below, array in _walk(inner, path if key is None else (*path, key), source):
            known = Array(array.dtype, array.shape, array.strides, array.storage, array.offset, kind) if kind else array
            yield below, known


def _children(value: Any, source: Source) -> Iterator[tuple[str | None, str, Any]]:
    """(key, kind, value) of each part that may hold tensors."""
    if isinstance(value, Table):
        for index, (key, inner) in enumerate(value.pairs):
            if isinstance(inner, Array | Call | Sequence | Table | tuple):
                yield _key(key, index, source), "", inner
    elif isinstance(value, Sequence | tuple):
        for index, inner in enumerate(value.items if isinstance(value, Sequence) else value):
            yield str(index), "", inner
    elif isinstance(value, Call):
        if (module := _module(value)) is not None:
            yield from _module_children(module, source)
            return
        state = value.state if isinstance(value.state, Table | tuple) else ()
        for part in (value.arguments, tuple(value.items), Table(value.pairs)):
            if part not in ((), Table()):
                yield from _children(part, source)
        for part in state if type(state) is tuple else (state,):  # (dict, slots) is one
            yield from _children(part, source)


def _module(value: Call) -> Table | None:
    """The state of a pickled `nn.Module`."""
    state = value.state
    if isinstance(state, Table) and isinstance(state.get("_modules"), Table):
        return state
    return None


def _module_children(state: Table, source: Source) -> Iterator[tuple[str, str, Any]]:
    transient = state.get("_non_persistent_buffers_set")
    hidden = {name for name in getattr(transient, "items", ()) if type(name) is str}
    for group, kind in (("_parameters", "parameter"), ("_buffers", "buffer"), ("_modules", "")):
        members = state.get(group)
        for index, (key, inner) in enumerate(members.pairs if isinstance(members, Table) else ()):
            if inner is not None and not (kind == "buffer" and type(key) is str and key in hidden):
                yield _key(key, index, source), kind if isinstance(inner, Array) else "", inner


def _key(key: Any, index: int, source: Source) -> str:
    if type(key) is str:
        return source.name(key, "a key")
    if type(key) in (int, bool, float) or key is None:
        spelled = repr(key) if type(key) is not int or abs(key) < 1 << 64 else "a number"
        return spelled if len(spelled) < 80 else f"({index})"
    return f"({index})"


def _facts(root: Any) -> dict[str, str]:
    """The texts and numbers of a checkpoint, of those the first and short ones: epoch, version, …; also those in a dict
    or an object (a `Namespace`) on its first level: hyper_parameters.lr, args.batch_size."""
    found: dict[str, str] = {}
    for key, value in _plain(root):
        known = type(value) in (bool, float, str) or (type(value) is int and abs(value) < 1 << 64)
        text = str(value) if known else ""
        if known and type(key) is str and not key.startswith("zero_convert") and len(text) <= _SHORT:
            found[key] = text
            if len(found) == _FACTS:
                break
    return found


def _plain(root: Any) -> Iterator[tuple[Any, Any]]:
    for key, value in root.pairs if isinstance(root, Table) else ():
        yield key, value
        inner = value.state if isinstance(value, Call) and _module(value) is None else value
        if type(key) is str and isinstance(inner, Table):
            for below, each in inner.pairs[:_FACTS]:
                if type(below) is str:
                    yield f"{key}.{below}", each


def _network(root: Any) -> tuple[str, Path]:
    """The class of the network that a loader would build, and where it is in a checkpoint; "" if there is none."""
    at, base = _model(root)
    return (str(at.function), base) if isinstance(at, Call) and _module(at) is not None else ("", ())


def _names(found: list[tuple[Path, Array]], source: Source) -> list[str]:
    """The names of the tensors: keys joined by dots, each once."""
    joined = [".".join(path) for path, _ in found]
    seen: set[str] = set()
    for name in joined:
        if name in seen:
            raise source.malformed("two tensors have one name", brief(name), "unique names")
        seen.add(name)
    return joined


def _weights(root: Any, found: list[tuple[Path, Array]]) -> tuple[str, str, Mapping[str, str], Mapping[str, int]]:
    """Which tensors are the model's own: where they are, the prefix of their names, both names; the other sections."""
    at, base = _model(root)
    flat = isinstance(at, Table) and any(isinstance(value, Array) for _, value in at.pairs)
    whole = isinstance(at, Call)
    own = [path for path, _ in found if path[: len(base)] == base and (not flat or len(path) == len(base) + 1)]
    if not (flat or whole or base):
        own = [path for path, _ in found]
    inner = {".".join(path): ".".join(path[len(base) :]) for path in own}
    prefix = ""
    while step := next((p for p in PREFIXES if inner and all(n.startswith(prefix + p) for n in inner.values())), ""):
        prefix += step
    kept = set(inner)
    others: dict[str, int] = {}
    for path, _ in found:
        if ".".join(path) not in kept:
            others[path[0] if path else ""] = others.get(path[0] if path else "", 0) + 1
    return ".".join(base), prefix, {name: short[len(prefix) :] for name, short in inner.items()}, others


def _model(root: Any) -> tuple[Any, Path]:
    """The part of a checkpoint that is the model, and its keys."""
    base: Path = ()
    at = root
    while isinstance(at, Table) and (chosen := _section(at)) is not None and len(base) < DEPTH:
        at, base = at.get(chosen), (*base, chosen)
    return at, base


def _section(table: Table) -> str | None:
    """The key of a checkpoint under which the model's tensors are; None where they are on this level.

    Beside tensors (a generator's state) only a key that names a model counts, and none that names averages of it.
    """
    beside = any(isinstance(value, Array) for _, value in table.pairs)
    for key in WEIGHTS[: WEIGHTS.index("ema")] if beside else WEIGHTS:
        value = table.get(key)
        if isinstance(value, Table) and value.pairs and _has_tensors(value):
            return key
        if isinstance(value, Call) and _module(value) is not None:
            return key
    return None


def _has_tensors(table: Table) -> bool:
    return any(isinstance(value, Array) for _, value in table.pairs) or any(
        isinstance(table.get(key), Table) for key in WEIGHTS
    )
