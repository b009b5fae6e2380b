"""`--out FILE.onnx`: what the command writes, says and refuses."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import onnx
import pytest

from zero_convert.cli import main

NET = """
from torch import nn

def net():
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 600), nn.ReLU(), nn.Linear(600, 2))
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "net.py").write_text(NET)
    monkeypatch.chdir(tmp_path)
    return tmp_path


CONVERT = ["net.py:net", "--input", "1x4", "--validate", "none"]


def sums(folder: Path, *names: str) -> list[str]:
    return [f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}" for name in names]


def test_one_run_writes_both_formats_with_one_weights_digest(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main([*CONVERT, "--out", "a.safetensors", "--out", "b.onnx"]) == 0
    out, err = capfd.readouterr()
    *files, start, digest = out.splitlines()
    assert start.startswith("# start zs1 ")
    assert files == sums(folder, "a.safetensors", "b.onnx")
    assert "and b.onnx.receipt.json; evaluation mode" in err
    for name in ("a.safetensors", "b.onnx"):
        assert main(["inspect", name]) == 0
        assert f" {digest.removeprefix('# weights ')}\n" in capfd.readouterr().out
    assert main(["verify", "."]) == 0
    assert capfd.readouterr().out == "a.safetensors: OK\nb.onnx: OK\n"
    assert main(["inspect", "b.onnx", "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["weights_digest"] in digest


def test_a_data_file_is_named_after_the_model_and_has_a_line_of_its_own(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main([*CONVERT, "--out", "b.onnx", "--external-data", "--opset", "18"]) == 0
    out, err = capfd.readouterr()
    assert out.splitlines()[:-2] == sums(folder, "b.onnx", "b.onnx.data")
    assert "b.onnx.data" in err
    assert onnx.load("b.onnx").opset_import[0].version == 18
    assert main(["verify", "b.onnx"]) == 0
    (folder / "b.onnx").unlink()
    (folder / "b.onnx.receipt.json").unlink()
    before = (folder / "b.onnx.data").read_bytes()
    assert main([*CONVERT, "--out", "b.onnx", "--external-data"]) == 2
    assert "b.onnx.data" in capfd.readouterr().err
    assert (folder / "b.onnx.data").read_bytes() == before


def test_stdout_takes_the_bytes_of_the_model(folder: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    assert main([*CONVERT, "--out", "-", "--format", "onnx"]) == 0
    out, err = capfdbinary.readouterr()
    (folder / "model").write_bytes(out)
    assert main(["inspect", "./model"]) == 0  # known without a suffix
    shown = capfdbinary.readouterr().out
    assert b"ai.onnx 20" in shown
    assert err.splitlines()[-1].removeprefix(b"# weights ") in shown
    assert err.splitlines()[-2].removeprefix(b"# start ") in shown


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        (["--out", "a.onnx", "--opset", "17"], "18 to 25"),
        (["--out", "a.safetensors", "--opset", "20"], "this option is for ONNX"),
        (["--out", "a.safetensors", "--external-data"], "this option is for ONNX"),
        (["--out", "-", "--format", "onnx", "--external-data"], "stdout takes one file only"),
        (["--out", "a.onnx", "--out", "a.onnx"], "named twice"),
        (["--out", "a.onnx.data", "--out", "a.onnx", "--format", "onnx", "--external-data"], "file beside another"),
    ],
)
def test_what_cannot_be_is_refused_before_any_work(
    typed: list[str], told: str, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["no.py:net", *typed]) == 2
    assert told in capfd.readouterr().err
    assert [path.name for path in folder.iterdir()] == ["net.py"]
