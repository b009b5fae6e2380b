"""Redo the conversions of a lock: the work of `lock`, `lock --update` and `check`. The file itself is `lock.py`.

A conversion runs in the lock's folder, so that paths and packages mean the same from wherever it is started, with
nothing but what the entry says: no time, no machine, no network. The libraries are imported once for all entries.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from . import exporters, foreign, sources
from .comparing import Difference, compare, compare_files
from .digests import Written, brief, sha256_file
from .errors import MismatchError, StorageError, UntrustedError, UsageError, ZeroConvertError
from .lock import Entry, LockedFile, canonical_model, record, strange_path
from .receipt import Identity, read_receipt, receipt_path

if TYPE_CHECKING:
    from .result import Progress, Result, Saved


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
        model: a MODEL string as it was typed.
        inputs: example inputs as `--input` spells them.
        arguments: of `convert` by name: scheme, options, model_args, dtype, leftovers, device, validate.
    """

    model: str
    inputs: tuple[str, ...]
    arguments: Mapping[str, Any]


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
            found = differences(made_again(entry, folder, trust=trust, validate="none", progress=progress), entry)
    except ZeroConvertError as failure:
        error = failure
    except OSError as failure:
        error = StorageError("the system refused", where=entry.name, got=failure.strerror or str(failure))
    return Answer(entry, index, tuple(found), error, time.monotonic() - start)


def differences(result: Result, entry: Entry) -> list[Difference]:
    """What differs between a conversion and an entry."""
    measured: dict[tuple[str, int, str], Written] = {}
    for file in entry.files:
        if _form(file) not in measured:
            measured[_form(file)] = measure(result, file)
    found = compare(_identity(result, next(iter(measured.values()))), entry.identity)
    for file in entry.files:
        written = measured[_form(file)]
        found += compare_files(file.path, (written.size, written.sha256), (file.size, file.sha256))
        if written.data and file.data:
            found += compare_files(
                file.path, (written.data.size, written.data.sha256), (file.data.size, file.data.sha256), file.data_path
            )
    return found


def _form(file: LockedFile) -> tuple[str, int, str]:
    """What the bytes depend on besides the conversion: format, opset, name of the data file."""
    return file.format, file.opset, PurePath(file.data_path).name if file.data else ""


def measure(result: Result, file: LockedFile) -> Written:
    """The digests of the file that the conversion would become. No file is written."""
    known = exporters.formats()
    name, opset, location = _form(file)
    if name not in known:
        raise UsageError(
            "the lock names a format this version cannot make", got=brief(name), expected=" or ".join(known)
        )
    data = _Nowhere() if location else None
    return result.write(_Nowhere(), name, opset or None, data=data, location=location)


def made_again(
    entry: Entry, folder: Path, *, trust: bool, validate: str, device: str = "auto", progress: Progress | None = None
) -> Result:
    """The conversion that an entry describes.

    Raises:
        UntrustedError: it names a factory outside the model libraries or a scheme's file, and `trust` is not given.
        The errors of `convert`.
    """
    if entry.scheme and not trust:
        raise UntrustedError(
            "the lock names a scheme in a file of Python, and using it means running that code",
            where=entry.name,
            got=repr(entry.scheme),
            fix="--trust runs it, if you know that lock and that code.",
        )
    if entry.model.partition(":")[0] not in sources.ORIGINS and not trust:
        raise UntrustedError(
            "the lock names a factory outside the model libraries, and running it means running its code",
            where=entry.name,
            got=repr(entry.model),
            fix="--trust runs it, if you know that lock and that code.",
        )
    recipe = entry.identity.recipe
    if recipe.files:
        raise UntrustedError(
            "the lock names a conversion of a file, which cannot be made again from names",
            where=entry.name,
            got=", ".join(recipe.files),
            fix="`zero-convert verify --lock` compares its artifacts; convert the file again to see what moved.",
        )
    arguments = {
        "scheme": entry.scheme or recipe.scheme,
        "options": recipe.options,
        "model_args": recipe.model_args,
        "dtype": recipe.dtype,
        "leftovers": recipe.leftovers,
        "validate": validate,
        "device": device,
    }
    return converted(Request(entry.model, entry.inputs, arguments), folder, progress)


