"""`.pt2`, what `torch.export.save` writes: a zip archive with a graph as JSON and one member for each weight.

    NAME/archive_format                            "pt2"
    NAME/data/weights/*_weights_config.json        name → member, type, sizes, strides
    NAME/models/*.json                             the graph
    NAME/data/sample_inputs/*.pt, custom objects   pickles, which its loader reads

Until torch 2.7 it was `serialized_exported_program.json` beside `serialized_state_dict.pt`, an archive of torch.save.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

from zero_convert.formats.digests import brief, parse_json
from zero_convert.formats.dtypes import find
from zero_convert.formats.safetensors import DIMENSIONS

from .contents import Contents, Storage, Tensor
from .parsing.source import JSON, Source
from .parsing.views import tied
from .parsing.zip_archive import Archive

FORMAT = "torch.export"
_STRIDED = 7  # layout
_PROGRAM = "it is a program: its loader runs a graph, and loads pickles from the file"


def is_one(archive: Archive) -> bool:
    """Whether an archive is one of torch.export."""
    return any(
        name.partition("/")[2] == "archive_format" or name == "serialized_exported_program.json"
        for name in archive.members
    )


def read(source: Source, archive: Archive, nested: Callable[[Source, Archive], Contents]) -> Contents:
    """What is in the archive; `nested` reads the archives of torch.save in it."""
    if "serialized_exported_program.json" in archive.members:
        return _read_old(source, archive, nested)
    folder = archive.folder()
    if archive.text(f"{folder}archive_format") != "pt2" or archive.text(f"{folder}byteorder", "little") != "little":
        raise source.malformed("the archive is of an unknown format or byte order")
    configs = [name for name in archive.members if name.startswith(folder) and name.endswith("_weights_config.json")]
    tensors: list[Tensor] = []
    trust = [_PROGRAM]
    for name in configs:
        prefix = name.rpartition("/")[2].removesuffix("_weights_config.json") + "." if len(configs) > 1 else ""
        for key, entry in _config(source, archive, name).items():
            source.name(key, "a weight's name")
            tensor = _tensor(source, archive, name.rpartition("/")[0], prefix + key, entry)
            if tensor is None:
                trust.append(f"weight {brief(key)} is a pickle")
            else:
                tensors.append(tensor)
    globals_: dict[str, None] = {}
    for member in archive.members.values():
        if member.name.endswith(".pt"):
            inner = _nested(source, archive, member.name, nested)
            globals_.update(dict.fromkeys(inner.globals))
            trust += [f"{member.name}: {reason}" for reason in inner.trust]
        elif "custom_obj_" in member.name or member.name.endswith((".so", ".cubin", ".cpp", ".py", ".pkl")):
            trust.append(f"it holds {member.name}")
    unread = [t for t in archive.members if t.rpartition("/")[2].startswith("weight_")]
    _no_holes(source, unread, tensors, archive)
    graphs = [name for name in archive.members if name.startswith(f"{folder}models/") and name.endswith(".json")]
    version = archive.text(f"{folder}archive_version", "?")
    return Contents(
        path=source.path,
        format=FORMAT,
        size=source.size,
        tensors=tied(tensors),
        weights={tensor.name: tensor.name for tensor in tensors},
        producer=f"torch.export.save (archive version {version})",
        globals=tuple(globals_),
        trust=tuple(trust),
        details={"models": [name.rpartition("/")[2].removesuffix(".json") for name in graphs]},
    )


def _config(source: Source, archive: Archive, name: str) -> dict[str, Any]:
    source.budget.take(JSON * archive.members[name].size)
    table = parse_json(archive.read(name), f"{source.where}, {name}")
    config = table.get("config") if isinstance(table, dict) else None
    if not isinstance(config, dict) or not all(isinstance(entry, dict) for entry in config.values()):
        raise source.malformed("the list of weights is malformed", brief(name))
    source.budget.tensors(len(config))
    return config


def _tensor(source: Source, archive: Archive, folder: str, name: str, entry: dict[str, Any]) -> Tensor | None:
    """A weight; None if it is a pickle."""
    member = archive.members.get(f"{folder}/{entry.get('path_name')}")
    if member is None or entry.get("use_pickle") not in (True, False):
        raise source.malformed(f"weight {brief(name)} has no member", brief(entry.get("path_name")))
    if entry["use_pickle"]:
        return None
    meta = entry.get("tensor_meta")
    try:
        assert isinstance(meta, dict)
        row = find("export", meta["dtype"])
        assert row is not None
        shape, strides = (tuple(_integer(each) for each in meta[field]) for field in ("sizes", "strides"))
        offset = _integer(meta["storage_offset"])
        assert meta["layout"] == _STRIDED and len(shape) == len(strides) <= DIMENSIONS
    except (AssertionError, KeyError, TypeError, ValueError):
        raise source.malformed(f"weight {brief(name)} is described in no known way", brief(meta)) from None
    last = offset + sum((size - 1) * step for size, step in zip(shape, strides, strict=True))
    held = 8 * member.size // row.bits
    if not member.stored or (last >= held if 0 not in shape else offset > held) or max((0, *shape)) >= 1 << 62:
        raise source.malformed(
            f"weight {brief(name)} does not fit its member", f"{member.size} bytes", f"{row.name} {brief(list(shape))}"
        )
    source.budget.take(400 + max(0, prod(shape) * row.bits // 8 - member.size))
    storage = Storage(source.path, member.begin, member.end, member.crc)
    kind = "parameter" if entry.get("is_param") is True else "buffer"
    return Tensor(name, row.name, shape, strides, storage, offset * row.bits // 8, kind)


def _integer(value: Any) -> int:
    number = value["as_int"]
    if type(number) is not int or not 0 <= number < 1 << 62:
        raise ValueError(number)
    return number


def _no_holes(source: Source, members: list[str], tensors: list[Tensor], archive: Archive) -> None:
    used = {tensor.storage.begin for tensor in tensors if tensor.storage is not None}
    for name in members:
        member = archive.members[name]
        if member.begin not in used and member.size and not name.endswith(".json") and tensors:
            raise source.malformed("a member belongs to no weight", brief(name))


def _nested(source: Source, archive: Archive, name: str, read_one: Callable[[Source, Archive], Contents]) -> Contents:
    member = archive.members[name]
    if not member.stored:
        raise source.malformed("a member is compressed", brief(name), "stored as it is")
    inner = source.inside(member.begin, member.end, name)
    if source.read(member.begin, min(4, inner.size)) != b"PK\x03\x04":
        raise source.malformed("a member is no archive of torch.save", brief(name))
    return read_one(inner, Archive(inner))


def _read_old(source: Source, archive: Archive, nested: Callable[[Source, Archive], Contents]) -> Contents:
    parts = {
        name: _nested(source, archive, name, nested)
        for name in ("serialized_state_dict.pt", "serialized_constants.pt", "serialized_example_inputs.pt")
        if name in archive.members and archive.members[name].size
    }
    state = parts.get("serialized_state_dict.pt")
    tensors = state.tensors if state else ()
    trust = [_PROGRAM, *(f"{name}: {reason}" for name, inner in parts.items() for reason in inner.trust)]
    return Contents(
        path=source.path,
        format=FORMAT,
        size=source.size,
        tensors=tensors,
        weights=state.weights if state else {},
        producer=f"torch.export.save (version {archive.text('version', '?')})",
        globals=tuple(dict.fromkeys(name for inner in parts.values() for name in inner.globals)),
        trust=tuple(trust),
    )
