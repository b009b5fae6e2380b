"""`torch.save` since 1.6: a zip archive with one pickle, `NAME/data.pkl`, and a member `NAME/data/KEY` per storage.

TorchScript archives are built alike, of classes whose code is in the archive. It says which attributes are parameters
and which are buffers, and is only read:

    class Conv2d(Module):
      __parameters__ = ["weight", "bias", ]
      __buffers__ = []
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from zero_convert.formats.digests import brief
from zero_convert.formats.dtypes import DTYPES

from .contents import Contents, Storage
from .parsing.numpy_pickles import Arrays
from .parsing.pickle_machine import Machine
from .parsing.pickle_symbols import Array, Call, Table
from .parsing.source import Source
from .parsing.state_dicts import CONSTANTS, STRINGS, contents_of
from .parsing.tensor_tree import Found, tensors
from .parsing.torch_pickles import SAFE, Rebuild, reasons
from .parsing.zip_archive import Archive, span

FORMAT, SCRIPT = "torch zip", "TorchScript"
_SCRIPT_CALLS = frozenset(
    f"torch.jit._pickle.{name}"
    for name in ("build_intlist", "build_tensorlist", "build_doublelist", "build_boollist", "build_tensor_from_id")
)

# members that hold no values, below the folder
_STRUCTURE = re.compile(
    r"data\.pkl|constants\.pkl|version|byteorder|\.format_version|\.storage_alignment|\.data/.*|code/.*|ts_code/.*"
)
_LEFT_OUT = {
    "extra files": "extra/", "inputs of the trace": "traced_inputs", "bytecode of the program": "bytecode.pkl",
    "names for a debugger": "mobile_debug_handles.pkl",
}  # fmt: skip # what other members are → how their names begin

_Kinds = Mapping[str, Mapping[str, str]]  # class → attribute → "parameter" or "buffer"
_CLASS = re.compile(r"^class (\w+)\(Module\):\n((?:  __\w+__ = \[[^\n]*\]\n)*)", re.MULTILINE)
_LIST = re.compile(r"  __(parameter|buffer)s__ = \[([^\n]*)\]\n")
_NAME = re.compile(r'"(\w+)"')
_COST = 500  # bytes of memory of an attribute


def read(source: Source, archive: Archive) -> Contents:
    """What is in an archive whose folder holds a `data.pkl`."""
    folder = archive.folder()
    script = f"{folder}constants.pkl" in archive.members
    if archive.text(f"{folder}byteorder", "little") != "little":
        raise source.malformed("the storages are in big-endian order", "byteorder big", "little")
    rebuild = Rebuild(source)
    machine, root = _pickle(archive, f"{folder}data.pkl", rebuild)
    globals_, opcodes = dict(machine.globals), machine.opcodes
    arrays = Arrays(source, rebuild)
    found = tensors(root, source, arrays)
    storages = _storages(source, archive, rebuild, f"{folder}data/")
    used = {f"{folder}data/{key}" for key in rebuild.storages}
    if script:
        inner = Rebuild(source)
        other, constants = _pickle(archive, f"{folder}constants.pkl", inner)
        globals_.update(other.globals)
        used |= {f"{folder}constants/{key}" for key in inner.storages}
        storages |= {
            f"constants {key}": at for key, at in _storages(source, archive, inner, f"{folder}constants/").items()
        }
        found += [_constant(each) for each in tensors(constants, source, Arrays(source, inner))]
    for name in archive.members:
        if name.startswith((f"{folder}data/", f"{folder}constants/")) and name not in used:
            raise source.malformed("a storage belongs to no tensor", brief(name))
    if script:
        others = reasons(globals_, lambda name: name in SAFE or name in _SCRIPT_CALLS or name.startswith("__torch__."))
        trust = ("it is a program: TorchScript code that runs when it is called", *others)
    else:
        trust = reasons(globals_, opcodes=opcodes)
        stray = [name for name in archive.members if name.endswith((".py", ".pkl")) and name != f"{folder}data.pkl"]
        trust += tuple(f"it holds code or another pickle: {name}" for name in stray[:10])
    version = archive.text(f"{folder}version") or archive.text(f"{folder}.data/version")
    producer = f"torch.jit.save (archive version {version})" if script else f"torch.save (archive version {version})"
    known = _kinds(archive, folder) if script else {}
    if known:
        found = [replace(f, array=replace(f.array, kind=_kind_at(root, f.path, known))) for f in found]
    name = SCRIPT if script else FORMAT
    unknown, left_out = _members(source, archive, folder, {*used})
    left_out = {**left_out, STRINGS: tuple(Storage(source.path, *span) for span in rebuild.strings)}
    return contents_of(
        source, name, producer, root, found, {**storages, **arrays.storages}, globals_, trust,
        payload=unknown, left_out=left_out, unread=arrays.unread, program=script,
    )  # fmt: skip


def _constant(found: Found) -> Found:
    """A constant of TorchScript under a name of its own, with a storage of its own."""
    array, stored = found.array, found.array.storage
    if stored is not None:
        array = replace(array, storage=replace(stored, key=f"constants {stored.key}"))
    return replace(found, path=("constants", *found.path), array=array, hidden=CONSTANTS)


def _members(
    source: Source, archive: Archive, folder: str, used: set[str]
) -> tuple[tuple[Storage, ...], dict[str, tuple[Storage, ...]]]:
    """Members that may hold anything, and those that are known to be no weights, by what they are."""
    unknown: list[Storage] = []
    left_out: dict[str, list[Storage]] = {}
    for member in archive.members.values():
        name = member.name.removeprefix(folder)
        if member.name in used or _STRUCTURE.fullmatch(name) or member.begin == member.end:
            continue
        label = next((label for label, begin in _LEFT_OUT.items() if name.startswith(begin)), None)
        (unknown if label is None else left_out.setdefault(label, [])).append(span(source, member))
    return tuple(unknown), {label: tuple(spans) for label, spans in left_out.items()}


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


def _kinds(archive: Archive, folder: str) -> _Kinds:
    """What the code below `folder` declares, by the names that pickles have for its classes."""
    found: dict[str, dict[str, str]] = {}
    for name in archive.members:
        if name.startswith(f"{folder}code/") and name.endswith(".py"):
            module = name.removeprefix(f"{folder}code/").removesuffix(".py").replace("/", ".")
            for cls, lists in _CLASS.findall(archive.unpacked(name).decode("utf-8", "replace")):
                attributes = found.setdefault(f"{module}.{cls}", {})
                for kind, names in _LIST.findall(lists):
                    listed = _NAME.findall(names)
                    archive.source.budget.take(_COST * len(listed))
                    attributes.update(dict.fromkeys(listed, kind))
    return found


def _kind_at(root: Any, path: tuple[str, ...], known: _Kinds) -> str:
    """What the tensor with these keys is; "" where no class says it."""
    at, kind = root, ""
    for key in path:
        kind = ""
        if isinstance(at, Call) and isinstance(at.state, Table):
            kind = known.get(str(at.function), {}).get(key, "")
            at = at.state.get(key)
        elif isinstance(at, Table):
            at = at.get(key)
        else:
            return ""
    return kind if isinstance(at, Array) else ""
