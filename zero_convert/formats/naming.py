"""Names: of file formats by their suffixes, of the files beside an artifact, and of what artifacts carry as metadata.

A format is a module of this folder with `file_digests(path) -> Written` and `read_metadata(path) -> {key: text}`, so
that `verify` can rehash what was written, and `read_header(path)`. It may have `tensor_pieces(path) -> {name: function
that reads its bytes}`, in pieces of whole elements: then `diff` says how far values moved.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping
from os import PathLike
from pathlib import Path, PurePath
from types import ModuleType

from ..errors import UsageError, closest

FORMATS = ("onnx", "safetensors")
RECIPE_KEY = "zero_convert"  # in the metadata of an artifact
DIGEST_KEY = "zero_convert.weights_digest"  # likewise, where the format lets it follow the weights
ARCHITECTURE_KEY = "zero_convert.architecture"  # "za1:" and the architecture digest, where the file was not folded
FOLDED_KEY = "zero_convert.folded_from"  # instead of it, where the tensors were folded for inference
EXTRA_KEY = "zero_convert.extra_state"  # the values of the extra state, where modules keep any
RECEIPT_SUFFIX = ".receipt.json"
SUFFIXES: Mapping[str, str] = {"": "", "data": ".data"}  # role of a file of an artifact → added to the artifact's name
ROLES = tuple(filter(None, SUFFIXES))  # of the files beside it that hold its tensors
BESIDE = (RECEIPT_SUFFIX, *(SUFFIXES[role] for role in ROLES))  # added to its name: what may lie beside it


def receipt_path(artifact: str | PathLike[str]) -> Path:
    """Where the receipt of `artifact` lies: beside it, `FILE.receipt.json`."""
    return Path(f"{os.fspath(artifact)}{RECEIPT_SUFFIX}")


def data_path(artifact: str | PathLike[str]) -> Path:
    """Where the file of an artifact's tensors lies, if it has one: beside it, `FILE.data`."""
    return Path(f"{os.fspath(artifact)}{SUFFIXES['data']}")


def named_format(path: str | PathLike[str]) -> str:
    """The format that the suffix says; "" if it says none."""
    suffix = PurePath(path).suffix.removeprefix(".").lower()
    return suffix if suffix in FORMATS else ""


def format_of(path: str | PathLike[str], name: str | None = None) -> str:
    """The format to write `path` in: `name` if given, else the one that the suffix says.

    Raises:
        UsageError: there is no such format.
    """
    wanted = name if name is not None else PurePath(path).suffix.removeprefix(".").lower()
    if wanted in FORMATS:
        return wanted
    raise UsageError(
        "no such output format" if name is not None else "the suffix names no output format",
        where=str(path),
        got=repr(wanted),
        expected=" or ".join(FORMATS),
        fix=closest(wanted, FORMATS, "Change the suffix, or name the format with --format.", spell=repr),
    )


def format_in(path: str | PathLike[str]) -> str:
    """The format of an existing file: the one that its suffix says, else the one that its first bytes look like."""
    if named := named_format(path):
        return named
    try:
        with open(path, "rb") as file:
            head = file.read(9)
    except OSError:
        head = b""  # whoever reads it next says so
    return "onnx" if head[:1] == b"\x08" and head[8:] != b"{" else "safetensors"


def load(name: str) -> ModuleType:
    """The module of one of `FORMATS`, which reads it."""
    return importlib.import_module(f"{__package__}.{name}")
