"""One ONNX file from two virtual environments, two folders and two users, folded or not."""

from __future__ import annotations

import json
import os
import shutil
import site
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
SOMEBODY = 54321  # a user that nobody is

NET = """
from torch import nn

def net():
    layers = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 3), nn.BatchNorm2d(16)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4))
"""

PROBE = """
import hashlib, json, os, sys
from zero_convert import cli

printed, sys.stdout = sys.stdout, sys.stderr
found = {}
for more in ((), ("--fold",)):
    out = sys.argv[1] + "".join(more) + ".onnx"
    given = ["net.py:net", "--input", "1x3x8x8", "--validate", "none", "--scheme", "zero-2022", "--out", out]
    assert cli.main([*given, *more, "-q"]) == 0
    with open(out, "rb") as file:
        found[out.removeprefix(sys.argv[1])] = hashlib.sha256(file.read()).hexdigest()
leaks = {"environment": sys.prefix, "folder": os.getcwd(), "user": os.getuid(), "home": os.path.expanduser("~")}
print(json.dumps({"found": found, "leaks": leaks}), file=printed)
"""


@pytest.fixture
def top() -> Iterator[Path]:
    """A folder that every user can look into."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        yield Path(folder)


def interpreter() -> str | None:
    """An interpreter of this version that every user may run."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    found = (sys.executable, shutil.which(version, path="/usr/local/bin:/usr/bin"))
    return next((each for each in found if each and readable(Path(each).resolve().parent)), None)


def environment(python: str, folder: Path) -> Path:
    """The interpreter of a virtual environment in which the libraries of this one can be imported."""
    subprocess.run([python, "-m", "venv", "--without-pip", "--symlinks", str(folder)], check=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    (packages / "others.pth").write_text("\n".join([*site.getsitepackages(), str(folder / "code")]) + "\n")
    shutil.copytree(ROOT / "zero_convert", folder / "code" / "zero_convert", ignore=shutil.ignore_patterns("*.pyc"))
    return folder / "bin" / "python"


def made(python: Path, folder: Path, name: str, user: int) -> dict[str, Any]:
    """What the probe finds there, as that user."""
    home = folder / "home"
    home.mkdir(parents=True)
    (folder / "net.py").write_text(NET)
    for path in (folder, home, folder / "net.py"):
        os.chown(path, user, user)
    kept = ("PATH", "LD_LIBRARY_PATH", "OMP_NUM_THREADS", "SYSTEMROOT")
    surroundings = {key: os.environ[key] for key in kept if key in os.environ}
    surroundings |= {"HOME": str(home), "USER": f"user{user}", "TMPDIR": str(home)}
    command = [str(python), "-B", "-c", PROBE, name]
    done = subprocess.run(
        command, cwd=folder, env=surroundings, user=user, group=user, extra_groups=[], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def readable(path: Path) -> bool:
    """Whether every user can look into a folder."""
    return all(each.stat().st_mode & stat.S_IXOTH for each in (path, *path.parents))


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "getuid") or os.getuid() != 0, reason="only root can be somebody else")
def test_two_environments_folders_and_users_write_the_same_bytes(top: Path) -> None:
    python = interpreter()
    if python is None or not all(readable(Path(each)) for each in site.getsitepackages()):
        pytest.skip("the interpreter or the libraries are not for every user")
    one = made(environment(python, top / "one"), top / "here", "a", 0)
    two = made(environment(python, top / "another environment"), top / "some where" / "élse", "ünlike", SOMEBODY)
    assert all(one["leaks"][name] != two["leaks"][name] for name in one["leaks"])  # a writer that leaked would show
    assert one["found"] == two["found"]
    assert len(set(one["found"].values())) == 2
