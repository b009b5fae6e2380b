"""ONNX files hold the state dict bit for bit, compute what torch computes, and have the same bytes from anywhere."""

from __future__ import annotations

import copy
import io
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from safetensors.numpy import load_file
from torch import Tensor, nn

import zero_convert as zc
from tests.nets import tiny_resnet
from tests.odd_nets import ODD
from tests.tiny_transformers import TINY
from zero_convert.artifacts.receipt import recipe_from_metadata
from zero_convert.artifacts.verify import verify
from zero_convert.errors import ModelError, StorageError, UsageError
from zero_convert.exporters import onnx as exporter
from zero_convert.exporters import safetensors
from zero_convert.exporters.onnx.graph import _Transform, graph
from zero_convert.formats.digests import sha256_file
from zero_convert.formats.dtypes import of_torch
from zero_convert.formats.onnx import file_digests
from zero_convert.graph.ties import ties
from zero_convert.nn.layers import HadamardTransform

ROOT = Path(__file__).parents[1]
CPU = ["CPUExecutionProvider"]
FOLDER = tempfile.TemporaryDirectory()


def mobilenet() -> nn.Module:
    from torchvision.models import mobilenet_v2

    return mobilenet_v2(width_mult=0.25, num_classes=5)


class StraightNet(nn.Module):
    """Every width is 4, no norm, no head: convolutions of 0 and ±1, additions and ReLUs are all there is."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b = (nn.Conv2d(4, 4, 3, padding=1) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return torch.relu(x + self.b(torch.relu(self.a(x))))


MODELS: dict[str, tuple[Callable[[], Any], Any, dict[str, Any]]] = {
    "tiny_resnet": (tiny_resnet, (torch.ones(2, 3, 16, 16),), {}),
    "mobilenet": (mobilenet, (torch.ones(1, 3, 32, 32),), {}),
    "straight": (StraightNet, (torch.ones(2, 4, 6, 6),), {}),
    "bert": (lambda: "transformers:bert", None, TINY["bert"]),
    **{name: (odd.build, odd.inputs(), {}) for name, odd in ODD.items()},
}
QUICK = [
    ("tiny_resnet", "zero-2021"), ("straight", "zero-2021"), ("vit", "zero-2021"),
    ("tied_language_model", "zero-2021"), ("conv3d", "zero-2021"), ("bert", "zero-2022"), ("convnext", "zero-2022"),
    ("separate_attention", "zero-2022"),
]  # fmt: skip
SMALL = (ODD["drop_path"].build(), ODD["drop_path"].inputs())
DATA_DEPENDENT = {"with_leaf"}  # its forward asks for a value
STILL = {"functional", "one_channel", "first_block"}  # ReLUs let nothing of these weights through
ALL = [(name, scheme) for name in MODELS if name not in DATA_DEPENDENT for scheme in ("zero-2021", "zero-2022")]
CASES = [
    *(pytest.param(*case, id="-".join(case)) for case in QUICK),
    *(pytest.param(*case, id="-".join(case), marks=pytest.mark.slow) for case in ALL if case not in QUICK),
]


@cache
def converted(name: str, scheme: str) -> zc.Result:
    build, inputs, arguments = MODELS[name]
    if name == "bert":
        pytest.importorskip("transformers")
    return zc.convert(build(), inputs, scheme=scheme, model_args=arguments or None, validate="none")


@cache
def saved(name: str, scheme: str) -> tuple[zc.Saved, zc.Saved]:
    """One conversion as safetensors and as ONNX."""
    folder = Path(FOLDER.name, f"{name}-{scheme}")
    folder.mkdir()
    first, second = converted(name, scheme).save(folder / "a.safetensors", folder / "secret_name.onnx")
    return first, second


def array(tensor: onnx.TensorProto) -> tuple[str, tuple[int, ...], bytes]:
    """Type, sizes and bytes of an initializer, as the file has them."""
    return onnx.TensorProto.DataType.Name(tensor.data_type), tuple(tensor.dims), tensor.raw_data


def entries(module: nn.Module) -> list[safetensors.Entry]:
    state = module.state_dict(keep_vars=True)
    return [
        safetensors.Entry(
            name,
            of_torch(state[name].dtype).name,
            tuple(state[name].shape),
            lambda t=state[name]: t.detach().numpy(),
        )
        for name in dict.fromkeys(ties(state).values())
    ]


def exported(module: nn.Module, inputs: Any) -> tuple[onnx.ModelProto, str]:
    """The model in ONNX, read by the onnx library, and why its batch size is fixed."""
    made, fixed = graph(module, inputs, ties(module.state_dict(keep_vars=True)), exporter.OPSET)
    stream = io.BytesIO()
    exporter.write(stream, made, entries(module), {})
    model = onnx.load_model_from_string(stream.getvalue())
    onnx.checker.check_model(model, full_check=True)
    return model, fixed


def run(model: onnx.ModelProto, *values: Tensor) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=CPU)
    names = [each.name for each in session.get_inputs()]
    return session.run(None, dict(zip(names, (value.numpy() for value in values), strict=True)))


# -- what is in the file -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "scheme"), CASES)
def test_initializers_are_the_tensors_of_the_safetensors_file(name: str, scheme: str) -> None:
    first, second = saved(name, scheme)
    model = onnx.load(second.path)
    onnx.checker.check_model(second.path, full_check=True)
    assert model.SerializeToString(deterministic=True) == second.path.read_bytes()
    expected = {
        name: ({"float32": "FLOAT", "int64": "INT64", "bool": "BOOL"}[str(t.dtype)], t.shape, t.tobytes())
        for name, t in load_file(first.path).items()
    }
    assert {tensor.name: array(tensor) for tensor in model.graph.initializer} == expected
    assert [tensor.name for tensor in model.graph.initializer] == sorted(expected, key=str.encode)
    assert first.weights_digest == second.weights_digest == file_digests(second.path).weights_digest
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    assert metadata["zero_convert.weights_digest"] == f"zc1:{first.weights_digest}"
    assert recipe_from_metadata(metadata, "") == converted(name, scheme).recipe
    assert verify(second.path).findings == ()
    session = onnxruntime.InferenceSession(second.path, providers=CPU)
    assert len(session.get_outputs()) == len(model.graph.output)


def test_a_module_is_not_loaded_from_it() -> None:
    with pytest.raises(UsageError, match=r"loaded from safetensors.*FILE\.safetensors"):
        zc.load(saved("tiny_resnet", "zero-2021")[1].path)


def test_nothing_else_of_the_exporter_is_in_the_file() -> None:
    path = saved("tiny_resnet", "zero-2021")[1].path
    model = onnx.load(path)
    assert [entry.key for entry in model.metadata_props] == [
        "zero_convert",
        "zero_convert.architecture",
        "zero_convert.weights_digest",
    ]
    assert (model.producer_name, model.producer_version, model.doc_string, model.domain) == ("zero-convert", "", "", "")
    assert not model.graph.value_info and not model.functions
    nodes = model.graph.node
    assert not any(node.metadata_props or node.doc_string for node in nodes)
    content = path.read_bytes()
    for word in ("secret_name", str(ROOT), "site-packages", "stack_trace", "PostActivation", "pkg.torch", "Container"):
        assert word.encode() not in content
    assert [node.name for node in nodes if node.op_type != "Constant"] == [
        f"/{node.op_type}_{index}" for index, node in enumerate(n for n in nodes if n.op_type != "Constant")
    ]
    constants = [node.attribute[0].t.SerializeToString() for node in nodes if node.op_type == "Constant"]
    assert len(set(constants)) == len(constants) > 5
    assert max(map(len, constants)) < 1000  # no Hadamard matrix of a transform


@pytest.mark.parametrize(("name", "scheme"), [("tiny_resnet", "zero-2021"), ("bert", "zero-2022")])
def test_runtime_loads_a_file_without_a_warning(name: str, scheme: str, capfd: pytest.CaptureFixture[str]) -> None:
    path = saved(name, scheme)[1].path
    unread = [node.input[0] for node in onnx.load(path).graph.node if node.op_type == "Identity"]
    assert any(tensor.name in unread for tensor in onnx.load(path).graph.initializer) == (name == "tiny_resnet")
    onnxruntime.InferenceSession(path, providers=CPU)
    assert capfd.readouterr() == ("", "")


def test_a_tied_tensor_is_stored_once_under_its_first_name() -> None:
    names = [tensor.name for tensor in onnx.load(saved("tied_language_model", "zero-2021")[1].path).graph.initializer]
    assert dict(converted("tied_language_model", "zero-2021").recipe.ties) == {"out.weight": "embed.weight"}
    assert "embed.weight" in names and "out.weight" not in names


# -- what it computes --------------------------------------------------------------------------------------------------


def with_small_integers(name: str, scheme: str) -> tuple[nn.Module, onnx.ModelProto]:
    """The network in evaluation mode, and the model that was written of it, every parameter -1, 0 or 1 in both.

    So that no layer hides behind another's zeros.
    """
    module = copy.deepcopy(converted(name, scheme).module).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randint(-1, 2, parameter.shape, generator=generator))
    model = onnx.load(saved(name, scheme)[1].path)
    state = module.state_dict()
    for tensor in model.graph.initializer:
        tensor.raw_data = state[tensor.name].numpy().tobytes()
    return module, model


@pytest.mark.parametrize(("name", "scheme"), CASES)
def test_onnx_runtime_computes_what_torch_does_for_any_number_of_samples(name: str, scheme: str) -> None:
    module, model = with_small_integers(name, scheme)
    given = converted(name, scheme).inputs
    for batch in (1, 2, 7):
        values = [torch.cat([value] * 7)[:batch].round() for value in (given.values() if name == "bert" else given)]
        with torch.no_grad():
            answer = module(**dict(zip(given, values, strict=True))) if name == "bert" else module(*values)
        expected = torch.utils._pytree.tree_leaves(answer)
        got = run(model, *values)
        assert [each.shape for each in got] == [tuple(each.shape) for each in expected]
        for ours, theirs in zip(got, expected, strict=True):
            assert np.abs(ours - theirs.numpy()).max() <= 1e-5 * theirs.abs().max()
    assert max(float(each.abs().max()) for each in expected) > 0 or name in STILL


def test_between_layers_of_zeros_and_ones_there_is_no_difference_at_all() -> None:
    module, model = with_small_integers("straight", "zero-2021")
    x = torch.arange(5 * 4 * 36).reshape(5, 4, 6, 6).remainder(9).sub(4).float()
    with torch.no_grad():
        expected = module(x)
    assert np.array_equal(run(model, x)[0], expected.numpy())
    assert expected.unique().numel() > 50


class Transforms(nn.Module):
    """Frozen transforms of all sizes and kinds, each of its own slice of the input."""

    SIZES = ((1, 2), (2, 0), (8, 1), (12, 2), (10, 0), (5, 3), (64, 2))

    def __init__(self) -> None:
        super().__init__()
        kinds = [(*size, mixing) for size in self.SIZES for mixing in ("none", "permute", "signs")]
        self.parts = nn.ModuleList(HadamardTransform(*kind, f"key{kind}") for kind in kinds)
        self.slices = [(slice(None), slice(0, d), *[0] * (3 - trailing)) for d, trailing, _ in kinds]

    def forward(self, x: Tensor) -> list[Tensor]:
        return [part(x[index]) for part, index in zip(self.parts, self.slices, strict=True)]


def test_transforms_are_written_as_products_with_small_matrices() -> None:
    module = Transforms()
    x = torch.arange(2 * 64 * 27).reshape(2, 64, 3, 3, 3).remainder(7).sub(3).float()
    model, fixed = exported(module, (x,))
    assert not fixed
    for ours, theirs in zip(run(model, x), module(x), strict=True):
        assert np.abs(ours - theirs.numpy()).max() <= 1e-5
        assert theirs.abs().max() > 1
    shapes = {tuple(node.attribute[0].t.dims) for node in model.graph.node if node.op_type == "Constant"}
    assert (8, 8) in shapes and (64, 64) not in shapes


def test_a_transform_of_half_precision_does_not_leave_its_range() -> None:
    given = HadamardTransform(64, 0).half()
    y = _Transform(given)(torch.full((1, 64), 3000.0, dtype=torch.float16))
    assert y[0, 0] == 24000
    assert (y[0, 1:] == 0).all()


# -- names -------------------------------------------------------------------------------------------------------------


class Named(nn.Module):
    """An argument named as a parameter, parameters named as torch and as we name nodes, results in a nest."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))
        self.register_parameter("/Mul_0", nn.Parameter(torch.full((3,), 2.0)))
        self.mul = nn.Parameter(torch.full((3,), 0.5))
        self.register_buffer("unread", torch.arange(4))

    def forward(self, weight: Tensor, other: Tensor) -> dict[str, Any]:
        product = weight * self.weight * getattr(self, "/Mul_0") * self.mul
        return {"product": product, "same": product, "given": other, "list": [product + other, self.weight]}


