"""Step 7, export: one file format a file. The folder is the registry: `safetensors.py` writes `NAME.safetensors`.

Every exporter offers `file_digests(path) -> Written` and `read_metadata(path) -> {key: text}`, so that `verify` can
rehash what it wrote, `read_header(path)` for `inspect`, and may offer `tensor_pieces(path) -> {name: function that
reads its bytes}`, in pieces of whole elements: then `diff` says how far values moved. What it needs to write differs
(tensors, or a graph as well); `result.py` hands it that. Nothing is imported here before it is asked for, because an
exporter may be heavy.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Collection, Sequence
from os import PathLike
from pathlib import Path, PurePath
from types import ModuleType

from zero_convert.artifacts.receipt import receipt_path
from zero_convert.formats.atomic import check_target

from ..errors import UsageError, closest


def formats() -> tuple[str, ...]:
    """The names of all formats, sorted."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_")))


def format_of(path: str | PathLike[str], name: str | None = None) -> str:
    """The format to write `path` in: `name` if given, else the one that the suffix says.

    Raises:
        UsageError: there is no such format.
    """
    known = formats()
    wanted = name if name is not None else PurePath(path).suffix.removeprefix(".").lower()
    if wanted in known:
        return wanted
    raise UsageError(
        "no such output format" if name is not None else "the suffix names no output format",
        where=str(path),
        got=repr(wanted),
        expected=" or ".join(known),
        fix=closest(wanted, known, "Change the suffix, or name the format with --format.", spell=repr),
    )


def format_in(path: str | PathLike[str]) -> str:
    """The format of an existing file: the one that its suffix says, else the one that its first bytes look like."""
    named = PurePath(path).suffix.removeprefix(".").lower()
    if named in formats():
        return named
    try:
        with open(path, "rb") as file:
            head = file.read(9)
    except OSError:
        head = b""  # whoever reads it next says so
    return "onnx" if head[:1] == b"\x08" and head[8:] != b"{" else "safetensors"


def check_outputs(
    paths: Sequence[str | PathLike[str]], name: str | None, force: bool, *, external_data: bool = False
) -> list[Path]:
    """The files that would be written, receipts as well, after everything that can be said against them before work.

    Raises:
        UsageError: no such format, a file exists and `force` is not given, or two outputs are one file.
        StorageError: the file system said no.
    """
    targets = []
    for path in paths:
        beside = [receipt_path(path)]
        if format_of(path, name) == "onnx" and external_data:
            beside.append(load("onnx").data_path(path))
        targets += [check_target(target, force) for target in (path, *beside)]
    if len(set(targets)) < len(targets):
        raise UsageError(
            "an output is named twice, or is a file beside another", where="--out", got=", ".join(map(str, paths))
        )
    return targets


def check_options(formats: Collection[str], opset: int | None, external_data: bool, fold: bool = False) -> None:
    """Raises UsageError for an option of ONNX files where none is written, and for an opset that cannot be."""
    given = {"--opset": opset is not None, "--external-data": external_data, "--fold": fold}
    if "onnx" in formats:
        load("onnx").checked_opset(opset)
    elif option := next((name for name, asked in given.items() if asked), ""):
        raise UsageError("this option is for ONNX, and no output is", where=option, expected="--out FILE.onnx")


def load(name: str) -> ModuleType:
    """The module of a format that `formats` lists."""
    return importlib.import_module(f"{__name__}.{name}")
