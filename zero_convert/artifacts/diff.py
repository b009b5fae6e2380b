"""What differs between two things that stand for weights: artifacts, receipts, entries of a lock, whole locks.

    FILE.safetensors        an artifact, of any origin: recipe if it has one, tensors with their values
    FILE.receipt.json       what an artifact was
    zero.lock               every entry; beside something else the entry of that file
    zero.lock#FILE          one entry

Reads, writes nothing, no torch: values are compared with numpy, element by element and by their bits, so that -0 is
not 0 and a NaN is itself. Which types have numbers to subtract is said in `_types`.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from zero_convert.errors import MalformedError, UsageError
from zero_convert.formats import naming
from zero_convert.formats.digests import Written, brief, parse_json
from zero_convert.formats.dtypes import DTYPES
from zero_convert.formats.strict_json import read_limited
from zero_convert.records import Edit, Recipe

from .comparing import Difference, compare, compare_files
from .lock import SIZE_LIMIT, Entry, Lock, find, parse_lock
from .receipt import Identity, Receipt, architecture_from_metadata, receipt_from_json, recipe_from_metadata

Pieces = Callable[[], Iterator[memoryview]]  # the bytes of one tensor, front to back


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two.

    Attributes:
        name: as it was typed.
        written: digests of its files and tensors.
        recipe, fingerprint, edits: None where it does not say.
        architecture: its digest, "" where it does not say.
        values: tensor name → its bytes; empty where only digests are known.
    """

    name: str
    written: Written
    recipe: Recipe | None
    fingerprint: str | None
    edits: tuple[Edit, ...] | None
    values: Mapping[str, Pieces]
    architecture: str = ""


@dataclass(frozen=True, slots=True)
class Elements:
    """How far one tensor's values moved, where dtype and shape are the same.

    Attributes:
        differing: elements whose bits differ, of `count`.
        largest: max |difference| over those where it is a finite number; None where there is none, or the type has
            no numbers.
        special: of the differing ones those where it is not finite.
    """

    count: int
    differing: int
    largest: float | None
    special: int


@dataclass(frozen=True, slots=True)
class Comparison:
    """What differs from the first to the second. Nothing, where `differences` is empty and no entry is alone.

    Attributes:
        name: of the entry, or "" where two things were named.
        differences: causes first; `expected` is of the first side, `got` of the second.
        elements: tensor → how far it moved; for changed values that both sides hold.
        tensors: how many the two sides have.
    """

    name: str
    differences: tuple[Difference, ...]
    elements: Mapping[str, Elements]
    tensors: tuple[int, int]

    def counts(self) -> Counter[tuple[str, str]]:
        """How many differences there are of each (kind, what)."""
        return Counter((one.kind, one.what) for one in self.differences)


def diff(first: str, second: str) -> tuple[Comparison, ...]:
    """What differs: one comparison, or for two whole locks one for each entry that is not the same in both.

    Raises:
        MalformedError: one of the two is nothing that can be read here, or is damaged.
        StorageError: it cannot be read.
        UsageError: a lock has no entry for the other one.
    """
    one, two = _opened(first), _opened(second)
    if isinstance(one, Lock) and isinstance(two, Lock):
        return tuple(_lock_differences(one, two))
    if isinstance(one, Lock):
        one = _entry_for(one, first, second)
    if isinstance(two, Lock):
        two = _entry_for(two, second, first)
    found = _compare(one, two)
    return (found,) if found.differences else ()


# ---------------------------------------------------------------------------------------------------------------------
# what is compared


def _opened(name: str) -> Side | Lock:
    path, sign, inner = name.rpartition("#")
    if sign and not os.path.lexists(name) and os.path.isfile(path):
        lock = _opened(path)
        if not isinstance(lock, Lock):
            raise UsageError("only a lock has entries", where=name, got=brief(path), expected="zero.lock#FILE")
        return _entry_for(lock, path, inner)
    if format := naming.named_format(name):
        return _artifact(name, format)
    data = read_limited(name, SIZE_LIMIT, "file")
    if not data.lstrip().startswith((b"{", b"<")):  # a lock with a merge conflict may start with its mark
        raise MalformedError(
            "this is nothing that diff can read",
            where=name,
            got=f"a file that starts with {data[:8]!r}",
            expected=f"a lock, a receipt, or a file named {' or '.join(f'*.{known}' for known in naming.FORMATS)}",
        )
    if b'"zero.lock"' in data[:64] or Path(name).suffix == ".lock":
        return parse_lock(data, name)
    receipt = receipt_from_json(parse_json(data, name), name)
    return _digests_only(name, receipt)


def _artifact(name: str, format: str) -> Side:
    reader = naming.load(format)
    written: Written = reader.file_digests(name)
    metadata = reader.read_metadata(name)
    recipe = recipe_from_metadata(metadata, name)
    values = reader.tensor_pieces(name) if hasattr(reader, "tensor_pieces") else {}
    return Side(name, written, recipe, None, None, values, architecture_from_metadata(metadata, name))


def _entry_for(lock: Lock, name: str, other: str) -> Side:
    """The entry of the file that the other side is, or stands for."""
    wanted = other.removesuffix(naming.RECEIPT_SUFFIX)
    found = find(lock, Path(os.path.relpath(wanted, Path(name).parent)).as_posix()) or find(lock, wanted)
    if found is None:
        known = [file.path for entry in lock.entries for file in entry.files]
        raise UsageError(
            "the lock has no entry for this file",
            where=name,
            got=brief(wanted),
            expected=", ".join(known[:6]) or "no entry at all",
            fix="Name one: zero.lock#FILE.",
        )
    entry, file = found
    return _digests_only(f"{name}#{file.path}", entry.receipt(file))


