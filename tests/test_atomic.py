"""After any failure the old file is intact or the new one complete, and nothing else is left behind."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import threading
from collections.abc import Callable
from io import FileIO
from pathlib import Path
from typing import Any

import pytest

from zero_convert.errors import StorageError, UsageError, ZeroConvertError
from zero_convert.formats import atomic
from zero_convert.formats.atomic import check_target

from .sealed import atomic_write

OLD, NEW = b"old" * 1000, b"new" * 100_000


@pytest.fixture
def old(tmp_path: Path) -> Path:
    path = tmp_path / "file.bin"
    path.write_bytes(OLD)
    return path


def save(path: Path | str, content: bytes = NEW, force: bool = True) -> None:
    with atomic_write(path, force) as stream:
        stream.write(content)


def assert_untouched(path: Path) -> None:
    assert path.read_bytes() == OLD
    assert os.listdir(path.parent) == [path.name]


def test_a_new_file_is_written(tmp_path: Path) -> None:
    save(tmp_path / "new", force=False)
    assert (tmp_path / "new").read_bytes() == NEW
    assert os.listdir(tmp_path) == ["new"]


def test_an_old_file_is_replaced_only_by_force(old: Path) -> None:
    with pytest.raises(UsageError, match="--force"):
        save(old, force=False)
    assert_untouched(old)
    save(old)
    assert old.read_bytes() == NEW
    assert os.listdir(old.parent) == [old.name]


def test_the_old_file_is_there_until_the_new_one_is_complete(old: Path) -> None:
    with atomic_write(old, force=True) as stream:
        stream.write(NEW)
        stream.flush()
        assert old.read_bytes() == OLD
    assert old.read_bytes() == NEW


@pytest.mark.parametrize("failure", [RuntimeError("broke"), KeyboardInterrupt(), SystemExit(3), GeneratorExit()])
def test_a_writer_that_fails_in_the_middle_leaves_the_old_file(old: Path, failure: BaseException) -> None:
    def fail() -> None:
        with atomic_write(old, force=True) as stream:
            stream.write(NEW)
            raise failure

    with pytest.raises(type(failure)):
        fail()
    assert_untouched(old)


def test_a_full_disk_is_a_storage_error(old: Path) -> None:
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(StorageError, match="File too large"):
            save(old)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert_untouched(old)


@pytest.mark.parametrize("call", ["open", "fsync", "replace"])
def test_any_failing_system_call_leaves_the_old_file(old: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(atomic.os, call, fail)
        with pytest.raises(StorageError, match="No space left on device"):
            save(old)
    assert_untouched(old)


def test_file_and_folder_reach_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    real = os.fsync

    def record(descriptor: int) -> None:
        synced.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        real(descriptor)

    monkeypatch.setattr(atomic.os, "fsync", record)
    save(tmp_path / "new")
    assert synced == ["file", "folder"]


@pytest.mark.parametrize("umask", [0o002, 0o022, 0o077])
def test_a_new_file_has_the_mode_of_the_umask(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        save(tmp_path / "new")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o666 & ~umask


def test_a_replaced_file_keeps_its_mode(old: Path) -> None:
    old.chmod(0o640)
    save(old)
    assert stat.S_IMODE(old.stat().st_mode) == 0o640


def test_a_symlink_stays_and_its_target_is_written(old: Path, tmp_path: Path) -> None:
    (tmp_path / "links").mkdir()
    link = tmp_path / "links" / "link"
    link.symlink_to("../file.bin")
    with pytest.raises(UsageError):
        save(link, force=False)
    save(link)
    assert link.is_symlink()
    assert old.read_bytes() == NEW
    dangling = tmp_path / "links" / "dangling"
    dangling.symlink_to("../other.bin")
    save(dangling, force=False)
    assert dangling.is_symlink()
    assert (tmp_path / "other.bin").read_bytes() == NEW


def fifo(path: Path) -> None:
    os.mkfifo(path)


def loop(path: Path) -> None:
    path.symlink_to(path.name)


@pytest.mark.parametrize("make", [Path.mkdir, fifo, loop])
def test_what_is_no_file_is_refused_and_stays(tmp_path: Path, make: Callable[[Path], None]) -> None:
    path = tmp_path / "there"
    make(path)
    before = path.lstat()
    with pytest.raises(StorageError, match="there"):
        save(path)
    assert path.lstat() == before
    assert os.listdir(tmp_path) == ["there"]


def test_a_device_is_refused() -> None:
    with pytest.raises(StorageError, match="a device"):
        check_target(os.devnull, force=True)
    assert stat.S_ISCHR(os.stat(os.devnull).st_mode)


def test_a_missing_folder_is_named_and_not_made(tmp_path: Path, old: Path) -> None:
    for parent in (tmp_path / "missing", old):
        with pytest.raises(StorageError, match=parent.name) as caught:
            save(parent / "x")
        assert "folder does not exist" in str(caught.value)
        assert caught.value.exit_code == 74
    assert_untouched(old)


def test_a_read_only_folder_is_refused(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old.parent.chmod(0o555)
    if os.geteuid() == 0:  # root may write everywhere: answer as the system would answer anybody else
        monkeypatch.setattr(atomic.os, "access", lambda path, mode: not mode & os.W_OK)
    try:
        with pytest.raises(StorageError, match="not writable"):
            save(old)
        with pytest.raises(StorageError, match="not writable"):
            save(old.with_name("new"), force=False)
    finally:
        old.parent.chmod(0o755)
    assert_untouched(old)


def test_a_name_that_cannot_be_is_refused(tmp_path: Path) -> None:
    for name in ("x" * 300, "a\0b"):
        with pytest.raises(StorageError):
            save(tmp_path / name)
    assert os.listdir(tmp_path) == []


def test_a_long_name_that_can_be_is_written(tmp_path: Path) -> None:
    save(tmp_path / ("ü" * 127))
    assert os.listdir(tmp_path) == ["ü" * 127]


def test_check_target_refuses_before_the_work_and_touches_nothing(old: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in (old, old.parent)}
    assert check_target(old, force=True) == old
    assert check_target(old.with_name("new")) == old.with_name("new")
    for bad in (old, old.parent, old.parent / "missing" / "x"):
        with pytest.raises(ZeroConvertError):
            check_target(bad)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert_untouched(old)


def test_a_file_that_appears_during_the_work_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "file.bin"

    def race() -> None:
        with atomic_write(path) as stream:
            stream.write(NEW)
            path.write_bytes(OLD)

    with pytest.raises(UsageError, match="--force"):
        race()
    assert_untouched(path)


def test_a_file_that_appears_in_the_last_moment_is_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, link = tmp_path / "file.bin", os.link

    def late(source: Path, target: Path) -> None:
        path.write_bytes(OLD)
        link(source, target)

    monkeypatch.setattr(atomic.os, "link", late)
    with pytest.raises(UsageError, match="--force"):
        save(path, force=False)
    assert_untouched(path)


def test_a_file_system_without_links_takes_new_files_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(atomic.os, "link", refuse)
    save(tmp_path / "new", force=False)
    assert (tmp_path / "new").read_bytes() == NEW
    assert os.listdir(tmp_path) == ["new"]


def test_two_writers_at_once_leave_one_complete_file(tmp_path: Path) -> None:
    path = tmp_path / "file.bin"
    contents = [bytes([index]) * 3_000_000 for index in range(4)]
    threads = [threading.Thread(target=save, args=(path, content)) for content in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_bytes() in contents
    assert os.listdir(tmp_path) == [path.name]


# ---------------------------------------------------------------------------------------------------------------------
# read back


def promised(path: Path, content: bytes, size: int, sha256: str) -> None:
    with atomic_write(path, force=True) as stream:
        stream.write(content)
        stream.expect(size, sha256)


def test_what_reads_back_as_promised_is_written_and_nothing_else_is(old: Path) -> None:
    digest = hashlib.sha256(NEW).hexdigest()
    for size, sha256 in ((len(NEW) - 1, digest), (len(NEW), "0" * 64)):
        with pytest.raises(StorageError, match="does not read back") as caught:
            promised(old, NEW, size, sha256)
        assert digest in caught.value.got
        assert_untouched(old)
    promised(old, NEW, len(NEW), digest)
    assert old.read_bytes() == NEW


@pytest.mark.parametrize("lie", ["loses the last byte", "flips a bit", "says more than it took"])
def test_a_disk_that_lies_is_found_before_anything_is_replaced(
    old: Path, monkeypatch: pytest.MonkeyPatch, lie: str
) -> None:
    class Liar(FileIO):
        def write(self, data: Any) -> int:
            raw = bytes(data)
            if lie == "flips a bit":
                super().write(raw[:-1] + bytes([raw[-1] ^ 1]))
            else:
                super().write(raw[:-1] if lie == "loses the last byte" else raw[: len(raw) // 2])
            return len(raw)

    monkeypatch.setattr(atomic, "FileIO", Liar)
    with pytest.raises(StorageError, match="does not read back"):
        atomic.write_bytes(old, NEW, force=True)
    assert_untouched(old)


def test_short_writes_are_gone_on_with(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Short(FileIO):
        def write(self, data: Any) -> int | None:
            return super().write(memoryview(data)[:7777])

    monkeypatch.setattr(atomic, "FileIO", Short)
    atomic.write_bytes(old, NEW, force=True)
    assert old.read_bytes() == NEW


@pytest.mark.parametrize(("number", "fails"), [(errno.EIO, True), (errno.ENOSPC, True), (errno.EINVAL, False)])
def test_a_folder_that_does_not_reach_the_disk_is_said_and_one_that_cannot_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, fails: bool
) -> None:
    real = os.fsync

    def sync(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))
        real(descriptor)

    monkeypatch.setattr(atomic.os, "fsync", sync)
    if fails:
        with pytest.raises(StorageError, match="may not have reached the disk"):
            save(tmp_path / "new")
    else:
        save(tmp_path / "new")
    assert (tmp_path / "new").read_bytes() == NEW
    assert os.listdir(tmp_path) == ["new"]
