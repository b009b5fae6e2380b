"""JSON objects that others wrote, believed only as far as they were checked: what receipts, recipes and locks share.

Knows digests, no torch, and nothing of what the objects are for.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any

from ..errors import MalformedError
from .digests import FileDigest, Leaf, brief, is_plain_text
from .naming import ROLES
from .spans import opened, read_span, size_of


def read_limited(path: str | PathLike[str], limit: int, what: str) -> bytes:
    """The bytes of the file at `path`, which is a `what`.

    Raises:
        MalformedError: it has more than `limit` bytes.
        StorageError: it is no regular file, or cannot be read.
    """
    with opened(path, what) as file:
        if (size := size_of(file)) > limit:
            raise MalformedError(f"too large for a {what}", where=str(path), expected=f"at most {limit} bytes")
        return read_span(file, 0, size, str(path), f"the {what}")


@dataclass(frozen=True, slots=True)
class Fields:
    """A JSON object with the expected keys and no others; every value is checked as it is taken."""

    raw: dict[str, Any]
    where: str

    @classmethod
    def of(cls, obj: object, where: str, names: Iterable[str], optional: Iterable[str] = ()) -> Fields:
        names = sorted(names)
        if not isinstance(obj, dict):
            raise wrong(where, "not an object", obj, "an object with " + ", ".join(names))
        if missing := [name for name in names if name not in obj]:
            raise wrong(where, "a field is missing", obj, missing[0])
        every = sorted({*names, *optional})
        if unknown := [name for name in obj if name not in every]:
            raise wrong(where, "a field is unknown", unknown[0], ", ".join(every))
        return cls(obj, where)

    def take(self, name: str, check: Callable[[object], bool], expected: str) -> Any:
        value = self.raw[name]
        if not check(value):
            raise wrong(self.where, f"the field {name!r} is malformed", value, expected)
        return value

    def text(self, name: str) -> str:
        return str(self.take(name, is_text, "text without control characters"))

    def digest(self, name: str) -> str:
        return str(self.take(name, is_digest, "64 hexadecimal digits"))

    def size(self, name: str) -> int:
        return int(self.take(name, is_size, "an integer from 0 to 2**63 - 1"))

    def mapping(self, name: str, check: Callable[[object], bool], expected: str) -> dict[str, Any]:
        value = self.raw[name]
        if not isinstance(value, dict):
            raise wrong(self.where, f"the field {name!r} is malformed", value, "an object")
        for key, item in value.items():
            if not is_text(key) or not check(item):
                raise wrong(self.where, f"the field {name!r} is malformed at {brief(key)}", item, expected)
        return value


def is_text(value: object) -> bool:
    return isinstance(value, str) and is_plain_text(value)


def is_texts(value: object) -> bool:
    return isinstance(value, list | tuple) and all(map(is_text, value))


def is_digest(value: object) -> bool:
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None


def is_size(value: object) -> bool:
    return type(value) is int and 0 <= value < 1 << 63


def is_shape(value: object) -> bool:
    return isinstance(value, list) and all(map(is_size, value))


def is_option(value: object) -> bool:
    return isinstance(value, int | float) or is_text(value)


def is_value(value: object, levels: int = 16) -> bool:
    """A plain value, nested no deeper than `levels`."""
    if isinstance(value, dict):
        return all(map(is_text, value)) and is_value(list(value.values()), levels)
    if isinstance(value, list):
        return levels > 0 and all(is_value(item, levels - 1) for item in value)
    return value is None or is_option(value)


def read_leaf(obj: object, where: str) -> Leaf:
    """The leaf that a JSON object spells; raises MalformedError."""
    fields = Fields.of(obj, where, ("dtype", "shape", "digest"))
    shape = fields.take("shape", is_shape, "a list of sizes")
    return Leaf(fields.text("dtype"), tuple(shape), fields.digest("digest"))


def files_json(files: Sequence[FileDigest]) -> dict[str, Any]:
    """SHA-256 and size of an artifact; those of each file beside it stand under its role."""
    own, *beside = files
    return {"sha256": own.sha256, "size": own.size, **{file.role: files_json([file]) for file in beside}}


def read_files(fields: Fields) -> tuple[FileDigest, ...]:
    """The inverse of `files_json`; raises MalformedError."""
    found = {"": fields}
    for role in ROLES:
        if role in fields.raw:
            found[role] = Fields.of(fields.raw[role], f"{fields.where}, {role}", ("sha256", "size"))
    return tuple(FileDigest(own.digest("sha256"), own.size("size"), role) for role, own in found.items())


def wrong(where: str, what: str, got: object, expected: str) -> MalformedError:
    return MalformedError(what, where=where, got=brief(got), expected=expected)