def test_names_are_those_of_the_forward_and_never_meet_those_of_the_state_dict() -> None:
    module = Named().eval()
    model, fixed = exported(module, (torch.ones(2, 3), torch.ones(2, 3)))
    assert not fixed
    assert [value.name for value in model.graph.input] == ["weight_", "other"]
    assert [value.name for value in model.graph.output] == ["product", "same", "given", "list.0", "list.1"]
    assert {tensor.name for tensor in model.graph.initializer} == {"weight", "/Mul_0", "mul", "unread"}
    assert [node.name for node in model.graph.node][:2] == ["//Mul_0", "//Mul_1"]
    x, y = torch.arange(12.0).reshape(4, 3), torch.ones(4, 3)
    product = x.numpy()
    for got, expected in zip(run(model, x, y), (product, product, y, product + 1, np.ones(3)), strict=True):
        assert np.array_equal(got, expected)


def test_the_batch_is_called_batch_and_other_sizes_are_numbers() -> None:
    model, _ = exported(nn.Linear(3, 5).eval(), {"input": torch.ones(1, 7, 3)})
    for value, sizes in ((model.graph.input[0], ["batch", 7, 3]), (model.graph.output[0], ["batch", 7, 5])):
        assert [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim] == sizes
    assert model.graph.output[0].name == "output"


