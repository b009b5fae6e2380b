"""Step 7, export: one file format a file, `NAME.py` for what `formats/NAME.py` reads.

What a format needs to write differs (tensors, or a graph as well); `saving.py` hands it that. Nothing is imported here
before it is asked for, because an exporter may be heavy.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from os import PathLike
from pathlib import Path

from ..errors import UsageError
from ..formats.atomic import check_target
from ..formats.naming import data_path, format_of, receipt_path


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
            beside.append(data_path(path))
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
        from .onnx import checked_opset

        checked_opset(opset)
    elif option := next((name for name, asked in given.items() if asked), ""):
        raise UsageError("this option is for ONNX, and no output is", where=option, expected="--out FILE.onnx")
