"""The file manifest of OpenSSF model signing: made, written as an in-toto statement, read from one, and compared.

Source: github.com/sigstore/model-transparency, `model_signing` 1.1, method "files", predicate
https://model_signing/signature/v1.0:

    resources   every regular file below the folder, sorted by the parts of its path, with its SHA-256;
                a model that is one file is the resource "."
    root        SHA-256 over the raw digests in that order: the subject's digest
    left out    .git, .gitattributes, .github, .gitignore in the folder itself, and the statement or signature
    refused     symbolic links, and what is no file

A statement is unsigned: standard tools sign it (`cosign attest-blob --statement`), or `model_signing sign` makes and
signs the same one. Nothing here signs, and no signature is checked. No torch.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path, PurePosixPath
from typing import Any

from zero_convert.errors import MalformedError, RefusedError, StorageError
from zero_convert.formats.atomic import write_bytes
from zero_convert.formats.digests import brief, parse_json, sha256_file
from zero_convert.formats.strict_json import Fields, is_digest, is_text, read_limited

from .comparing import Difference

STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://model_signing/signature/v1.0"
IGNORED = (".git", ".gitattributes", ".github", ".gitignore")

_LIMIT = 256 << 20  # bytes of a statement or bundle


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a model is made of.

    Attributes:
        name: of the folder or file; informative.
        resources: (path, SHA-256 in hex), sorted by the parts of the paths.
        ignored: paths that were left out, relative to the folder.
    """

    name: str
    resources: tuple[tuple[str, str], ...]
    ignored: tuple[str, ...] = IGNORED

    @property
    def root(self) -> str:
        """The digest that stands for all files, hex."""
        return hashlib.sha256(b"".join(bytes.fromhex(digest) for _, digest in self.resources)).hexdigest()


def make_manifest(
    path: str | PathLike[str], besides: Iterable[str | PathLike[str]] = (), ignored: Sequence[str] = IGNORED
) -> Manifest:
    """The manifest of a file or folder.

    Args:
        path: the file, or the folder with everything below it.
        besides: files that are left out: the statement that is to be written, a signature.
        ignored: paths inside the folder that are left out.
    Raises:
        RefusedError: a symbolic link, or something that is no file.
        StorageError: it cannot be read.
    """
    base = Path(path)
    relative = (os.path.relpath(each, base).replace(os.sep, "/") for each in besides)
    every = tuple(
        sorted({*ignored, *(each for each in relative if not each.startswith("../") and each not in (".", ".."))})
    )
    files = sorted(_files(base, frozenset(every)), key=lambda name: PurePosixPath(name).parts)
    resources = tuple((name, sha256_file(base / name)) for name in files)
    return Manifest(base.name if base.name not in ("", "..") else base.resolve().name, resources, every)


def statement(manifest: Manifest) -> dict[str, Any]:
    """The in-toto statement that `model_signing` would sign."""
    serialization = {
        "allow_symlinks": False,
        "hash_type": "sha256",
        "ignore_paths": list(manifest.ignored),
        "method": "files",
    }
    resources = [{"algorithm": "sha256", "digest": digest, "name": name} for name, digest in manifest.resources]
    return {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": manifest.name, "digest": {"sha256": manifest.root}}],
        "predicateType": PREDICATE_TYPE,
        "predicate": {"resources": resources, "serialization": serialization},
    }


def write_statement(path: str | PathLike[str], manifest: Manifest, force: bool = False) -> None:
    """Write the statement as JSON, whole or not at all. Errors as `write_bytes`."""
    write_bytes(path, (json.dumps(statement(manifest), indent=1, sort_keys=True) + "\n").encode("ascii"), force)


