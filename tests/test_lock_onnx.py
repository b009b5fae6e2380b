"""Locks of ONNX files: example inputs, opset and data file are recorded, made again, and named when they move."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.command_line import Run, runner
from zero_convert.artifacts.lock import read_lock

NET = """
from torch import nn

def net():
    return nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
"""
LOCK = ("lock", "net.py:net", "--input", "1x3x14x9", "--validate", "none", "--scheme", "zero-2022")


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(NET)
    return runner(capsys)


def replace(path: str, old: str, new: str) -> None:
    text = Path(path).read_text()
    assert old in text
    Path(path).write_text(text.replace(old, new))


def test_a_lock_makes_onnx_files_again_from_what_it_records(run: Run) -> None:
    outs = ("--out", "a.safetensors", "--out", "in/b.onnx")
    os.mkdir("in")
    ran = run(*LOCK, *outs, "--opset", "18", "--external-data")
    assert ran.code == 0, ran.err
    (entry,) = read_lock("zero.lock").entries
    plain, model = entry.files
    beside = Path("in/b.onnx.data")
    assert (plain.opset, len(plain.files), entry.inputs) == (0, 1, ("1x3x14x9",))
    data = model.files[1]
    assert model.opset == 18 and data.role == "data" and data.size == beside.stat().st_size > 0
    assert data.sha256 in ran.out
    assert f'"data": {{"sha256": "{data.sha256}", "size": {data.size}}}' in Path("zero.lock").read_text()
    before = {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}
    assert run("check", "--trust").code == 0
    assert run("verify", "--lock", "zero.lock").code == 0
    assert {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()} == before

    content = bytearray(beside.read_bytes())
    content[7] ^= 4
    beside.write_bytes(content)
    ran = run("verify", "--lock", "zero.lock", "--json")
    assert ran.code == 1
    found = [finding for row in json.loads(ran.out)["files"] for finding in row["findings"]]
    assert [(each["what"], each["tensor"]) for each in found] == [
        ("values", "0.weight"),
        ("weights digest", ""),
        ("data file", ""),
    ]
    assert run("lock", "--update", "--trust", "--validate", "none").code == 0
    assert {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()} == before

    replace("zero.lock", '"opset": 18', '"opset": 19')
    replace("zero.lock", data.sha256, "0" * 64)
    ran = run("check", "--trust")
    assert ran.code == 1
    assert "file 'in/b.onnx': sha256" in ran.err and "file 'in/b.onnx.data': sha256" in ran.err


@pytest.mark.slow
def test_example_inputs_are_a_part_of_what_is_recorded(run: Run) -> None:
    assert run(*LOCK, "--out", "b.onnx").code == 0
    assert run("check", "--trust").code == 0
    replace("zero.lock", '"1x3x14x9"', '"1x3x15x9"')  # sizes of inputs are in the file
    ran = run("check", "--trust")
    assert ran.code == 1
    assert "file 'b.onnx': sha256" in ran.err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((*LOCK, "--out", "a.safetensors", "--opset", "20"), "this option is for ONNX"),
        ((*LOCK, "--out", "a.safetensors", "--external-data"), "this option is for ONNX"),
        ((*LOCK, "--out", "a.onnx", "--opset", "7"), "18 to 25"),
        (("lock", "--update", "--opset", "20"), "--update takes everything from the lock"),
        (("lock", "--update", "--external-data"), "--update takes everything from the lock"),
    ],
)
def test_options_that_do_not_fit_are_refused_before_any_work(run: Run, arguments: tuple[str, ...], says: str) -> None:
    ran = run(*arguments)
    assert ran.code == 2
    assert says in ran.err
    assert os.listdir() == ["net.py"]
