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

from . import sources
from .artifacts.comparing import Difference, compare, compare_digests, compare_files
from .artifacts.lock import Entry, LockedFile, Origin, canonical_model, record, strange_path, wordless
from .artifacts.receipt import Identity, read_receipt
from .errors import MismatchError, StorageError, UntrustedError, UsageError, ZeroConvertError
from .formats.digests import Written, brief, sha256_file
from .formats.naming import FORMATS, receipt_path
from .records import Edit
from .runtime import user_code

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
        model: a MODEL string as it was typed.
        inputs: example inputs as `--input` spells them.
        arguments: of `convert` by name: scheme, options, model_args, dtype, leftovers, device, validate.
        file: path of the model file that is converted; `model` is then the architecture of its tensors. Else "".
    """

    model: str
    inputs: tuple[str, ...]
    arguments: Mapping[str, Any]
    file: str = ""


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
    file = entry.origin.path if entry.origin else ""
    return origin_of(Request(entry.model, (), {}, file), folder)


def moved(now: Origin | None, entry: Entry) -> list[Difference]:
    """The model file, or which of the files that it names, is another one than the entry's."""
    if now is None or entry.origin is None:
        return []
    got, expected = now.sha256, entry.origin.sha256
    if len(got) != len(expected):
        return [Difference("source", now.path, "files", str(len(got)), str(len(expected)), ("from",))]
    count = f" ({{}} of {len(got)})" if len(got) > 1 else ""
    return [
        Difference("source", f"{now.path}{count.format(number)}", "sha256", one, other, ("from",))
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
    if recipe.files and entry.origin is None:
        raise UsageError(
            "the lock does not say where the file is whose values are in this conversion",
            where=entry.name,
            got=", ".join(recipe.files),
            fix="`zero-convert verify --lock` compares its artifacts; `lock FILE --arch MODEL` records where it is.",
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
    file = entry.origin.path if entry.origin else ""
    return converted(Request(entry.model, entry.inputs, arguments, file), folder, progress)


def converted(request: Request, folder: Path, progress: Progress | None = None) -> Result:
    """The conversion, made in the lock's folder. Errors as for `convert`."""
    from . import pipeline
    from .sources.inputs import parse_inputs

    inputs = parse_inputs(request.inputs) if request.inputs else None
    with contextlib.chdir(folder):
        model, arch = (_file_in(request.file), request.model) if request.file else (request.model, None)
        return pipeline.convert(model, inputs, **request.arguments, arch=arch, progress=progress)


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
        return Origin(request.file, model_file.opened(_file_in(request.file), request.model, False).digests)


# ---------------------------------------------------------------------------------------------------------------------
# lock


def request_in(folder: Path, request: Request) -> Request:
    """The request with the model file's path and those to files of Python relative to the lock's folder."""
    place, colon, factory = request.model.rpartition(":")
    if colon and place.endswith(".py"):
        request = replace(request, model=f"{_relative(place, folder)}:{factory}")
    if request.file:
        request = replace(request, file=_relative(request.file, folder))
    scheme = str(request.arguments["scheme"])
    if user_code.is_file(scheme):
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


def entries_of(
    request: Request, result: Result, saved: Sequence[Saved], folder: Path, origin: Origin | None
) -> tuple[Entry, ...]:
    """What the lock records of a conversion and the files it became: an entry, and another for those folded."""
    found: dict[str, tuple[Identity, list[LockedFile]]] = {}
    for file in saved:
        seal, path = read_receipt(receipt_path(file.path)), path_in(folder, file.path)
        _, files = found.setdefault(seal.folded_from, (wordless(seal.identity), []))
        files.append(LockedFile(path, seal.file_format, seal.written.files, file.opset))
    model = request.model if canonical_model(request.model) == result.recipe.model else result.recipe.model
    scheme = str(request.arguments["scheme"])
    rules = scheme if user_code.is_file(scheme) else ""
    return tuple(
        Entry(_sorted(files), model, request.inputs, identity, rules, origin, folded_from)
        for folded_from, (identity, files) in found.items()
    )


def _sorted(files: Sequence[LockedFile]) -> tuple[LockedFile, ...]:
    return tuple(sorted(files, key=lambda file: file.path))


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
    origin = _origin_now(entry, folder)
    result = made_again(entry, folder, trust=trust, validate=validate, device=device, progress=progress)
    found = [*moved(origin, entry), *differences(result, entry)]
    dated = any(edit.source is None for edit in entry.identity.edits)  # of a lock of version 1
    if found or dated or not all(_is_there(folder / file.path, file) for file in entry.files):
        saved: list[Saved] = []
        for file in entry.files:
            options: dict[str, Any] = {"opset": file.opset or None, "external_data": bool(_form(file)[2])}
            options["fold"] = bool(entry.folded_from)
            saved += result.save(folder / file.path, force=True, format=file.format, progress=progress, **options)
        request = Request(entry.model, entry.inputs, {"scheme": entry.scheme})
        record(lock_path, *entries_of(request, result, saved, folder, origin))
    return Answer(entry, index, tuple(found), None, time.monotonic() - start)


def _is_there(path: Path, file: LockedFile) -> bool:
    """Whether the artifact, the files of its tensors and a receipt lie there, as the lock says."""
    places = {each.path(path): each.sha256 for each in file.files}
    return receipt_path(path).is_file() and all(
        os.path.isfile(place) and sha256_file(place) == sha256 for place, sha256 in places.items()
    )


def _identity(result: Result, written: Written, folds: Sequence[Edit]) -> Identity:
    edits = (*result.plan.edits, *folds)
    return Identity(result.recipe, result.fingerprint, edits, written.tensors, written.weights_digest)


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
