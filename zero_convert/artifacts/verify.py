"""Is an artifact still what its receipt or a lock says? Rehash it and name what differs. Reads two files, writes none.

No torch.

The questions, in the order of the answers:

    1. size and SHA-256 of the file                  one flipped bit anywhere is found here
    2. header                                        can the file be read at all?
    3. recipe in the file = recipe in the receipt, and its architecture digest likewise
    4. every tensor: there, same dtype, same shape, same `zc1` leaf; none besides
    5. weights digest, and what the file itself records of it (ONNX)
    6. size and SHA-256 of the file beside it that holds its tensors (ONNX)
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

from zero_convert.errors import MalformedError, MismatchError, StorageError, ZeroConvertError
from zero_convert.formats import naming
from zero_convert.formats.digests import Written, brief, canonical_json, sha256_file
from zero_convert.formats.naming import ARCHITECTURE_KEY, DIGEST_KEY, FOLDED_KEY, RECEIPT_SUFFIX, ROLES, receipt_path

from .comparing import compare_tensors
from .lock import Lock, find, read_lock
from .receipt import Receipt, read_receipt, recipe_from_metadata, recipe_json


@dataclass(frozen=True, slots=True)
class Finding:
    """One difference.

    Attributes:
        what: "size", "sha256", "header", "recipe", "architecture digest", "weights digest", "recorded weights digest",
            "folded from", "data file", or of a tensor "missing", "extra", "dtype", "shape", "values".
        tensor: its name, or "" where the finding is about the file.
        got: in the artifact.
        expected: in the receipt.
    """

    what: str
    got: str
    expected: str
    tensor: str = ""

    def __str__(self) -> str:
        subject = f"tensor {brief(self.tensor)}: {self.what}" if self.tensor else self.what
        return f"{subject}: got {self.got}, expected {self.expected}"


@dataclass(frozen=True, slots=True)
class Verification:
    """The answer for one artifact. It is sound if there are no findings."""

    path: Path
    receipt_path: Path
    receipt: Receipt
    findings: tuple[Finding, ...]

    def raise_findings(self) -> None:
        """Raise MismatchError with the first findings, if there are any."""
        if not self.findings:
            return
        first, count = self.findings[:5], len(self.findings)
        more = f"; and {count - len(first)} more" if count > len(first) else ""
        kind = "receipt" if self.receipt_path.name.endswith(RECEIPT_SUFFIX) else "entry in the lock"
        raise MismatchError(
            f"the artifact differs from its {kind}: {'; '.join(map(str, first))}{more}",
            where=str(self.path),
            fix="Make it again from its recipe, or restore both files from a copy.",
        )


def artifacts(path: str | PathLike[str]) -> tuple[Path, ...]:
    """The file itself; for a folder the artifacts that a receipt in it stands beside, by name.

    A file in it that is named like an artifact and has no receipt is among them, so that somebody asks for one.

    Raises:
        StorageError: the folder cannot be read, or has no receipt in it.
    """
    if not os.path.isdir(path):
        return (Path(path),)
    names = _names(path)
    sealed = {name.removesuffix(RECEIPT_SUFFIX) for name in names if name.endswith(RECEIPT_SUFFIX)} - {""}
    if not sealed:
        raise StorageError(
            "nothing in the folder can be verified",
            where=str(path),
            got="no receipt",
            expected=f"artifacts, each with its FILE{RECEIPT_SUFFIX}",
            fix="Folders inside it are not looked into: name them.",
        )
    return tuple(Path(path) / name for name in sorted({*sealed, *filter(_named_like_one, names)}))


def _names(folder: str | PathLike[str]) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError as error:
        raise StorageError("cannot read the folder", where=str(folder), got=error.strerror or str(error)) from error


def _named_like_one(name: str) -> bool:
    return bool(naming.named_format(name))


def verify_all(
    paths: Iterable[str | PathLike[str]], lock_path: str | PathLike[str] | None = None
) -> Iterator[tuple[Path, Verification | ZeroConvertError]]:
    """Each artifact at the paths and in the folders among them, with its answer, or with what stands against one.

    With a lock its entries stand in for receipts, and without paths all its files are looked at.

    Raises:
        MalformedError, StorageError: the lock is none, or cannot be read.
    """
    lock = None if lock_path is None else read_lock(lock_path)
    beside = Path() if lock_path is None else Path(lock_path).parent
    if lock is not None and not (paths := list(paths)):
        paths = [beside / file.path for entry in lock.entries for file in entry.files]
    for path in paths:
        try:
            found = artifacts(path) if lock is None else _locked(path, lock, beside)
        except StorageError as error:
            yield Path(path), error
            continue
        for artifact in found:
            answer: Verification | ZeroConvertError
            try:
                answer = verify(artifact) if lock is None else verify_locked(artifact, lock, Path(lock_path or ""))
            except ZeroConvertError as error:
                answer = error
            except OSError as error:  # it went away while it was read
                answer = StorageError("cannot read it", where=str(artifact), got=error.strerror or str(error))
            yield artifact, answer


def verify(path: str | PathLike[str], receipt: str | PathLike[str] | None = None) -> Verification:
    """What differs between the artifact at `path` and its receipt.

    Args:
        path: the artifact.
        receipt: its receipt; by default the file `PATH.receipt.json`.
    Raises:
        StorageError: one of the two is not there or cannot be read.
        MalformedError: the receipt is no receipt. A malformed artifact is a finding.
    """
    artifact = Path(path)
    beside = receipt_path(path) if receipt is None else Path(receipt)
    if not os.path.exists(artifact):
        raise StorageError("the artifact does not exist", where=str(path))
    if not os.path.exists(beside):
        raise StorageError(
            "the artifact has no receipt",
            where=str(path),
            got=_alone(artifact),
            expected=f"the file {beside}",
            fix="Copy the receipt beside the artifact, or convert again: the receipt is written with it.",
        )
    return _verified(artifact, beside, read_receipt(beside))


def verify_locked(path: str | PathLike[str], lock: Lock, lock_path: Path) -> Verification:
    """What differs between the artifact at `path` and its entry in the lock; its receipt is not asked.

    Raises:
        StorageError: the artifact is not there, or has no entry.
    """
    if not os.path.exists(path):
        raise StorageError("the artifact does not exist", where=str(path))
    inside = Path(os.path.relpath(path, lock_path.parent)).as_posix()
    found = find(lock, inside)
    if found is None:
        known = [file.path for entry in lock.entries for file in entry.files]
        raise StorageError(
            "the artifact has no entry in the lock",
            where=str(path),
            got=f"{lock_path} with {', '.join(known[:6]) or 'no entry'}{' …' if len(known) > 6 else ''}",
            expected=f"an entry for {inside}",
            fix="`zero-convert lock` records one.",
        )
    entry, file = found
    return _verified(Path(path), lock_path, entry.receipt(file))


def _locked(path: str | PathLike[str], lock: Lock, beside: Path) -> tuple[Path, ...]:
    """The file itself; for a folder the files of the lock below it, and what lies beside them and is named like one."""
    if not os.path.isdir(path):
        return (Path(path),)
    every = [beside / file.path for entry in lock.entries for file in entry.files]
    found = [each for each in every if Path(os.path.abspath(path)) in Path(os.path.abspath(each)).parents]
    if not found:
        raise StorageError("the lock has no file in this folder", where=str(path), got="none")
    origins = [beside / entry.origin.path for entry in lock.entries if entry.origin]  # what was converted
    known = {os.path.abspath(each) for each in (*every, *origins)}
    folders = sorted({each.parent for each in found if each.parent.is_dir()})
    near = [folder / name for folder in folders for name in _names(folder) if _named_like_one(name)]
    return tuple(sorted([*found, *(each for each in near if os.path.abspath(each) not in known)]))


def _verified(artifact: Path, beside: Path, known: Receipt) -> Verification:
    if known.file_format not in naming.FORMATS:
        raise MalformedError(
            "the receipt or lock names a format this version does not know",
            where=str(beside),
            got=brief(known.file_format),
            expected=" or ".join(naming.FORMATS),
        )
    return Verification(artifact, beside, known, tuple(_findings(artifact, known)))


def _alone(path: Path) -> str:
    """What an artifact without a receipt says of itself."""
    try:
        digest = naming.load(naming.format_in(path)).file_digests(path).weights_digest
        return f"a file with the weights zc1 {digest}"
    except ZeroConvertError:
        return "nothing"


def _findings(path: Path, receipt: Receipt) -> list[Finding]:
    expected = receipt.written
    reader = naming.load(receipt.file_format)
    named = receipt.file_format == "onnx"
    try:
        written: Written = reader.file_digests(path)
        metadata = reader.read_metadata(path)
    except MalformedError as error:
        findings = _compare("size", str(path.stat().st_size), str(expected.size))
        findings += _compare("sha256", sha256_file(path), expected.sha256)
        return [*findings, Finding("header", str(error).removesuffix("."), "a file that can be read")]
    findings = _compare("size", str(written.size), str(expected.size))
    findings += _compare("sha256", written.sha256, expected.sha256)
    try:
        recipe = recipe_from_metadata(metadata, str(path))
        spelled = "none" if recipe is None else canonical_json(recipe_json(recipe))
    except MalformedError as error:
        spelled = f"no recipe: {error}".removesuffix(".")
    findings += _compare("recipe", spelled, canonical_json(recipe_json(receipt.identity.recipe)))
    if known := receipt.identity.architecture_digest:  # an earlier version recorded none
        findings += _compare("architecture digest", metadata.get(ARCHITECTURE_KEY, "none"), f"za1:{known}")
    moved = compare_tensors(written.tensors, expected.tensors)
    findings += [Finding(each.what, each.got, each.expected, each.name) for each in moved]
    findings += _compare("weights digest", written.weights_digest, expected.weights_digest)
    if named:
        folded, own = receipt.folded_from, expected.weights_digest
        findings += _compare(
            "recorded weights digest", metadata.get(DIGEST_KEY, "none"), "none" if folded else f"zc1:{own}"
        )
        findings += _compare("folded from", metadata.get(FOLDED_KEY, "none"), f"zc1:{folded}" if folded else "none")
    for role in ROLES:
        findings += _compare(f"{role} file", _spelled(written, role), _spelled(expected, role))
    return findings


def _spelled(written: Written, role: str) -> str:
    return "; ".join(f"{f.sha256}, {f.size} bytes" for f in written.files if f.role == role) or "none"


def _compare(what: str, got: str, expected: str) -> list[Finding]:
    return [] if got == expected else [Finding(what, got, expected)]
