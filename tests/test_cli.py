"""The command line: every exit code, one message for every failure, nothing written after one, clean stdout."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import typer.main

from tests.command_line import Run, runner
from zero_convert import cli

MODELS = """
import os
import torch
from torch import nn

class Block(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(n, n, 3, padding=1, bias=False), nn.BatchNorm2d(n)
        self.conv2, self.bn2 = nn.Conv2d(n, n, 3, padding=1, bias=False), nn.BatchNorm2d(n)
        self.relu = nn.ReLU()

    def forward(self, x):
        return self.relu(x + self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x))))))

class Net(nn.Module):
    def __init__(self, classes=3):
        super().__init__()
        self.stem, self.bn, self.relu = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU()
        self.block, self.pool, self.fc = Block(8), nn.AdaptiveAvgPool2d(1), nn.Linear(8, classes)

    def forward(self, x):
        return self.fc(torch.flatten(self.pool(self.block(self.relu(self.bn(self.stem(x))))), 1))

class LogarithmOfZero(Net):
    def forward(self, x):
        y = super().forward(x)
        return torch.log(y - y)

class Uncovered(Net):
    def __init__(self):
        super().__init__()
        self.mystery = nn.Parameter(torch.randn(3))

    def forward(self, x):
        return torch.atan2(super().forward(x), self.mystery)

class WrongChannels(Net):
    def forward(self, x):
        return super().forward(x[:, :2])

class Noisy(Net):
    def forward(self, x):
        print("printed by the model")
        os.write(1, b"written by the model")
        return super().forward(x)

def fails():
    raise RuntimeError("no such dataset")

def no_module():
    return {"weights": 1}

def interrupted():
    raise KeyboardInterrupt
"""

SMALL = ("--input", "2x3x8x8", "--device", "cpu")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: empty but for `net.py`."""
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(MODELS)
    return tmp_path


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], folder: Path) -> Run:
    return runner(capsys)


def _files() -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(Path().iterdir()) if path.is_file()}


# ---------------------------------------------------------------------------------------------------------------------
# what goes well


def test_a_conversion_writes_the_file_and_its_receipt_and_says_both_hashes(run: Run) -> None:
    ran = run("net.py:Net", "--out", "a.safetensors", *SMALL)
    assert ran.code == 0, ran.err
    sha256, name = ran.out.splitlines()[0].split("  ")
    assert name == "a.safetensors"
    assert sha256 == hashlib.sha256(Path(name).read_bytes()).hexdigest()
    receipt = json.loads(Path("a.safetensors.receipt.json").read_text())
    start, weights = ran.out.splitlines()[1:]
    assert weights == f"# weights zc1 {receipt['identity']['weights_digest']}"
    assert re.fullmatch(r"# start zs1 [0-9a-f]{64}", start)
    assert "joins" in ran.err
    assert "constant 0" in ran.err
    assert run("verify", "a.safetensors").out == "a.safetensors: OK\n"


def test_two_outputs_hold_the_same_bytes(run: Run) -> None:
    ran = run("net.py:Net", "--out", "a.safetensors", "-o", "b.safetensors", *SMALL, "--validate", "none")
    assert ran.code == 0, ran.err
    assert Path("a.safetensors").read_bytes() == Path("b.safetensors").read_bytes()
    assert [line.split()[-1] for line in ran.out.splitlines()[:2]] == ["a.safetensors", "b.safetensors"]