def read_manifest(path: str | PathLike[str]) -> Manifest:
    """The manifest in a statement, in a DSSE envelope of one, or in a Sigstore bundle. No signature is checked.

    Raises:
        MalformedError: it is none of these, or contradicts itself.
        StorageError: it cannot be read.
    """
    where = str(path)
    obj = parse_json(read_limited(path, _LIMIT, "statement"), where)
    envelope = obj.get("dsseEnvelope", obj) if isinstance(obj, dict) else obj
    if isinstance(envelope, dict) and "payload" in envelope:
        try:
            payload = base64.b64decode(envelope["payload"], validate=True)
        except (TypeError, ValueError) as error:
            raise MalformedError("the payload is not base64", where=where) from error
        obj = parse_json(payload, f"{where}, payload")
    top = Fields.of(obj, where, ("_type", "predicate", "predicateType", "subject"))
    top.take("_type", lambda value: value == STATEMENT_TYPE, STATEMENT_TYPE)
    top.take("predicateType", lambda value: value == PREDICATE_TYPE, PREDICATE_TYPE)
    subjects = top.take("subject", lambda value: isinstance(value, list) and len(value) == 1, "one subject")
    subject = Fields.of(subjects[0], f"{where}, subject", ("digest", "name"))
    root = Fields.of(subject.raw["digest"], f"{where}, subject", ("sha256",)).digest("sha256")
    predicate = Fields.of(top.raw["predicate"], f"{where}, predicate", ("resources", "serialization"))
    how = predicate.take("serialization", lambda value: isinstance(value, dict), "an object")
    if how.get("method") != "files" or how.get("hash_type") != "sha256":
        got = f"{brief(how.get('method'))} with {brief(how.get('hash_type'))}"
        raise MalformedError(
            "the manifest is of a kind not known here", where=where, got=got, expected="files with sha256"
        )
    ignored = how.get("ignore_paths", list(IGNORED))
    if not isinstance(ignored, list) or not all(map(is_text, ignored)):
        raise MalformedError("ignore_paths is malformed", where=where, got=brief(ignored), expected="a list of paths")
    rows = predicate.take("resources", lambda value: isinstance(value, list), "a list")
    found = Manifest(subject.text("name"), tuple(_resources(rows, where)), tuple(sorted(ignored)))
    if found.root != root:
        raise MalformedError("it contradicts itself: its root is not that of its resources", where=where, got=root)
    return found


def compare_manifests(got: Manifest, expected: Manifest) -> list[Difference]:
    """Files that are missing or extra, or whose bytes moved, by path."""
    ours, theirs = dict(got.resources), dict(expected.resources)
    found = []
    for name in sorted(ours.keys() | theirs.keys()):
        if name not in ours or name not in theirs:
            what = "missing" if name not in ours else "extra"
            found.append(Difference("file", name, what, ours.get(name, "no file"), theirs.get(name, "no file")))
        elif ours[name] != theirs[name]:
            found.append(Difference("file", name, "sha256", ours[name], theirs[name]))
    return found


def _resources(rows: Sequence[object], where: str) -> Iterator[tuple[str, str]]:
    for number, row in enumerate(rows):
        fields = Fields.of(row, f"{where}, resource {number}", ("algorithm", "digest", "name"))
        fields.take("algorithm", lambda value: value == "sha256", "sha256")
        yield fields.text("name"), fields.take("digest", is_digest, "64 hexadecimal digits")


def _files(base: Path, ignored: frozenset[str]) -> Iterator[str]:
    """Paths of all files below `base`, spelled with /; "." where it is one itself."""
    waiting = [""]
    while waiting:
        inner = waiting.pop()
        path = base / inner
        try:
            mode = os.lstat(path).st_mode
            names = sorted(os.listdir(path)) if stat.S_ISDIR(mode) else []
        except OSError as error:
            raise StorageError("cannot read it", where=str(path), got=error.strerror or str(error)) from error
        if stat.S_ISREG(mode):
            yield inner or "."
        elif not stat.S_ISDIR(mode):
            got = "a symbolic link" if stat.S_ISLNK(mode) else "something that is no file"
            raise RefusedError("a manifest holds files only", where=str(path), got=got, fix="Copy the file there.")
        below = (f"{inner}/{name}" if inner else name for name in names)
        waiting += [name for name in below if name not in ignored]
