"""Torch and ONNX Runtime: what is compared, what is found, and that nothing falls back to the CPU unseen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

import zero_convert as zc
from zero_convert import checks
from zero_convert.checks import parity
from zero_convert.checks.harness import onnxruntime as sessions
from zero_convert.checks.harness.bench import CheckContext, OnnxFile
from zero_convert.checks.harness.onnxruntime import CPU, CUDA, placed
from zero_convert.checks.parity import errors, first_beyond
from zero_convert.checks.subject import Subject
from zero_convert.errors import DeviceError
from zero_convert.records import Check

from . import nets
from .subjects import IMAGES, subject_of

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Subject, Path]:
    """One small network as a subject, and its ONNX file; its outputs are not 0."""
    path = tmp_path_factory.mktemp("parity") / "net.onnx"
    zc.convert(nets.tiny_resnet(), (IMAGES,), scheme="zero-2022", validate="none").save(path)
    return subject_of(nets.tiny_resnet(), scheme="zero-2022"), path


def compared(subject: Subject, path: Path) -> Check:
    return checks.compare_export(subject, path, device="cpu", dtype="float32", strict=False)


def event(name: str, provider: str, **outputs: list[int]) -> dict[str, Any]:
    shapes = [{kind: shape} for kind, shape in outputs.items()]
    args = {"provider": provider, "op_name": name, "output_type_shape": shapes}
    return {"cat": "Node", "name": f"/{name}_0_kernel_time", "args": args}


# -- numbers -----------------------------------------------------------------------------------------------------------


def test_errors_are_largest_mean_median_and_the_tolerance_that_passes() -> None:
    right = np.array([0.0, 1.0, -3.0, 10.0], np.float32)
    found = errors(right + np.array([0.0, 0.5, 0.0, 1.1], np.float32), right)
    assert (found.largest, found.mean, found.median) == pytest.approx((1.1, 0.4, 0.25))
    assert found.tolerance == pytest.approx(0.25)
    assert np.allclose(right + 0.25, right, rtol=0.25, atol=0.25)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_is_infinitely_far_unless_both_are(value: float) -> None:
    broken, right = np.array([1.0, value], np.float32), np.array([1.0, 2.0], np.float32)
    assert errors(broken, right).tolerance == errors(right, broken).tolerance == np.inf
    assert errors(broken, broken).tolerance == 0
    assert errors(right[:1], right).largest == np.inf and errors(right[:0], right[:0]).largest == 0


def test_the_first_value_beyond_the_limit_is_named() -> None:
    right = {"a": np.zeros(2, np.float32), "b": np.ones(2, np.float32), "c": np.ones(2, np.float32)}
    wrong = {name: value + (name != "a") for name, value in right.items()}
    assert first_beyond(right, wrong, 1e-4) == "b" and first_beyond(right, right, 1e-4) == ""


# -- the CPU -----------------------------------------------------------------------------------------------------------


def test_an_exported_network_returns_what_torch_returns(exported: tuple[Subject, Path]) -> None:
    check = compared(*exported)
    assert check.status == "pass" and list(check.numbers["ways"]) == ["onnxruntime cpu"]
    (errors_of_output,) = check.numbers["ways"]["onnxruntime cpu"]
    assert 0 <= errors_of_output["median"] <= errors_of_output["mean"] <= errors_of_output["max"] < 1e-6
    assert check.numbers["placement"]["cpu"].keys() == {CPU}


def another_epsilon(node: onnx.NodeProto) -> None:
    kept = [attribute for attribute in node.attribute if attribute.name != "epsilon"]
    del node.attribute[:]
    node.attribute.extend([*kept, onnx.helper.make_attribute("epsilon", 0.5)])


@pytest.mark.slow
def test_outputs_of_zero_do_not_hide_what_is_before_them(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    zc.convert(nets.tiny_resnet(), (IMAGES,), validate="none").save(path)
    check = compared(subject_of(nets.tiny_resnet()), path)
    output, layers = check.numbers["ways"]["onnxruntime cpu"]
    assert (output["max"], check.numbers["outputs"]) == (0, ["output", "layers"]) and 0 < layers["tolerance"] < 1e-5
    model = onnx.load(path)
    for node in model.graph.node:
        if node.op_type == "BatchNormalization":
            another_epsilon(node)
    onnx.save(model, path)
    assert compared(subject_of(nets.tiny_resnet()), path).status == "fail"


def test_another_graph_is_found_and_its_first_layer_named(exported: tuple[Subject, Path], tmp_path: Path) -> None:
    subject, path = exported
    model = onnx.load(path)
    node = next(n for n in model.graph.node if n.op_type == "BatchNormalization")
    owner = next(name.rpartition(".")[0] for name in node.input if name.endswith(".weight"))
    another_epsilon(node)
    onnx.save(model, tmp_path / "other.onnx")
    check = compared(subject, tmp_path / "other.onnx")
    assert check.status == "fail" and check.numbers["first_node"] == {"onnxruntime cpu": owner}


def a_bias(value: float) -> Callable[[onnx.ModelProto], None]:
    def plant(model: onnx.ModelProto) -> None:
        tensor = next(each for each in model.graph.initializer if each.name == "linear.bias")
        tensor.raw_data = np.full(10, value, np.float32).tobytes()

    return plant


def another_output(model: onnx.ModelProto) -> None:
    first = model.graph.node[0].output[0]
    model.graph.output.append(onnx.helper.make_tensor_value_info(first, onnx.TensorProto.FLOAT, None))


FAULTS: dict[str, tuple[Callable[[onnx.ModelProto], None], str]] = {
    "parity: a bias of a hundredth": (a_bias(0.01), "onnxruntime cpu within 0.0"),
    "parity: a NaN": (a_bias(np.nan), "onnxruntime cpu within inf"),
    "parity: an output more": (another_output, "onnxruntime cpu within inf"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_file_that_computes_something_else_is_found(
    exported: tuple[Subject, Path], tmp_path: Path, fault: str
) -> None:
    (subject, path), (plant, words) = exported, FAULTS[fault]
    model = onnx.load(path)
    plant(model)
    onnx.save(model, tmp_path / "net.onnx")
    found = compared(subject, tmp_path / "net.onnx")
    assert found.status == "fail" and words in found.summary and found.remedy, found


def test_no_batch_norm_is_fused_in_our_sessions(exported: tuple[Subject, Path], tmp_path: Path) -> None:
    """Graph optimization would put the factor of a norm into the weight; our sessions run what is in the file."""
    _, path = exported
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(tmp_path / "fused.onnx")
    onnxruntime.InferenceSession(path, options, providers=[CPU])
    fused, plain = onnx.load(tmp_path / "fused.onnx"), onnx.load(path)
    kinds = [sum(n.op_type == "BatchNormalization" for n in model.graph.node) for model in (fused, plain)]
    assert kinds[0] < kinds[1], "the runtime still fuses"
    given = [np.zeros((1, 3, 32, 32), np.float32)]
    ran = sessions.run(path, given).placement[CPU]
    assert ran >= len([n for n in plain.graph.node if n.op_type in ("Conv", "BatchNormalization")]), "ours does not"


# -- devices that are not there ----------------------------------------------------------------------------------------


def test_a_session_that_falls_back_to_the_cpu_is_an_error(exported: tuple[Subject, Path]) -> None:
    """On a machine without a GPU, ONNX Runtime makes a session on the CPU for who asks for CUDA, and says nothing."""
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(DeviceError, match="does not compute on this device") as caught:
        sessions.run(exported[1], [np.zeros((1, 3, 32, 32), np.float32)], "cuda:0")
    assert caught.value.exit_code == 5 and "doctor" in caught.value.fix


class FakeSession:
    """A session for CUDA that says what it is told to say, and computes on the CPU."""

    real: Sequence[str] = (CUDA, CPU)
    made: Any = None

    def __init__(self, model: Any, options: Any, providers: Any, enable_fallback: int) -> None:
        assert not enable_fallback, "a failure would be printed, and another session tried on the CPU"
        self.session = onnxruntime.InferenceSession(model, options, providers=[CPU])
        FakeSession.made = providers, options
        self.asked = providers

    def get_providers(self) -> Sequence[str]:
        return (CPU,) if self.asked == [CPU] else self.real

    def __getattr__(self, name: str) -> Any:
        return getattr(self.session, name)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> type[FakeSession]:
    import sys

    names = ("SessionOptions", "GraphOptimizationLevel")
    module = SimpleNamespace(
        **{name: getattr(onnxruntime, name) for name in names},
        InferenceSession=FakeSession,
        get_available_providers=lambda: [CUDA, CPU],
        preload_dlls=lambda: print("noise"),
    )
    monkeypatch.setitem(sys.modules, "onnxruntime", module)
    monkeypatch.setattr(FakeSession, "real", (CUDA, CPU))
    return FakeSession


ZEROS = [np.zeros((1, 3, 32, 32), np.float32)]


def test_what_a_session_says_is_not_believed_where_its_profile_says_otherwise(
    exported: tuple[Subject, Path], fake: type[FakeSession], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(DeviceError, match=r"nodes that ran on the CPU: /Conv_\d+ \(Conv\)"):
        sessions.run(exported[1], ZEROS, "cuda:1")
    assert capsys.readouterr().out == ""
    answer = sessions.run(exported[1], ZEROS, "cuda:1", strict=False)
    assert answer.provider == CUDA and answer.fallen and set(answer.placement) == {CPU}


def test_a_session_on_another_provider_is_an_error(exported: tuple[Subject, Path], fake: type[FakeSession]) -> None:
    fake.real = (CPU,)
    with pytest.raises(DeviceError, match="a session on CPUExecutionProvider"):
        sessions.run(exported[1], ZEROS, "cuda:0")


def test_tf32_search_and_optimizations_are_off_and_the_index_is_kept(
    exported: tuple[Subject, Path], fake: type[FakeSession]
) -> None:
    sessions.run(exported[1], ZEROS, "cuda:1", strict=False)
    ((name, settings),), options = fake.made
    assert name == CUDA
    assert settings == {"device_id": "1", "use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"}
    assert options.graph_optimization_level == onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL


def test_a_runtime_without_the_provider_is_an_error_that_names_what_it_has(
    exported: tuple[Subject, Path], fake: type[FakeSession], monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setattr(sys.modules["onnxruntime"], "get_available_providers", lambda: [CPU])
    with pytest.raises(DeviceError, match="providers CPUExecutionProvider"):
        sessions.run(exported[1], ZEROS, "cuda:0")
    with pytest.raises(DeviceError, match="no provider for this device"):
        sessions.run(exported[1], ZEROS, "mps")


def test_arithmetic_on_shapes_may_run_on_the_cpu_but_no_floating_tensor() -> None:
    events = [
        event("Conv", CUDA, float=[1, 8, 4, 4]),
        event("Shape", CPU, int64=[4]),
        event("Sqrt", CPU, float=[]),
        event("Resize", CPU, float=[1, 8, 8, 8]),
        {"cat": "Session", "name": "model_run", "args": {}},
    ]
    assert placed(events, CUDA) == ({CUDA: 1, CPU: 3}, ["/Resize_0 (Resize)"])
    assert placed(events[:3], CUDA)[1] == []


def test_auto_leaves_out_what_fell_back_and_a_named_device_does_not(
    exported: tuple[Subject, Path], fake: type[FakeSession], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four ways, the two of a GPU played by the CPU."""
    subject, path = exported
    real = parity._torch
    monkeypatch.setattr(parity, "_torch", lambda context, given, device, dtype: real(context, given, "cpu", dtype))
    context = CheckContext(subject, "full", "cpu", onnx=OnnxFile(path, "float32", "cuda:0"))
    context.device = "cuda:0"
    check = parity.ask(context)
    assert check.status == "warn" and "cuda:0 not compared" in check.summary
    assert list(check.numbers["ways"]) == ["onnxruntime cpu", "torch cuda:0"]
    assert check.numbers["ways"]["torch cuda:0"][0]["max"] == 0
    context.onnx = OnnxFile(path, "float32", "cuda:0", strict=True)
    with pytest.raises(DeviceError):
        parity.ask(context)
    monkeypatch.setattr(sessions, "placed", lambda events, provider: ({provider: len(events)}, []))
    check = parity.ask(context)
    assert check.status == "pass" and list(check.numbers["ways"])[-1] == "onnxruntime cuda:0"
    assert check.numbers["placement"]["cuda:0"].keys() == {CUDA}


def test_the_table_of_devices_is_written_only_where_there_is_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from benchmarks import gpu

    rows = [("net", "zero-2022", "cpu", "0.0e+00"), ("all", "", "cuda", "not run: no card")]
    text = gpu.page(["* a device"], rows)
    assert text.count("| net |") == 1 and "not run: no card" in text and gpu.lines_not_run(rows) == 1
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    assert gpu.main(["--device", "cuda", "--out", str(tmp_path / "gpu.md")]) == 5
    assert "no usable CUDA device" in capsys.readouterr().err and not (tmp_path / "gpu.md").exists()
