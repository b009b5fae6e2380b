"""The Python interface: what goes in stays as it was, what comes out can be saved, loaded and trained."""

from __future__ import annotations

import copy
import stat
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import zero_convert as zc
from tests.nets import cifar_resnet18
from zero_convert.artifacts.receipt import read_receipt
from zero_convert.artifacts.verify import verify
from zero_convert.errors import (
    CheckError,
    CoverageError,
    DeviceError,
    LoadError,
    MalformedError,
    StorageError,
    TraceError,
    UntrustedError,
    UsageError,
)
from zero_convert.graph.example_values import reference_values
from zero_convert.records import Check

X = torch.from_numpy(reference_values((2, 3, 32, 32)))


class Tiny(nn.Module):
    """A convolution, one residual block, a head."""

    def __init__(self, channels: int = 8) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, channels, 3, padding=1)
        self.norm = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm2 = nn.BatchNorm2d(channels)
        self.fc = nn.Linear(channels, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.stem(x)).relu()
        y = self.norm2(self.conv2(self.norm1(self.conv1(x)).relu()))
        return self.fc((x + y).relu().mean((2, 3)))


class Raw(nn.Module):
    """Uses a parameter in a way that no rule knows."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.odd = nn.Parameter(torch.randn(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.where(x > self.odd, self.fc(x), x)


class Scaled(nn.Module):
    def __init__(self, scale: torch.Tensor, noise: torch.Tensor) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.scale = nn.Parameter(scale)
        self.register_buffer("noise", noise, persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(x) * self.scale + self.noise


def make_numpy_scaled() -> nn.Module:
    return Scaled(torch.from_numpy(np.random.default_rng().normal(size=4)).float(), torch.zeros(4))


def make_noisy() -> nn.Module:
    return Scaled(torch.ones(4), torch.randn(4))


def make_tiny() -> nn.Module:
    return Tiny()


def test_the_interface_of_the_readme() -> None:
    result = zc.convert(Tiny(), example_inputs=(X,), scheme="zero-2021", options={"mixing": "permute"})
    assert isinstance(result.module, nn.Module)
    assert result.plan.edits and result.plan.assignments and result.plan.joins
    assert result.checks and not result.failed
    assert len(result.weights_digest) == 64


@pytest.mark.parametrize("scheme", ["zero-2021", "zero-2022"])
def test_the_given_module_is_not_touched(scheme: str) -> None:
    model = Tiny().eval()
    model.norm.train()
    before = copy.deepcopy(model.state_dict())
    modes = [m.training for m in model.modules()]
    result = zc.convert(model, (X,), scheme=scheme, validate="none")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [m.training for m in model.modules()] == modes and vars(model).keys() == vars(Tiny()).keys()
    assert result.module is not model and not result.module.training


@pytest.mark.parametrize("scheme", ["zero-2021", "zero-2022"])
def test_old_weights_inputs_and_mode_leave_no_trace_in_the_bytes(scheme: str) -> None:
    trained = Tiny()
    with torch.no_grad():
        for tensor in trained.state_dict().values():
            tensor.mul_(3).add_(1)
    digests = {
        zc.convert(model, (x,), scheme=scheme, validate="none").weights_digest
        for model, x in ((Tiny(), X), (trained.eval(), X), (Tiny(), X[:1, :, :17, :20]))
    }
    assert len(digests) == 1


@pytest.mark.parametrize("scheme", ["zero-2021", "zero-2022"])
def test_saved_files_load_back_into_the_same_network(scheme: str, tmp_path: Path) -> None:
    result = zc.convert(Tiny(), (X,), scheme=scheme)
    (saved,) = result.save(tmp_path / "a.safetensors")
    assert saved.weights_digest == result.weights_digest
    stored = load_file(saved.path)
    assert stored.keys() == result.module.state_dict().keys()
    back = zc.load(saved.path, model=Tiny(), example_inputs=(X,))
    assert back.training
    with torch.no_grad():
        for module in (back, result.module):
            module.fc.weight.fill_(1)
            module.eval()
    assert torch.equal(back(X), result.module(X)) and back(X).abs().sum() > 0
    assert not verify(saved.path).findings


def test_a_library_model_loads_from_the_file_alone(tmp_path: Path) -> None:
    """Also one that was given as a live module: its builder is recognized."""
    from torchvision.models import squeezenet1_1

    result = zc.convert(squeezenet1_1(num_classes=7), validate="none")
    assert (result.recipe.model, result.recipe.model_args) == ("torchvision:squeezenet1_1", {"num_classes": 7})
    result.save(tmp_path / "s.safetensors")
    back = zc.load(tmp_path / "s.safetensors")
    assert all(torch.equal(v, result.module.state_dict()[k]) for k, v in back.state_dict().items())
    result = zc.convert("squeezenet1_1", model_args={"num_classes": 7}, validate="none")
    result.save(tmp_path / "t.safetensors")
    assert (tmp_path / "s.safetensors").read_bytes() == (tmp_path / "t.safetensors").read_bytes()


def test_loading_runs_no_code_that_the_file_names(tmp_path: Path) -> None:
    zc.convert("tests.test_pipeline:make_tiny", (X,), validate="none").save(tmp_path / "a.safetensors")
    with pytest.raises(UntrustedError, match="make_tiny"):
        zc.load(tmp_path / "a.safetensors")
    assert isinstance(zc.load(tmp_path / "a.safetensors", example_inputs=(X,), trust=True), nn.Module)
    assert isinstance(zc.load(tmp_path / "a.safetensors", Tiny(), (X,)), nn.Module)


def test_loading_a_file_of_an_unknown_model_asks_for_it(tmp_path: Path) -> None:
    zc.convert(Tiny(), (X,), validate="none").save(tmp_path / "a.safetensors")
    with pytest.raises(LoadError, match="model="):
        zc.load(tmp_path / "a.safetensors")
    with pytest.raises(MalformedError, match=r"does not fit"):
        zc.load(tmp_path / "a.safetensors", Tiny(9), (X,))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_other_dtypes_are_the_float32_values_rounded(dtype: str, tmp_path: Path) -> None:
    wide = zc.convert(Tiny(24), (X,), scheme="zero-2022", validate="none").module.state_dict()
    result = zc.convert(Tiny(24), (X,), scheme="zero-2022", dtype=dtype, validate="none")
    (saved,) = result.save(tmp_path / "a.safetensors")
    for name, value in load_file(saved.path).items():
        expected = wide[name].to(getattr(torch, dtype)) if wide[name].is_floating_point() else wide[name]
        assert torch.equal(value, expected) and value.dtype == expected.dtype
    assert zc.load(saved.path, Tiny(24), (X,)).state_dict()["stem.weight"].dtype == getattr(torch, dtype)


def test_the_converted_network_trains() -> None:
    module = zc.convert(Tiny(), (X,), validate="none").module.train()
    optimizer = torch.optim.SGD(module.parameters(), lr=1.0)
    losses = []
    for _ in range(15):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(module(X), torch.tensor([1, 3]))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_a_file_remembers_inputs_and_a_choice_that_are_not_the_usual(tmp_path: Path) -> None:
    arguments = {"input_size": (448, 448)}
    plain = zc.convert("squeezenet1_1", validate="none").recipe
    assert (plain.inputs, plain.uncovered) == ((), "error")
    x = torch.from_numpy(reference_values((1, 3, 448, 448)))
    result = zc.convert("maxvit_t", (x,), model_args=arguments, scheme="zero-2022", validate="none")
    assert result.recipe.inputs == ("1x3x448x448:float32",)
    result.save(tmp_path / "a.safetensors")
    assert torch.equal(
        zc.load(tmp_path / "a.safetensors").state_dict()["stem.0.0.weight"], result.module.stem[0][0].weight
    )
    recipes = [zc.convert(Raw(), (torch.ones(1, 4),), validate="none", uncovered="zeros").recipe]
    recipes.append(zc.convert(Tiny(), (X,), validate="none").recipe)
    assert [recipe.uncovered for recipe in recipes] == ["zeros", "error"]


def test_a_value_drawn_by_another_librarys_generator_is_not_kept_silently() -> None:
    x = (torch.ones(1, 4),)
    plan = zc.plan("tests.test_pipeline:make_numpy_scaled", example_inputs=x, scheme="zero-2022")
    assert {a.tensor.name: a.rule for a in plan.assignments}["scale"] == "constant 1"
    assert any("generator of numpy" in note for note in plan.notes)


def test_random_values_outside_the_state_dict_stop_the_run() -> None:
    with pytest.raises(CoverageError, match="noise"):
        zc.convert("tests.test_pipeline:make_noisy", (torch.ones(1, 4),), validate="none")


def test_layers_that_pad_in_their_own_forward_get_no_skip_of_the_wrong_size() -> None:
    class Same(nn.Conv2d):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(nn.functional.pad(x, (1, 1, 1, 1)))

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.fc = Same(3, 8, 3), nn.Linear(8, 5)
            self.a, self.b, self.c = nn.Conv2d(8, 4, 1), Same(4, 4, 3), nn.Conv2d(4, 8, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.stem(x).relu()
            return self.fc((x + self.c(self.b(self.a(x).relu()).relu())).relu().mean((2, 3)))

    result = zc.convert(Net(), (X,))
    assert not result.failed
    assert {e.target for e in result.plan.edits if not e.applied} == {"stem", "b"}


def test_copies_are_independent() -> None:
    module = zc.convert(Tiny(), (X,), validate="none").module
    twin = copy.deepcopy(module)
    with torch.no_grad():
        twin.fc.bias.fill_(1)
    assert module(X).abs().max() == 0 and twin(X).min() == 1


@pytest.mark.parametrize("scheme", ["zero-2021", "zero-2022"])
def test_tied_weights_are_written_once_and_named_in_the_recipe(scheme: str, tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.b, self.a, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)
            self.b.weight = self.a.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.b(self.a(x)))

    result = zc.convert(Tied(), (torch.ones(2, 4),), scheme=scheme, validate="none")
    assert result.recipe.ties == {"b.weight": "a.weight"}
    result.save(tmp_path / "a.safetensors")
    assert sorted(load_file(tmp_path / "a.safetensors")) == ["a.bias", "a.weight", "b.bias", "head.bias", "head.weight"]
    back = zc.load(tmp_path / "a.safetensors", Tied(), (torch.ones(2, 4),))
    assert back.b.weight is back.a.weight and torch.equal(back.a.weight, result.module.a.weight)


@pytest.mark.parametrize("scheme", ["zero-2021", "zero-2022"])
def test_modules_with_two_names_get_their_rule(scheme: str) -> None:
    """The name that is stored may be another than the one under which the module is met first."""

    class Aliased(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.mid, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)
            self.layers = nn.ModuleList([self.stem, self.mid])

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.stem(x)
            return self.head(x + self.mid(x.relu()))

    module = zc.convert(Aliased(), (torch.ones(2, 4),), scheme=scheme, validate="none").module
    assert torch.equal(module.stem.weight, torch.eye(4))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_the_precision_of_the_given_module_does_not_matter(dtype: torch.dtype) -> None:
    for options in ({}, {"norm": "none"}):
        expected = zc.convert(Tiny(), (X,), options=options, validate="none").weights_digest
        result = zc.convert(Tiny().to(dtype), (X.to(dtype),), options=options)
        assert not result.failed and result.weights_digest == expected


def test_odd_but_honest_models_pass_their_checks() -> None:
    for model, x in ((nn.Linear(4, 3), torch.ones(2, 4)), (Tiny().requires_grad_(False), X), (nn.Flatten(), X)):
        assert not zc.convert(model, (x,), uncovered="keep").failed


def test_a_single_tensor_is_one_input() -> None:
    assert zc.plan(Tiny(), X) == zc.plan(Tiny(), (X,))


def test_more_inputs_than_forward_takes_are_refused() -> None:
    with pytest.raises(TraceError, match="forward fails"):
        zc.convert(Tiny(), (X, X))


def test_what_no_rule_covers_stops_the_run_and_is_named() -> None:
    x = torch.ones(1, 4)
    with pytest.raises(CoverageError, match=r"odd \(4, Raw, read\)"):
        zc.convert(Raw(), (x,), validate="none")
    assert zc.convert(Raw(), (x,), validate="none", uncovered="zeros").module.odd.tolist() == [0] * 4
    with pytest.raises(CoverageError, match="hold no constants"):
        zc.convert(Raw(), (x,), validate="none", uncovered="keep")
    constant = Raw()
    nn.init.constant_(constant.odd, 0.5)
    assert zc.convert(constant, (x,), validate="none", uncovered="keep").module.odd.tolist() == [0.5] * 4


def test_a_failed_check_leaves_no_file(tmp_path: Path) -> None:
    result = zc.convert(Tiny(), (X,), validate="none")
    result.checks = (Check("planted", "fail", "?", "1 is not 0", {}, "0", "mend it"),)
    with pytest.raises(CheckError, match=r"planted.*1 is not 0.*mend it"):
        result.save(tmp_path / "a.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_a_scheme_that_forgets_its_zeros_fails_the_check(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zero_convert.schemes.zero_2021.ZERO", ("head", "gate-last"))
    assert "zero_branches" in [check.name for check in zc.convert(Tiny(), (X,)).failed]


def test_old_files_are_not_overwritten_without_force(tmp_path: Path) -> None:
    result = zc.convert(Tiny(), (X,), validate="none")
    old = tmp_path / "a.safetensors"
    old.write_bytes(b"old")
    with pytest.raises(UsageError, match="force"):
        result.save(tmp_path / "new.safetensors", old)
    assert old.read_bytes() == b"old" and list(tmp_path.iterdir()) == [old]
    result.save(old, force=True)
    assert old.read_bytes() != b"old"
    with pytest.raises(StorageError):
        result.save(tmp_path / "missing" / "a.safetensors")
    with pytest.raises(UsageError, match="suffix"):
        result.save(tmp_path / "a.bin")
    with pytest.raises(UsageError, match="named twice"):
        result.save(old, f"{old}.receipt.json", format="safetensors", force=True)


def test_a_file_is_the_start_and_never_a_trained_state(tmp_path: Path) -> None:
    result = zc.convert(Tiny(), (X,), validate="none")
    digest = result.weights_digest
    result.module.train()(X)  # moves batch statistics
    (saved,) = result.save(tmp_path / "a.safetensors")
    assert saved.weights_digest == digest
    with torch.no_grad():
        result.module.fc.bias.add_(1)
    with pytest.raises(UsageError, match=r"fc\.bias"):
        result.save(tmp_path / "b.safetensors")


def test_the_receipt_says_what_was_done(tmp_path: Path) -> None:
    result = zc.convert(Tiny(), (X,))
    (saved,) = result.save(tmp_path / "a.safetensors")
    receipt = read_receipt(saved.receipt_path)
    assert receipt.identity.recipe == result.recipe and receipt.identity.edits == result.plan.edits
    assert receipt.written.sha256 == saved.sha256 and receipt.written.weights_digest == result.weights_digest
    assert receipt.identity.fingerprint == result.fingerprint
    assert [c["name"] for c in receipt.run["checks"]] == [c.name for c in result.checks]
    assert stat.S_IMODE(saved.path.stat().st_mode) & 0o400


def test_a_plan_writes_no_value_and_equals_the_conversions() -> None:
    model = Tiny()
    assert zc.plan(model, (X,)) == zc.convert(model, (X,), validate="none").plan


def test_progress_tells_each_step_in_order(tmp_path: Path) -> None:
    steps: list[str] = []
    result = zc.convert(Tiny(), (X,), progress=lambda step, detail: steps.append(step))
    result.save(tmp_path / "a.safetensors", progress=lambda step, detail: steps.append(step))
    order = ["load", "trace", "analyze", "rewrite", "initialize", "validate", "export", "seal"]
    assert list(dict.fromkeys(steps)) == order


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"scheme": "zero-2020"}, UsageError, "zero-202"),
        ({"options": {"mixing": "none", "norms": "keep"}}, UsageError, "norm"),
        ({"dtype": "float8"}, UsageError, "bfloat16"),
        ({"validate": "some"}, UsageError, "quick"),
        ({"uncovered": "some"}, UsageError, "zeros"),
        ({"device": "tpu"}, UsageError, "cuda"),
        ({"device": "cuda:9"}, DeviceError, "cuda"),
    ],
)
def test_wrong_arguments_are_named(arguments, error, words) -> None:
    with pytest.raises(error, match=words):
        zc.convert(Tiny(), (X,), **arguments)


def test_inspection_shows_the_model_as_given() -> None:
    found = zc.inspect_model(cifar_resnet18(), example_inputs=(X,))
    assert len(found.structure.joins) == 8 and found.capture == "fx"
    assert [j.shortcut for j in found.structure.joins].count("projection") == 3
    assert found.parameters == 11_173_962 and {j.order for j in found.structure.joins} == {"post-activation"}


def test_complex_parameters_stay_complex(tmp_path: Path) -> None:
    class Spectral(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(5, 5, dtype=torch.complex64))
            self.fc = nn.Linear(8, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc(torch.fft.irfft(torch.fft.rfft(x) @ self.weight, n=8))

    result = zc.convert(Spectral(), (torch.ones(2, 8),), scheme="zero-2022", dtype="bfloat16", device="cpu")
    assert {name: value.dtype for name, value in result.module.state_dict().items()} == {
        "weight": torch.complex64, "fc.weight": torch.bfloat16, "fc.bias": torch.bfloat16,
    }  # fmt: skip
    result.save(tmp_path / "s.safetensors")
    assert torch.equal(
        zc.load(tmp_path / "s.safetensors", Spectral(), (torch.ones(2, 8),)).weight, torch.eye(5, dtype=torch.complex64)
    )
