"""`zero.lock`: what many conversions make, in one text file for git. Reads and writes that file; converts nothing.

    {
     "zero.lock": 2,
     "entries": [
      {
       "edits": [ {"applied", "kind", "site", "source"}, one line for each edit ],
       "files": { path: {"format", "sha256", "size"}, one line for each file; of ONNX also "opset", and where its
                  tensors lie beside it "data": {"sha256", "size"} of that file },
       "fingerprint": of the model's source,
       "folded_from": weights digest of the conversion, where the files were folded for inference
       "from": {"path", "sha256": [ … ]} of the model file that was converted, and of the files it names, if it was one
       "inputs": [ example inputs as they were typed ],
       "model": MODEL, or what --arch named, with a path relative to the lock's folder,
       "recipe": { one line for each field },
       "scheme": path of the scheme's file relative to the lock's folder, where it is from one
       "tensors": { name: {"digest", "dtype", "shape"}, one line for each tensor },
       "architecture_digest": `za1`, where it was recorded
       "weights_digest": `zc1`
      },
      …

Entries are sorted by their first file, files, tensors and fields by name, and a conversion appears once, however many
files it became: what a pull request shows is what changed. No time, host, absolute path or version is in it. The
writer knows one spelling, so that reading and writing again gives the same bytes; the reader takes any spelling of
the same JSON and believes nothing that it did not check.

Version 1 told edits by sentences; it is read, its edits are compared by kind and site, and it is written as version 2.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from os import PathLike
from pathlib import PurePosixPath
from typing import Any

from zero_convert.errors import MalformedError
from zero_convert.formats.atomic import alone, write_bytes
from zero_convert.formats.digests import FileDigest, brief, parse_json
from zero_convert.formats.naming import ROLES
from zero_convert.formats.strict_json import (
    Fields,
    files_json,
    is_digest,
    is_text,
    is_texts,
    read_files,
    read_limited,
)
from zero_convert.model_ref import ModelRef, SchemeRef, is_absolute
from zero_convert.records import Edit, Recipe

from .receipt import (
    IDENTITY_FIELDS,
    IDENTITY_OPTIONAL,
    Identity,
    Receipt,
    identity_from_json,
    identity_json,
    read_edit,
    read_source,
)

NAME = "zero.lock"
SIZE_LIMIT = 256 << 20  # bytes; ten models of 100,000 tensors have about 150 MB
ENTRY_LIMIT = 10_000
ORIGIN = "from"  # its key in an entry

_VERSION = 2
_READ = (1, 2)
_EXPANDED = 4  # levels of the text that have a line for each item; what is deeper is one line
_CONFLICT = re.compile(rb"^(<<<<<<<|=======|>>>>>>>)( |\r?$)", re.MULTILINE)  # the lines that `git merge` leaves


@dataclass(frozen=True, slots=True)
class LockedFile:
    """One artifact of a conversion.

    Attributes:
        path: as "folder/name", relative to the lock's folder.
        files: the artifact itself, then the files beside it that hold its tensors.
        opset: version of the operators, of an ONNX file; 0 where the format has none.
    """

    path: str
    format: str
    files: tuple[FileDigest, ...]
    opset: int = 0


@dataclass(frozen=True, slots=True)
class Origin:
    """The model file that was converted: its path relative to the lock's folder, and what was in it.

    Attributes:
        sha256: of the file, and of those that it names, in their order.
    """

    path: str
    sha256: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Entry:
    """One conversion.

    Attributes:
        files: sorted by path; at least one.
        model: the MODEL string that makes it again; of a file of Python its path relative to the lock's folder.
        inputs: example inputs as `--input` spells them; empty for the conventional ones.
        identity: recipe, fingerprint, edits, tensors, weights digest. Its edits are without sentences.
        scheme: what makes the scheme again: of a file of Python its path relative to the lock's folder; else "".
        origin: of a conversion of a model file; `model` is then the architecture that was named for it.
        folded_from: weights digest of the conversion, where the files were folded for inference; the identity is then
            that of the folded files. Else "".
    """

    files: tuple[LockedFile, ...]
    model: str
    inputs: tuple[str, ...]
    identity: Identity
    scheme: str = ""
    origin: Origin | None = None
    folded_from: str = ""

    @property
    def name(self) -> str:
        """What messages call it: the path of its first file."""
        return self.files[0].path

    def receipt(self, file: LockedFile) -> Receipt:
        """What a receipt beside the file would say."""
        return Receipt(self.identity, file.files, file.format, {}, self.folded_from)


@dataclass(frozen=True, slots=True)
class Lock:
    """The entries of a lock, sorted by name. No two share a file."""

    entries: tuple[Entry, ...] = ()

    def with_entry(self, new: Entry) -> Lock:
        """The lock in which `new` is recorded: its files leave other entries, and equal conversions become one."""
        taken = {file.path for file in new.files}
        files, kept = list(new.files), []
        for old in self.entries:
            rest = tuple(file for file in old.files if file.path not in taken)
            if dataclasses.replace(old, files=new.files) == new:
                files += rest
            elif rest:
                kept.append(dataclasses.replace(old, files=rest))
        merged = dataclasses.replace(new, files=tuple(sorted(files, key=lambda file: file.path)))
        return Lock(tuple(sorted([*kept, merged], key=lambda entry: entry.name)))


# ---------------------------------------------------------------------------------------------------------------------
# writing


def write_lock(path: str | PathLike[str], lock: Lock) -> None:
    """Write the lock, whole or not at all; an older one at `path` is replaced.

    Raises:
        StorageError: the file system said no.
    """
    write_bytes(path, spell(lock).encode("ascii"), force=True)


def spell(lock: Lock) -> str:
    """The text of the lock."""
    return "\n".join(line for line, _ in _lines(lock)) + "\n"


def line_numbers(lock: Lock) -> dict[tuple[Any, ...], int]:
    """The line of the text, from 1, at which an item stands.

    Keys are (index of the entry, field) and (index of the entry, field, name or index of the item).
    """
    return {place[1:]: number for number, (_, place) in enumerate(_lines(lock), 1) if len(place) > 2}


def _lines(lock: Lock) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """Every line with the place of what it opens: ("entries", 0, "tensors", "fc.weight")."""
    return _spelled({"zero.lock": _VERSION, "entries": [_entry_json(entry) for entry in lock.entries]}, (), "")


def _spelled(value: Any, place: tuple[Any, ...], opening: str) -> Iterator[tuple[str, tuple[Any, ...]]]:
    indent = " " * len(place)
    if not isinstance(value, dict | list) or not value or len(place) >= _EXPANDED:
        yield f"{indent}{opening}{json.dumps(value, sort_keys=True, allow_nan=False)}", place
        return
    yield f"{indent}{opening}{'{' if isinstance(value, dict) else '['}", place
    keys = (sorted(value) if place else list(value)) if isinstance(value, dict) else list(range(len(value)))
    for key in keys:
        label = f"{json.dumps(key)}: " if isinstance(value, dict) else ""
        lines = list(_spelled(value[key], (*place, key), label))
        if key != keys[-1]:
            lines[-1] = f"{lines[-1][0]},", lines[-1][1]
        yield from lines
    yield f"{indent}{'}' if isinstance(value, dict) else ']'}", ()


def _entry_json(entry: Entry) -> dict[str, Any]:
    origin = entry.origin
    return {
        **identity_json(entry.identity),
        "edits": [_edit_json(edit) for edit in entry.identity.edits],
        "files": {file.path: _file_json(file) for file in entry.files},
        "inputs": list(entry.inputs),
        "model": entry.model,
        **({"scheme": entry.scheme} if entry.scheme else {}),
        **({ORIGIN: {"path": origin.path, "sha256": list(origin.sha256)}} if origin else {}),
        **({"folded_from": entry.folded_from} if entry.folded_from else {}),
    }


def _edit_json(edit: Edit) -> dict[str, Any]:
    source = None if edit.source is None else list(edit.source)
    return {"applied": edit.applied, "kind": edit.rewrite, "site": edit.target, "source": source}


def wordless(identity: Identity) -> Identity:
    """The identity as a lock holds it: edits without their sentences."""
    edits = (dataclasses.replace(edit, action="", reason="") for edit in identity.edits)
    return dataclasses.replace(identity, edits=tuple(edits))


def _file_json(file: LockedFile) -> dict[str, Any]:
    return {"format": file.format, **files_json(file.files), **({"opset": file.opset} if file.opset else {})}


# ---------------------------------------------------------------------------------------------------------------------
# reading


def read_lock(path: str | PathLike[str]) -> Lock:
    """The lock in the file at `path`.

    Raises:
        MalformedError: it is no lock, contradicts itself, or holds an unresolved merge.
        StorageError: it cannot be read.
    """
    return parse_lock(read_limited(path, SIZE_LIMIT, "lock"), str(path))


def parse_lock(data: bytes, where: str = NAME) -> Lock:
    """The lock that a text spells; the inverse of `spell`. Errors as `read_lock`."""
    if conflict := _CONFLICT.search(data):
        raise MalformedError(
            "the lock holds an unresolved merge conflict",
            where=f"{where}, line {data.count(bytes([10]), 0, conflict.start()) + 1}",
            got=brief(conflict[0].decode("ascii").strip()),
            fix="Take one side (`git checkout --ours` or `--theirs`), then `zero-convert lock --update`.",
        )
    top = Fields.of(parse_json(data, where, lines=True), where, ("zero.lock", "entries"))
    version = top.raw["zero.lock"]
    if type(version) is not int or version not in _READ:
        raise MalformedError(
            "the lock has a version that is not known here",
            where=where,
            got=brief(version),
            expected=" or ".join(map(str, _READ)),
            fix="Use the version of zero-convert that wrote it.",
        )
    rows = top.take("entries", lambda value: isinstance(value, list), "a list")
    if len(rows) > ENTRY_LIMIT:
        raise MalformedError("too many entries", where=where, got=f"{len(rows)}", expected=f"at most {ENTRY_LIMIT}")
    entries = [_entry(row, f"{where}, entry {number}", version) for number, row in enumerate(rows, 1)]
    owners: dict[str, int] = {}
    for number, entry in enumerate(entries, 1):
        for file in entry.files:
            if owners.setdefault(file.path, number) != number:
                raise MalformedError(
                    "two entries claim one file",
                    where=f"{where}, entries {owners[file.path]} and {number}",
                    got=brief(file.path),
                    fix="Remove one of them; a merge may have kept both.",
                )
    return Lock(tuple(sorted(entries, key=lambda entry: entry.name)))


def _entry(row: object, where: str, version: int) -> Entry:
    complete = {"scheme": "", **row} if isinstance(row, dict) else row
    optional = ("folded_from", ORIGIN, *IDENTITY_OPTIONAL) if version > 1 else ()
    fields = Fields.of(complete, where, (*IDENTITY_FIELDS, "files", "inputs", "model", "scheme"), optional)
    files = fields.mapping("files", lambda value: isinstance(value, dict), "an object")
    if not files:
        raise MalformedError("an entry has no file", where=where)
    locked = tuple(_file(path, files[path], where) for path in sorted(files))
    where = f"{where} ({brief(locked[0].path)})"
    own = {name: fields.raw[name] for name in (*IDENTITY_FIELDS, *IDENTITY_OPTIONAL) if name in fields.raw}
    identity = wordless(identity_from_json(own, where, _read_edit if version > 1 else read_edit))
    model = fields.text("model")
    ref = ModelRef.named(model)
    if ref.canonical != identity.recipe.model or is_absolute(ref.path):
        raise MalformedError(
            "the model of an entry is not that of its recipe",
            where=where,
            got=brief(model),
            expected=f"{brief(identity.recipe.model)}, with a folder relative to the lock's",
        )
    scheme = SchemeRef(fields.text("scheme") or identity.recipe.scheme)
    if scheme.canonical != identity.recipe.scheme or (scheme.runs_code and is_absolute(scheme.text)):
        raise MalformedError(
            "the scheme of an entry is not that of its recipe",
            where=where,
            got=brief(scheme.text),
            expected=f"{brief(identity.recipe.scheme)}, with a folder relative to the lock's",
        )
    inputs = fields.take("inputs", is_texts, "a list of shapes")
    origin = _origin(fields, identity.recipe) if ORIGIN in fields.raw else None
    folded_from = fields.digest("folded_from") if "folded_from" in fields.raw else ""
    if folded_from and any(file.format != "onnx" for file in locked):
        raise MalformedError("only ONNX files are folded", where=where, got=", ".join(file.path for file in locked))
    rules = scheme.text if scheme.runs_code else ""
    return Entry(locked, model, tuple(inputs), identity, rules, origin, folded_from)


def _read_edit(obj: object, where: str) -> Edit:
    fields = Fields.of(obj, where, ("applied", "kind", "site", "source"))
    applied = fields.take("applied", lambda value: isinstance(value, bool), "true or false")
    return Edit(fields.text("kind"), fields.text("site"), "", applied, source=read_source(fields))


def _origin(entry: Fields, recipe: Recipe) -> Origin:
    fields = Fields.of(entry.raw[ORIGIN], f"{entry.where}, {ORIGIN}", ("path", "sha256"))
    path, digests = fields.text("path"), fields.take("sha256", is_texts, "a list of digests")
    if not path or is_absolute(path):
        raise MalformedError(
            "the path of a model file is not one that a lock may hold",
            where=fields.where,
            got=brief(path),
            expected="a path relative to the lock's folder",
        )
    if not digests or not all(map(is_digest, digests)):
        raise MalformedError("a digest is malformed", where=fields.where, expected="64 hexadecimal digits")
    if recipe.files and tuple(digests) != recipe.files:
        raise MalformedError(
            "it contradicts itself: the recipe names another file",
            where=fields.where,
            got=", ".join(recipe.files),
            expected=", ".join(digests),
        )
    return Origin(path, tuple(digests))


def _file(path: str, row: object, where: str) -> LockedFile:
    if reason := strange_path(path):
        raise MalformedError("a file's path is not one that a lock may hold", where=where, got=brief(path), fix=reason)
    fields = Fields.of(row, f"{where}, file {brief(path)}", ("format", "sha256", "size"), ("opset", *ROLES))
    opset = fields.size("opset") if "opset" in fields.raw else 0
    return LockedFile(path, fields.text("format"), read_files(fields), opset)


def strange_path(path: str) -> str:
    """Why a lock cannot hold this path, or "": it names a file below the lock's folder, alike on every system."""
    if not is_text(path):
        return "It holds control characters."
    if not path or is_absolute(path):
        return "It has to be relative to the lock's folder."
    parts = path.split("/")
    if "\\" in path or "" in parts or "." in parts or ".." in parts:
        return "It has to be spelled folder/name, below the lock's folder."
    return ""


# ---------------------------------------------------------------------------------------------------------------------
# two writers at once


def record(path: str | PathLike[str], *entries: Entry) -> Lock:
    """The lock at `path` after the entries were recorded in it; a lock that is not there yet is made.

    Raises:
        MalformedError, StorageError: as `read_lock` and `write_lock`.
    """
    with alone(os.path.dirname(os.path.realpath(path))):
        lock = read_lock(path) if os.path.lexists(path) else Lock()
        for entry in entries:
            lock = lock.with_entry(entry)
        write_lock(path, lock)
    return lock


def find(lock: Lock, path: str) -> tuple[Entry, LockedFile] | None:
    """The file of the lock with this path, or else the only one of this name; None if there is none."""
    every = [(entry, file) for entry in lock.entries for file in entry.files]
    exact = [pair for pair in every if pair[1].path == path]
    alike = [pair for pair in every if PurePosixPath(pair[1].path).name == PurePosixPath(path).name]
    found = exact or alike
    return found[0] if len(found) == 1 else None
