"""`.pt2`, what `torch.export.save` writes: a zip archive with a graph as JSON and one member for each weight.

    NAME/archive_format                            "pt2"
    NAME/data/weights/*_weights_config.json        name → member, type, sizes, strides
    NAME/data/constants/*_constants_config.json    the same of constants, and of buffers that are not persistent
    NAME/models/*.json                             the graph
    NAME/data/sample_inputs/*.pt, custom objects   pickles, which its loader reads

Until torch 2.7 it was `serialized_exported_program.json` beside `serialized_state_dict.pt`, an archive of torch.save.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from math import prod
from typing import Any, NamedTuple

from zero_convert.formats.digests import brief, parse_json
from zero_convert.formats.dtypes import find
from zero_convert.formats.safetensors import DIMENSIONS

from .contents import Contents, Storage, Tensor
from .parsing.source import JSON, Source
from .parsing.state_dicts import CONSTANTS, may_be_weight
from .parsing.tensor_tree import NOT_PERSISTENT
from .parsing.views import tied
from .parsing.zip_archive import Archive, span


class _Kind(NamedTuple):
    """A list of tensors in an archive: what its file is called behind the model's name, and what its tensors are."""

    config: str
    tensor: str


_WEIGHTS, _CONSTANTS = _Kind("weights_config.json", "buffer"), _Kind("constants_config.json", "")
_STRUCTURE = re.compile(
    r"archive_format|archive_version|byteorder|version|\.data/.*|models/[^/]*\.json|data/\w+/[^/]*_config\.json"
)  # members that hold no values
_LEFT_OUT = {"sample inputs": "data/sample_inputs/", "extra files": "extra/"}

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
    trust = [_PROGRAM]
    weights, pickled = _listed(source, archive, folder, _WEIGHTS)
    constants, more = _listed(source, archive, folder, _CONSTANTS)
    trust += [f"weight {brief(name)} is a pickle" for name in pickled] + [
        f"constant {brief(name)} is a pickle" for name in more
    ]
    taken = {each.name for each in weights}
    constants = [replace(t, name=f"constants.{t.name}") if t.name in taken else t for t in constants]
    buffers = _not_persistent(source, archive, folder) if constants else frozenset()
    besides = {each.name: NOT_PERSISTENT if each.name in buffers else CONSTANTS for each in constants}
    doubtful = [each.name for each in constants if besides[each.name] == CONSTANTS and may_be_weight(each)]
    undigested = f"{doubtful[0]}, a constant of the program, may be a weight as well" if weights and doubtful else ""
    if not weights:  # they were folded: what is left of them are constants
        besides = {name: label for name, label in besides.items() if name not in doubtful}
    if pickled:
        undigested = f"weight {pickled[0]} is a pickle in the archive, and is not read"
    tensors = tied([*weights, *constants])
    globals_: dict[str, None] = {}
    left_out: dict[str, list[Storage]] = {}
    payload: list[Storage] = []
    for member in archive.members.values():
        name = member.name.removeprefix(folder)
        if name.endswith(".pt"):
            inner = _nested(source, archive, member.name, nested)
            globals_.update(dict.fromkeys(inner.globals))
            trust += [f"{member.name}: {reason}" for reason in inner.trust]
        elif "custom_obj_" in name or name.endswith((".so", ".cubin", ".cpp", ".py", ".pkl")):
            trust.append(f"it holds {member.name}")
        label = next((label for label, begin in _LEFT_OUT.items() if name.startswith(begin)), None)
        if label is not None:
            left_out.setdefault(label, []).append(span(source, member))
        elif not _STRUCTURE.fullmatch(name):
            payload.append(span(source, member))
    _no_holes(source, archive, folder, tensors)
    graphs = [name for name in archive.members if name.startswith(f"{folder}models/") and name.endswith(".json")]
    version = archive.text(f"{folder}archive_version", "?")
    return Contents(
        path=source.path,
        format=FORMAT,
        size=source.size,
        tensors=tensors,
        weights={each.name: each.name for each in tensors if each.name not in besides},
        payload=tuple(payload),
        besides=besides,
        left_out={label: tuple(spans) for label, spans in left_out.items()},
        undigested=undigested,
        producer=f"torch.export.save (archive version {version})",
        globals=tuple(globals_),
        trust=tuple(trust),
        details={"models": [name.rpartition("/")[2].removesuffix(".json") for name in graphs]},
    )