class FixedBatch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.reshape(2, 6))


def test_a_batch_that_the_forward_fixes_stays_fixed_and_the_reason_is_told(tmp_path: Path) -> None:
    (made,) = zc.convert(FixedBatch(), (torch.ones(2, 6),), validate="none").save(tmp_path / "a.onnx")
    (value,) = onnx.load(made.path).graph.input
    assert [d.dim_value for d in value.type.tensor_type.shape.dim] == [2, 6]
    assert made.note.startswith("evaluation mode; batch size fixed: ")


# -- types, opsets, failures -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "kind"), [("bfloat16", "BFLOAT16"), pytest.param("float16", "FLOAT16", marks=pytest.mark.slow)]
)
def test_other_types_are_written_as_they_are(dtype: str, kind: str, tmp_path: Path) -> None:
    result = zc.convert(*SMALL, dtype=dtype, scheme="zero-2022", validate="none")
    first, second = result.save(tmp_path / "a.safetensors", tmp_path / "b.onnx")
    onnx.checker.check_model(second.path, full_check=True)
    initializers = onnx.load(second.path).graph.initializer
    assert {array(tensor)[0] for tensor in initializers} == {kind}
    assert first.weights_digest == second.weights_digest == file_digests(second.path).weights_digest


@pytest.mark.parametrize(
    "opset", [18, pytest.param(21, marks=pytest.mark.slow), pytest.param(25, marks=pytest.mark.slow)]
)
def test_the_opset_is_the_one_that_was_asked_for(opset: int, tmp_path: Path) -> None:
    result = converted("tiny_resnet", "zero-2021")
    (made,) = result.save(tmp_path / "a.onnx", opset=opset)
    model = onnx.load(made.path)
    onnx.checker.check_model(model, full_check=True)
    assert [(each.domain, each.version) for each in model.opset_import] == [("", opset)]
    assert made.weights_digest == result.weights_digest
    onnxruntime.InferenceSession(made.path, providers=CPU)


