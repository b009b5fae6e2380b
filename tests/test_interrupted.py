"""Conversions that are killed, interrupted, out of space or not alone: old files or new ones, never a torn one."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.saver import QUICK
from zero_convert.artifacts.verify import verify

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the system cannot fork")

NAMES = ("a.safetensors", "a.safetensors.receipt.json")
SCHEMES = ("zero-2021", "zero-2022")
Files = dict[str, bytes]


@dataclass
class Saver:
    """Children that run `zero-convert` at once."""

    process: subprocess.Popen[str]
    net: str

    def start(self, out: Path, scheme: str, stop: bool = False, net: str = "") -> int:
        arguments = [net or self.net, "--out", str(out), "--force", "--scheme", scheme, *QUICK]
        return self._ask({"arguments": arguments, "stop": stop})

    def wait(self, child: int) -> int:
        """Its exit code, or minus the signal that ended it."""
        return os.waitstatus_to_exitcode(self._ask({"wait": child}))

    def _ask(self, order: object) -> int:
        assert self.process.stdin is not None and self.process.stderr is not None
        print(json.dumps(order), file=self.process.stdin, flush=True)
        return int(self.process.stderr.readline())


@pytest.fixture(scope="module")
def saver() -> Iterator[Saver]:
    command = [sys.executable, "-m", "tests.saver"]
    root = Path(__file__).parents[1]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stderr=pipe, stdout=subprocess.DEVNULL, text=True, cwd=root) as process:
        assert process.stderr is not None
        yield Saver(process, json.loads(process.stderr.readline())["net"])
        assert process.stdin is not None
        process.stdin.close()


@pytest.fixture
def made(saver: Saver, tmp_path: Path) -> list[Files]:
    """What each scheme makes of the network, written undisturbed."""
    found = []
    for scheme in SCHEMES:
        folder = tmp_path / scheme
        folder.mkdir()
        assert saver.wait(saver.start(folder / NAMES[0], scheme)) == 0
        found.append(files(folder))
    return found


def files(folder: Path) -> Files:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def fresh(folder: Path, contents: Files) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name, data in contents.items():
        (folder / name).write_bytes(data)
    return folder / NAMES[0]


def assert_whole(path: Path, code: int, made: list[Files], says: object, parts: bool = False) -> None:
    """Every file is one of those that were made undisturbed; after success it is the new ones."""
    found = files(path.parent)
    stale = {name for name in found if name.endswith(".part")}
    assert parts or not stale, (says, code)
    assert set(found) - stale == set(NAMES), (says, code)
    for name in NAMES:
        assert found[name] in [one[name] for one in made], (says, code, name)
    if code == 0:
        assert all(found[name] == made[1][name] for name in NAMES), says


# ---------------------------------------------------------------------------------------------------------------------
# ended


def _end_at_random(
    saver: Saver, made: list[Files], folder: Path, number: signal.Signals, rounds: int, until: int | None = None
) -> list[int]:
    """The exit codes of so many runs, and of more where none ended with the code that is waited for, up to 40."""
    start = time.monotonic()
    assert saver.wait(saver.start(fresh(folder, made[0]), SCHEMES[1])) == 0
    usual = time.monotonic() - start
    chance, codes = random.Random(rounds), []
    for index in range(40 if until is not None else rounds):
        path = fresh(folder, made[0])
        child = saver.start(path, SCHEMES[1])
        time.sleep(chance.uniform(0, usual))
        os.kill(child, number)
        codes.append(saver.wait(child))
        assert_whole(path, codes[-1], made, index, parts=number is signal.SIGKILL)
        if codes[-1] == 0:  # over before the signal came: other work on the machine had made the first run slow
            usual *= 0.8
        if index + 1 >= rounds and until in codes:
            break
    return codes


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupt_ends_with_130_and_leaves_nothing(
    saver: Saver, made: list[Files], tmp_path: Path, number: signal.Signals
) -> None:
    codes = _end_at_random(saver, made, tmp_path / "out", number, 5, until=130)
    # Before the command line is looked at a signal does what it does to any process.
    assert set(codes) <= {0, 130, -number}
    assert 130 in codes


# Python drops an exception that ends a destructor.
DEAF = """
import os, signal, torch

class Ends:
    def __del__(self):
        os.kill(os.getpid(), signal.{name})
        for _ in range(10):
            pass

def net():
    Ends()
    return torch.nn.Linear(4, 4)
