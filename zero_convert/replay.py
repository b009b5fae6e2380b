"""Redo the conversions of a lock: the work of `lock`, `lock --update` and `check`. `artifacts/lock.py` has the file.

A conversion runs in the lock's folder, so that paths and packages mean the same from wherever it is started, with
nothing but what the entry says: no time, no machine, no network. The libraries are imported once for all entries.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from . import model_ref
from .artifacts.comparing import Difference, compare, compare_digests, compare_files
from .artifacts.lock import ORIGIN, Entry, LockedFile, Origin, record, strange_path, wordless
from .artifacts.receipt import Identity, read_receipt
from .errors import MismatchError, StorageError, UsageError, ZeroConvertError
from .formats.digests import Written, brief, sha256_file
from .formats.naming import FORMATS, receipt_path
from .model_ref import ModelRef, SchemeRef
from .options import Options, carried
from .records import Edit

if TYPE_CHECKING:
    from .result import Result
    from .runtime.progress import Progress
    from .saving import Saved


@dataclass(frozen=True)
class Answer:
    """What became of one entry.

    Attributes:
        entry: as the lock has it.
        index: its number in the lock, from 0.
        differences: between the conversion made now and the entry, causes first.
        error: what stood against the conversion.
        seconds: that it took.
    """

    entry: Entry
    index: int
    differences: tuple[Difference, ...]
    error: ZeroConvertError | None
    seconds: float

    @property
    def exit_code(self) -> int:
        """0, 1 for a difference, or the error's."""
        if self.error is not None:
            return self.error.exit_code
        return MismatchError.exit_code if self.differences else 0


@dataclass(frozen=True)
class Request:
    """One conversion to make and record.

    Attributes:
        model: the model, or of a model file the architecture of its tensors.
        options: `arch` is left out.
        file: path of the model file that is converted, or "".
    """

    model: ModelRef
    options: Options
    file: str = ""

    @classmethod
    def of(cls, entry: Entry, **changes: Any) -> Request:
        """What makes an entry's conversion again. The changes are to its options."""
        recipe = entry.identity.recipe
        changes = {"scheme": entry.scheme or recipe.scheme, "inputs": entry.inputs} | changes
        file = entry.origin.path if entry.origin else ""
        return cls(ModelRef.named(entry.model), carried(Options, recipe, **changes), file)

    def relative_to(self, folder: Path) -> Request:
        """The request with all paths relative to the lock's folder."""
        scheme = str(SchemeRef(self.options.scheme).relative_to(folder))
        file = str(ModelRef("file", path=self.file).relative_to(folder)) if self.file else ""
        return Request(self.model.relative_to(folder), replace(self.options, scheme=scheme), file)


def check(index: int, entry: Entry, folder: Path, *, trust: bool = False, progress: Progress | None = None) -> Answer:
    """The entry's conversion made again and compared. Nothing is written; what stands against it is in the answer.

    Args:
        index: the number of the entry in its lock, from 0.
        folder: the lock's.
        trust: run the code of a factory outside the model libraries.
    """
    start = time.monotonic()
    error: ZeroConvertError | None = None
    found: list[Difference] = []
    try:
        with _no_bytecode():
            found = moved(_origin_now(entry, folder), entry)
            result = made_again(entry, folder, trust=trust, validate="none", progress=progress)
            found += differences(result, entry)
    except ZeroConvertError as failure:
        error = failure
    except OSError as failure:
        error = StorageError("the system refused", where=entry.name, got=failure.strerror or str(failure))
    return Answer(entry, index, tuple(found), error, time.monotonic() - start)


def _origin_now(entry: Entry, folder: Path) -> Origin | None:
    """The entry's model file as it is now."""
    return origin_of(Request.of(entry), folder)


def moved(now: Origin | None, entry: Entry) -> list[Difference]:
    """The model file, or which of the files that it names, is another one than the entry's."""
    if now is None or entry.origin is None:
        return []
    got, expected = now.sha256, entry.origin.sha256
    if len(got) != len(expected):
        return [Difference("source", now.path, "files", str(len(got)), str(len(expected)), (ORIGIN,))]
    count = f" ({{}} of {len(got)})" if len(got) > 1 else ""
    return [
        Difference("source", f"{now.path}{count.format(number)}", "sha256", one, other, (ORIGIN,))
        for number, (one, other) in enumerate(zip(got, expected, strict=True), 1)
        if one != other
    ]


