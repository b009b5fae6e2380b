"""Safe writing: after any failure the old file is intact or the new one complete. Knows nothing of what is written.

The bytes go to a temporary file in the target's own folder, are forced to the disk, read back and compared with what
the writer expects, and take the target's name in one step; then the folder is forced to the disk as well. Files that
belong together are all made ready first and then take their names one after the other, while nobody else's do; if one
of them cannot, the old ones come back. Only a process killed without warning leaves temporary files (`.NAME.….part`)
behind.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import secrets
import stat
from collections.abc import Iterator, Sequence
from io import BufferedWriter, FileIO
from os import PathLike
from pathlib import Path

from zero_convert.errors import StorageError, UsageError
from zero_convert.runtime.signals import undone_by

_BUFFER = 1 << 20  # bytes gathered before small pieces are handed to the system
_CHUNK = 4 << 20  # bytes read back at a time
# What a file system answers that cannot force a folder to the disk, and does it in its own time.
_UNSUPPORTED = (errno.EACCES, errno.EPERM, errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EBADF)


class Output(BufferedWriter):
    """The stream of one output, which is not there before `commit`.

    Whoever knows the digest of what it wrote states it with `expect`, and the file is read back.
    """

    def __init__(self, path: str | PathLike[str], target: Path, temporary: Path, force: bool) -> None:
        self._path, self._target, self._temporary, self._force = path, target, temporary, force
        self._expected: tuple[int, str] | None = None
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
        super().__init__(FileIO(os.open(self._temporary, flags, 0o666), "wb"), _BUFFER)

    @property
    def target(self) -> Path:
        """The file that it becomes, symlinks followed."""
        return self._target

    @property
    def temporary(self) -> Path:
        """The file that it is until then."""
        return self._temporary

    def expect(self, size: int, sha256: str) -> None:
        """Say what the file must read as: its bytes, and its SHA-256 in hex."""
        self._expected = size, sha256

    def flush_and_verify(self) -> None:
        """Force everything to the disk and read it back; nothing can be written any more."""
        with _told(self._path):
            self.flush()
            present = _stat(self._target)
            if present is not None and hasattr(os, "fchmod"):
                with contextlib.suppress(PermissionError):  # file systems without modes
                    os.fchmod(self.fileno(), stat.S_IMODE(present.st_mode))
            os.fsync(self.fileno())
            self.close()
            _read_back(self._temporary, self._expected, self._path)

    def write_all(self, data: bytes) -> None:
        """The whole of a small file: written, forced to the disk and read back."""
        self.write(data)
        self.expect(len(data), hashlib.sha256(data).hexdigest())
        self.flush_and_verify()

    def commit(self) -> None:
        """Give the file its name, once it was verified."""
        with _told(self._path):
            check_target(self._path, self._force)  # somebody may have put a file there in the meantime
            _rename(self._temporary, self._target, self._force)
        _sync_folder(self._target)


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
def staged(path: str | PathLike[str], force: bool = False) -> Iterator[Output]:
    """A binary stream that becomes the file `path` when it is verified and committed, and vanishes if it is not.

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
    output = None

    def vanish() -> None:
        if output is not None:
            with contextlib.suppress(OSError):
                output.raw.close()  # what is still in the buffer goes nowhere
        with contextlib.suppress(OSError):
            os.unlink(temporary)

    with undone_by(vanish):
        try:
            with _told(path):
                output = Output(path, target, temporary, force)
                yield output
        finally:
            vanish()


def commit_all(outputs: Sequence[Output]) -> None:
    """Give verified outputs their names, in this order; whatever comes in between, all are old or all are new.

    Several names cannot be given in one step: a process killed between them leaves some new files beside old ones.

    Raises:
        UsageError, StorageError: as `Output.commit`; the old files are back.
    """
    former: list[_Former] = []
    for output in outputs:
        with _told(output.target):
            former.append(_Former(output))

    done = False

    def restore() -> None:
        with contextlib.ExitStack() as last:  # which goes on when one of them is interrupted
            for one in former:
                last.callback(one.forget)
            if not done and not all(one.replaced for one in former):
                for one in former:
                    last.callback(one.put_back)

    with undone_by(restore):
        try:
            for one in former:
                one.keep()
            for output in outputs:
                output.commit()
            done = True  # from here on nobody has to ask the file system whether it is
        finally:
            restore()


