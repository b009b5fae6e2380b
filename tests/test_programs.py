"""Programs that were trusted are networks of layers again: what torch.export recorded, and TorchScript."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from packaging.version import Version
from torch import nn

import zero_convert as zc
from tests.checkpoints import Net, program, script
from zero_convert.artifacts.receipt import read_receipt
from zero_convert.cli import main
from zero_convert.errors import LoadError
from zero_convert.formats.naming import receipt_path
from zero_convert.sources import programs

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*torch.jit:FutureWarning", "ignore:.*torch.jit:DeprecationWarning", "ignore:.*assigned during export"
)


class Sorts(nn.Module):
    """One layer of every kind that a program spells as an operation, called twice, shared and in place."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 6, padding_idx=0)
        self.rnn = nn.LSTM(6, 5, batch_first=True)
        self.gru = nn.GRU(5, 4, batch_first=True, bidirectional=True)
        self.conv = nn.Conv1d(8, 8, 3, padding="same", groups=2)
        self.up = nn.ConvTranspose1d(8, 4, 2, stride=2, output_padding=1)
        self.norms = nn.Sequential(nn.BatchNorm1d(4), nn.GroupNorm(2, 4), nn.InstanceNorm1d(4, affine=True))
        self.drop = nn.Dropout(0.1)
        self.act = nn.PReLU()
        self.last = nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 4), nn.RMSNorm(4))
        self.scale = nn.Parameter(torch.full((4,), 0.5))
        self.register_buffer("shift", torch.ones(4))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x, (h, c) = self.rnn(self.embed(ids))
        x = self.gru(x)[0].transpose(1, 2)
        x = self.norms(self.up(torch.relu_(self.conv(self.conv(x)))))
        x = self.act(self.drop(x))[:, :, 1:].mean(2)
        x = x + self.last(x) * self.scale + self.shift
        out: torch.Tensor = x + h[0, :, :4] + c.select(0, 0)[:, 1:]
        return out


def shapes(network: nn.Module) -> dict[str, tuple[bool, tuple[int, ...]]]:
    trained = {name for name, _ in network.named_parameters()}
    return {name: (name in trained, tuple(value.shape)) for name, value in network.state_dict().items()}


def classes(network: nn.Module) -> dict[str, str]:
    own = {n: m for n, m in network.named_modules() if m._parameters or isinstance(m, nn.Dropout | nn.LSTM | nn.GRU)}
    return {name: repr(module) for name, module in own.items() if name}


@pytest.mark.parametrize("training", [False, True])
def test_a_recorded_program_is_its_layers_again(training: bool) -> None:
    torch.manual_seed(0)
    network = Sorts().train(training)
    ids = torch.arange(6).view(2, 3)
    try:
        recorded = torch.export.export(network, (ids,))
    except RuntimeError:
        if Version(torch.__version__) >= Version("2.15"):
            raise
        pytest.skip(f"torch {torch.__version__} does not record this network")
    again = programs.from_program(recorded)
    assert shapes(again) == shapes(network) and classes(again) == classes(network)
    assert again.training is training
    for each in (again, network):
        each.eval()
    assert torch.equal(again(ids), network(ids))
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in network.state_dict().items())
    left = [str(n.target) for n in again.graph.nodes if isinstance(n.target, torch._ops.OpOverload)]  # type: ignore[union-attr]
    assert {*left} <= {"aten.zeros.default"}


def test_both_kinds_of_program_convert_as_their_source_does(tmp_path: Path) -> None:
    """The structure survives, so that every format of one network has one digest."""
    options: dict[str, Any] = {"scheme": "zero-2021", "validate": "none"}
    x = torch.zeros(2, 3, 8, 8)
    expected = zc.convert(Net(), (x,), **options)
    assert len(expected.plan.joins) == 2
    for path, given in ((program(tmp_path), None), (script(tmp_path), (x,))):
        result = zc.convert(str(path), given, trust=True, **options)
        assert result.weights_digest == expected.weights_digest
        assert len(result.plan.joins) == 2 and any("was trusted" in note for note in result.plan.notes)
        assert result.module.state_dict().keys() == expected.module.state_dict().keys()


def test_the_command_converts_a_trusted_program(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "o.safetensors"
    assert main([str(program(tmp_path)), "--trust", "--out", str(out), "--validate", "none"]) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "it is a program: its loader runs a graph" in said and "joins 2 found" in said
    assert read_receipt(receipt_path(out)).identity.recipe.source == "torch.fx.graph_module.GraphModule"
    assert main(["verify", str(out)]) == 0


class Counts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        while bool(x.sum() < 1):
            x = self.layer(x).abs() + 1
        return x


def test_a_program_that_no_graph_holds_is_an_error_with_a_way_out() -> None:
    with pytest.raises(LoadError, match="does not turn this TorchScript") as found:
        zc.convert(torch.jit.script(Counts().eval()), (torch.zeros(2, 3),), validate="none")
    assert found.value.exit_code == 3 and "--arch MODEL" in str(found.value)


def test_what_computes_something_else_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    recorded = torch.export.export(Net().eval(), (torch.ones(2, 3, 8, 8),))
    monkeypatch.setattr(programs, "FUNCTIONS", {**programs.FUNCTIONS, "add": torch.sub})
    with pytest.raises(LoadError, match="does not compute what the program computes"):
        programs.from_program(recorded)