def differences(result: Result, entry: Entry) -> list[Difference]:
    """What differs between a conversion and an entry."""
    measured: dict[tuple[str, int, str], Written] = {}
    fold = bool(entry.folded_from)
    for file in entry.files:
        if _form(file) not in measured:
            measured[_form(file)] = measure(result, file, fold=fold)
    folds = result.folds if any(edit.applied for edit in result.folds) else ()
    found = compare(_identity(result, next(iter(measured.values())), folds), entry.identity)
    if fold:
        found += compare_digests(
            "folded from", result.weights_digest if folds else "nothing", entry.folded_from, "folded_from"
        )
    for file in entry.files:
        written = measured[_form(file)]
        found += compare_files(file.path, written.files, file.files)
    return found


def _form(file: LockedFile) -> tuple[str, int, str]:
    """What the bytes depend on besides the conversion: format, opset, name of the data file."""
    data = next((PurePath(each.path(file.path)).name for each in file.files if each.role == "data"), "")
    return file.format, file.opset, data


def measure(result: Result, file: LockedFile, *, fold: bool = False) -> Written:
    """The digests of the file that the conversion would become. No file is written."""
    name, opset, location = _form(file)
    if name not in FORMATS:
        raise UsageError(
            "the lock names a format this version cannot make", got=brief(name), expected=" or ".join(FORMATS)
        )
    data = _Nowhere() if location else None
    return result.write(_Nowhere(), name, opset or None, fold=fold, data=data, location=location)


def made_again(entry: Entry, folder: Path, *, trust: bool, progress: Progress | None = None, **changes: Any) -> Result:
    """The conversion that an entry describes.

    Args:
        trust: run the code of a factory outside the model libraries, and of a scheme's file.
        changes: fields of `Options`, instead of the recipe's.

    Raises:
        UntrustedError: it names a factory outside the model libraries or a scheme's file, and `trust` is not given.
        The errors of `convert`.
    """
    request = Request.of(entry, **changes)
    refuse = functools.partial(
        model_ref.refuse_untrusted, where=entry.name, fix="--trust runs it, if you know that lock and that code."
    )
    scheme = SchemeRef(request.options.scheme)
    refuse(scheme, trust, "the lock names a scheme in a file of Python, and using it means running that code")
    factory = "the lock names a factory outside the model libraries, and running it means running its code"
    refuse(request.model, trust, factory)
    if (digests := entry.identity.recipe.files) and entry.origin is None:
        raise UsageError(
            "the lock does not say where the file is whose values are in this conversion",
            where=entry.name,
            got=", ".join(digests),
            fix="`zero-convert verify --lock` compares its artifacts; `lock FILE --arch MODEL` records where it is.",
        )
    return converted(request, folder, progress)


def converted(request: Request, folder: Path, progress: Progress | None = None) -> Result:
    """The conversion, made in the lock's folder. Errors as for `convert`."""
    from . import pipeline

    model, options = str(request.model), replace(request.options, progress=progress)
    with contextlib.chdir(folder):
        if request.file:
            model, options = _file_in(request.file), replace(options, arch=model)
        return pipeline.convert(model, **vars(options))


def _file_in(path: str) -> str:
    """The path of a model file as no model could be called.

    Raises:
        StorageError: it is not there.
    """
    if not os.path.exists(path):
        raise StorageError(
            "the model file that is to be converted does not exist",
            where=path,
            fix="`zero-convert verify --lock` compares the artifacts without it.",
        )
    return os.path.join(os.curdir, path)


def origin_of(request: Request, folder: Path) -> Origin | None:
    """The model file of a request, hashed. Errors as for `readers.read`."""
    from .sources import model_file

    if not request.file:
        return None
    with contextlib.chdir(folder):
        return Origin(request.file, model_file.opened(_file_in(request.file), str(request.model), False).digests)


