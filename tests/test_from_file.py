"""`convert FILE --arch MODEL`: compared by names and shapes, values for constants only, nothing run without --trust."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import zero_convert as zc
from tests.hostile import dict_with, payload, torch_zip
from zero_convert.artifacts.receipt import read_receipt
from zero_convert.cli import main
from zero_convert.errors import LoadError, UntrustedError, UsageError
from zero_convert.formats.naming import receipt_path
from zero_convert.sources.matching import fit


class Net(nn.Module):
    """A residual network with a constant that a scheme leaves, and a parameter that only its values explain."""

    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        self.stem = nn.Linear(6, 8)
        self.block = nn.Linear(8, 8)
        self.norm = nn.BatchNorm1d(8)
        self.head = nn.Linear(8, classes)
        self.register_buffer("mean", torch.full((6,), 0.5))
        self.register_buffer("order", torch.arange(6))
        self.power = nn.Parameter(torch.full((), 2.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = (x - self.mean)[:, self.order]
        x = self.stem(x)
        x = x + self.norm(self.block(torch.relu(x)))
        return self.head(torch.pow(torch.abs(x), self.power))


FACTORY = "tests.test_from_file:Net"
OPTIONS = ["--input", "4x6", "--scheme", "zero-2022", "--validate", "none", "--uncovered", "keep"]


@pytest.fixture
def trained() -> Net:
    torch.manual_seed(1)
    network = Net()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_()
        network.mean += torch.arange(6) / 7
        network.order.copy_(torch.tensor([5, 4, 3, 2, 1, 0]))
        network.power.fill_(1.25)
        network.norm.running_mean += 1
    return network


def save_onnx(state: dict[str, torch.Tensor], path: Path) -> None:
    tensors = [onnx.numpy_helper.from_array(value.numpy(), name) for name, value in state.items()]
    graph = onnx.helper.make_graph([], "g", [], [], tensors)
    onnx.save(onnx.helper.make_model(graph), path)


KINDS: dict[str, Callable[[dict[str, torch.Tensor], Path], Any]] = {
    "zip": lambda state, path: torch.save(state, path),
    "legacy": lambda state, path: torch.save(state, path, _use_new_zipfile_serialization=False),
    "ddp": lambda state, path: torch.save({"state_dict": {f"module.{n}": v for n, v in state.items()}}, path),
    "lightning": lambda state, path: torch.save(
        {"state_dict": {f"model.{n}": v for n, v in state.items()}, "epoch": 3}, path
    ),
    "model": lambda state, path: torch.save({"model": state, "optimizer": {"m": torch.zeros(3)}}, path),
    "ema": lambda state, path: torch.save({"ema": state}, path),
    "safetensors": lambda state, path: save_file(state, path),
    "onnx": save_onnx,
}


@pytest.mark.parametrize("kind", KINDS)
def test_values_that_the_scheme_leaves_are_those_of_the_file(kind: str, trained: Net, tmp_path: Path) -> None:
    path, out = tmp_path / "given.pt", tmp_path / "o.safetensors"
    KINDS[kind]({name: value.detach() for name, value in trained.state_dict().items()}, path)
    assert main([str(path), "--arch", FACTORY, "--out", str(out), *OPTIONS]) == 0
    made = load_file(out)
    for name in ("mean", "order", "power"):
        assert torch.equal(made[name], trained.state_dict()[name]), name
    for name in ("stem.weight", "block.weight", "norm.weight", "norm.running_mean", "head.weight", "head.bias"):
        assert not torch.equal(made[name], trained.state_dict()[name]), name
    receipt = read_receipt(receipt_path(out))
    assert receipt.identity.recipe.files == (hashlib.sha256(path.read_bytes()).hexdigest(),)
    assert receipt.identity.recipe.model == FACTORY and main(["verify", str(out)]) == 0


def test_without_keep_a_file_changes_no_byte(trained: Net, tmp_path: Path) -> None:
    """The structure and the rules are the architecture's, so a checkpoint of it makes the same artifact."""
    torch.save(torch.nn.Sequential(nn.Linear(3, 3)).state_dict(), tmp_path / "m.pt")
    made = []
    for name, given in (("a", [str(tmp_path / "m.pt"), "--arch", "tests.test_from_file:plain"]), ("b", [PLAIN])):
        out = tmp_path / f"{name}.safetensors"
        assert main([*given, "--out", str(out), "--input", "1x3", "--validate", "none"]) == 0
        made.append((out.read_bytes(), json.loads(receipt_path(out).read_text("utf-8"))["identity"]))
    assert made[0] == made[1]
    assert "files" not in made[0][1]["recipe"]


PLAIN = "tests.test_from_file:plain"


def plain() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 3))


