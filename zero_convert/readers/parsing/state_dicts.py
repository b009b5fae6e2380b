"""From the tensors that a pickle describes to those that are the model's own, and to `Contents`.

In a dict with tensors on its first level whatever else holds tensors is the model's as well (packed, sparse, nested in
dicts), unless its key says that it is no weight: an optimizer, averages, a generator.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from zero_convert.formats import dtypes
from zero_convert.formats.digests import brief
from zero_convert.formats.dtypes import DTYPES

from ..contents import Contents, Storage, Tensor
from .numpy_pickles import is_array
from .pickle_symbols import Array, Call, Global, Parts, Table
from .source import Source
from .tensor_tree import ATTRIBUTE, DEPTH, Found, Path, module_state
from .views import tied

WEIGHTS = (
    "state_dict", "model_state_dict", "model_state", "model", "module", "net", "network", "params", "weights",
    "ema", "model_ema", "state_dict_ema", "ema_state_dict", "ema_model", "params_ema",
)  # fmt: skip # keys that hold a model's tensors, the first of them counts
PREFIXES = ("module.", "_orig_mod.", "model._orig_mod.")  # of DistributedDataParallel and torch.compile
CONSTANTS, STRINGS = "constants of the program", "byte strings in the pickle"
_COMPUTED = "attributes computed from parameters"
_FROM = ("_orig", "_v")  # behind the names of what pruning, weight_norm and spectral_norm compute a weight from
_NO_WEIGHTS = re.compile(
    r"optim|sched|scaler|(^|_)(amp|ema|swa|rng|random|generator_state)(_|$)|averag|callback|loop|hyper|history"
)
_FACTS, _SHORT = 40, 200  # entries of a checkpoint that are told, and characters of one


def contents_of(
    source: Source,
    name: str,
    producer: str,
    root: Any,
    found: list[Found],
    storages: Mapping[str, Storage],
    globals_: Mapping[Global, None],
    trust: tuple[str, ...],
    *,
    payload: Iterable[Storage] = (),
    left_out: Mapping[str, tuple[Storage, ...]] | None = None,
    unread: Iterable[Path] = (),
    program: bool = False,
) -> Contents:
    """The record of a file with a pickle.

    Args:
        name: of the format.
        root: what the pickle describes.
        found: its tensors, as `tensors` finds them.
        storages: where their data are, by key.
        trust: why loading it would mean to run code from it, besides that it is a network.
        payload: spans besides these storages.
        unread: keys of arrays that are no tensors here.
        program: its classes are code in the file, and no network of importable ones.
    """
    names = _names(found, source)
    at, prefix, own, besides = _weights(root, dict(zip(names, found, strict=True)))
    module, base = ("", ()) if program else _network(root)
    if module:
        verb = "holds" if base else "is"
        trust = (f"it {verb} a whole network, pickled: loading it imports and calls its classes", *trust)
    views = tied(_tensor(text, each.array, storages) for text, each in zip(names, found, strict=True))
    _refuse_repeated(source, views)
    frozen = program and any(label == CONSTANTS for label in besides.values()) and not own
    if frozen:
        own = {each.name: each.name for each in views if besides[each.name] == CONSTANTS and may_be_weight(each)}
        besides = {key: label for key, label in besides.items() if key not in own}
    return Contents(
        path=source.path,
        format=name,
        size=source.size,
        tensors=views,
        weights=own,
        payload=(*storages.values(), *payload),
        producer=producer,
        weights_at=at,
        weights_prefix=prefix,
        besides=besides,
        left_out=left_out or {},
        undigested=_undigested(zip(views, found, strict=True), own, besides, unread, at),
        metadata=_facts(root),
        globals=tuple(map(str, globals_)),
        trust=trust,
        notes=("frozen: the weights are constants of the program, and have no names left",) if frozen and own else (),
        details={"module": module},
    )


def may_be_weight(tensor: Tensor) -> bool:
    """Whether a constant of a program may be a weight."""
    return dtypes.may_be_weight(tensor.dtype, tensor.values)


def _undigested(
    listed: Iterable[tuple[Tensor, Found]],
    own: Mapping[str, str],
    besides: Mapping[str, str],
    unread: Iterable[Path],
    at: str,
) -> str:
    """Why the tensors of the model's own do not say what its weights are; "" if they do."""
    for tensor, found in listed:
        if tensor.name in own and found.part_of:
            return f"{tensor.name} is part of {found.part_of}, and the digest is one of plain tensors"
        if besides.get(tensor.name) == CONSTANTS and may_be_weight(tensor):
            return f"{tensor.name}, a constant of the program, may be a weight as well"
        if besides.get(tensor.name) == ATTRIBUTE and may_be_weight(tensor):
            return f"{tensor.name}, which no state dict of the network has, may be a weight as well"
    return next((
        f"{'.'.join(path)} is a numpy array of a kind that is not read"
        for path in unread
        if at in (".".join(path[:length]) for length in range(len(path) + 1))
    ), "")  # fmt: skip


