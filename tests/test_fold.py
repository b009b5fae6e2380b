"""`--fold`: norms and transforms become part of layers, the network computes the same, and the file says what it is."""

from __future__ import annotations

import copy
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

import zero_convert as zc
from tests.nets import PreActivationResNet, tiny_resnet
from tests.test_onnx import entries, mobilenet, run
from tests.test_onnx_cli import CONVERT, folder  # noqa: F401
from zero_convert.artifacts.verify import verify
from zero_convert.cli import main
from zero_convert.exporters import onnx as exporter
from zero_convert.exporters.onnx.fold import _transformed
from zero_convert.exporters.onnx.graph import folded, graph
from zero_convert.graph.ties import ties
from zero_convert.nn.layers import HadamardTransform


class Valid(nn.Module):
    """Norms before and after layers without padding, of groups and transposed; before one that pads; on vectors."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm_a = nn.Conv2d(4, 6, 3, bias=False), nn.BatchNorm2d(6)
        self.norm_b, self.b = nn.BatchNorm2d(6), nn.Conv2d(6, 6, 3, groups=3)
        self.c, self.norm_c = nn.ConvTranspose2d(6, 4, 2, 2, groups=2), nn.BatchNorm2d(4)
        self.norm_d, self.d = nn.BatchNorm2d(4), nn.Conv2d(4, 3, 3, padding=1)
        self.e, self.norm_e = nn.Linear(3, 5), nn.BatchNorm1d(5)
        self.norm_f, self.f = nn.BatchNorm1d(5, affine=False), nn.Linear(5, 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.b(self.norm_b(torch.relu(self.norm_a(self.a(x)))))
        x = torch.relu(self.norm_c(self.c(torch.relu(x))))
        x = torch.relu(self.d(self.norm_d(x))).mean((2, 3))
        return self.f(self.norm_f(torch.relu(self.norm_e(self.e(x)))))


class Shared(nn.Module):
    """Nothing to fold: a norm with two readers, a layer that is used twice, tied layers, norms of a layer's own."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.twice = nn.BatchNorm1d(4), nn.Linear(4, 4)
        self.one, self.other, self.after = nn.Linear(4, 4), nn.Linear(4, 4), nn.BatchNorm1d(4)
        self.other.weight = self.one.weight
        self.still = nn.BatchNorm1d(4, track_running_stats=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        z = self.twice(torch.relu(self.twice(y))) + y
        return self.still(self.other(torch.relu(self.after(self.one(z)))))


IMAGE = (torch.ones(2, 4, 8, 8),)
NETS: dict[str, tuple[Callable[[], nn.Module], tuple[Tensor, ...], str, dict[str, str], tuple[int, int]]] = {
    "norms first": (tiny_resnet, (torch.ones(2, 3, 16, 16),), "zero-2021", {}, (4, 1)),
    "permuted": (tiny_resnet, (torch.ones(2, 3, 16, 16),), "zero-2021", {"mixing": "permute"}, (4, 1)),
    "signed": (PreActivationResNet, (torch.ones(2, 3, 16, 16),), "zero-2021", {"mixing": "signs"}, (0, 1)),
    "norms last": (tiny_resnet, (torch.ones(2, 3, 16, 16),), "zero-2022", {}, (6, 0)),
    "every layer": (Valid, IMAGE, "zero-2022", {}, (5, 0)),
    "mobilenet": (mobilenet, (torch.ones(1, 3, 32, 32),), "zero-2022", {}, (52, 0)),
}  # fmt: skip


def scattered(module: nn.Module, shifted: bool = True) -> nn.Module:
    """A copy in evaluation mode in which no number is as initialized, so that no layer hides behind another.

    Unless `shifted`, norms add nothing, which is how they start.
    """
    module = copy.deepcopy(module).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if tensor.is_floating_point():
                drawn = torch.randn(tensor.shape, generator=generator)
                fan = max(1, tensor[0].numel()) if tensor.ndim > 1 else 4
                tensor.copy_(drawn.abs() + 0.5 if name.endswith("running_var") else drawn / fan**0.5)
        for norm in module.modules():
            if isinstance(norm, nn.BatchNorm2d) and not shifted:
                norm.running_mean.zero_()
                norm.bias.zero_()
    return module


def exported(module: nn.Module, inputs: Any) -> onnx.ModelProto:
    stream = io.BytesIO()
    made, _ = graph(module, inputs, ties(module.state_dict(keep_vars=True)), exporter.OPSET)
    exporter.write(stream, made, entries(module), {})
    return onnx.load_model_from_string(stream.getvalue())


# -- what it computes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow if n in ("permuted", "signed", "mobilenet") else ()) for n in NETS]
)
def test_a_folded_network_computes_what_the_whole_one_does(name: str) -> None:
    build, inputs, scheme, options, (norms, transforms) = NETS[name]
    converted = zc.convert(build(), inputs, scheme=scheme, options=options, validate="none")
    module = scattered(converted.network, shifted=scheme == "zero-2022")
    before = {key: value.clone() for key, value in module.state_dict().items()}
    own, edits = folded(module, converted.graph, {})
    done = [edit.rewrite for edit in edits if edit.applied]
    assert (done.count("fold_norm"), done.count("fold_transform")) == (norms, transforms), edits
    x = torch.randn(3, *inputs[0].shape[1:], generator=torch.Generator().manual_seed(1))
    whole, small = exported(module, inputs), exported(own, inputs)
    (expected,), (got,) = run(whole, x), run(small, x)
    assert np.abs(expected).max() > 1e-3
    assert np.abs(got - expected).max() <= 1e-5 * np.abs(expected).max()
    with torch.no_grad():
        assert np.abs(got - module(x).numpy()).max() <= 1e-5 * np.abs(expected).max()
    counts = [[node.op_type for node in each.graph.node].count("BatchNormalization") for each in (whole, small)]
    assert counts[0] - counts[1] == norms
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())