@pytest.mark.parametrize("opset", [17, 99])
def test_an_opset_that_cannot_be_written_is_refused(opset: int, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"got {opset}; expected 18 to 25"):
        converted("tiny_resnet", "zero-2021").save(tmp_path / "a.onnx", opset=opset)
    assert os.listdir(tmp_path) == []


def test_a_forward_that_asks_for_values_is_told_and_nothing_is_written(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ModelError, match=r"torch cannot export the model.*GuardOnDataDependent.*safetensors") as caught:
        converted("with_leaf", "zero-2021").save(tmp_path / "a.safetensors", tmp_path / "a.onnx")
    assert caught.value.exit_code == 3
    assert os.listdir(tmp_path) == []
    assert capfd.readouterr() == ("", "")


def test_exporting_leaves_the_module_as_it_was(tmp_path: Path) -> None:
    result = zc.convert(*SMALL, validate="none")
    before = {name: (id(t), t._version) for name, t in result.module.state_dict(keep_vars=True).items()}
    modes = {name: module.training for name, module in result.module.named_modules()}
    kinds = {name: type(module) for name, module in result.module.named_modules()}
    first, second = result.save(tmp_path / "a.onnx", tmp_path / "b.onnx")
    assert {name: (id(t), t._version) for name, t in result.module.state_dict(keep_vars=True).items()} == before
    assert {name: module.training for name, module in result.module.named_modules()} == modes
    assert {name: type(module) for name, module in result.module.named_modules()} == kinds
    assert any(modes.values())
    assert first.path.read_bytes() == second.path.read_bytes()


# -- a file for the tensors --------------------------------------------------------------------------------------------


