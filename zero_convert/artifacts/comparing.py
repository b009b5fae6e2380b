"""What moved between two identities of one conversion: in the order of cause, so that the first line says why.

    source     the file that was converted, the model's class, or the fingerprint of its structure
    recipe     a field
    edit       one change of the architecture: its kind and site, whether it was applied, what it is made from
    tensor     missing, extra, its dtype, shape or values
    weights    the digest over all tensors
    architecture   the digest of the network, where both sides have one
    file       size or SHA-256

Compares records; reads nothing and knows no torch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from zero_convert.formats.digests import FileDigest, Leaf, brief, canonical_json
from zero_convert.formats.strict_json import is_digest
from zero_convert.options import keys
from zero_convert.records import Edit, Recipe

from .receipt import Identity, recipe_json

_SOURCE = "source"  # of a recipe's fields the one that comes with the model


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing that moved.

    Attributes:
        kind: "source", "recipe", "edit", "tensor", "weights", "architecture" or "file".
        name: the field, edit, tensor or path.
        what: "missing", "extra" or what of it moved: "value", "values", "dtype", "shape", "sha256", …
        got: now, or in the second of two.
        expected: in the lock, or in the first of two.
        place: field and item of the lock's entry that it is about.
    """

    kind: str
    name: str
    what: str
    got: str
    expected: str
    place: tuple[Any, ...] = ()

    @property
    def subject(self) -> str:
        """ "tensor 'fc.weight': values"."""
        return f"{self.kind} {brief(self.name)}: {self.what}" if self.name else f"{self.kind}: {self.what}"

    def __str__(self) -> str:
        return f"{self.subject}: got {short(self.got)}, expected {short(self.expected)}"


def short(text: str) -> str:
    """The first 16 of a digest's digits; people compare no more."""
    return f"{text[:16]}…" if is_digest(text) else text


def compare(got: Identity, expected: Identity) -> list[Difference]:
    """Every difference between two identities, causes first."""
    recipes = list(_recipes(recipe_json(got.recipe), recipe_json(expected.recipe)))
    return [
        *(difference for difference in recipes if difference.kind == "source"),
        *_one("source", "", "fingerprint", got.fingerprint, expected.fingerprint, ("fingerprint",)),
        *(difference for difference in recipes if difference.kind != "source"),
        *_edits(got.edits, expected.edits),
        *compare_tensors(got.tensors, expected.tensors),
        *_one("weights", "", "digest", got.weights_digest, expected.weights_digest, ("weights_digest",)),
        *_architectures(got.architecture_digest, expected.architecture_digest),
    ]


def _architectures(got: str, expected: str) -> list[Difference]:
    """What was recorded before there was such a digest is not compared."""
    if not got or not expected:
        return []
    return _one("architecture", "", "digest", got, expected, ("architecture_digest",))


def compare_tensors(got: Mapping[str, Leaf], expected: Mapping[str, Leaf]) -> list[Difference]:
    """Tensors that are missing or extra, or whose dtype, shape or values moved, by name."""
    return [
        difference
        for name in sorted(got.keys() | expected.keys())
        for difference in _tensor(name, got.get(name), expected.get(name))
    ]


def compare_digests(name: str, got: str, expected: str, field: str) -> list[Difference]:
    """A weights digest besides that of the tensors, which a lock's entry holds in this field."""
    return _one("weights", name, "digest", got, expected, (field,))


def compare_files(path: str, got: Sequence[FileDigest], expected: Sequence[FileDigest]) -> list[Difference]:
    """Size and SHA-256 of each file of the artifact at the path that both sides have."""
    theirs, place, found = {file.path(path): file for file in expected}, ("files", path), []
    for own in got:
        name = own.path(path)
        if other := theirs.get(name):
            found += _one("file", name, "size", str(own.size), str(other.size), place)
            found += _one("file", name, "sha256", own.sha256, other.sha256, place)
    return found