def test_stdout_takes_the_bytes_of_the_file(folder: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    question = ("net.py:Noisy", *SMALL, "--validate", "none")
    assert cli.main([*question, "--out", "-"]) == 0
    bytes_ = capfdbinary.readouterr().out
    assert cli.main([*question, "--out", "a.safetensors"]) == 0
    assert bytes_ == Path("a.safetensors").read_bytes()


def test_json_is_one_object_even_if_the_model_prints(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["net.py:Noisy", "--json", "--out", "a.safetensors", *SMALL]) == 0
    out, err = capfd.readouterr()
    answer = json.loads(out)
    assert answer["exit_code"] == 0
    assert answer["outputs"][0]["sha256"] == hashlib.sha256(Path("a.safetensors").read_bytes()).hexdigest()
    assert answer["joins"]["found"] == 1
    assert {check["status"] for check in answer["checks"]} <= {"pass", "warn", "skip"}
    assert "printed by the model" in err
    assert "written by the model" in err


def test_a_dry_run_names_the_rule_of_every_tensor_and_writes_nothing(run: Run) -> None:
    before = _files()
    plan = json.loads(run("net.py:Net", "--dry-run", "--json", "--input", "2x3x8x8").out)["plan"]
    rules = {row["tensor"]["name"]: row["rule"] for row in plan["assignments"]}
    assert rules["fc.weight"] == "constant 0"
    assert plan["edits"]
    text = run("net.py:Net", "--dry-run", "--input", "2x3x8x8").out
    assert all(word in text for name, rule in rules.items() for word in (*name.rsplit(".", 1), rule))
    assert "decided by" not in text and plan["assignments"][0].keys() == {"tensor", "layer", "role", "rule"}
    more = run("net.py:Net", "--dry-run", "-v", "--input", "2x3x8x8").out
    assert re.search(r"layer +role +tensors +rule +decided by\n", more)
    assert re.search(r"\nfc +head +weight .* constant 0 +scheme\n", more)
    assert _files() == before


def test_quiet_says_nothing_but_the_result(run: Run) -> None:
    ran = run("-q", "net.py:Net", "--out", "a.safetensors", *SMALL)
    assert (ran.code, ran.err) == (0, "")
    assert len(ran.out.splitlines()) == 3


def test_options_reach_the_factory_and_the_scheme(run: Run) -> None:
    options = ("--scheme", "zero", "--set", "mixing=signs", "--model-arg", "classes=5", "--validate", "none")
    answer = json.loads(run("net.py:Net", "--out", "a.safetensors", "--json", *SMALL, *options).out)
    assert answer["recipe"]["options"]["mixing"] == "signs"
    assert answer["recipe"]["model_args"] == {"classes": 5}
    header = json.loads(run("inspect", "a.safetensors", "--json").out)
    assert {row["name"]: row["shape"] for row in header["tensors"]}["fc.bias"] == [5]


def test_inspect_shows_the_joins_of_a_model_and_the_tensors_of_a_file(run: Run) -> None:
    model = run("inspect", "net.py:Net", "--input", "2x3x8x8")
    assert model.code == 0, model.err
    assert "identity" in model.out
    assert "block.conv1, block.conv2" in model.out
    run("net.py:Net", "--out", "a.safetensors", *SMALL, "--validate", "none")
    file = run("inspect", "a.safetensors")
    assert "block.conv2.weight" in file.out
    assert "zero-2021" in file.out


def test_schemes_and_models_are_listed(run: Run) -> None:
    assert {"zero-2021", "zero-2022"} <= {line.split()[0] for line in run("schemes").out.splitlines()}
    assert "2110.12661" in run("schemes", "zero-2022").out
    listed = run("models", "resnet5*").out.splitlines()
    assert "torchvision:resnet50" in listed
    assert all("resnet5" in name for name in listed)


# ---------------------------------------------------------------------------------------------------------------------
# what goes wrong: exit code, one message, nothing written, nothing replaced

OUT = ("--out", "new.safetensors")
FAILURES: list[tuple[int, str, tuple[str, ...]]] = [
    (1, "", ("net.py:LogarithmOfZero", *OUT, *SMALL)),
    (1, "sha256", ("verify", "damaged.safetensors")),
    (2, "resnet50", ("resnett50", *OUT)),
    (2, "zero-2022", ("resnet50", *OUT, "--scheme", "zero-202")),
    (2, "mixing", ("resnet50", *OUT, "--set", "mixin=signs")),
    (2, "signs", ("resnet50", *OUT, "--set", "mixing=sign")),
    (2, "key=value", ("resnet50", *OUT, "--set", "mixing")),
    (2, "--force", ("resnet50", "--out", "old.safetensors")),
    (2, "safetensors", ("resnet50", "--out", "new.pth")),
    (2, "safetensors", ("resnet50", "--out", "new.gguf")),
    (2, "safetensors", ("resnet50", "--out", "new")),
    (2, "--dry-run", ("resnet50",)),
    (2, "twice", ("resnet50", *OUT, "--out", "./new.safetensors")),
    (2, "stdout", ("resnet50", "--out", "-", *OUT)),
    (2, "float16", ("resnet50", *OUT, "--dtype", "float8")),
    (2, "--force", ("resnet50", *OUT, "--forse")),
    (2, "MODEL", OUT),
    (2, "inspect", ("inspct", "resnet50")),
    (2, "'--version'", ("versin",)),
    (2, "'--help'", ("help",)),
    (2, "resnet50", ("resnett50",)),
    (2, "no such command, and no model has this name", ("blorp",)),
    (2, "no output is named", ("net.py:Net",)),
    (2, "no such Python module", (".:x", *OUT)),
    (2, "no such Python module", ("a b:x", *OUT)),
    (2, "Nett", ("net.py:Nett", *OUT)),
    (2, "shape", ("net.py:Net", *OUT, "--input", "banana")),
    (2, "'nothing-like-this'", ("models", "nothing-like-this")),
    (3, "RuntimeError: no such dataset", ("net.py:fails", *OUT)),
    (3, "dict", ("net.py:no_module", *OUT)),
    (3, "channels", ("net.py:WrongChannels", *OUT, *SMALL)),
    (3, "mystery", ("net.py:Uncovered", *OUT, *SMALL)),
    (4, "damaged", ("inspect", "noise.safetensors")),
    (5, "cuda", ("net.py:Net", *OUT, "--input", "2x3x8x8", "--device", "cuda:99")),
    (74, "does not exist", ("resnet50", "--out", "missing/new.safetensors")),
    (74, "net.py", ("resnet50", "--out", "net.py/new.safetensors")),
    (74, "does not exist", ("verify", "missing.safetensors")),
    (74, "missing.safetensors", ("inspect", "missing.safetensors")),
]
if not torch.cuda.is_available():
    FAILURES.append((5, "cuda", ("net.py:Net", *OUT, "--input", "2x3x8x8", "--device", "cuda")))


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A sound artifact and its receipt."""
    with contextlib.chdir(tmp_path_factory.mktemp("artifact")):
        Path("net.py").write_text(MODELS)
        assert cli.main(["net.py:Net", "--out", "damaged.safetensors", *SMALL, "--validate", "none", "-q"]) == 0
        return {name: data for name, data in _files().items() if name != "net.py"}


@pytest.fixture
def old_files(folder: Path, artifact: dict[str, bytes]) -> dict[str, bytes]:
    """What lies in the folder before a command fails: an older file, a damaged artifact, noise."""
    for name, data in artifact.items():
        Path(name).write_bytes(data)
    data = artifact["damaged.safetensors"]
    Path("damaged.safetensors").write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    Path("old.safetensors").write_bytes(b"somebody's work")
    Path("noise.safetensors").write_bytes(b"\xff" * 64)
    return _files()


def _name(value: Any) -> str:
    return " ".join(value) if isinstance(value, tuple) else ""


@pytest.mark.parametrize(("code", "says", "arguments"), FAILURES, ids=_name)
def test_a_failure_has_its_exit_code_and_one_message_and_leaves_every_file_alone(
    run: Run, old_files: dict[str, bytes], code: int, says: str, arguments: tuple[str, ...]
) -> None:
    ran = run(*arguments)
    assert ran.code == code, ran.err
    assert says in ran.err
    assert "Traceback" not in ran.err
    assert ran.err.count("error: ") == 1 or ran.out == "damaged.safetensors: DIFFERS\n"
    assert ran.out == "" or arguments[0] == "verify"
    assert _files() == old_files


@pytest.mark.parametrize("code", [2, 3, 4, 5, 74])
def test_with_json_a_failure_is_one_object_with_the_same_exit_code(
    run: Run, old_files: dict[str, bytes], code: int
) -> None:
    arguments = next(arguments for known, _, arguments in FAILURES if known == code)
    ran = run(*arguments, "--json")
    answer = json.loads(ran.out)
    assert (ran.code, answer["exit_code"]) == (code, code)
    assert answer["error"]["message"]
    assert ran.err == ""
    assert _files() == old_files


def test_stdout_takes_a_file_or_an_object_but_not_both(run: Run) -> None:
    answer = json.loads(run("net.py:Net", "--out", "-", "--json").out)
    assert (answer["exit_code"], answer["error"]["where"]) == (2, "--out -")


def test_a_failed_check_is_a_finding_with_its_numbers_in_json(run: Run) -> None:
    ran = run("net.py:LogarithmOfZero", *OUT, *SMALL, "--json")
    answer = json.loads(ran.out)
    assert (ran.code, answer["exit_code"], answer["error"]["type"]) == (1, 1, "CheckError")
    assert "finite" in {check["name"] for check in answer["checks"] if check["status"] == "fail"}


def test_an_interrupted_run_ends_with_130(run: Run) -> None:
    before = _files()
    ran = run("net.py:interrupted", *OUT)
    assert (ran.code, ran.out, ran.err) == (130, "", "error: interrupted\n")
    assert json.loads(run("net.py:interrupted", *OUT, "--json").out)["exit_code"] == 130
    assert _files() == before


def test_a_defect_of_ours_ends_with_70_and_shows_where_with_vv(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise ZeroDivisionError("a defect")

    monkeypatch.setattr("zero_convert.schemes._schemes", broken)
    calm, loud = run("schemes"), run("-vv", "net.py:Net", *OUT)
    assert (calm.code, loud.code) == (70, 70)
    assert "Traceback" not in calm.err
    assert "ZeroDivisionError: a defect" in calm.err
    assert "Traceback" in loud.err
    assert "in broken" in loud.err


def test_force_replaces_a_file_and_nothing_else_does(run: Run) -> None:
    Path("a.safetensors").write_bytes(b"somebody's work")
    assert run("net.py:Net", "--out", "a.safetensors", *SMALL, "--validate", "none", "--force").code == 0
    assert run("verify", "a.safetensors").code == 0


@pytest.mark.parametrize("typed", ["schemes zero-2022", "schemes", "convert --help", "--help"])
def test_a_reader_that_goes_away_is_no_traceback(typed: str) -> None:
    code = f"import sys; from zero_convert.cli import main; sys.exit(main({typed.split()}))"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == b""
    assert process.wait() == 74
    process.stderr.close()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device that is always full")
@pytest.mark.parametrize("typed", ["schemes", "schemes zero-2022", "schemes --json", "schemes nope --json", "--help"])
def test_a_stdout_that_takes_nothing_is_a_storage_error(typed: str) -> None:
    code = f"import sys; from zero_convert.cli import main; sys.exit(main({typed.split()}))"
    with open("/dev/full", "wb") as full:
        done = subprocess.run([sys.executable, "-c", code], stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 74, done.stderr
    assert "No space left on device" in done.stderr
    assert done.stderr.count("error: ") == 1
    assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr


def test_verify_looks_at_every_file_and_ends_with_the_highest_code(run: Run, artifact: dict[str, bytes]) -> None:
    for name, data in artifact.items():
        for new in (name, name.replace("damaged", "sound")):
            Path(new).write_bytes(data)
    data = artifact["damaged.safetensors"]
    Path("damaged.safetensors").write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    Path("torn.safetensors").write_bytes(data)
    Path("torn.safetensors.receipt.json").write_bytes(b"{")
    files = ("missing.safetensors", "damaged.safetensors", "torn.safetensors", "sound.safetensors")
    ran = run("verify", *files)
    assert ran.code == 74
    assert ran.out.splitlines() == [
        "missing.safetensors: NOT VERIFIED",
        "damaged.safetensors: DIFFERS",
        "torn.safetensors: NOT VERIFIED",
        "sound.safetensors: OK",
    ]
    assert ran.err.count("error: ") == 2
    assert "does not exist" in ran.err
    answer = json.loads(run("verify", "--json", *files[1:]).out)
    assert [(row["exit_code"], row["sound"]) for row in answer["files"]] == [(1, False), (4, False), (0, True)]
    assert (answer["exit_code"], answer["error"]["type"]) == (4, "MalformedError")
    assert run("verify", "sound.safetensors", "damaged.safetensors").code == 1
    folder = run("verify", ".")
    assert (folder.code, folder.out.count("\n")) == (4, 3)
    Path("torn.safetensors.receipt.json").unlink()
    Path("damaged.safetensors").write_bytes(data)
    alone = run("verify", ".")  # what lies there without a receipt is named
    lines = ["damaged.safetensors: OK", "sound.safetensors: OK", "torn.safetensors: NOT VERIFIED"]
    assert (alone.code, alone.out.splitlines()) == (74, lines)


@pytest.mark.parametrize(
    "name", ["a b.safetensors", "new\nline.safetensors", "back\\slash.safetensors", "\r.safetensors"]
)
def test_a_line_of_stdout_is_one_file_and_sha256sum_reads_it_back(run: Run, name: str) -> None:
    ran = run("net.py:Net", "--out", name, *SMALL, "--validate", "none")
    assert ran.code == 0, ran.err
    lines = ran.out.splitlines()
    assert len(lines) == 3
    assert lines[0].startswith("\\") == (name != "a b.safetensors")
    if tool := shutil.which("sha256sum"):
        subprocess.run([tool, "--check", "--strict"], input=lines[0] + "\n", text=True, check=True, capture_output=True)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_to_is_a_storage_error(run: Run) -> None:
    Path("closed").mkdir(mode=0o555)
    ran = run("net.py:Net", "--out", "closed/new.safetensors", *SMALL)
    assert ran.code == 74
    assert "the output's folder is not writable (closed/new.safetensors)" in ran.err
    assert list(Path("closed").iterdir()) == []


# ---------------------------------------------------------------------------------------------------------------------
# the word `convert`


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("resnet50 --out x", "convert resnet50 --out x"),
        ("convert resnet50 --out x", "convert resnet50 --out x"),
        ("--scheme zero-2022 resnet50 --out x", "convert --scheme zero-2022 resnet50 --out x"),
        ("--scheme=zero-2022 resnet50", "convert --scheme=zero-2022 resnet50"),
        ("-v -o x resnet50", "convert -v -o x resnet50"),
        ("--out inspect resnet50", "convert --out inspect resnet50"),
        ("--json --force resnet50", "convert --json --force resnet50"),
        ("--json inspect resnet50", "inspect --json resnet50"),
        ("inspect resnet50 --json", "inspect resnet50 --json"),
        ("-- resnet50", "convert -- resnet50"),
        ("--out x", "convert --out x"),
        ("--help", "--help"),
        ("--version", "--version"),
        ("resnet50 --help", "convert resnet50 --help"),
        ("", ""),
    ],
)
def test_the_word_convert_may_be_left_out(typed: str, meant: str) -> None:
    group = typer.main.get_command(cli.app)
    assert isinstance(group, cli._Commands)
    assert group.complete(typed.split()) == meant.split()


def test_help_names_the_exit_codes_that_the_readme_lists(run: Run) -> None:
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| (\d+) \|", readme.partition("### Exit codes")[2].partition("\n## ")[0], re.MULTILINE)
    assert len(listed) == 9
    assert re.findall(r"\d+", run("--help").out.partition("Exit codes:")[2]) == listed


def test_without_arguments_help_comes_on_stderr_with_the_code_of_usage(run: Run) -> None:
    ran = run()
    assert (ran.code, ran.out) == (2, "")
    assert "Usage: zero-convert" in ran.err
