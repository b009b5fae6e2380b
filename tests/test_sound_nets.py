"""The checks find nothing against sound networks of ordinary kinds: what they are fed and how they judge fits these."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import zero_convert as zc
from zero_convert import checks
from zero_convert.errors import TraceError, UsageError
from zero_convert.records import Check

from .subjects import ask, subject_of

pytestmark = pytest.mark.usefixtures("one_thread")


class Block(nn.Module):
    """A stem, a residual branch and a head over the last dimension; the others say what is between."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.stem = nn.Linear(6, 8, dtype=dtype)
        self.branch = nn.Linear(8, 8, dtype=dtype)
        self.head = nn.Linear(8, 4, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.stem(x))
        made: Tensor = self.head(h + torch.relu(self.branch(h)))
        return made


class Counting(Block):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(x)


class Double(Block):
    """Its forward insists on float64."""

    def __init__(self) -> None:
        super().__init__(torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.double())


class Bags(nn.Module):
    """Its second input means something: where bags begin. The first of them has to begin at 0."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.branch, self.head = nn.EmbeddingBag(30, 8), nn.Linear(8, 8), nn.Linear(8, 2)

    def forward(self, ids: Tensor, offsets: Tensor) -> Tensor:
        h = self.table(ids, offsets)
        made: Tensor = self.head(h + torch.relu(self.branch(h)))
        return made


class Decoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(20, 16), nn.Linear(16, 20)
        self.layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, norm_first=True)

    def forward(self, ids: Tensor) -> Tensor:
        made: Tensor = self.head(self.layer(self.table(ids)))
        return made


class Inference(Block):
    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            raise RuntimeError("for inference only")
        return super().forward(x)


def answer(name: str, net: nn.Module, *inputs: Any, scheme: str = "zero-2021", steps: int | None = None) -> Check:
    found = ask(name, subject_of(net, *inputs, scheme=scheme), train_steps=steps)
    assert found is not None
    return found


@pytest.mark.parametrize("scheme", ["zero-2021", "fixup"])
def test_a_network_that_counts_its_calls_converts(scheme: str) -> None:
    made = zc.convert(Counting(), (torch.zeros(2, 6),), scheme=scheme)
    assert not made.failed and made.module.calls == 0


def test_a_forward_that_insists_on_float64_stays_and_is_checked_in_it() -> None:
    made = zc.convert(Double(), (torch.zeros(2, 6),))
    assert not made.failed and made.module.head.weight.dtype == torch.float64
    assert zc.convert(Block(torch.float64), (torch.zeros(2, 6),)).module.head.weight.dtype == torch.float32


@pytest.mark.parametrize("length", [7, 8])
def test_the_bias_of_a_head_over_tokens_is_alive_by_more_than_rounding(length: int) -> None:
    """Along the tokens a bias moves nothing: its gradient would be what rounding leaves of 0, for 8 tokens 0."""
    found = answer("gradients", Block(), torch.zeros(2, length, 6))
    assert found.status == "pass" and found.numbers["first_step"]["head.bias"] == 1
    assert answer("training", Block(), torch.zeros(2, length, 6), steps=3).status == "pass"


@pytest.mark.parametrize("name", ["gradients", "training"])
def test_an_example_of_zeros_for_tokens_does_not_make_a_network_look_dead(name: str) -> None:
    found = answer(name, Decoder(), torch.zeros(2, 8, dtype=torch.long), steps=3)
    assert found.status == "pass", found.summary


@pytest.mark.parametrize(
    ("net", "inputs"),
    [(Bags, (torch.arange(12), torch.tensor([0, 4, 8]))), (Double, (torch.zeros(2, 6),))],
    ids=["offsets", "float64"],
)
def test_a_sound_network_is_the_same_in_the_runtime(net: type[nn.Module], inputs: Any, tmp_path: Path) -> None:
    zc.convert(net(), inputs, scheme="zero-2022", validate="none").save(tmp_path / "net.onnx")
    found = checks.compare_export(
        subject_of(net(), *inputs, scheme="zero-2022"),
        tmp_path / "net.onnx",
        device="cpu",
        dtype="float32",
        strict=False,
    )
    assert found.status == "pass", found.summary


def test_a_network_for_inference_only_is_told_apart_from_inputs_that_do_not_fit() -> None:
    with pytest.raises(TraceError, match="fails in training mode") as caught:
        zc.convert(Inference(), (torch.zeros(2, 6),))
    assert "for inference only" in caught.value.got
    with pytest.raises(TraceError, match="fails for the example input"):
        zc.convert(Inference(), (torch.zeros(2, 5),))


def test_whoever_is_in_inference_mode_gets_a_module_that_trains() -> None:
    net = Block()
    with torch.inference_mode():
        inputs = (torch.zeros(2, 6),)
        made = zc.convert(net, inputs)
        assert torch.is_inference_mode_enabled()
    assert not made.failed
    made.module(torch.ones(2, 6)).sum().backward()
    assert made.module.head.weight.grad is not None


def test_a_nan_among_the_logits_is_told_and_not_the_zero_beside_it() -> None:
    subject = subject_of(
        nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2)), torch.zeros(2, 6)
    )
    subject.traced.root.get_buffer("1.running_var").fill_(-1)
    found = ask("logits", subject)
    assert found is not None and found.status == "fail" and "up to nan" in found.summary


def test_a_mean_that_is_0_is_linear_whatever_rounding_leaves_of_it() -> None:
    class Mean(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.branch = nn.Linear(6, 8), nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            h = torch.relu(self.stem(x))
            return (h + self.branch(h)).mean()

    assert answer("linearity", Mean(), torch.zeros(3, 6), scheme="risotto").status == "pass"


def test_biases_and_scales_go_around_the_output_of_a_recurrent_branch() -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.gru, self.head = nn.Linear(6, 8), nn.GRU(8, 8, batch_first=True), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            h = self.stem(x)
            output, state = self.gru(h)
            return self.head(h + output), state

    made = zc.convert(Recurrent(), (torch.zeros(2, 5, 6),), scheme="fixup")
    assert not made.failed and {"gru_scale.scale", "gru_bias_out.bias"} <= made.module.state_dict().keys()


def test_an_onnx_file_of_other_sizes_than_usual_is_validated_in_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The recipe does not hold the sizes where the usual ones would do for the tensors."""
    source = (
        "from torch import nn\n\n"
        "def net():\n"
        "    pool = nn.AdaptiveAvgPool2d(1)\n"
        "    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), pool, nn.Flatten(), nn.Linear(4, 2))\n"
    )
    (tmp_path / "small.py").write_text(source)
    monkeypatch.chdir(tmp_path)
    zc.convert("small.py:net", (torch.zeros(2, 3, 16, 16),), scheme="zero-2022", validate="none").save("small.onnx")
    answers = zc.validate("small.onnx", trust=True, device="cpu").checks
    assert {check.name: check.status for check in answers}["parity"] == "pass"


def test_steps_of_training_without_checks_are_refused() -> None:
    with pytest.raises(UsageError, match="no checks were asked for"):
        zc.convert(Block(), (torch.zeros(2, 6),), validate="none", train_steps=3)
