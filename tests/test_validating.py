"""`validate FILE`: the checks of a conversion, on the tensors that a file holds."""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path

import onnx
import pytest
import torch
from safetensors.torch import load_file

import zero_convert as zc
from zero_convert import checks
from zero_convert.errors import CheckError, MalformedError, UntrustedError, UsageError
from zero_convert.formats.safetensors import read_header
from zero_convert.validation import validate

from .command_line import Run, runner
from .nets import tiny_resnet
from .subjects import IMAGES

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    return runner(capsys)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A factory in a file, and what it was converted to."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "net.py").write_text("from tests.nets import tiny_resnet as make\n")
    with contextlib.chdir(folder):
        result = zc.convert("net.py:make", (IMAGES,), scheme="zero-2022", validate="none")
        result.save("a.safetensors", "a.onnx")
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, and the current folder."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def corrupt(path: Path, tensor: str, value: float) -> None:
    """Writes the value over the first of the tensor's, in the file."""
    header = read_header(path)
    info = next(each for each in header.tensors if each.name == tensor)
    content = bytearray(path.read_bytes())
    start = header.data_start + info.begin
    content[start : start + 4] = torch.tensor(value).numpy().tobytes()
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["a.safetensors", "a.onnx"])
def test_a_sound_file_passes_and_onnx_also_runs_in_the_runtime(folder: Path, run: Run, name: str) -> None:
    ran = run("validate", name, "--trust", "--device", "cpu", "--json")
    answer = json.loads(ran.out)
    assert (ran.code, answer["exit_code"]) == (0, 0)
    names = [check["name"] for check in answer["checks"]]
    assert names[0] == "values" and set(list(checks.FILES)[:3]) < set(names)
    assert ("parity" in names) == (name == "a.onnx")
    assert not [check for check in answer["checks"] if check["status"] == "fail"]


def test_a_corrupted_tensor_is_named_and_the_exit_code_is_1(folder: Path, run: Run) -> None:
    corrupt(folder / "a.safetensors", "blocks.1.conv2.weight", 1.0)
    ran = run("validate", "a.safetensors", "--trust", "--device", "cpu")
    assert ran.code == 1 and "blocks.1.conv2.weight (1 values)" in ran.err
    assert ran.out == "a.safetensors: FAILS: values, zero_branches\n"


def test_a_nan_in_the_file_is_found_by_the_checks_too(folder: Path) -> None:
    corrupt(folder / "a.safetensors", "linear.weight", float("nan"))
    answer = zc.validate("a.safetensors", trust=True, device="cpu")
    assert {"values", "finite"} <= {check.name for check in answer.failed}


def test_a_changed_initializer_of_an_onnx_file_is_found(folder: Path) -> None:
    model = onnx.load("a.onnx")
    tensor = next(t for t in model.graph.initializer if t.name == "linear.bias")
    tensor.raw_data = b"\x00\x00\x80\x3f" + tensor.raw_data[4:]
    onnx.save(model, "a.onnx")
    answer = zc.validate("a.onnx", trust=True, device="cpu")
    found = {check.name: check for check in answer.checks}
    assert found["values"].numbers["different"] == {"linear.bias": 1}
    assert found["parity"].status == "pass", "torch computes with the file's tensors"


def test_a_fused_batch_norm_is_found(folder: Path) -> None:
    """As exporters do by default: the norm's factor goes into the weight before it, under the same name."""
    model = onnx.load("a.onnx")
    tensor = next(t for t in model.graph.initializer if t.name == "conv1.weight")
    fused = torch.frombuffer(bytearray(tensor.raw_data), dtype=torch.float32) / (1 + 1e-5) ** 0.5
    tensor.raw_data = fused.numpy().tobytes()
    onnx.save(model, "a.onnx")
    answer = zc.validate("a.onnx", trust=True, device="cpu")
    assert list(answer.checks[0].numbers["different"]) == ["conv1.weight"]


def test_code_that_a_file_names_runs_only_with_trust(folder: Path, run: Run) -> None:
    assert run("validate", "a.safetensors").code == 4
    with pytest.raises(UntrustedError):
        zc.validate("a.safetensors")
    assert run("validate", "a.safetensors", "--arch", "net.py:make", "--device", "cpu").code == 0


