"""Models in other types than float32: what is rewritten in float32, what keeps its type, what is written."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import zero_convert as zc
from zero_convert.validation import validate

from .nets import cifar_resnet18
from .odd_nets import ramp
from .test_families import SCHEMES


class Eight(nn.Module):
    """A linear layer with its weight in eight bits, as memory-saving checkpoints keep it."""

    def __init__(self, trainable: bool) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(6, 8), nn.Linear(8, 3)
        weight = torch.zeros(8, 8).to(torch.float8_e4m3fn)
        if trainable:
            self.weight = nn.Parameter(weight)
        else:
            self.register_buffer("weight", weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.first(x)) @ self.weight.to(x.dtype).T)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_type_of_the_given_model_changes_no_value(dtype: torch.dtype, scheme: str) -> None:
    inputs = (ramp(2, 3, 16, 16),)
    plain = zc.convert(cifar_resnet18(), inputs, scheme=scheme, validate="none")
    made = zc.convert(cifar_resnet18().to(dtype), tuple(x.to(dtype) for x in inputs), scheme=scheme, validate="none")
    assert made.weights_digest == plain.weights_digest
    assert {p.dtype for p in made.module.parameters()} == {torch.float32}


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_what_is_written_has_the_type_that_was_asked_for(dtype: str, tmp_path: Path) -> None:
    path = tmp_path / "start.safetensors"
    result = zc.convert(cifar_resnet18(), (ramp(2, 3, 16, 16),), dtype=dtype, validate="none")
    result.save(path)
    back = zc.load(path, cifar_resnet18(), (ramp(2, 3, 16, 16),))
    wanted = getattr(torch, dtype)
    assert {p.dtype for p in back.parameters()} == {wanted}
    full = zc.convert(cifar_resnet18(), (ramp(2, 3, 16, 16),), validate="none").module.state_dict()
    assert all(torch.equal(value, full[name].to(value.dtype)) for name, value in back.state_dict().items())


@pytest.mark.parametrize("scheme", SCHEMES)
def test_whole_numbers_and_booleans_stay_as_they_are(scheme: str) -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.head = nn.Linear(6, 8), nn.Linear(8, 3)
            self.register_buffer("mask", torch.arange(8) % 3 > 0)
            self.register_buffer("order", torch.arange(8, dtype=torch.int32).flip(0))

        def forward(self, x: Tensor) -> Tensor:
            return self.head((self.first(x) * self.mask)[:, self.order.long()])

    made = zc.convert(Masked(), (ramp(4, 6),), scheme=scheme, dtype="bfloat16", validate="none").module.state_dict()
    assert (made["mask"].dtype, made["order"].dtype) == (torch.bool, torch.int32)
    assert made["order"].tolist() == [7, 6, 5, 4, 3, 2, 1, 0] and made["mask"].tolist()[:3] == [False, True, True]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_constant_in_eight_bits_is_kept(scheme: str) -> None:
    result = zc.convert(Eight(trainable=False), (ramp(4, 6),), scheme=scheme, validate="none")
    assert not result.module.weight.float().any()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_trainable_weight_in_eight_bits_gets_its_rule(scheme: str) -> None:
    result = zc.convert(Eight(trainable=True), (ramp(4, 6),), scheme=scheme, validate="none")
    assert torch.equal(result.module.weight.float(), torch.eye(8))


class Mixed(nn.Module):
    """One layer works in another precision, and the forward sees to it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.head = nn.Linear(8, 16).bfloat16(), nn.LayerNorm(16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.first(x.bfloat16()).float()))


@pytest.mark.parametrize("scheme", ["zero-2021", "zero-2022"])
def test_a_forward_that_insists_on_several_precisions_keeps_them(scheme: str, tmp_path: Path) -> None:
    inputs = (ramp(4, 8),)
    result = zc.convert(Mixed(), inputs, scheme=scheme, device="cpu")
    assert not result.failed, [f"{c.name}: {c.summary}" for c in result.failed]
    assert (result.module.first.weight.dtype, result.module.head.weight.dtype) == (torch.bfloat16, torch.float32)
    result.save(tmp_path / "a.safetensors")
    back = zc.load(tmp_path / "a.safetensors", Mixed(), inputs)
    assert torch.equal(back(*inputs), result.module(*inputs))
    assert not validate(tmp_path / "a.safetensors", Mixed(), inputs, device="cpu").failed


@pytest.mark.parametrize("scheme", ["zero-2021", "zero-2022"])
def test_a_complex_network_is_checked_by_its_magnitudes(scheme: str) -> None:
    class Complex(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.head = nn.Linear(8, 8, dtype=torch.cfloat), nn.Linear(8, 3, dtype=torch.cfloat)

        def forward(self, x: Tensor) -> Tensor:
            return torch.view_as_real(self.head(self.stem(x.to(torch.cfloat)).tanh()))

    result = zc.convert(Complex(), (ramp(4, 8),), scheme=scheme, device="cpu")
    found = {check.name: check.status for check in result.checks}
    assert "fail" not in found.values() and found.get("logits", "pass") == "pass"
