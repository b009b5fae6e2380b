"""Safe writing: after any failure the old file is intact or the new one complete. Knows nothing of what is written.

The bytes go to a temporary file in the target's own folder, are forced to the disk, and take the target's name in
one step; then the folder is forced to the disk as well. Only a process killed without warning leaves the temporary
file (`.NAME.….part`) behind.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from collections.abc import Iterator
from os import PathLike
from pathlib import Path
from typing import BinaryIO

from .errors import StorageError, UsageError

_BUFFER = 1 << 20  # bytes gathered before small pieces are handed to the system


def check_target(path: str | PathLike[str], force: bool = False) -> Path:
    """The file that writing to `path` would make or replace (symlinks followed); asks everything, touches nothing.

    Args:
        path: where the output should go.
        force: an existing file may be replaced.
    Raises:
        UsageError: a file is there and `force` is not given.
        StorageError: the folder is missing or not writable, or something else than a file is there.
    """
    try:
        target = Path(os.path.realpath(path))
        present = _stat(target)
        if present is not None and not stat.S_ISREG(present.st_mode):
            raise StorageError(
                "the output cannot be written", where=str(path), got=_kind(present.st_mode), expected="a file's name"
            )
        folder = _stat(target.parent)
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        raise _failure(path, error) from error
    if folder is None or not stat.S_ISDIR(folder.st_mode):
        raise StorageError(
            "the output's folder does not exist",
            where=str(path),
            got="nothing" if folder is None else _kind(folder.st_mode),
            expected=f"a folder {target.parent}",
            fix="Create it first.",
        )
    if not os.access(target.parent, os.W_OK | os.X_OK):
        raise StorageError(
            "the output's folder is not writable",
            where=str(path),
            expected=f"permission to create files in {target.parent}",
            fix="Choose another folder.",
        )
    if present is not None and not force:
        raise UsageError(
            "the output exists",
            where=str(path),
            got=f"a file of {present.st_size:,} bytes",
            expected="no file of that name",
            fix="Choose another name, or replace it with --force.",
        )
    return target


@contextlib.contextmanager
def atomic_write(path: str | PathLike[str], force: bool = False) -> Iterator[BinaryIO]:
    """A binary stream whose bytes become the file `path` when the block ends well, and vanish when it does not.

    A new file gets the mode that the umask leaves of 0666; a replaced file keeps its mode. A symlink stays and its
    target is written.

    Args:
        path: where the output should go.
        force: an existing file may be replaced.
    Raises:
        UsageError, StorageError: as `check_target`, and for any OSError while writing.
    """
    target = check_target(path, force)
    temporary = target.with_name(f".{target.name[:32]}.{secrets.token_hex(8)}.part")
    try:
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
            with open(os.open(temporary, flags, 0o666), "wb", buffering=_BUFFER) as stream:
                yield stream
                stream.flush()
                present = _stat(target)
                if present is not None and hasattr(os, "fchmod"):
                    with contextlib.suppress(PermissionError):  # file systems without modes
                        os.fchmod(stream.fileno(), stat.S_IMODE(present.st_mode))
                os.fsync(stream.fileno())
            check_target(path, force)  # somebody may have put a file there in the meantime
            _rename(temporary, target, force)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
            raise
    except OSError as error:
        raise _failure(path, error) from error
    _sync_folder(target.parent)


def _rename(temporary: Path, target: Path, force: bool) -> None:
    """Give the temporary file the target's name; without `force` a file of that name stops it, however young.

    A second link fails where the name is taken, which a rename does not. File systems without links get the rename.
    """
    if not force:
        try:
            os.link(temporary, target)
        except FileExistsError:
            check_target(target)  # which says so
            raise
        except OSError:
            pass
        else:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            return
    os.replace(temporary, target)


def _stat(path: Path) -> os.stat_result | None:
    try:
        return os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None


def _sync_folder(folder: Path) -> None:
    """Force the new name to the disk; where a folder cannot be opened or synced, the system does it in its own time."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _kind(mode: int) -> str:
    kinds = {stat.S_IFDIR: "a folder", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device", stat.S_IFIFO: "a FIFO"}
    kinds |= {stat.S_IFSOCK: "a socket", stat.S_IFREG: "a file"}
    return kinds.get(stat.S_IFMT(mode), "something that is no file")


def _failure(path: str | PathLike[str], error: Exception) -> StorageError:
    got = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return StorageError("the output cannot be written", where=str(path), got=got, fix="Nothing was replaced.")
