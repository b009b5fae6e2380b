"""Whatever call of the file system fails while a conversion is saved: no torn file, and no success after a failure.

Here the calls are made to fail in Python, one at a time: an error before the call is made, or an interrupt before or
after it. `test_interrupted.py` does the same to a whole process from outside.
"""

from __future__ import annotations

import errno
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from io import FileIO
from pathlib import Path
from typing import Any

import pytest

from tests.test_cli import MODELS
from zero_convert.artifacts.verify import verify
from zero_convert.errors import StorageError, ZeroConvertError
from zero_convert.exporters import onnx, safetensors
from zero_convert.formats import atomic
from zero_convert.pipeline import Result, convert

CALLS = ("access", "close", "fchmod", "fstat", "fsync", "link", "open", "replace", "stat", "unlink")
ERRORS = (errno.EIO, errno.ENOSPC, errno.EACCES, errno.EINTR, errno.EDQUOT, errno.EROFS)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> tuple[Result, Result]:
    """Two conversions of one small network: what was there, and what is to be written."""
    import torch

    path = tmp_path_factory.mktemp("net") / "net.py"
    path.write_text(MODELS)
    inputs = (torch.ones(2, 3, 8, 8),)
    made = [convert(f"{path}:Net", inputs, scheme=name, validate="none") for name in ("zero-2022", "zero-2021")]
    return made[0], made[1]


class Faults:
    """Counts the calls of a save in their order, and makes the one with the number `at` fail."""

    def __init__(self, at: int = -1, failure: Callable[[], BaseException] = RuntimeError, after: bool = False) -> None:
        self.at, self.failure, self.after = at, failure, after
        self.seen: list[str] = []

    def __enter__(self) -> Faults:
        def write(raw: FileIO, data: Any) -> int:
            written: int = self.call("write", lambda: FileIO.write(raw, data))
            return written

        self._patch = pytest.MonkeyPatch()
        self._patch.setattr(atomic, "FileIO", type("Raw", (FileIO,), {"write": write}))
        for room in (atomic, safetensors):
            self._patch.setattr(room, "os", self)
        return self

    def __exit__(self, *_: object) -> None:
        self._patch.undo()

    def __getattr__(self, name: str) -> Any:
        real = getattr(os, name)
        if name not in CALLS:
            return real
        return lambda *arguments, **named: self.call(name, lambda: real(*arguments, **named))

    def call(self, name: str, real: Callable[[], Any]) -> Any:
        self.seen.append(name)
        if len(self.seen) - 1 != self.at:
            return real()
        if self.after:
            real()
        error = self.failure()
        if name == "access" and isinstance(error, OSError):
            return False  # which is how it fails
        raise error

    @property
    def hit(self) -> str:
        return self.seen[self.at] if 0 <= self.at < len(self.seen) else "nothing"


def failures() -> Iterator[Any]:
    for number in ERRORS:
        yield pytest.param(
            lambda number=number: OSError(number, os.strerror(number)), False, id=errno.errorcode[number]
        )
    yield pytest.param(KeyboardInterrupt, False, id="interrupt before")
    yield pytest.param(KeyboardInterrupt, True, id="interrupt after")


def _refilled(folder: Path, contents: Mapping[str, bytes]) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name, data in contents.items():
        (folder / name).write_bytes(data)