def _digests_only(name: str, receipt: Receipt) -> Side:
    identity = receipt.identity
    known = identity.recipe, identity.fingerprint, identity.edits
    return Side(name, receipt.written, *known, {}, identity.architecture_digest)


# ---------------------------------------------------------------------------------------------------------------------
# comparing


def _lock_differences(one: Lock, two: Lock) -> Iterator[Comparison]:
    """By file: entries that are in one of the locks only, and those that moved."""
    sides = [{file.path: (entry, file) for entry in lock.entries for file in entry.files} for lock in (one, two)]
    for path in sorted(sides[0].keys() | sides[1].keys()):
        old, new = sides[0].get(path), sides[1].get(path)
        if old is None or new is None:
            what, got, expected = ("extra", "an entry", "none") if old is None else ("missing", "none", "an entry")
            yield Comparison(path, (Difference("entry", path, what, got, expected),), {}, (0, 0))
            continue
        named = [_digests_only(path, entry.receipt(file)) for entry, file in (old, new)]
        found = _compare(*named)
        ways = [
            Difference("entry", path, _CALLED.get(name, name), _said(new[0], name), _said(old[0], name))
            for name in ("model", "inputs", "origin", "folded_from")
            if getattr(new[0], name) != getattr(old[0], name)
        ]
        if old[1].opset != new[1].opset:
            ways.append(Difference("file", path, "opset", str(new[1].opset), str(old[1].opset)))
        if ways or found.differences:
            yield replace(found, name=path, differences=(*ways, *found.differences))


_CALLED = {"origin": "from", "folded_from": "folded from"}


def _said(entry: Entry, name: str) -> str:
    if name == "origin":
        return f"{brief(entry.origin.path)} {' '.join(entry.origin.sha256)}" if entry.origin else "no file"
    return str(getattr(entry, name)) or "nothing"


def _compare(one: Side, two: Side) -> Comparison:
    found = []
    if (one.recipe is None) != (two.recipe is None):
        what = "extra" if one.recipe is None else "missing"
        got, expected = ("none" if side.recipe is None else "a recipe" for side in (two, one))
        found.append(Difference("recipe", "", what, got, expected))
    found += compare(_identity(two, one), _identity(one, two))
    found += compare_files("", two.written.files[:1], one.written.files[:1])
    elements = {
        each.name: _elements(each.name, one, two)
        for each in found
        if (each.kind, each.what) == ("tensor", "values") and each.name in one.values and each.name in two.values
    }
    return Comparison("", tuple(found), elements, (len(one.written.tensors), len(two.written.tensors)))


def _identity(side: Side, other: Side) -> Identity:
    """What a side says; of what it does not say, what the other says."""
    nothing = Recipe(model="", scheme="", ties={}, source="")
    both = side.recipe is not None and other.recipe is not None
    return Identity(
        recipe=side.recipe if both and side.recipe is not None else nothing,
        fingerprint=(side.fingerprint if side.fingerprint is not None else other.fingerprint) or "",
        edits=(side.edits if side.edits is not None else other.edits) or (),
        tensors=side.written.tensors,
        weights_digest=side.written.weights_digest,
        architecture_digest=side.architecture,
    )


def _elements(name: str, one: Side, two: Side) -> Elements:
    leaf = one.written.tensors[name]
    count = differing = special = 0
    largest: float | None = None
    for old, new in _paired(one.values[name](), two.values[name]()):
        bits, numbers = _types(leaf.dtype)
        apart = np.frombuffer(old, bits) != np.frombuffer(new, bits)
        count, differing = count + apart.size, differing + int(apart.sum())
        if numbers is None or not apart.any():
            continue
        distance = _distance(*(np.frombuffer(side, numbers)[apart] for side in (old, new)))
        finite = np.isfinite(distance)
        special += int((~finite).sum())
        if finite.any():
            largest = max(largest or 0.0, float(distance[finite].max()))
    return Elements(count, differing, largest, special)


def _paired(one: Iterator[memoryview], two: Iterator[memoryview]) -> Iterator[tuple[memoryview, memoryview]]:
    """The bytes of both in pieces of the same length, which end where elements end."""
    old, new = next(one, memoryview(b"")), next(two, memoryview(b""))
    while size := min(len(old), len(new)):
        yield old[:size], new[:size]
        old, new = old[size:] or next(one, memoryview(b"")), new[size:] or next(two, memoryview(b""))


def _types(dtype: str) -> tuple[Any, Any]:
    """numpy's type of an element's bits, and that of its number; None for what is compared by its bits alone."""
    row = DTYPES.get(dtype)
    numbers = row.array if row is not None and row.kind in ("float", "int", "uint", "complex") else None
    return ("u1", None) if numbers is None else (f"<u{numbers.itemsize}", numbers)


def _distance(old: Any, new: Any) -> Any:
    """|new - old| in float64; of integers exact before it is rounded."""
    if old.dtype.kind in "iu":
        high, low = np.maximum(old, new), np.minimum(old, new)
        return (high.astype("<u8") - low.astype("<u8")).astype("<f8")
    wide = "<c16" if old.dtype.kind == "c" else "<f8"
    with np.errstate(invalid="ignore", over="ignore"):
        return np.abs(new.astype(wide) - old.astype(wide))