def converted(request: Request, folder: Path, progress: Progress | None = None) -> Result:
    """The conversion, made in the lock's folder. Errors as for `convert`."""
    from . import pipeline
    from .sources.inputs import parse_inputs

    inputs = parse_inputs(request.inputs) if request.inputs else None
    with contextlib.chdir(folder):
        return pipeline.convert(request.model, inputs, **request.arguments, progress=progress)


# ---------------------------------------------------------------------------------------------------------------------
# lock


def request_in(folder: Path, request: Request) -> Request:
    """The request with paths to files of Python, the model's and the scheme's, relative to the lock's folder."""
    place, colon, factory = request.model.rpartition(":")
    if colon and place.endswith(".py"):
        request = replace(request, model=f"{_relative(place, folder)}:{factory}")
    scheme = str(request.arguments["scheme"])
    if foreign.is_file(scheme):
        request = replace(request, arguments={**request.arguments, "scheme": _relative(scheme, folder)})
    return request


def _relative(place: str, folder: Path) -> str:
    return PurePath(os.path.relpath(place, folder)).as_posix()


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


def entry_of(request: Request, result: Result, saved: Sequence[Saved], folder: Path) -> Entry:
    """What the lock records of a conversion and the files it became."""
    sealed = [read_receipt(receipt_path(file.path)) for file in saved]
    files = []
    for file, seal in zip(saved, sealed, strict=True):
        own, path = seal.written, path_in(folder, file.path)
        files.append(LockedFile(path, seal.file_format, own.sha256, own.size, file.opset, own.data))
    model = request.model if canonical_model(request.model) == result.recipe.model else result.recipe.model
    scheme = str(request.arguments["scheme"])
    files.sort(key=lambda file: file.path)
    return Entry(tuple(files), model, request.inputs, sealed[0].identity, scheme if foreign.is_file(scheme) else "")


def update(
    index: int,
    entry: Entry,
    lock_path: Path,
    *,
    trust: bool,
    validate: str,
    device: str,
    progress: Progress | None = None,
) -> Answer:
    """The entry's conversion made again; where anything moved or a file is missing, its files and the lock are written.

    Raises:
        UntrustedError, CheckError, StorageError, and the errors of `convert`; the lock then has what it had.
    """
    start, folder = time.monotonic(), lock_path.parent
    result = made_again(entry, folder, trust=trust, validate=validate, device=device, progress=progress)
    found = differences(result, entry)
    if found or not all(_is_there(folder / file.path, file) for file in entry.files):
        saved: list[Saved] = []
        for file in entry.files:
            options: dict[str, Any] = {"opset": file.opset or None, "external_data": file.data is not None}
            saved += result.save(folder / file.path, force=True, format=file.format, progress=progress, **options)
        request = Request(entry.model, entry.inputs, {"scheme": entry.scheme})
        record(lock_path, entry_of(request, result, saved, folder))
    return Answer(entry, index, tuple(found), None, time.monotonic() - start)


def _is_there(path: Path, file: LockedFile) -> bool:
    """Whether the artifact, the file of its tensors and a receipt lie there, as the lock says."""
    beside = path.with_name(PurePath(file.data_path).name)
    sound = path.is_file() and receipt_path(path).is_file() and sha256_file(path) == file.sha256
    return sound and (file.data is None or (beside.is_file() and sha256_file(beside) == file.data.sha256))


def _identity(result: Result, written: Written) -> Identity:
    return Identity(
        result.recipe, result.fingerprint, tuple(result.plan.edits), written.tensors, written.weights_digest
    )


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
