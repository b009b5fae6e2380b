"""`torch.save` of 2016 (before 0.1.10): a tar archive with `storages`, `tensors` and `pickle`.

    storages   pickled number; for each: pickled (key, device, type), 8 bytes count, elements; then pickled views
    tensors    pickled number; for each: pickled (key, storage's key, type), 8 bytes rank, sizes, strides, offset
    pickle     the object; a persistent id names a tensor

Loading it with `weights_only=True` is not possible, so it always asks for trust. Source: torch/serialization.py.
"""

from __future__ import annotations

import tarfile
from typing import Any

from zero_convert.formats.digests import brief
from zero_convert.formats.dtypes import DTYPES
from zero_convert.formats.safetensors import DIMENSIONS

from .contents import Contents, Storage
from .parsing.pickle_machine import Machine
from .parsing.pickle_symbols import Array, Global, Sequence, StoredIn
from .parsing.source import Source
from .parsing.torch_pickles import STORAGES, Rebuild, reasons
from .torch_zip import described

FORMAT = "torch tar"
_MEMBERS = ("storages", "tensors", "pickle", "sys_info")
_BLOCK = 512


def read(source: Source) -> Contents:
    """What is in a tar archive of torch."""
    parts = _members(source)
    rebuild = _Rebuild(source)
    storages, machine = _storages(parts["storages"], rebuild)
    found = dict(machine.globals)
    found.update(_tensors(parts["tensors"], rebuild))
    machine = Machine(parts["pickle"], rebuild)
    root = machine.load()
    machine.end()
    found.update(machine.globals)
    kept = {name: None for name in found if not (name.module == "torch" and name.name.endswith("Tensor"))}
    trust = ("its format can only be loaded with trust", *reasons(kept))
    return described(source, FORMAT, "torch.save (2016)", root, storages, found, trust)


class _Rebuild(Rebuild):
    """Persistent ids are keys of tensors, or of storages."""

    def __init__(self, source: Source) -> None:
        super().__init__(source)
        self.arrays: dict[int, Array | StoredIn] = {}

    def persistent(self, identity: Any) -> Any:
        if type(identity) is tuple and identity and isinstance(identity[0], Global):
            return identity[0]  # a class, with its source beside it
        key = int(identity) if type(identity) is str and identity.isdigit() and len(identity) < 20 else identity
        if type(key) is not int or key not in self.arrays:
            raise self._source.malformed("a persistent id names no tensor", brief(identity))
        return self.arrays[key]


def _members(source: Source) -> dict[str, Source]:
    """The members by name: plain files, one after another, nothing else."""
    found: dict[str, Source] = {}
    at = source.begin
    while True:
        block = source.read(at, _BLOCK)
        if not any(block):
            break
        try:
            info = tarfile.TarInfo.frombuf(block, "ascii", "strict")
        except (tarfile.TarError, ValueError) as error:
            raise source.malformed("a header of the archive is malformed", str(error)[:80]) from None
        if info.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or info.name not in _MEMBERS or info.name in found:
            raise source.malformed("a member of the archive is not torch's, or comes twice", brief(info.name))
        at += _BLOCK
        if not 0 <= info.size <= source.end - at:
            raise source.malformed("a member ends outside of the archive", brief(info.name))
        found[info.name] = source.inside(at, at + info.size, info.name)
        at += -(-info.size // _BLOCK) * _BLOCK
    while at < source.end:
        size = min(1 << 16, source.end - at)
        if any(source.read(at, size)):
            raise source.malformed("bytes follow the archive's end")
        at += size
    for name in _MEMBERS[:3]:
        if name not in found:
            raise source.malformed("a member of the archive is missing", "none", name)
    return found


def _storages(part: Source, rebuild: _Rebuild) -> tuple[dict[str, Storage], Machine]:
    part.file.seek(part.begin)
    stream: Any = part.file
    machine = Machine(part, rebuild, stream)
    found: dict[str, Storage] = {}
    for _ in range(_count(part, machine)):
        facts = machine.load()
        if type(facts) is not tuple or len(facts) != 3 or type(facts[0]) is not int:
            raise part.malformed("a storage is malformed")
        key, _, kind = facts
        dtype = STORAGES.get(kind.name) if isinstance(kind, Global) and kind.module in ("torch", "torch.cuda") else None
        at = machine.position
        count = int.from_bytes(part.read(at, 8), "little")
        if dtype is None or key in rebuild.arrays or count * DTYPES[dtype].bits // 8 > part.end - at - 8:
            raise part.malformed("a storage is malformed", brief(key))
        end = at + 8 + count * DTYPES[dtype].bits // 8
        rebuild.arrays[key] = StoredIn(str(key), dtype, count)
        found[str(key)] = Storage(part.path, at + 8, end)
        part.file.seek(end)
    views = machine.load()
    machine.end()
    for view in views.items if isinstance(views, Sequence) else [None]:
        if type(view) is not tuple or len(view) != 4 or not all(type(n) is int and n >= 0 for n in view):
            raise part.malformed("the views are malformed")
        root = rebuild.arrays.get(view[1])
        if not isinstance(root, StoredIn) or view[0] in rebuild.arrays or root.first + view[2] + view[3] > root.count:
            raise part.malformed("a view of a storage is malformed")
        rebuild.arrays[view[0]] = StoredIn(root.key, root.dtype, view[3], root.first + view[2])
    return found, machine


def _tensors(part: Source, rebuild: _Rebuild) -> dict[Global, None]:
    part.file.seek(part.begin)
    stream: Any = part.file
    machine = Machine(part, rebuild, stream)
    for _ in range(_count(part, machine)):
        facts = machine.load()
        if type(facts) is not tuple or len(facts) != 3 or type(facts[0]) is not int:
            raise part.malformed("a tensor is malformed")
        at = machine.position
        rank = int.from_bytes(part.read(at, 4), "little")
        storage = rebuild.arrays.get(facts[1]) if type(facts[1]) is int else None
        if rank > DIMENSIONS or facts[0] in rebuild.arrays or not isinstance(storage, StoredIn):
            raise part.malformed("a tensor is malformed", brief(facts[0]))
        row = part.read(at + 8, 16 * rank + 8)
        numbers = [int.from_bytes(row[i : i + 8], "little", signed=True) for i in range(0, len(row), 8)]
        made = rebuild._tensor(storage, numbers[-1], tuple(numbers[:rank]), tuple(numbers[rank:-1]))
        rebuild.arrays[facts[0]] = made
        part.file.seek(at + 16 + 16 * rank)
    machine.end()
    return machine.globals


def _count(part: Source, machine: Machine) -> int:
    count = machine.load()
    if type(count) is not int or count < 0:
        raise part.malformed("a number of entries is none")
    part.budget.tensors(count)
    return count


def looks_like(head: bytes) -> bool:
    """Whether a tar archive may begin so; torch's first member is `sys_info`, `storages`, `tensors` or `pickle`."""
    return len(head) >= _BLOCK and (
        head[257:262] == b"ustar" or head[:100].rstrip(b"\0") in [name.encode() for name in _MEMBERS]
    )