def test_a_file_that_does_not_fit_is_refused_with_what_differs(
    trained: Net, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = dict(trained.state_dict())
    del state["stem.bias"]
    state["head.weight"], state["stray"] = torch.zeros(9, 8), torch.zeros(2)
    state["order"] = torch.zeros(6)
    torch.save(state, tmp_path / "m.pt")
    assert main([str(tmp_path / "m.pt"), "--arch", FACTORY, "--out", str(tmp_path / "o.safetensors"), *OPTIONS]) == 3
    said = " ".join(capsys.readouterr().err.split())
    for part in (
        "1 of another shape: head.weight is 9×8 and not 4×8", "1 of another type: order is F32 and not I64",
        "1 missing: stem.bias", "1 unexpected: stray", f"expected the tensors of {FACTORY}",
    ):  # fmt: skip
        assert part in said
    assert not (tmp_path / "o.safetensors").exists()


def test_the_number_of_classes_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import torchvision

    with torch.device("meta"):
        state = torchvision.models.squeezenet1_1(num_classes=10).state_dict()
    torch.save({name: torch.zeros(value.shape) for name, value in state.items()}, tmp_path / "m.pt")
    for more, code in (([], 2), (["--arch", "squeezenet1_1"], 3)):
        assert main([str(tmp_path / "m.pt"), *more, "--out", str(tmp_path / "o.safetensors")]) == code
        said = " ".join(capsys.readouterr().err.split())
        assert "squeezenet1_1 --model-arg num_classes=10" in said
    arguments = ["--arch", "squeezenet1_1", "--model-arg", "num_classes=10", "--dry-run"]
    assert main([str(tmp_path / "m.pt"), *arguments]) == 0


def test_prefixes_counters_ties_and_tables_do_not_stand_in_the_way() -> None:
    model = {"a.weight": ("F32", (2, 2)), "b.weight": ("F32", (2, 2)), "n.num_batches_tracked": ("I64", ())}
    ties = {"a.weight": "a.weight", "b.weight": "a.weight", "n.num_batches_tracked": "n.num_batches_tracked"}
    file = {"net.a.weight": ("BF16", (2, 2)), "net.position_ids": ("I64", (1, 5)), "loss.w": ("F32", (1,))}
    found = fit(file, model, ties)
    assert found.whole and found.prefix == "net." and found.names == {"a.weight": "net.a.weight"}
    assert found.converted == {"BF16 for F32": 1} and set(found.besides) == {"position_ids", "loss.w"}
    assert not fit(file, model, {name: name for name in model}).whole
    deeper = {**{f"net.{name}": kind for name, kind in model.items()}, "net.c.weight": ("F32", (2, 2))}
    assert fit(deeper, model, ties).unexpected == ("c.weight",)


def test_a_whole_network_needs_a_word_and_an_architecture_needs_none(
    trained: Net, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = tmp_path / "whole.pt", tmp_path / "o.safetensors"
    torch.save({"model": trained, "epoch": 1}, path)
    assert main([str(path), "--out", str(out), *OPTIONS]) == 4
    said = " ".join(capsys.readouterr().err.split())
    assert "tests.test_from_file.Net" in said and "--arch" in said and "--trust" in said
    assert main([str(path), "--arch", FACTORY, "--out", str(out), *OPTIONS]) == 0
    by_name = load_file(out)
    assert "code is not run" in capsys.readouterr().err
    assert main([str(path), "--trust", "--out", str(out), "--force", *OPTIONS]) == 0
    assert "was trusted" in capsys.readouterr().err
    assert by_name.keys() == load_file(out).keys()
    assert all(torch.equal(value, by_name[name]) for name, value in load_file(out).items())
    assert read_receipt(receipt_path(out)).identity.recipe.files == (hashlib.sha256(path.read_bytes()).hexdigest(),)


def test_nothing_of_a_file_runs_without_trust(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever the file calls would leave a mark."""
    mark = tmp_path / "mark"
    harm = payload("os", "system", f"touch {mark}", "reduce")
    (tmp_path / "m.pt").write_bytes(torch_zip(b"\x80\x02" + dict_with(harm) + b"."))
    for arguments, code in (
        (["--arch", PLAIN], 3), (["--arch", PLAIN, "--uncovered", "keep"], 3), ([], 2), (["--trust"], 2)
    ):  # fmt: skip
        assert main([str(tmp_path / "m.pt"), "--out", str(tmp_path / "o.onnx"), *arguments]) == code
        assert "Traceback" not in capsys.readouterr().err
        assert not mark.exists()


def test_the_python_interface_takes_files(trained: Net, tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    torch.save(trained.state_dict(), path)
    options: dict[str, Any] = {"scheme": "zero-2022", "validate": "none"}
    x = torch.zeros(4, 6)
    result = zc.convert(str(path), (x,), arch=FACTORY, uncovered="keep", **options)
    assert result.module.get_parameter("power").item() == 1.25
    result.save(tmp_path / "o.safetensors")
    again = zc.load(tmp_path / "o.safetensors", model=FACTORY, example_inputs=(x,))
    assert torch.equal(again.get_buffer("mean"), trained.mean)
    for wrong in ({"arch": "resnet18"}, {"trust": True}):
        with pytest.raises(UsageError, match="is for files"):
            zc.convert(Net(), (x,), **wrong, **options)
    with pytest.raises(UsageError, match="no architecture"):
        zc.convert(str(path), (x,), **options)


def test_a_value_that_is_no_number_is_not_kept(trained: Net, tmp_path: Path) -> None:
    trained.mean[2] = float("nan")
    torch.save(trained.state_dict(), tmp_path / "m.pt")
    with pytest.raises(LoadError, match="'mean' of the file would be kept, and holds NaN"):
        zc.convert(str(tmp_path / "m.pt"), (torch.zeros(4, 6),), arch=FACTORY, scheme="zero-2022", uncovered="keep")


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning", "ignore:.*torch.jit:DeprecationWarning")
def test_programs_need_a_word_too(tmp_path: Path) -> None:
    network = torch.nn.Sequential(nn.Linear(3, 3)).eval()
    torch.jit.script(network).save(str(tmp_path / "script.pt"))
    torch.export.save(torch.export.export(network, (torch.zeros(2, 3),)), tmp_path / "program.pt2")
    for name in ("script.pt", "program.pt2"):
        with pytest.raises(UntrustedError, match="it is a program"):
            zc.convert(str(tmp_path / name), (torch.zeros(2, 3),), validate="none")
        result = zc.convert(str(tmp_path / name), (torch.zeros(2, 3),), arch=PLAIN, validate="none")
        assert "code is not run" in result.plan.notes[0]