def _recipes(got: Mapping[str, Any], expected: Mapping[str, Any]) -> Iterator[Difference]:
    for field in dict.fromkeys(("model", *keys(Recipe).values())):  # the scheme before its options
        kind = "source" if field == _SOURCE else "recipe"
        one, other = got.get(field), expected.get(field)
        if isinstance(one, dict) and isinstance(other, dict):  # options, arguments, ties: name the one that moved
            for key in sorted(one.keys() | other.keys()):
                yield from _one(kind, f"{field}.{key}", "value", _of(one, key), _of(other, key), ("recipe", field))
        else:
            yield from _one(kind, field, "value", _of(got, field), _of(expected, field), ("recipe", field))


def _of(values: Mapping[str, Any], key: str) -> str:
    return canonical_json(values[key]) if key in values else "nothing"


def _edits(got: Sequence[Edit], expected: Sequence[Edit]) -> Iterator[Difference]:
    """Edits are told by rewrite and target, and the n-th of the same by n; how they are worded does not matter."""
    ours, theirs = _numbered(got), _numbered(expected)
    places = {key: index for index, key in enumerate(theirs)}
    moved = False
    for key in [*theirs, *(key for key in ours if key not in theirs)]:
        place = ("edits", places[key]) if key in places else ("edits",)
        name = f"{key[0]} {key[1]}" + (f" ({key[2] + 1})" if key[2] else "")
        for difference in _edit(name, ours.get(key), theirs.get(key), place):
            moved = True
            yield difference
    if not moved and list(ours) != list(theirs):
        index = next(i for i, (one, other) in enumerate(zip(ours, theirs, strict=True)) if one != other)
        one, other = (f"{edits[index].rewrite} {edits[index].target}" for edits in (got, expected))
        yield Difference("edit", str(index), "order", one, other, ("edits", index))


def _numbered(edits: Sequence[Edit]) -> dict[tuple[str, str, int], Edit]:
    counts: Counter[tuple[str, str]] = Counter()
    found = {}
    for edit in edits:
        found[edit.rewrite, edit.target, counts[edit.rewrite, edit.target]] = edit
        counts[edit.rewrite, edit.target] += 1
    return found


def _edit(name: str, got: Edit | None, expected: Edit | None, place: tuple[Any, ...]) -> list[Difference]:
    if got is None or expected is None:
        one, other = (_made(side) if side else "no such edit" for side in (got, expected))
        return [Difference("edit", name, "missing" if got is None else "extra", one, other, place)]
    found = _one("edit", name, "applied", _yes(got.applied), _yes(expected.applied), place)
    if found or got.source is None or expected.source is None:
        return found
    return _one("edit", name, "source", _spelled(got.source), _spelled(expected.source), place)


def _made(edit: Edit) -> str:
    """ "applied, from conv1 64"."""
    source = f", from {_spelled(edit.source)}" if edit.source else ""
    return f"{'applied' if edit.applied else 'declined'}{source}"


def _spelled(source: Sequence[str]) -> str:
    return " ".join(source) or "nothing"


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _tensor(name: str, got: Leaf | None, expected: Leaf | None) -> list[Difference]:
    place = ("tensors", name) if expected else ("tensors",)
    if got is None or expected is None:
        one, other = (f"{side.dtype} {list(side.shape)}" if side else "no such tensor" for side in (got, expected))
        return [Difference("tensor", name, "missing" if got is None else "extra", one, other, place)]
    return (
        _one("tensor", name, "dtype", got.dtype, expected.dtype, place)
        or _one("tensor", name, "shape", str(list(got.shape)), str(list(expected.shape)), place)
        or _one("tensor", name, "values", got.digest, expected.digest, place)
    )


def _one(kind: str, name: str, what: str, got: str, expected: str, place: tuple[Any, ...]) -> list[Difference]:
    return [] if got == expected else [Difference(kind, name, what, got, expected, place)]
