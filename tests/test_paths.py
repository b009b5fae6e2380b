"""Whatever names a file uses, nothing outside of the model's folder is opened: 160 cases under an audit hook."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from tests.bombs import framed, onnx, part
from tests.hostile import torch_zip

PROBE = """
import json, os, sys
from zero_convert import inspection, readers
from zero_convert.errors import ZeroConvertError
opened, armed = [], False
def hook(event, arguments):
    if armed and event == "open":
        opened.append(str(arguments[0]))
sys.addaudithook(hook)
cases = json.load(sys.stdin)
answers = {}
for round in range(2):  # the second time everything that reading needs is imported
    for name, (folder, path) in cases.items():
        opened.clear()
        armed = True
        try:
            inspection.facts(inspection.survey(readers.read(path), digest=True, values=True))
            ended = 0
        except ZeroConvertError as error:
            ended = error.exit_code
        armed = False
        answers[name] = ended, [each for each in map(os.path.realpath, opened) if not each.startswith(folder + os.sep)]
json.dump(answers, sys.stdout)
"""

WEIGHTS = framed(b'{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}', b"\0\0\0\0")
NAMES = (
    "../secret", "../outside/secret", "./../secret", "sub/../../secret", "sub/../secret", "..", ".", "", "/", "//",
    "sub/", "/etc/passwd", "/proc/self/environ", "/proc/self/fd/0", "/dev/zero", "/dev/stdin", "//server/share/x",
    "~/secret", "~root/x", "..\\secret", "sub\\..\\..\\secret", "C:\\secret", "C:secret", "\\\\server\\share",
    "file:///etc/passwd", "http://x/secret", "%2e%2e/secret", "secret\0.safetensors", "\x1b[2J", "a\nb", "a" * 5000,
    "link", "chain", "folder/secret", "pipe", "sub", "loop", "\u202esecret", "...", "..;/secret", "socket",
    "dangling",
)  # fmt: skip


def index(name: str) -> bytes:
    return json.dumps({"weight_map": {"w": name}}).encode()


def external(name: str) -> bytes:
    entry = part(13, part(1, b"location") + part(2, name.encode()))
    return onnx(part(5, part(1, 1) + part(2, 1) + part(8, b"w") + entry + part(14, 1)))


def member(name: str) -> bytes:
    return torch_zip(b"\x80\x02}.", (name or "x/", b"\0\0\0\0"))


def key(name: str) -> bytes:
    text = name.encode()
    storage = b"(X\7\0\0\0storagectorch\nFloatStorage\nX" + struct.pack("<I", len(text)) + text + b"X\3\0\0\0cpuK\1tQ"
    rest = b"K\0(K\1t(K\1t\x89ccollections\nOrderedDict\n)RtR"
    return torch_zip(b"\x80\x02}X\1\0\0\0wctorch._utils\n_rebuild_tensor_v2\n(" + storage + rest + b"s.")


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, list[str]]]:
    root = Path(os.path.realpath(tmp_path_factory.mktemp("root")))
    cases = {}
    for form in (index, external, member, key):
        for number, name in enumerate(NAMES):
            folder = root / f"{form.__name__}{number}" / "model"
            _surround(folder)
            (folder / "file").write_bytes(form(name))
            cases[f"{form.__name__} {name[:40]!r}"] = str(folder), str(folder / "file")
    for form in (index, external):
        folder = root / form.__name__ / "model"
        _surround(folder)
        (folder / "file").write_bytes(form("beside"))
        cases[f"{form.__name__}: sound"] = str(folder), str(folder / "file")
    done = subprocess.run(
        [sys.executable, "-c", PROBE], input=json.dumps(cases), capture_output=True, text=True, check=True, timeout=120
    )
    found: dict[str, tuple[int, list[str]]] = json.loads(done.stdout)
    return found


def _surround(folder: Path) -> None:
    (folder / "sub").mkdir(parents=True)
    outside = folder.parent
    for path in (outside / "secret", folder / "beside"):
        path.write_bytes(WEIGHTS if "index" in str(folder) else b"\0\0\0\0")
    (folder / "link").symlink_to(outside / "secret")
    (folder / "chain").symlink_to("link")
    (folder / "folder").symlink_to(outside)
    (folder / "loop").symlink_to("loop")
    (folder / "dangling").symlink_to(outside / "nothing")
    os.mkfifo(folder / "pipe")


@pytest.mark.skipif(os.name != "posix", reason="makes links and pipes")
def test_no_name_leads_out_of_the_models_folder(answers: dict[str, tuple[int, list[str]]]) -> None:
    assert len(answers) >= 80
    sound = {name: answer for name, answer in answers.items() if name.endswith(": sound")}
    assert len(sound) == 2 and all(answer == [0, []] for answer in sound.values())
    for name, (ended, outside) in answers.items():
        assert outside == [], name
        assert name in sound or ended in (4, 74), name