@pytest.mark.parametrize("dtype", ["bfloat16", pytest.param("float16", marks=pytest.mark.slow)])
def test_half_precision_is_compared_in_its_own_bits(tmp_path: Path, dtype: str) -> None:
    path = tmp_path / "a.safetensors"
    zc.convert(tiny_resnet(), (IMAGES,), dtype=dtype, validate="none").save(path)
    assert load_file(path)["linear.weight"].dtype is getattr(torch, dtype)
    answer = zc.validate(path, tiny_resnet(), (IMAGES,), device="cpu")
    assert answer.checks[0].status == "pass" and not answer.failed


def test_a_file_of_another_network_or_of_nobody_is_refused(folder: Path, run: Run) -> None:
    with pytest.raises(MalformedError, match="does not fit"):
        zc.validate("a.safetensors", tiny_resnet(7), (IMAGES,))
    (folder / "b.safetensors").write_bytes(b"\x02\x00\x00\x00\x00\x00\x00\x00{}")
    assert run("validate", "b.safetensors").code == 4
    assert run("validate", "none.safetensors").code == 74


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_named_device_that_is_not_there_is_exit_code_5(folder: Path, run: Run) -> None:
    assert run("validate", "a.safetensors", "--trust", "--device", "cuda").code == 5
    assert run("validate", "a.safetensors", "--trust", "--device", "cuda:1").code == 5


# -- convert -----------------------------------------------------------------------------------------------------------

FAILING = """
import itertools
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.calls = nn.Linear(6, 6), nn.Linear(6, 4), 0

    def forward(self, x):
        self.calls += 1
        return self.second(self.first(x)) + self.calls * 1e-3
"""


def test_a_failed_check_writes_nothing_unless_it_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Run
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("bad.py").write_text(FAILING)
    command = ("bad.py:Net", "--input", "2x6", "--scheme", "zero-2022", "--device", "cpu", "--out", "a.safetensors")
    assert run(*command).code == 1
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".safetensors"] == []
    ran = run(*command, "--keep-failed")
    assert ran.code == 1 and Path("a.safetensors").exists() and "two runs differ" in ran.err
    kept = json.loads(Path("a.safetensors.receipt.json").read_text())
    assert "fail" in {check["status"] for check in kept["run"]["checks"]}
    assert json.loads(run(*command, "--keep-failed", "--force", "--json").out)["exit_code"] == 1
    result = zc.convert("bad.py:Net", (torch.zeros(2, 6),), scheme="zero-2022", device="cpu")
    with pytest.raises(CheckError):
        result.save("b.safetensors")


@pytest.mark.slow
def test_full_has_the_runtime_compute_the_export_before_it_is_written(folder: Path, run: Run) -> None:
    ran = run(
        *("net.py:make", "--input", "1x3x32x32", "--device", "cpu", "--validate", "full", "--train-steps", "2"),
        *("--out", "b.onnx", "--json"),
    )
    found = {check["name"]: check for check in json.loads(ran.out)["checks"]}
    assert ran.code == 0 and found["parity"]["status"] == "pass"
    assert len(found["training"]["numbers"]["losses"]) == 3


ODD = """
import torch

class Odd(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.norm, self.head = torch.nn.Linear(4, 6), torch.nn.BatchNorm1d(6), torch.nn.Linear(6, 3)
        self.extra = torch.nn.Parameter(torch.rand(6) + 2)

    def forward(self, x):
        return self.head(torch.special.zeta(self.norm(self.first(x)).abs() + 2, self.extra))
"""


def test_files_that_their_recipe_alone_does_not_make_are_refused_with_the_way_out(tmp_path: Path) -> None:
    net = tmp_path / "net.py"
    net.write_text(ODD)
    namespace: dict[str, type[torch.nn.Module]] = {}
    exec(ODD, namespace)
    torch.save(namespace["Odd"]().state_dict(), tmp_path / "given.pt")
    settings = {"uncovered": "keep", "validate": "none", "device": "cpu"}
    result = zc.convert(str(tmp_path / "given.pt"), (torch.ones(5, 4),), arch=f"{net}:Odd", **settings)
    result.save(tmp_path / "made.safetensors")
    with pytest.raises(UsageError, match="another file"):
        validate(tmp_path / "made.safetensors")
    folded = zc.convert(tiny_resnet(), (IMAGES,), validate="none", device="cpu")
    folded.save(tmp_path / "folded.onnx", fold=True)
    with pytest.raises(UsageError, match="folded"):
        validate(tmp_path / "folded.onnx")
