"""`torch.save` since 1.6: a zip archive with one pickle, `NAME/data.pkl`, and a member `NAME/data/KEY` per storage.

TorchScript archives are built alike, of classes whose code is in the archive.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from zero_convert.formats.digests import brief
from zero_convert.formats.dtypes import DTYPES

from . import _script
from .contents import Contents, Storage, Tensor
from .parsing import state_dicts
from .parsing.pickle_machine import Machine
from .parsing.pickle_symbols import Array, Global
from .parsing.source import Source
from .parsing.torch_pickles import SAFE, Rebuild, reasons
from .parsing.views import tied
from .parsing.zip_archive import Archive

FORMAT, SCRIPT = "torch zip", "TorchScript"
_SCRIPT_CALLS = frozenset(
    f"torch.jit._pickle.{name}"
    for name in ("build_intlist", "build_tensorlist", "build_doublelist", "build_boollist", "build_tensor_from_id")
)


def read(source: Source, archive: Archive) -> Contents:
    """What is in an archive whose folder holds a `data.pkl`."""
    folder = archive.folder()
    script = f"{folder}constants.pkl" in archive.members
    if archive.text(f"{folder}byteorder", "little") != "little":
        raise source.malformed("the storages are in big-endian order", "byteorder big", "little")
    rebuild = Rebuild(source)
    machine, root = _pickle(archive, f"{folder}data.pkl", rebuild)
    globals_ = dict(machine.globals)
    used = {f"{folder}data/{key}" for key in rebuild.storages}
    if script:
        inner = Rebuild(source)
        other, _ = _pickle(archive, f"{folder}constants.pkl", inner)
        globals_.update(other.globals)
        used |= {f"{folder}constants/{key}" for key in inner.storages}
    storages = _storages(source, archive, rebuild, f"{folder}data/")
    for name in archive.members:
        if name.startswith((f"{folder}data/", f"{folder}constants/")) and name not in used:
            raise source.malformed("a storage belongs to no tensor", brief(name))
    if script:
        others = reasons(globals_, lambda name: name in SAFE or name in _SCRIPT_CALLS or name.startswith("__torch__."))
        trust = ("it is a program: TorchScript code that runs when it is called", *others)
    else:
        trust = reasons(globals_)
        stray = [name for name in archive.members if name.endswith((".py", ".pkl")) and name != f"{folder}data.pkl"]
        trust += tuple(f"it holds code or another pickle: {name}" for name in stray[:10])
    version = archive.text(f"{folder}version") or archive.text(f"{folder}.data/version")
    producer = f"torch.jit.save (archive version {version})" if script else f"torch.save (archive version {version})"
    declared = _script.kinds(archive, folder) if script else None
    return described(source, SCRIPT if script else FORMAT, producer, root, storages, globals_, trust, declared=declared)


def _pickle(archive: Archive, name: str, rebuild: Rebuild) -> tuple[Machine, Any]:
    archive.read(name)  # its CRC
    member = archive.members[name]
    machine = Machine(archive.source.inside(member.begin, member.end, name), rebuild)
    root = machine.load()
    machine.end()
    return machine, root


def _storages(source: Source, archive: Archive, rebuild: Rebuild, folder: str) -> dict[str, Storage]:
    found = {}
    for key, stored in rebuild.storages.items():
        member = archive.members.get(folder + key)
        if member is None:
            raise source.malformed("a storage is missing", brief(folder + key))
        bits = 8 if stored.dtype is None else DTYPES[stored.dtype].bits
        if not member.stored:
            raise source.malformed("a storage is compressed", brief(member.name), "stored as it is")
        if 8 * member.size != bits * stored.count:
            got, expected = f"{member.size} bytes", f"{stored.count} elements of {bits} bits"
            raise source.malformed(f"storage {brief(key)} has another size than its tensors say", got, expected)
        found[key] = Storage(source.path, member.begin, member.end, member.crc)
    return found


def described(
    source: Source,
    name: str,
    producer: str,
    root: Any,
    storages: Mapping[str, Storage],
    globals_: Mapping[Global, None],
    trust: tuple[str, ...],
    details: Mapping[str, Any] | None = None,
    declared: _script.Kinds | None = None,
) -> Contents:
    """The record of a pickle whose storages are at the given places; `declared` says what its attributes are."""
    found = state_dicts.tensors(root, source)
    if declared:
        found = [(path, replace(array, kind=_script.kind_at(root, path, declared))) for path, array in found]
    spelled = state_dicts.names(found, source)
    at, prefix, own, others = state_dicts.weights(root, found)
    module, inside = state_dicts.network(root) if name != SCRIPT else ("", ())
    if module:
        verb = "holds" if inside else "is"
        trust = (f"it {verb} a whole network, pickled: loading it imports and calls its classes", *trust)
    tensors = tied(_tensor(text, array, storages) for text, (_, array) in zip(spelled, found, strict=True))
    _expanded(source, tensors)
    return Contents(
        path=source.path,
        format=name,
        size=source.size,
        tensors=tensors,
        weights=own,
        producer=producer,
        weights_at=at,
        weights_prefix=prefix,
        sections=others,
        metadata=state_dicts.facts(root),
        globals=tuple(map(str, globals_)),
        trust=trust,
        details={"module": module, **(details or {})},
    )


def _tensor(name: str, array: Array, storages: Mapping[str, Storage]) -> Tensor:
    storage = None if array.storage is None else storages[array.storage.key]
    offset = array.offset * DTYPES[array.dtype].bits // 8
    return Tensor(name, array.dtype, array.shape, array.strides, storage, offset, array.kind)


def _expanded(source: Source, tensors: tuple[Tensor, ...]) -> None:
    """Refuse views that repeat their storage beyond what the limit for memory could hold: nobody could load them."""
    beyond = 0
    for tensor in tensors:
        if tensor.storage is not None and tensor.strides is not None:
            beyond += max(0, (tensor.nbytes or 0) - (tensor.storage.end - tensor.storage.begin))
    source.budget.take(beyond)