@cache
def test_tensors_may_lie_in_a_file_beside_the_model(tmp_path: Path) -> None:
    inside = saved("tiny_resnet", "zero-2021")[1]
    (made,) = converted("tiny_resnet", "zero-2021").save(tmp_path / "b.onnx", external_data=True)
    assert made.paths == (tmp_path / "b.onnx", tmp_path / "b.onnx.data")
    assert [file.role for file in made.files] == ["", "data"]
    assert made.files[1].size == made.paths[1].stat().st_size > 10_000
    assert [file.sha256 for file in made.files] == [sha256_file(path) for path in made.paths]
    assert made.weights_digest == inside.weights_digest == file_digests(made.path).weights_digest
    onnx.checker.check_model(made.path, full_check=True)
    assert verify(made.path).findings == ()
    raw = onnx.load(made.path, load_external_data=False)
    assert raw.SerializeToString(deterministic=True) == made.path.read_bytes()
    outside = [tensor for tensor in raw.graph.initializer if tensor.data_location == onnx.TensorProto.EXTERNAL]
    assert 0 < len(outside) < len(raw.graph.initializer)
    named = {entry.value for tensor in outside for entry in tensor.external_data if entry.key == "location"}
    assert named == {"b.onnx.data"}
    whole = [{t.name: array(t) for t in onnx.load(path).graph.initializer} for path in (made.path, inside.path)]
    assert whole[0] == whole[1]
    x = MODELS["tiny_resnet"][1][0].numpy()
    one, two = (onnxruntime.InferenceSession(each.path, providers=CPU).run(None, {"x": x}) for each in (inside, made))
    assert np.array_equal(one[0], two[0])


def test_a_data_file_is_replaced_not_appended_to(tmp_path: Path) -> None:
    path, beside, result = tmp_path / "a.onnx", tmp_path / "a.onnx.data", converted("tiny_resnet", "zero-2021")
    (first,) = result.save(path, external_data=True)
    content = beside.read_bytes()
    beside.write_bytes(content * 3)
    path.unlink()
    first.receipt_path.unlink()
    with pytest.raises(UsageError, match="exists"):
        result.save(path, external_data=True)
    assert os.listdir(tmp_path) == ["a.onnx.data"]
    assert result.save(path, external_data=True, force=True) == (first,)
    assert beside.read_bytes() == content


def test_models_too_large_for_one_file_get_a_data_file_by_themselves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporter, "INLINE", 10_000)
    assert len(converted("tiny_resnet", "zero-2021").save(tmp_path / "a.onnx")[0].files) == 2
    with pytest.raises(UsageError, match="too large for one ONNX file"):
        converted("tiny_resnet", "zero-2021").write(io.BytesIO(), "onnx")


@pytest.mark.parametrize("old", [True, False])
@pytest.mark.parametrize("failing", range(1, 8))  # model and data twice, the receipt, the folder twice
def test_a_full_disk_leaves_the_old_files(
    failing: int, old: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if old:
        converted("tiny_resnet", "zero-2022").save(tmp_path / "a.onnx", external_data=True)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    calls = 0

    def full(descriptor: int, real: Callable[[int], None] = os.fsync) -> None:
        nonlocal calls
        calls += 1
        if calls == failing:
            raise OSError(28, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="No space left"):
        converted("tiny_resnet", "zero-2021").save(tmp_path / "a.onnx", external_data=True, force=True)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert calls >= failing


# -- the same bytes ----------------------------------------------------------------------------------------------------


def test_two_processes_write_the_same_bytes_wherever_they_run(tmp_path: Path) -> None:
    files = []
    for seed, folder, name in (("1", "here", "one.onnx"), ("77", "some where/else", "zwei.onnx")):
        place = tmp_path / folder
        place.mkdir(parents=True)
        code, libraries = place / "code", place / "libraries"  # the same packages under other paths
        code.symlink_to(ROOT)
        libraries.symlink_to(Path(torch.__file__).parents[1])
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": f"{code}:{libraries}", "HOME": str(place)}
        command = [sys.executable, "-m", "zero_convert", "tests.nets:tiny_resnet", "--input", "1x3x16x16", "--json"]
        command += ["--validate", "none", "--out", str(place / "weights.safetensors"), "--out", name]
        done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
        first, second = json.loads(done.stdout)["outputs"]
        assert first["weights_digest"] == second["weights_digest"]
        files.append((place / name).read_bytes())
        assert str(tmp_path).encode() not in files[-1]
    assert files[0] == files[1]
