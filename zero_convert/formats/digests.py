"""Names for bytes: SHA-256, the weights digest `zc1`, canonical JSON and its strict reader.

    leaf   = SHA-256( b"zc1\\0" + J + b"\\0" + data )     J = {"dtype":"F32","name":"fc.bias","shape":[10]}
    digest = SHA-256( b"zc1-root\\0" + N as 8 bytes, little-endian + the N raw leaves )

with the leaves in order of the tensors' names as UTF-8 bytes.

`data` is little-endian, row-major and contiguous, `dtype` is spelled as safetensors spells it. This file knows
no file format and no tensor library; it opens a file only to hash it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import TYPE_CHECKING, Any, NoReturn

from ..errors import MalformedError
from .naming import SUFFIXES
from .spans import opened, read_pieces, size_of

if TYPE_CHECKING:
    from typing_extensions import Buffer


@dataclass(frozen=True, slots=True)
class Leaf:
    """One stored tensor: safetensors dtype, shape and `zc1` leaf digest in hex."""

    dtype: str
    shape: tuple[int, ...]
    digest: str


@dataclass(frozen=True, slots=True)
class FileDigest:
    """One file of an artifact.

    Attributes:
        sha256: of its bytes, hex.
        size: in bytes.
        role: "" is the artifact itself; another file has the word under which receipts and locks hold it, "data".
        name: of a file beside the artifact that is not called as its role says.
    """

    sha256: str
    size: int
    role: str = ""
    name: str = ""

    def path(self, artifact: str | PathLike[str]) -> str:
        """Where it lies if the artifact lies there."""
        place = os.fspath(artifact)
        return os.path.join(os.path.dirname(place), self.name) if self.name else f"{place}{SUFFIXES[self.role]}"


class Artifact:
    """What stands for an artifact with its `files`: itself, then those beside it that hold its tensors."""

    files: tuple[FileDigest, ...]

    @property
    def sha256(self) -> str:
        """Of the artifact itself, hex."""
        return self.files[0].sha256

    @property
    def size(self) -> int:
        """Of the artifact itself, in bytes."""
        return self.files[0].size


@dataclass(frozen=True)
class Written(Artifact):
    """What an artifact is, measured from the bytes that went by.

    Attributes:
        files: the artifact itself, then the files beside it that hold its tensors.
        tensors: name → dtype, shape and leaf digest, in the order of the files.
        weights_digest: `zc1` over all tensors, hex.
    """

    files: tuple[FileDigest, ...]
    tensors: Mapping[str, Leaf]
    weights_digest: str


def canonical_json(obj: Any) -> str:
    """The one JSON spelling of `obj`: sorted keys, no spaces, ASCII. NaN and infinities raise ValueError."""
    return json.dumps(obj, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def parse_json(data: bytes, where: str, lines: bool = False) -> Any:
    """The value of a JSON text from an untrusted file.

    Stricter than `json.loads`: UTF-8 only, no key twice in one object, no NaN or infinity; endless nesting and
    numbers of thousands of digits are refused, too.

    Args:
        data: the text.
        where: file and part of it, for the message.
        lines: people read this text, so the message names the line.
    Raises:
        MalformedError: it is not such a text.
    """

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(items)
        if len(found) != len(items):
            seen: set[str] = set()
            twice = next(key for key, _ in items if key in seen or seen.add(key))  # type: ignore[func-returns-value]
            raise MalformedError("a JSON key appears twice", where=where, got=brief(twice), expected="unique keys")
        return found

    def constant(spelling: str) -> NoReturn:
        raise MalformedError("a number is not JSON", where=where, got=brief(spelling), expected="a finite number")

    def number(spelling: str) -> float:
        value = float(spelling)
        return constant(spelling) if value in (float("inf"), float("-inf")) else value

    try:
        return json.loads(data.decode("utf-8"), object_pairs_hook=pairs, parse_constant=constant, parse_float=number)
    except (ValueError, RecursionError) as error:
        detail, _, place = str(error).partition(": line ")
        if lines and place:
            where = f"{where}, line {place.partition(' ')[0]}"
        raise MalformedError("the text is not JSON", where=where, got=detail, expected="one JSON value") from None


def brief(value: object) -> str:
    """`repr(value)` for a message: short and without control characters, however large or deep a hostile value is."""
    return _BRIEF.repr(value)


_BRIEF = reprlib.Repr()
_BRIEF.maxstring = _BRIEF.maxother = 80


def is_plain_text(text: str) -> bool:
    """Whether `text` holds no control character and no half of a surrogate pair: safe to print, and UTF-8."""
    return _UNPRINTABLE.search(text) is None


_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


def leaf_hasher(name: str, dtype: str, shape: Sequence[int]) -> hashlib._Hash:
    """A SHA-256 that has taken in everything of a leaf before its data; feed it the data next."""
    header = canonical_json({"dtype": dtype, "name": name, "shape": list(shape)})
    return hashlib.sha256(b"zc1\0" + header.encode("ascii") + b"\0")


def leaf_digest(name: str, dtype: str, shape: Sequence[int], *chunks: Buffer) -> bytes:
    """The raw 32 bytes of the `zc1` leaf of one tensor, its data given in one or more pieces."""
    hasher = leaf_hasher(name, dtype, shape)
    for chunk in chunks:
        hasher.update(chunk)
    return hasher.digest()


def weights_digest(leaves: Mapping[str, bytes]) -> str:
    """The `zc1` digest, hex, of all tensors of a state dict (ties resolved to the first name in byte order).

    Args:
        leaves: tensor name → raw leaf digest, in any order.
    """
    root = hashlib.sha256(b"zc1-root\0" + len(leaves).to_bytes(8, "little"))
    for name in sorted(leaves, key=lambda name: name.encode("utf-8", "surrogatepass")):
        root.update(leaves[name])
    return root.hexdigest()


def sha256_file(path: str | PathLike[str]) -> str:
    """SHA-256 of a file's bytes, hex.

    Raises:
        StorageError: it cannot be read.
    """
    hasher = hashlib.sha256()
    with opened(path) as file:
        for piece in read_pieces(file, 0, size_of(file), str(path)):
            hasher.update(piece)
    return hasher.hexdigest()