def test_what_cannot_be_folded_stays_and_says_why() -> None:
    result = zc.convert(Shared(), (torch.ones(3, 4),), scheme="zero-2022", validate="none")
    _, edits = folded(result.network, result.graph, {})
    assert {edit.target: edit.applied for edit in edits} == {"norm": False, "after": False, "still": False}
    reasons = {edit.target: edit.reason for edit in edits}
    assert "twice is used elsewhere as well" in reasons["norm"]
    assert "one is used elsewhere as well" in reasons["after"]
    assert reasons["still"] == "it has no statistics of its own"
    result = zc.convert(Valid(), IMAGE, scheme="zero-2022", validate="none")
    padded = scattered(result.network)
    (edit,) = (edit for edit in folded(padded, result.graph, {})[1] if not edit.applied)
    assert edit.target == "norm_d" and "a constant cannot pass its padding" in edit.reason
    with torch.no_grad():
        padded.norm_d.running_mean.zero_()
        padded.norm_d.bias.zero_()
    assert all(edit.applied for edit in folded(padded, result.graph, {})[1])


def test_the_formulas_are_those_of_small_cases() -> None:
    net = nn.Sequential(
        nn.Linear(2, 2), nn.BatchNorm1d(2, eps=1.0), nn.ReLU(), nn.BatchNorm1d(2, eps=1.0), nn.Linear(2, 1)
    )
    result = zc.convert(net, (torch.ones(2, 2),), scheme="zero-2022", validate="none")
    state = result.module.state_dict()
    with torch.no_grad():
        for name, values in {
            "0.weight": [[1, 2], [3, 4]], "0.bias": [5, 6], "1.weight": [2, 6], "1.bias": [1, -1],
            "1.running_mean": [1, 2], "1.running_var": [3, 8], "3.weight": [4, 1], "3.bias": [1, 2],
            "3.running_mean": [0, 6], "3.running_var": [15, 0], "4.weight": [[2, 3]], "4.bias": [7],
        }.items():  # fmt: skip
            state[name].copy_(torch.tensor(values))
    own, _ = folded(result.network, result.graph, {})
    # s = 2/√4, 6/√9; b' = (5 - 1)·1 + 1, (6 - 2)·2 - 1; s = 4/√16, 1/√1; t = 1 - 0, 2 - 6
    assert {name: value.tolist() for name, value in own.state_dict().items()} == {
        "0.weight": [[1, 2], [6, 8]],
        "0.bias": [5, 7],
        "4.weight": [[2, 3]],
        "4.bias": [7 + 2 * 1 + 3 * -4],
    }