class _Former:
    """What an output takes the place of, to be put back as long as not all outputs have their names."""

    def __init__(self, output: Output) -> None:
        self._target, self._new = output.target, _identity(output.temporary)
        self._there = _identity(self._target) is not None
        self._kept = self._target.with_name(f".{self._target.name[:32]}.{secrets.token_hex(8)}.part")

    @property
    def replaced(self) -> bool:
        """Whether the output has the name. What somebody else put there is none of ours."""
        with contextlib.suppress(OSError):
            return _identity(self._target) == self._new
        return False

    def keep(self) -> None:
        """Have a second name for the old file."""
        with contextlib.suppress(OSError):  # there is none, or the file system has no links
            os.link(self._target, self._kept)

    def put_back(self) -> None:
        """The old file, or none, has the name again."""
        if self.replaced:
            with contextlib.suppress(OSError):
                if self._there:
                    os.replace(self._kept, self._target)
                else:
                    os.unlink(self._target)

    def forget(self) -> None:
        """The second name goes."""
        with contextlib.suppress(OSError):
            os.unlink(self._kept)


def _identity(path: Path) -> tuple[int, int] | None:
    """Which file has this name now."""
    found = _stat(path)
    return None if found is None else (found.st_dev, found.st_ino)


@contextlib.contextmanager
def alone(*folders: str | PathLike[str]) -> Iterator[None]:
    """Nobody else who asks for one of these goes on meanwhile; where the system cannot say so, it is hoped.

    It is the folders themselves that are held, so that no file is left behind; always in the same order, so that two
    who ask for the same do not wait for each other for ever.
    """
    held: dict[tuple[int, int], int] = {}
    try:
        for path in sorted({os.path.realpath(folder) for folder in folders}):
            with contextlib.suppress(ImportError, OSError):
                _hold(path, held)
        yield
    finally:
        for descriptor in held.values():
            os.close(descriptor)


def _hold(folder: str, held: dict[tuple[int, int], int]) -> None:
    """Adds the folder's descriptor once it is ours, under the folder's identity; a folder has several names."""
    import fcntl

    descriptor = os.open(folder, os.O_RDONLY)
    about = os.fstat(descriptor)
    identity = about.st_dev, about.st_ino
    if identity in held:
        os.close(descriptor)
        return
    held[identity] = descriptor
    fcntl.flock(descriptor, fcntl.LOCK_EX)


@contextlib.contextmanager
def _told(path: str | PathLike[str]) -> Iterator[None]:
    """An OSError becomes a StorageError about the output."""
    try:
        yield
    except OSError as error:
        raise _failure(path, error) from error


def write_bytes(path: str | PathLike[str], data: bytes, force: bool = False) -> None:
    """Write a small file, whole or not at all. Errors as `staged`."""
    with staged(path, force) as output:
        output.write_all(data)
        output.commit()


def _read_back(temporary: Path, expected: tuple[int, str] | None, path: str | PathLike[str]) -> None:
    """Raises StorageError if the file is not what was expected; the disk is asked, not the memory, where that works."""
    if expected is None:
        return
    hasher, size = hashlib.sha256(), 0
    with open(temporary, "rb", buffering=0) as file:
        if hasattr(os, "posix_fadvise"):
            with contextlib.suppress(OSError):
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        while chunk := file.read(_CHUNK):
            hasher.update(chunk)
            size += len(chunk)
    if (size, hasher.hexdigest()) != expected:
        raise StorageError(
            "the output does not read back as it was written",
            where=str(path),
            got=f"{size} bytes with SHA-256 {hasher.hexdigest()}",
            expected=f"{expected[0]} bytes with SHA-256 {expected[1]}",
            fix="Nothing was replaced. The disk, its cable or the memory may be at fault.",
        )


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


def _sync_folder(target: Path) -> None:
    """Force the new name to the disk; where a folder cannot be opened or synced, the system does it in its own time.

    Raises:
        StorageError: the disk failed. The file has its name, but may lose it when the power goes.
    """
    try:
        descriptor = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise StorageError(
                "the output was written, but its name may not have reached the disk",
                where=str(target),
                got=error.strerror or str(error),
                fix="Look after the disk, and write it again.",
            ) from error


def _kind(mode: int) -> str:
    kinds = {stat.S_IFDIR: "a folder", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device", stat.S_IFIFO: "a FIFO"}
    kinds |= {stat.S_IFSOCK: "a socket", stat.S_IFREG: "a file"}
    return kinds.get(stat.S_IFMT(mode), "something that is no file")


def _failure(path: str | PathLike[str], error: Exception) -> StorageError:
    got = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return StorageError("the output cannot be written", where=str(path), got=got, fix="Nothing was replaced.")
