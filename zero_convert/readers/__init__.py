"""Looks into model files without trusting them: one format a file, one record for all of them (`contents.py`).

    contents = read("model.pt")                      # by its content, whatever it is called

Nothing in a file is executed, imported or called; nothing is allocated because a file claims it; what two loaders could
read differently is refused. Tensor data stay in the file until `tensor_bytes.pieces` reads them through windows.
Neither torch nor onnx is imported. A reader offers `read(source) -> Contents`; which one it is, the first bytes say.
"""

from __future__ import annotations

from os import PathLike

from zero_convert.formats.digests import brief

from ..errors import MalformedError, RefusedError, UntrustedError
from . import safetensors
from .contents import IMPORTS as IMPORTS
from .contents import Contents as Contents
from .contents import Limits as Limits
from .contents import Storage as Storage
from .contents import Tensor as Tensor
from .parsing.source import Budget, Source

_HEAD = 1024  # bytes that tell a format


def read(path: str | PathLike[str], limits: Limits | None = None) -> Contents:
    """What is in the file at `path`.

    Raises:
        MalformedError: it is none of the known formats, or does not hold together.
        UntrustedError: it is a program and nothing else.
        RefusedError: it asks for more than the limits, or for a file outside of its folder; or it is a tar archive.
        StorageError: it, or a file it names, cannot be read.
    """
    return _read(str(path), Budget(limits or Limits(), str(path)))


def _read(path: str, budget: Budget) -> Contents:
    with Source(path, budget) as source:
        head = source.read(source.begin, min(_HEAD, source.size))
        if head[:4] == b"PK\x03\x04":
            return _archive(source)
        if head[:4] == b"GGUF":
            from . import gguf

            return gguf.read(source)
        if safetensors.looks_like(head):
            return safetensors.read(source)
        _refuse_tar(path, head)
        if safetensors.looks_like_index(head):
            return safetensors.read_index(source, _shard)
        from . import onnx, torch_legacy  # the other formats are loaded where they are met

        if onnx.looks_like(head):
            return onnx.read(source)
        if torch_legacy.looks_like(head):
            return torch_legacy.read(source)
    raise MalformedError(
        "the file is of no known format",
        where=path,
        got=f"{head[:16].hex(' ')} …" if head else "an empty file",
        expected="safetensors or its index, what torch saves, ONNX, GGUF, or a pickle",
        fix="The file is damaged, or no model.",
    )


def _refuse_tar(path: str, head: bytes) -> None:
    """Refuse a tar archive by its name: what torch saved before 0.1.10, or any other."""
    if head[257:262] != b"ustar":
        return
    first = head[:100].rstrip(b"\0").decode("latin-1")
    if first in ("sys_info", "storages", "tensors", "pickle"):  # torch's members, in no fixed order
        raise RefusedError(
            "torch archive of 2016 (tar)",
            where=path,
            got=f"a tar archive that begins with {first!r}",
            expected="what torch.save writes since 0.1.10",
            fix="torch.save(torch.load(FILE, weights_only=False), NEW) saves it again. Loading it runs what is in it: "
            "do that only if you know who made it.",
        )
    raise RefusedError(
        "tar archive",
        where=path,
        got=f"a tar archive that begins with {brief(first)}",
        expected="a model file",
        fix="Unpack it, and give one of its files.",
    )


def _shard(source: Source, path: str) -> Contents:
    """What is in one file of a sharded model, on the budget of its index."""
    with Source(path, source.budget) as inner:
        if safetensors.looks_like_index(inner.read(inner.begin, min(_HEAD, inner.size))):
            raise inner.malformed("a file of a sharded model is sharded itself")
    return _read(path, source.budget)


def _archive(source: Source) -> Contents:
    from . import torch_export, torch_zip
    from .parsing.zip_archive import Archive

    archive = Archive(source)
    if torch_export.is_one(archive):
        return torch_export.read(source, archive, torch_zip.read)
    folder = archive.folder()
    if f"{folder}data.pkl" in archive.members:
        return torch_zip.read(source, archive)
    code = [name for name in archive.members if name.endswith((".py", ".pkl")) or "/.data/extern_modules" in name]
    if code:
        raise UntrustedError(
            "the archive holds code and no state dict: a torch.package",
            where=source.path,
            got=f"{len(code)} members like {code[0]!r}",
            expected="weights",
            fix="There is nothing in it to look at without running it.",
        )
    raise source.malformed("the archive is none of torch's", f"{len(archive.members)} members", "NAME/data.pkl")
