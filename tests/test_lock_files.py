"""Locks of model files and of folded files: what went in is hashed, made again, and named when it moves."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.command_line import Run, runner
from tests.test_lock import LOCK as LOCKED
from zero_convert.artifacts.lock import Origin, parse_lock, read_lock, spell
from zero_convert.formats.digests import sha256_file
from zero_convert.replay import moved

NETS = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.norm, self.last = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 4)
        self.table = nn.Parameter(torch.full((8,), 0.5))

    def forward(self, x):
        return self.last(torch.sin(self.table) * self.norm(self.first(x)).mean((2, 3)))

def plain():
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
"""
QUICK = ("--input", "1x3x8x8", "--validate", "none", "--device", "cpu", "--scheme", "zero-2022")
LOCK = ("lock", "in/weights.pt", "--arch", "nets/net.py:Net", "--out", "a.safetensors", *QUICK)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """In a project with `nets/net.py` and weights of its network."""
    monkeypatch.chdir(tmp_path)
    for folder in ("nets", "in"):
        Path(folder).mkdir()
    Path("nets/net.py").write_text(NETS)
    weights("in/weights.pt", 1.0)
    return runner(capsys)


def weights(path: str, value: float) -> None:
    names: dict[str, object] = {}
    exec(NETS, names)
    net = names["Net"]()  # type: ignore[operator]
    assert isinstance(net, nn.Module)
    torch.save({name: torch.full_like(tensor, value) for name, tensor in net.state_dict().items()}, path)


def tree() -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in Path().rglob("*") if path.is_file() and path.suffix != ".pyc"}


@pytest.mark.parametrize("uncovered", [pytest.param("zeros", marks=pytest.mark.slow), "keep"])
def test_a_lock_of_a_file_holds_its_digest_and_names_it_when_it_moves(run: Run, uncovered: str) -> None:
    ran = run(*LOCK, "--uncovered", uncovered)
    assert ran.code == 0, ran.err
    (entry,) = read_lock("zero.lock").entries
    assert entry.origin is not None
    assert (entry.origin.path, entry.origin.sha256) == ("in/weights.pt", (sha256_file("in/weights.pt"),))
    assert entry.model == "nets/net.py:Net"
    assert entry.identity.recipe.files == (entry.origin.sha256 if uncovered == "keep" else ())
    before = tree()
    assert run("check", "--trust").out == "a.safetensors: OK\n"
    assert run("verify", "--lock", "zero.lock").code == 0
    assert tree() == before

    weights("in/weights.pt", 2.0)
    ran = run("check", "--trust")
    assert (ran.code, ran.out) == (1, "a.safetensors: DRIFT\n")
    lines = [line.strip() for line in ran.err.splitlines()]
    assert lines[0].startswith("source 'in/weights.pt': sha256: got ")
    assert any(line.startswith("tensor 'table': values") for line in lines) is (uncovered == "keep")
    (github,) = run("check", "--trust", "--format", "github").out.splitlines()
    text = Path("zero.lock").read_text().splitlines()
    assert '"from": {' in text[int(github.partition("line=")[2].partition(",")[0]) - 1]
    assert run("lock", "--update", "--trust", "--validate", "none").code == 0
    assert run("check", "--trust").code == 0
    assert run("verify", "a.safetensors").code == 0