def _listed(source: Source, archive: Archive, folder: str, kind: _Kind) -> tuple[list[Tensor], list[str]]:
    """The tensors that the lists of one kind name, and the names of those that are pickles."""
    configs = [name for name in archive.members if name.startswith(folder) and name.endswith(f"_{kind.config}")]
    tensors, pickled = [], []
    for name in configs:
        prefix = name.rpartition("/")[2].removesuffix(f"_{kind.config}") + "." if len(configs) > 1 else ""
        for key, entry in _config(source, archive, name).items():
            source.name(key, "a weight's name")
            tensor = _tensor(source, archive, name.rpartition("/")[0], prefix + key, entry, kind)
            if tensor is None:
                pickled.append(prefix + key)
            else:
                tensors.append(tensor)
    return tensors, pickled


def _not_persistent(source: Source, archive: Archive, folder: str) -> frozenset[str]:
    """The buffers that no state dict has, by the signatures of the graphs, if these are small enough to be read."""
    found: set[str] = set()
    for name, member in archive.members.items():
        if (
            not (name.startswith(f"{folder}models/") and name.endswith(".json"))
            or JSON * member.size > source.budget.left // 2
        ):
            continue
        source.budget.take(JSON * member.size)
        at = parse_json(archive.read(name), f"{source.where}, {name}")
        for key in ("graph_module", "signature", "input_specs"):
            at = at.get(key) if isinstance(at, dict) else None
        for spec in at if isinstance(at, list) else ():
            buffer = spec.get("buffer") if isinstance(spec, dict) else None
            if isinstance(buffer, dict) and buffer.get("persistent") is False:
                found.add(str(buffer.get("buffer_name")))
    return frozenset(found)


def _config(source: Source, archive: Archive, name: str) -> dict[str, Any]:
    source.budget.take(JSON * archive.members[name].size)
    table = parse_json(archive.read(name), f"{source.where}, {name}")
    config = table.get("config") if isinstance(table, dict) else None
    if not isinstance(config, dict) or not all(isinstance(entry, dict) for entry in config.values()):
        raise source.malformed("the list of weights is malformed", brief(name))
    source.budget.tensors(len(config))
    return config


def _tensor(
    source: Source, archive: Archive, folder: str, name: str, entry: dict[str, Any], group: _Kind
) -> Tensor | None:
    """A weight or constant; None if it is a pickle."""
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
    kind = "parameter" if entry.get("is_param") is True else group.tensor
    return Tensor(name, row.name, shape, strides, storage, offset * row.bits // 8, kind)


def _integer(value: Any) -> int:
    number = value["as_int"]
    if type(number) is not int or not 0 <= number < 1 << 62:
        raise ValueError(number)
    return number


def _no_holes(source: Source, archive: Archive, folder: str, tensors: Iterable[Tensor]) -> None:
    used = {tensor.storage.begin for tensor in tensors if tensor.storage is not None}
    for name, member in archive.members.items():
        unread = name.rpartition("/")[2].startswith("weight_") and not name.endswith(".json")
        if unread and member.begin not in used and member.size and used:
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
    state, constants = parts.get("serialized_state_dict.pt"), parts.get("serialized_constants.pt")
    tensors, extra = (part.tensors if part else () for part in (state, constants))
    besides = {f"constants.{each.name}": CONSTANTS for each in extra}
    named = next((each.name for each in extra if may_be_weight(each)), "")
    doubtful = f"{named}, a constant of the program or a buffer that is not persistent, may be a weight as well"
    trust = [_PROGRAM, *(f"{name}: {reason}" for name, inner in parts.items() for reason in inner.trust)]
    return Contents(
        path=source.path,
        format=FORMAT,
        size=source.size,
        tensors=tied([*tensors, *(replace(each, name=f"constants.{each.name}") for each in extra)]),
        weights=state.weights if state else {},
        payload=tuple(each for part in (state, constants) if part for each in part.payload),
        besides={**(state.besides if state else {}), **besides},
        left_out={"sample inputs": tuple(span(source, archive.members[name]) for name in parts if "inputs" in name)},
        undigested=next(
            (part.undigested for part in (state, constants) if part and part.undigested), doubtful if named else ""
        ),
        producer=f"torch.export.save (version {archive.text('version', '?')})",
        globals=tuple(dict.fromkeys(name for inner in parts.values() for name in inner.globals)),
        trust=tuple(trust),
    )
