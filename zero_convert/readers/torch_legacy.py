"""`torch.save` before 1.6: five pickles (magic number, protocol, machine, object, keys), then each storage's data.

    storage   number of elements as 8 bytes, then the elements, in the order of the keys

Of a plain pickle, without torch's magic number, numpy's arrays are read, and its globals.
"""

from __future__ import annotations

from typing import Any

from zero_convert.formats.digests import brief
from zero_convert.formats.dtypes import DTYPES

from .contents import Contents, Storage
from .parsing.numpy_pickles import Arrays
from .parsing.pickle_machine import Machine
from .parsing.pickle_symbols import Sequence, StoredIn, Table
from .parsing.source import Source
from .parsing.state_dicts import STRINGS, contents_of
from .parsing.tensor_tree import tensors
from .parsing.torch_pickles import SAFE, Rebuild, reasons

FORMAT, PLAIN = "torch legacy", "pickle"
MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001


def read(source: Source) -> Contents:
    """What is in a file that begins with a pickle."""
    source.file.seek(source.begin)
    rebuild = Rebuild(source)
    stream: Any = source.file
    machine = Machine(source, rebuild, stream)
    first = machine.load()
    if type(first) is not int or first != MAGIC:
        return _plain(source, machine, first, rebuild)
    protocol, system, root = machine.load(), machine.load(), machine.load()
    if protocol != PROTOCOL or not isinstance(system, Table):
        raise source.malformed("the file is of an unknown version", brief(protocol), str(PROTOCOL))
    if system.get("little_endian") is not True:
        raise source.malformed("the storages are in big-endian order", "little_endian False", "True")
    keys = machine.load()
    listed = keys.items if isinstance(keys, Sequence) else []
    if not isinstance(keys, Sequence) or any(type(key) is not str for key in listed) or len({*listed}) != len(listed):
        raise source.malformed("the storages' keys are no list of unique texts")
    if {*listed} != rebuild.storages.keys():
        raise source.malformed(
            "the keys are not those of the tensors", f"{len(listed)} keys", f"{len(rebuild.storages)} storages"
        )
    storages = _storages(source, [rebuild.storages[key] for key in listed], machine.position)
    trust = reasons(machine.globals, opcodes=machine.opcodes)
    return _contents(source, FORMAT, "torch.save (legacy)", root, rebuild, storages, machine, trust)


def _contents(
    source: Source,
    name: str,
    producer: str,
    root: Any,
    rebuild: Rebuild,
    storages: dict[str, Storage],
    machine: Machine,
    trust: tuple[str, ...],
) -> Contents:
    arrays = Arrays(source, rebuild)
    found = tensors(root, source, arrays)
    strings = {STRINGS: tuple(Storage(source.path, *span) for span in rebuild.strings)}
    storages = {**storages, **arrays.storages}
    return contents_of(
        source, name, producer, root, found, storages, machine.globals, trust, left_out=strings, unread=arrays.unread
    )


def _storages(source: Source, ordered: list[StoredIn], at: int) -> dict[str, Storage]:
    found = {}
    for stored in ordered:
        count = int.from_bytes(source.read(at, 8), "little", signed=True)
        if count != stored.count:
            raise source.malformed(
                f"storage {brief(stored.key)} has another size than its tensors say", str(count), str(stored.count)
            )
        size = count * (8 if stored.dtype is None else DTYPES[stored.dtype].bits) // 8
        if size > source.end - at - 8:
            raise source.malformed("the file ends inside a storage", f"{source.end - at - 8} bytes", str(size))
        found[stored.key] = Storage(source.path, at + 8, at + 8 + size)
        at += 8 + size
    if at != source.end:
        raise source.malformed("bytes follow the last storage", f"{source.end - at}", "none")
    return found


def _plain(source: Source, machine: Machine, root: Any, rebuild: Rebuild) -> Contents:
    machine.end()
    if rebuild.storages:
        raise source.malformed("a plain pickle names storages, and has none")
    trust = reasons(machine.globals, lambda name: name in SAFE and not name.startswith("torch"))
    trust = ("it is a plain pickle, which only a pickle loader can load", *trust)
    return _contents(source, PLAIN, "", root, rebuild, {}, machine, trust)


def looks_like(head: bytes) -> bool:
    """Whether a pickle may begin so: of protocol 2 or later, or torch's magic number in an earlier one, or a text."""
    return (head[:1] == b"\x80" and head[1:2] in (b"\x00", b"\x01", b"\x02", b"\x03", b"\x04", b"\x05")) or (
        head[:1] in _OPENINGS
    )


_OPENINGS = [bytes([code]) for code in b"(]})}NcIJKLMSUVXFGPTBCi\x88\x89\x8a\x8b\x8c\x8d\x8e\x8f\x95\x96"]