@pytest.mark.slow
def test_a_lock_of_a_file_means_the_same_from_every_folder(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(*LOCK, "--uncovered", "keep").code == 0
    here = Path("zero.lock").read_bytes()
    monkeypatch.chdir("in")
    assert run("check", "../zero.lock", "--trust").code == 0
    again = ["../nets/net.py:Net" if each == "nets/net.py:Net" else each for each in LOCK]
    again[again.index("in/weights.pt")], again[again.index("a.safetensors")] = "weights.pt", "../a.safetensors"
    ran = run(*again, "--uncovered", "keep", "--lock", "../zero.lock", "--force")
    assert ran.code == 0, ran.err
    assert Path("../zero.lock").read_bytes() == here


def test_a_file_that_is_gone_is_said_and_the_artifact_can_still_be_verified(run: Run) -> None:
    assert run(*LOCK, "--uncovered", "keep").code == 0
    Path("in/weights.pt").rename("in/other.pt")
    for command in (("check", "--trust"), ("lock", "--update", "--trust")):
        ran = run(*command)
        assert ran.code == 74, ran.err
        assert "does not exist (in/weights.pt)" in ran.err
    assert run("verify", "--lock", "zero.lock").code == 0


def test_of_a_file_in_several_the_one_that_moved_is_named() -> None:
    entry = parse_lock(spell(LOCKED).encode()).entries[0]
    here = [
        replace(entry, origin=Origin("in/m.index.json", tuple(digit * 64 for digit in each))) for each in ("123", "153")
    ]
    (found,) = moved(here[1].origin, here[0])
    assert str(found) == f"source 'in/m.index.json (2 of 3)': sha256: got {'5' * 16}…, expected {'2' * 16}…"
    (found,) = moved(Origin("in/m.index.json", ("1" * 64,)), here[0])
    assert str(found) == "source 'in/m.index.json': files: got 1, expected 3"
    assert moved(here[0].origin, here[0]) == moved(None, here[0]) == []


@pytest.mark.slow
def test_a_file_without_an_ending_is_a_file(run: Run) -> None:
    Path("in/weights.pt").rename("resnet18")
    ran = run(*("./resnet18" if each == "in/weights.pt" else each for each in LOCK), "--uncovered", "keep")
    assert ran.code == 0, ran.err
    assert run("check", "--trust").code == 0


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("in/weights.pt",), 2, "--arch MODEL"),
        (("in/missing.pt", "--arch", "nets/net.py:Net"), 74, "does not exist"),
        (("nets/net.py:Net", "--arch", "nets/net.py:Net"), 2, "arch is for files"),
        (("in/weights.pt", "--arch", "nets/net.py:plain"), 3, "does not hold the tensors of the architecture"),
        (("nets/net.py:plain", "--fold"), 2, "this option is for ONNX"),
        (("--update", "--arch", "nets/net.py:Net"), 2, "--update takes everything from the lock"),
        (("--update", "--fold"), 2, "--update takes everything from the lock"),
    ],
)
def test_what_cannot_be_locked_is_refused_with_a_way_out(
    run: Run, arguments: tuple[str, ...], code: int, says: str
) -> None:
    before = tree()
    more = () if "--update" in arguments else ("--out", "a.safetensors", *QUICK)
    ran = run("lock", *arguments, *more)
    assert ran.code == code, ran.err
    assert says in ran.err
    assert tree() == before


# ---------------------------------------------------------------------------------------------------------------------
# folded


def test_folded_files_are_locked_checked_and_verified_beside_the_others(run: Run) -> None:
    outs = ("--out", "a.safetensors", "--out", "a.onnx")
    ran = run("lock", "nets/net.py:plain", *outs, "--fold", *QUICK)
    assert ran.code == 0, ran.err
    folded, plain = read_lock("zero.lock").entries
    assert ([file.path for file in folded.files], [file.path for file in plain.files]) == (
        ["a.onnx"],
        ["a.safetensors"],
    )
    assert folded.folded_from == plain.identity.weights_digest != folded.identity.weights_digest
    assert [(edit.rewrite, edit.source) for edit in folded.identity.edits] == [("fold_norm", ("0",))]
    before = tree()
    assert run("check", "--trust").out == "a.onnx: OK\na.safetensors: OK\n"
    assert run("verify", "--lock", "zero.lock").code == 0
    assert run("lock", "--update", "--trust", "--validate", "none").out == "a.onnx: OK\na.safetensors: OK\n"
    assert tree() == before

    text = Path("zero.lock").read_text()
    Path("zero.lock").write_text(text.replace('"site": "1", "source": ["0"]', '"site": "1", "source": ["4"]'))
    ran = run("check", "--trust")
    assert ran.out == "a.onnx: DRIFT\na.safetensors: OK\n"
    assert ran.err.startswith("  edit 'fold_norm 1': source: got 0, expected 4")
    Path("zero.lock").write_text(text.replace(folded.folded_from, "0" * 64, 1))
    found = json.loads(run("check", "--trust", "--json").out)["entries"][0]["differences"]
    assert [(each["kind"], each["name"], each["what"]) for each in found] == [("weights", "folded from", "digest")]

    Path("zero.lock").write_text(text)
    content = bytearray(Path("a.onnx").read_bytes())
    content[content.index(b"0.weight") + 40] ^= 1
    Path("a.onnx").write_bytes(content)
    assert run("verify", "--lock", "zero.lock").code == 1


@pytest.mark.slow
def test_where_nothing_can_be_folded_the_file_is_that_of_the_conversion(run: Run) -> None:
    Path("nets/bare.py").write_text("from torch import nn\ndef net():\n    return nn.Linear(3, 4)\n")
    quick = ("--input", "1x3", "--validate", "none", "--device", "cpu", "--scheme", "zero-2022")
    ran = run("lock", "nets/bare.py:net", "--out", "a.safetensors", "--out", "a.onnx", "--fold", *quick)
    assert ran.code == 0, ran.err
    (entry,) = read_lock("zero.lock").entries
    assert (len(entry.files), entry.folded_from) == (2, "")
    assert run("check", "--trust").code == 0