def _tensor(name: str, array: Array, storages: Mapping[str, Storage]) -> Tensor:
    storage = None if array.storage is None else storages[array.storage.key]
    offset = array.offset * DTYPES[array.dtype].bits // 8
    return Tensor(name, array.dtype, array.shape, array.strides, storage, offset, array.kind, flipped=array.flipped)


def _refuse_repeated(source: Source, views: tuple[Tensor, ...]) -> None:
    """Refuse views that repeat their storage beyond what the limit for memory could hold: nobody could load them."""
    beyond = 0
    for tensor in views:
        if tensor.storage is not None and tensor.strides is not None:
            beyond += max(0, (tensor.nbytes or 0) - (tensor.storage.end - tensor.storage.begin))
    source.budget.take(beyond)


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
        inner = value.state if isinstance(value, Call) and module_state(value) is None else value
        if type(key) is str and isinstance(inner, Table):
            for below, each in inner.pairs[:_FACTS]:
                if type(below) is str:
                    yield f"{key}.{below}", each


def _network(root: Any) -> tuple[str, Path]:
    """The class of the network that a loader would build, and where it is in a checkpoint; "" if there is none."""
    at, base = _model(root)
    return (str(at.function), base) if isinstance(at, Call) and module_state(at) is not None else ("", ())


def _names(found: list[Found], source: Source) -> list[str]:
    """The names of the tensors: keys joined by dots, each once."""
    seen: set[str] = set()
    names = []
    for each in found:
        name = ".".join(each.path)
        while each.hidden and name in seen:
            name += "~"
        if name in seen:
            raise source.malformed("two tensors have one name", brief(name), "unique names")
        seen.add(name)
        names.append(name)
    return names


def _weights(root: Any, found: Mapping[str, Found]) -> tuple[str, str, Mapping[str, str], Mapping[str, str]]:
    """Which tensors are the model's own: where they are, the prefix of their names, both names; what the others are."""
    at, base = _model(root)
    flat = isinstance(at, Table) and any(_is_tensor(value) for _, value in at.pairs)
    inner: dict[str, str] = {}
    besides: dict[str, str] = {}
    for name, each in found.items():
        rest = each.path[len(base) :]
        inside = each.path[: len(base)] == base and not (flat and rest and _no_weight(at, rest[0]))
        if inside and not each.hidden:
            inner[name] = ".".join(rest)
        else:
            besides[name] = (each.hidden if inside else "") or (each.path[0] if each.path else "")
    for name, label in besides.items():
        if label == ATTRIBUTE and any(f"{name}{end}" in inner for end in _FROM):
            besides[name] = _COMPUTED
    prefix = ""
    while step := next((p for p in PREFIXES if inner and all(n.startswith(prefix + p) for n in inner.values())), ""):
        prefix += step
    return ".".join(base), prefix, {name: short[len(prefix) :] for name, short in inner.items()}, besides


def _is_tensor(value: Any) -> bool:
    return isinstance(value, Array | Parts) or is_array(value) is not None


def _no_weight(table: Table, key: str) -> bool:
    """Whether what a key of a state dict holds is beside the weights: no tensor, and named as something else."""
    value = table.get(key)
    if _is_tensor(value):
        return False
    named = key in WEIGHTS or _NO_WEIGHTS.search(key) is not None
    return named or (isinstance(value, Call) and str(value.function).startswith("torch.optim."))


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
    beside = any(_is_tensor(value) for _, value in table.pairs)
    for key in WEIGHTS[: WEIGHTS.index("ema")] if beside else WEIGHTS:
        value = table.get(key)
        if isinstance(value, Table) and value.pairs and _has_tensors(value):
            return key
        if isinstance(value, Call) and module_state(value) is not None:
            return key
    return None


def _has_tensors(table: Table) -> bool:
    return any(_is_tensor(value) for _, value in table.pairs) or any(
        isinstance(table.get(key), Table) for key in WEIGHTS
    )
