"""safetensors: one file, or several with an index that says which tensor is where.

The header is read by `formats/safetensors.py`; here its size is limited before that.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from typing import Any

from zero_convert.formats.digests import brief, parse_json
from zero_convert.formats.safetensors import read_header
from zero_convert.formats.spans import DAMAGED

from ..errors import RefusedError
from .contents import Contents, Storage, Tensor
from .parsing.source import JSON, Source
from .parsing.views import tied

FORMAT, SHARDED = "safetensors", "sharded"
_PART = "the file is one rank's part of a distributed checkpoint (DCP_SHARDING_INFO)"


def read(source: Source) -> Contents:
    """What is in one file."""
    length = int.from_bytes(source.read(source.begin, 8), "little")
    source.budget.take(JSON * min(length, source.size))
    source.budget.tensors(source.read(source.begin + 8, min(length, source.size - 8)).count(b'"data_offsets"'))
    header = read_header(source.path)
    source.budget.tensors(len(header.tensors))
    tensors = [
        Tensor(
            info.name,
            info.dtype,
            info.shape,
            storage=Storage(source.path, header.data_start + info.begin, header.data_start + info.end),
        )
        for info in header.tensors
    ]
    written_by = "zero-convert" if "zero_convert" in header.metadata else ""
    return Contents(
        path=source.path,
        format=FORMAT,
        size=source.size,
        tensors=tuple(tensors),
        weights={tensor.name: tensor.name for tensor in tensors},
        payload=(Storage(source.path, header.data_start, header.size),),
        undigested=_PART if "DCP_SHARDING_INFO" in header.metadata else "",
        producer=written_by or str(header.metadata.get("format", ""))[:40],
        metadata=header.metadata,
    )


def looks_like(head: bytes) -> bool:
    """8 bytes of length, then a JSON object."""
    return len(head) > 8 and head[8:9] == b"{" and head[5:8] == b"\0\0\0"


def looks_like_index(head: bytes) -> bool:
    """Whether it may be the index of a sharded model: JSON, with a `weight_map` somewhere."""
    return head.lstrip()[:1] == b"{"


def read_index(source: Source, one: Callable[[Source, str], Contents]) -> Contents:
    """What is in all the files that an index names; each is read by `one`, from the index's own folder only."""
    source.budget.take(JSON * source.size)
    table = parse_json(source.read(source.begin, source.size), source.where)
    names = table.get("weight_map") if isinstance(table, dict) else None
    if not isinstance(names, dict) or not names or not all(isinstance(each, str) for each in names.values()):
        raise source.malformed("this JSON is no index of a sharded model", "no weight_map of texts", '{"weight_map":…}')
    source.budget.tensors(len(names))
    shards: dict[str, set[str]] = {}
    for name, shard in names.items():
        shards.setdefault(shard, set()).add(source.name(name, "a tensor's name"))
    tensors: list[Tensor] = []
    found: dict[str, Contents] = {}
    for shard, expected in shards.items():
        inner = one(source, beside(source, shard))
        _agree(source, shard, expected, {tensor.name for tensor in inner.tensors})
        tensors += inner.tensors
        found[shard] = inner
        source.budget.tensors(len(tensors))
    left_out: dict[str, tuple[Storage, ...]] = {}
    for inner in found.values():
        for label, spans in inner.left_out.items():
            left_out[label] = (*left_out.get(label, ()), *spans)
    kinds = list(dict.fromkeys(inner.format for inner in found.values()))
    stated = table.get("metadata")
    total = stated.get("total_size") if isinstance(stated, dict) else None
    actual = sum(tensor.nbytes or 0 for tensor in tensors)
    notes = () if total in (None, actual) else (f"the index says {brief(total)} bytes in all; it is {actual}",)
    return Contents(
        path=source.path,
        format=f"{SHARDED} {', '.join(kinds)}",
        size=source.size + sum(inner.size for inner in found.values()),
        tensors=tied(tensors),
        weights={tensor.name: tensor.name for tensor in tensors},
        payload=tuple(span for inner in found.values() for span in inner.payload),
        left_out=left_out,
        undigested=next((inner.undigested for inner in found.values() if inner.undigested), ""),
        producer=", ".join(dict.fromkeys(inner.producer for inner in found.values() if inner.producer)),
        files=tuple(found),
        metadata=_texts(stated),
        globals=tuple(dict.fromkeys(name for inner in found.values() for name in inner.globals)),
        trust=tuple(dict.fromkeys(reason for inner in found.values() for reason in inner.trust)),
        notes=notes,
    )


def beside(source: Source, name: str) -> str:
    """The path of the file `name`, which has to be in the folder of the file that names it, links followed."""
    folder = os.path.realpath(os.path.dirname(source.path) or ".")
    if not re.fullmatch(r"[^/\\:\x00-\x1f\x7f]{1,255}", name) or name in (".", ".."):
        raise _outside(source, name)
    path = os.path.join(folder, name)
    if os.path.dirname(os.path.realpath(path)) != folder:
        raise _outside(source, name)
    return path


def _outside(source: Source, name: str) -> RefusedError:
    return RefusedError(
        "a shard is said to be outside of the index's folder",
        where=source.where,
        got=brief(name),
        expected="a file beside the index, no link that leads out",
        fix=DAMAGED,
    )


def _agree(source: Source, shard: str, expected: set[str], found: set[str]) -> None:
    for names, what in ((expected - found, "lacks a tensor of the index"), (found - expected, "holds one besides it")):
        if names:
            raise source.malformed(f"shard {brief(shard)} {what}", brief(min(names)), f"{len(expected)} tensors")


def _texts(stated: Any) -> dict[str, str]:
    if not isinstance(stated, dict):
        return {}
    return {key: value if isinstance(value, str) else json.dumps(value)[:200] for key, value in stated.items()}