@pytest.mark.parametrize("there", [False, True], ids=["new", "replaced"])
@pytest.mark.parametrize(("failure", "after"), list(failures()))
def test_every_failing_call_leaves_old_files_or_new_ones(
    results: tuple[Result, Result], tmp_path: Path, there: bool, failure: Callable[[], BaseException], after: bool
) -> None:
    names = ("a.safetensors", "a.safetensors.receipt.json")
    old, new = (_saved(result, tmp_path / str(index), names) for index, result in enumerate(results))
    path = tmp_path / "out" / names[0]

    start = partial(_refilled, path.parent, old if there else {})
    start()
    with Faults() as sound:
        results[1].save(path, force=there)
    assert {"open", "fsync", "write", "stat", "access", "replace" if there else "link"} <= set(sound.seen)
    for index, name in enumerate(sound.seen):
        start()
        caught: BaseException | None = None
        with Faults(index, failure, after) as shim:
            try:
                results[1].save(path, force=there)
            except (ZeroConvertError, KeyboardInterrupt) as error:
                caught = error
        assert shim.hit == name
        found = {each.name: each.read_bytes() for each in path.parent.iterdir()}
        if name != "unlink" or after:  # what cannot be removed stays
            assert set(found) <= set(names), (index, name)
        for each in names:
            assert found.get(each, old[each]) in (old[each], new[each]), (index, name)
            assert each in found or not there, (index, name)
        if caught is None:
            assert {each: found[each] for each in names} == new, (index, name)
        else:
            assert isinstance(caught, (StorageError, KeyboardInterrupt)), (index, name, caught)


MODEL = ("a.onnx", "a.onnx.data", "a.onnx.receipt.json")


def _sparing() -> Iterator[Any]:
    """Failures, and whether there are old files; one of them by default."""
    for each in failures():
        for there, name in ((False, "new"), (True, "replaced")):
            marks = () if each.id == "interrupt after" and there else pytest.mark.slow
            yield pytest.param(*each.values, there, id=f"{each.id}-{name}", marks=marks)


@pytest.mark.parametrize(("failure", "after", "there"), list(_sparing()))
def test_a_model_and_the_file_of_its_tensors_are_both_old_or_both_new(
    results: tuple[Result, Result],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    there: bool,
    failure: Callable[[], BaseException],
    after: bool,
) -> None:
    monkeypatch.setattr(onnx, "SMALL", 64)
    old, new = (_saved(result, tmp_path / str(index), MODEL, True) for index, result in enumerate(results))
    path = tmp_path / "out" / MODEL[0]

    start = partial(_refilled, path.parent, old if there else {})
    start()
    with Faults() as sound:
        results[1].save(path, force=there, external_data=True)
    for index, name in enumerate(sound.seen):
        start()
        caught: BaseException | None = None
        with Faults(index, failure, after) as shim:
            try:
                results[1].save(path, force=there, external_data=True)
            except (ZeroConvertError, KeyboardInterrupt) as error:
                caught = error
        assert shim.hit == name
        found = {each.name: each.read_bytes() for each in path.parent.iterdir()}
        if name != "unlink" or after:
            assert set(found) <= set(MODEL), (index, name)
        pair = {each: found.get(each) for each in MODEL[:2]}
        states = [{each: side.get(each) for each in MODEL[:2]} for side in (new, old if there else {})]
        assert pair in states, (index, name)
        assert found.get(MODEL[2]) in (new[MODEL[2]], old[MODEL[2]] if there else None), (index, name)
        if caught is None:
            assert {each: found[each] for each in MODEL} == new, (index, name)
        else:
            assert isinstance(caught, (StorageError, KeyboardInterrupt)), (index, name, caught)


def _saved(result: Result, folder: Path, names: Sequence[str], external_data: bool = False) -> dict[str, bytes]:
    folder.mkdir()
    result.save(folder / names[0], external_data=external_data)
    return {name: (folder / name).read_bytes() for name in names}


def test_a_receipt_that_stays_is_that_of_the_file_that_stays(
    results: tuple[Result, Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, real = tmp_path / "a.safetensors", atomic.Output.commit
    first_is_there, second_is_through = threading.Event(), threading.Event()

    def commit(output: atomic.Output) -> None:
        real(output)
        if threading.current_thread().name == "slow":  # between its file and its receipt
            first_is_there.set()
            second_is_through.wait(0.5)

    monkeypatch.setattr(atomic.Output, "commit", commit)
    slow = threading.Thread(target=results[0].save, args=(path,), kwargs={"force": True}, name="slow")
    slow.start()
    first_is_there.wait()
    results[1].save(path, force=True)
    second_is_through.set()
    slow.join()
    assert verify(path).findings == ()