"""


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_an_interrupt_ends_code_that_hears_no_exception(
    saver: Saver, made: list[Files], tmp_path: Path, name: str
) -> None:
    net = tmp_path / "deaf.py"
    net.write_text(DEAF.format(name=name))
    path = fresh(tmp_path / "out", made[0])
    code = saver.wait(saver.start(path, SCHEMES[1], net=f"{net}:net"))
    assert code == 130
    assert files(path.parent) == made[0]


def test_a_kill_leaves_old_files_or_new_ones(saver: Saver, made: list[Files], tmp_path: Path) -> None:
    assert set(_end_at_random(saver, made, tmp_path / "out", signal.SIGKILL, 5)) <= {0, -signal.SIGKILL}


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_fifty_kills_leave_old_files_or_new_ones(
    saver: Saver, made: list[Files], tmp_path: Path, number: signal.Signals
) -> None:
    codes = _end_at_random(saver, made, tmp_path / "out", number, 50)
    assert len(set(codes)) > 1


# ---------------------------------------------------------------------------------------------------------------------
# not alone


def _together(saver: Saver, made: list[Files], folder: Path, rounds: int) -> None:
    for index in range(rounds):
        path = fresh(folder, made[0] if index % 2 else {})
        children = [saver.start(path, SCHEMES[turn % 2]) for turn in range(8)]
        assert [saver.wait(child) for child in children] == [0] * 8
        assert files(folder) in made, index  # file and receipt of the same writer
        assert verify(path).findings == ()


def test_eight_writers_at_once_leave_the_files_of_one_of_them(saver: Saver, made: list[Files], tmp_path: Path) -> None:
    _together(saver, made, tmp_path / "out", 2)


@pytest.mark.slow
def test_eight_writers_twenty_times_leave_the_files_of_one_of_them(
    saver: Saver, made: list[Files], tmp_path: Path
) -> None:
    _together(saver, made, tmp_path / "out", 20)


# ---------------------------------------------------------------------------------------------------------------------
# no space


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder with a file system of its own, 64 kB large."""
    if shutil.which("mount") is None:
        pytest.skip("mount is not installed")
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)], capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip(f"a small tmpfs cannot be mounted here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def _fill(saver: Saver, made: list[Files], disk: Path, sizes: Iterable[int]) -> None:
    codes = []
    for kilobytes in sizes:
        for stale in disk.iterdir():
            stale.unlink()
        for name, data in made[0].items():
            (disk / name).write_bytes(data)
        (disk / "filler").write_bytes(bytes(kilobytes * 1024))
        codes.append(saver.wait(saver.start(disk / NAMES[0], SCHEMES[1])))
        (disk / "filler").unlink()
        assert_whole(disk / NAMES[0], codes[-1], made, kilobytes)
    assert set(codes) == {0, 74}


def test_a_full_disk_keeps_the_old_files_or_takes_the_new_ones(
    saver: Saver, made: list[Files], small_disk: Path
) -> None:
    _fill(saver, made, small_disk, range(0, 40, 5))


@pytest.mark.slow
def test_a_disk_of_forty_fills_keeps_the_old_files_or_takes_the_new_ones(
    saver: Saver, made: list[Files], small_disk: Path
) -> None:
    _fill(saver, made, small_disk, range(40))


# ---------------------------------------------------------------------------------------------------------------------
# every call into the system

ERRORS = ("error=EIO", "error=ENOSPC", "error=EACCES", "error=EINTR")
INJECTED = (*ERRORS, "retval=7", "signal=KILL", "signal=TERM", "signal=INT")  # 7: a write that loses what it took
CALLS = [
    "openat",
    "write",
    "fsync",
    "fdatasync",
    "rename",
    "renameat",
    "renameat2",
    "link",
    "linkat",
    "unlink",
    "unlinkat",
    "fchmod",
    "close",
    "newfstatat",
    "fstat",
    "access",
    "faccessat",
    "faccessat2",
    "read",
    "lseek",
    "flock",
    "readlink",
    "lstat",
    "stat",
]


def _traced(saver: Saver, path: Path, *options: str) -> int:
    """The exit code of a save under strace."""
    child = saver.start(path, SCHEMES[1], stop=True)
    while _state(child) != "T":
        time.sleep(0.001)
    command = ["strace", "-f", "-y", "-p", str(child), *options]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as tracer:
        assert tracer.stderr is not None
        assert "attached" in (said := tracer.stderr.readline()), said
        os.kill(child, signal.SIGCONT)
        code = saver.wait(child)
        tracer.communicate()
    return code


def _state(process: int) -> str:
    return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_every_call_into_the_system_may_fail(saver: Saver, made: list[Files], tmp_path: Path) -> None:
    path, log = fresh(tmp_path / "out", made[0]), tmp_path / "log"
    assert _traced(saver, path, "-e", f"trace={','.join(CALLS)}", "-o", str(log)) == 0
    places: list[tuple[str, int]] = []  # (call, its number among those of its name) that are about the folder
    counts: dict[str, int] = {}
    for line in log.read_text().splitlines():
        if found := re.match(r"\d+ +(\w+)\(", line):
            counts[found[1]] = counts.get(found[1], 0) + 1
            if str(path.parent) in line:
                places.append((found[1], counts[found[1]]))
    assert {"openat", "write", "fsync", "close"} <= {call for call, _ in places}
    injections = [(call, number, fault) for call, number in places for fault in INJECTED]
    injections = [each for each in injections if each[2] != "retval=7" or each[0] == "write"]
    assert len(injections) >= 300
    codes = []
    for call, number, fault in injections:
        path = fresh(tmp_path / "out", made[0])
        inject = f"inject={call}:{fault}:when={number}"
        codes.append(_traced(saver, path, "-e", f"trace={','.join(CALLS)}", "-e", inject, "-o", "/dev/null"))
        stays = fault == "signal=KILL" or (call.startswith("unlink") and "error" in fault)
        assert_whole(path, codes[-1], made, inject, parts=stays)
        assert codes[-1] in (0, 74, 130, -signal.SIGKILL), (inject, codes[-1])
    print(f"{len(injections)} injected failures; exit codes {sorted((code, codes.count(code)) for code in set(codes))}")
    assert {0, 74, 130, -signal.SIGKILL} == set(codes)