@pytest.mark.parametrize("mixing", ["none", "permute", "signs"])
@pytest.mark.parametrize("channels", [1, 2, 12, 10, 64])
def test_a_transform_is_applied_as_the_module_does_and_backwards(channels: int, mixing: str) -> None:
    given = HadamardTransform(channels, 0, mixing, "key")
    matrix = given(torch.eye(channels)).T.double().numpy()
    x = np.random.default_rng(0).normal(size=(channels, 3))
    assert np.abs(_transformed(given, x, False) - matrix @ x).max() < 1e-6
    assert np.abs(_transformed(given, x, True) - matrix.T @ x).max() < 1e-6


# -- the file ----------------------------------------------------------------------------------------------------------


def test_a_folded_file_says_that_the_weights_digest_does_not_apply(tmp_path: Path) -> None:
    result = zc.convert(tiny_resnet(), (torch.ones(1, 3, 16, 16),), validate="none")
    plain, model, again = result.save(tmp_path / "a.safetensors", tmp_path / "b.onnx", tmp_path / "c.onnx", fold=True)
    assert plain.folded_from == ""
    assert model.folded_from == plain.weights_digest == result.weights_digest != model.weights_digest
    assert model.note == "evaluation mode; folded 4 of 6 norms, 1 of 2 transforms"
    assert model.path.read_bytes() == again.path.read_bytes()
    metadata = {entry.key: entry.value for entry in onnx.load(model.path).metadata_props}
    assert metadata.keys() == {"zero_convert", "zero_convert.folded_from"}
    assert metadata["zero_convert.folded_from"] == f"zc1:{plain.weights_digest}"
    onnx.checker.check_model(model.path, full_check=True)
    identity = json.loads(model.receipt_path.read_text())["identity"]
    assert identity["file"]["folded_from"] == plain.weights_digest
    assert {"fold_norm", "fold_transform"} < {edit["rewrite"] for edit in identity["edits"]}
    assert verify(model.path).findings == ()
    model.receipt_path.write_text(model.receipt_path.read_text().replace(plain.weights_digest, "0" * 64))
    assert [finding.what for finding in verify(model.path).findings] == ["folded from"]


def test_statistics_that_training_mode_moved_are_not_folded(tmp_path: Path) -> None:
    result = zc.convert(tiny_resnet(), (torch.ones(1, 3, 16, 16),), scheme="zero-2022", validate="none")
    (first,) = result.save(tmp_path / "a.onnx", fold=True)
    result.module.train()(torch.randn(4, 3, 16, 16))
    (second,) = result.save(tmp_path / "b.onnx", fold=True)
    assert first.sha256 == second.sha256


def test_the_command_folds_and_every_command_knows_it(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:  # noqa: F811
    (folder / "net.py").write_text(
        "from torch import nn\n\n"
        "def net():\n    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))\n"
    )
    assert main([*CONVERT, "--scheme", "zero-2022", "--out", "a.safetensors", "--out", "b.onnx", "--fold"]) == 0
    out, err = capfd.readouterr()
    digest = out.splitlines()[-2].removeprefix("# weights zc1 ")
    assert out.splitlines()[-1] == "# folded, the weights digest does not apply: b.onnx"
    assert "folded 1 of 1 norms" in err
    assert main(["verify", "."]) == 0
    assert f"folded for inference: the weights digest zc1 {digest} does not apply" in capfd.readouterr().err
    assert main(["inspect", "b.onnx"]) == 0
    assert f"folded for inference: the conversion's zc1:{digest} does not apply" in capfd.readouterr().out
    assert main(["verify", "b.onnx", "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["files"][0]["folded_from"] == digest
    assert main([*CONVERT, "--out", "c.safetensors", "--fold"]) == 2
    assert "this option is for ONNX" in capfd.readouterr().err
    assert main([*CONVERT, "--set", "norm=none", "--out", "c.onnx", "--fold"]) == 0
    assert "nothing could be folded" in capfd.readouterr().err