# ---------------------------------------------------------------------------------------------------------------------
# lock


def path_in(folder: Path, output: str | PathLike[str]) -> str:
    """The path of an output as the lock holds it.

    Raises:
        UsageError: it is not below the lock's folder.
    """
    named = Path(output)
    for path, base in ((named.absolute(), folder.absolute()), (named.parent.resolve() / named.name, folder.resolve())):
        relative = PurePath(os.path.relpath(path, base)).as_posix()
        if not (reason := strange_path(relative)):
            return relative
    raise UsageError(
        "a lock cannot hold this output's path",
        where="--out",
        got=str(output),
        expected=f"a file below {folder}",
        fix=reason,
    )


def entries_of(
    request: Request, result: Result, saved: Sequence[Saved], folder: Path, origin: Origin | None
) -> tuple[Entry, ...]:
    """What the lock records of a conversion and the files it became: an entry, and another for those folded."""
    found: dict[str, tuple[Identity, list[LockedFile]]] = {}
    for file in saved:
        seal, path = read_receipt(receipt_path(file.path)), path_in(folder, file.path)
        _, files = found.setdefault(seal.folded_from, (wordless(seal.identity), []))
        files.append(LockedFile(path, seal.file_format, seal.files, file.opset))
    model = str(request.model) if request.model.canonical == result.recipe.model else result.recipe.model
    scheme = SchemeRef(request.options.scheme)
    rules = scheme.text if scheme.runs_code else ""
    return tuple(
        Entry(_sorted(files), model, request.options.inputs, identity, rules, origin, folded_from)
        for folded_from, (identity, files) in found.items()
    )


def _sorted(files: Sequence[LockedFile]) -> tuple[LockedFile, ...]:
    return tuple(sorted(files, key=lambda file: file.path))


def update(
    index: int, entry: Entry, lock_path: Path, *, trust: bool, progress: Progress | None = None, **changes: Any
) -> Answer:
    """The entry's conversion made again; where anything moved or a file is missing, its files and the lock are written.

    Args:
        trust, changes: as for `made_again`.

    Raises:
        UntrustedError, CheckError, StorageError, and the errors of `convert`; the lock then has what it had.
    """
    start, folder = time.monotonic(), lock_path.parent
    origin = _origin_now(entry, folder)
    result = made_again(entry, folder, trust=trust, progress=progress, **changes)
    found = [*moved(origin, entry), *differences(result, entry)]
    dated = any(edit.source is None for edit in entry.identity.edits)  # of a lock of version 1
    if found or dated or not all(_is_there(folder / file.path, file) for file in entry.files):
        saved: list[Saved] = []
        for file in entry.files:
            options: dict[str, Any] = {"opset": file.opset or None, "external_data": bool(_form(file)[2])}
            options["fold"] = bool(entry.folded_from)
            saved += result.save(folder / file.path, force=True, format=file.format, progress=progress, **options)
        record(lock_path, *entries_of(Request.of(entry), result, saved, folder, origin))
    return Answer(entry, index, tuple(found), None, time.monotonic() - start)


def _is_there(path: Path, file: LockedFile) -> bool:
    """Whether the artifact, the files of its tensors and a receipt lie there, as the lock says."""
    places = {each.path(path): each.sha256 for each in file.files}
    return receipt_path(path).is_file() and all(
        os.path.isfile(place) and sha256_file(place) == sha256 for place, sha256 in places.items()
    )


def _identity(result: Result, written: Written, folds: Sequence[Edit]) -> Identity:
    edits = (*result.plan.edits, *folds)
    architecture = "" if folds else result.architecture_digest
    return Identity(result.recipe, result.fingerprint, edits, written.tensors, written.weights_digest, architecture)


@contextlib.contextmanager
def _no_bytecode() -> Iterator[None]:
    """Python leaves no `__pycache__` beside what it imports."""
    usual, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        yield
    finally:
        sys.dont_write_bytecode = usual


class _Nowhere:
    """A stream whose bytes nobody keeps."""

    def write(self, data: Any) -> int:
        return memoryview(data).nbytes
