"""ONNX Runtime's WebGPU provider on a real adapter, a software one in CI: what is asked there, and what is found there.

`python -m pytest -m webgpu` runs it where `tests/webgpu_driver.py` finds a driver; elsewhere it says what is missing.
A fault is planted on the device alone: what the session gets is another file than what everything else reads.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn
from typer.testing import CliRunner

import zero_convert as zc
from zero_convert import checks
from zero_convert.checks.harness import onnxruntime as sessions
from zero_convert.checks.harness.onnxruntime import WEBGPU
from zero_convert.cli import app
from zero_convert.doctor import examine, usable, webgpu
from zero_convert.errors import DeviceError
from zero_convert.formats.naming import receipt_path
from zero_convert.records import Check

from . import nets, webgpu_driver
from .subjects import IMAGES, subject_of

pytestmark = pytest.mark.webgpu
Change = Callable[[onnx.ModelProto], None]
ASKED = {"outputs", "finite", "zero_branches", "logits", "repeat", "channels", "signal", "exact_parts"}


@pytest.fixture(scope="module", autouse=True)
def adapter() -> Iterator[webgpu.Adapter]:
    """The adapter; skips where nothing can be computed, with the reason and the command."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in webgpu_driver.environment().items():
            patch.setenv(name, value)
        if reason := webgpu_driver.lacking():
            pytest.skip(reason)
        yield webgpu.found()
        webgpu.close()


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a network whose outputs are not 0."""
    path = tmp_path_factory.mktemp("webgpu") / "net.onnx"
    zc.convert(nets.tiny_resnet(), (IMAGES,), scheme="zero-2022", validate="none").save(path)
    return path


def parity(path: Path, net: nn.Module | None = None, *inputs: Tensor, strict: bool = True) -> Check:
    subject = subject_of(net or nets.tiny_resnet(), *inputs, scheme="zero-2022")
    return checks.compare_export(subject, path, device="webgpu", dtype="float32", strict=strict)


def answered(subject: Any, strict: bool = True) -> dict[str, Check]:
    return {check.name: check for check in checks.run(subject, level="quick", device="webgpu", strict=strict)}


@pytest.fixture
def plant(monkeypatch: pytest.MonkeyPatch) -> Callable[[Change], None]:
    """Changes what the device gets, and nothing else."""

    def planted(change: Change) -> None:
        own = webgpu.run

        def run(model: Any, batches: Any) -> webgpu.Job:
            other = onnx.load_from_string(model) if isinstance(model, bytes) else onnx.load(model)
            change(other)
            return own(other.SerializeToString(), batches)

        monkeypatch.setattr(sessions.webgpu, "run", run)

    return planted


# -- what a sound network gets -----------------------------------------------------------------------------------------


def test_a_network_is_asked_on_the_device_and_each_answer_names_where_it_comes_from(adapter: webgpu.Adapter) -> None:
    subject = subject_of(nets.tiny_resnet())
    found = answered(subject)
    assert {name for name, check in found.items() if check.device == "cpu, webgpu"} == ASKED
    assert {check.device for name, check in found.items() if name not in ASKED} == {"cpu"}
    assert not [check.summary for check in found.values() if check.status == "fail"]
    assert all("on webgpu:" in found[name].summary and "webgpu" in found[name].numbers for name in ASKED)
    joins = sum(join.residual for join in subject.structure.joins)
    assert found["zero_branches"].numbers["webgpu"]["joins"] == joins > 0
    depths = found["signal"].numbers["webgpu"]["converted"]
    assert len(depths["name"]) == len(depths["activation"]) > joins and any(depths["activation"])
    assert found["exact_parts"].numbers["webgpu"]["different"] == {}


def test_torch_and_both_sessions_agree_and_every_floating_node_is_on_the_device(exported: Path) -> None:
    check = parity(exported)
    assert check.status == "pass" and check.device == "cpu, webgpu"
    assert list(check.numbers["ways"]) == ["onnxruntime cpu", "onnxruntime webgpu"]
    assert check.numbers["ways"]["onnxruntime webgpu"][0]["tolerance"] < 1e-5
    assert check.numbers["placement"]["webgpu"][WEBGPU] > 10


def test_attention_and_its_values_in_between_are_asked(adapter: webgpu.Adapter) -> None:
    found = answered(subject_of(nets.TinyAttention(), torch.zeros(2, 16, 32), scheme="zero-2022"))
    assert {check.status for check in found.values() if check.device == "cpu, webgpu"} <= {"pass", "warn", "skip"}
    assert found["repeat"].device == "cpu, webgpu"


@pytest.mark.parametrize("verb", ["convert", "validate"])
def test_the_commands_name_the_adapter_and_the_devices(
    adapter: webgpu.Adapter, tmp_path: Path, exported: Path, verb: str
) -> None:
    out, source = str(tmp_path / "net.safetensors"), Path(__file__).with_name("nets.py")
    page = str(tmp_path / "page.html")
    made = ["convert", f"{source}:tiny_resnet", "--input", "1x3x32x32", "--out", out]
    command = (
        [*made, "--report", page]
        if verb == "convert"
        else ["validate", out, "--trust", "--arch", f"{source}:tiny_resnet"]
    )
    if verb == "validate":
        assert CliRunner().invoke(app, [*made, "--validate", "none"]).exit_code == 0
    done = CliRunner().invoke(app, [*command, "--device", "webgpu", "--json"])
    assert done.exit_code == 0, done.output
    facts = json.loads(done.stdout)
    assert facts["device"].startswith("webgpu (") and adapter.name in facts["device"]
    assert ("software adapter" in facts["device"]) == adapter.software
    assert {one["device"] for one in facts["checks"]} >= {"cpu", "cpu, webgpu"}
    if verb == "convert":
        run = json.loads(receipt_path(out).read_text("utf-8"))["run"]
        assert run["device"] == facts["device"]
        text = Path(page).read_text("utf-8")
        assert adapter.name in text and "cpu, webgpu" in text


def test_the_doctor_lists_adapters_and_their_limits(adapter: webgpu.Adapter) -> None:
    found = examine(limit=300)
    assert usable(found, "webgpu") == ()
    one = next(one for one in found if one.group == "webgpu" and one.name in adapter.name)
    assert one.status == "ok" and "buffers up to" in one.summary and "driver" in one.summary


def test_a_software_adapter_is_used_only_when_it_was_asked_for(
    adapter: webgpu.Adapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not adapter.software:
        pytest.skip("this machine has a GPU")
    assert checks.resolve("auto")[0] == "cpu", "auto takes hardware only"
    monkeypatch.delenv(webgpu.SOFTWARE)
    with pytest.raises(DeviceError) as caught:
        checks.resolve("webgpu")
    assert webgpu.SOFTWARE in caught.value.fix and caught.value.exit_code == 5


def test_no_process_is_left(exported: Path) -> None:
    zc.validate(exported, nets.tiny_resnet(), (IMAGES,), device="webgpu")
    assert not webgpu._servers


# -- faults on the device alone ----------------------------------------------------------------------------------------


def half_weights(model: onnx.ModelProto) -> None:
    """Weights are stored in float16."""
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT and len(tensor.dims) > 1:
            tensor.raw_data = numpy_helper.to_array(tensor).astype(np.float16).astype(np.float32).tobytes()


def eleven_bits(model: onnx.ModelProto) -> None:
    """Layers read their input in 11 bits, as of float16 and TF32: t = 8193·x, t - (t - x). Source: Veltkamp, 1968."""
    model.graph.initializer.append(numpy_helper.from_array(np.float32(8193), "split"))
    nodes = []
    for index, node in enumerate(model.graph.node):
        if node.op_type in ("Conv", "Gemm", "MatMul"):
            wide, rest, high = f"wide {index}", f"rest {index}", f"high {index}"
            nodes.append(helper.make_node("Mul", [node.input[0], "split"], [wide]))
            nodes.append(helper.make_node("Sub", [wide, node.input[0]], [rest]))
            nodes.append(helper.make_node("Sub", [wide, rest], [high]))
            node.input[0] = high
        nodes.append(node)
    _replace_nodes(model, nodes)


def _replace_nodes(model: onnx.ModelProto, nodes: list[onnx.NodeProto]) -> None:
    kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del model.graph.node[:]
    model.graph.node.extend(kept)


def behind_first(kind: str, *made: Callable[[str, str], onnx.NodeProto]) -> Change:
    """Other nodes between the first node of a kind and who reads it."""

    def change(model: onnx.ModelProto) -> None:
        nodes = list(model.graph.node)
        at = next((index for index, node in enumerate(nodes) if node.op_type == kind), None)
        if at is None:
            return
        output = nodes[at].output[0]
        names = [f"planted {index}" for index in range(len(made))] + [output]
        nodes[at].output[0] = names[0]
        more = [make(a, b) for make, a, b in zip(made, names, names[1:], strict=False)]
        _replace_nodes(model, [*nodes[: at + 1], *more, *nodes[at + 1 :]])

    return change


def transposed(a: str, b: str) -> onnx.NodeProto:
    return helper.make_node("Transpose", [a], [b], perm=[0, 2, 3, 1])


class Square(nn.Module):
    """As many channels as rows and columns, so that a wrong layout has the right shape."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 1), nn.Linear(512, 4)

    def forward(self, x: Tensor) -> Tensor:
        return torch.as_tensor(self.last(self.first(x).flatten(1)))


def not_a_number(kind: str) -> Change:
    """A NaN in place of what the first node of a kind makes."""

    def change(model: onnx.ModelProto) -> None:
        model.graph.initializer.append(numpy_helper.from_array(np.float32([np.nan]), "nan"))
        behind_first(kind, lambda a, b: helper.make_node("Mul", [a, "nan"], [b]))(model)

    return change


def test_a_kernel_that_stores_weights_in_float16_is_found(
    exported: Path, tmp_path: Path, plant: Callable[[Change], None]
) -> None:
    model = onnx.load(exported)
    chance = np.random.default_rng(0)
    net = nets.tiny_resnet()
    subject = subject_of(net, scheme="zero-2022")
    with torch.no_grad():  # weights that float16 does not hold
        for name, parameter in subject.traced.root.named_parameters():
            if parameter.ndim > 1:
                parameter.copy_(torch.from_numpy(chance.normal(0, 0.3, parameter.shape).astype("float32")))
                tensor = next(one for one in model.graph.initializer if one.name == name)
                tensor.raw_data = parameter.detach().numpy().tobytes()
    onnx.save(model, tmp_path / "live.onnx")

    def compared() -> Check:
        return checks.compare_export(subject, tmp_path / "live.onnx", device="webgpu", dtype="float32", strict=True)

    sound = compared()
    plant(half_weights)
    found = compared()
    assert (sound.status, found.status) == ("pass", "fail")
    assert list(found.numbers["first_node"]) == ["onnxruntime webgpu"]
    assert "Conv" in found.numbers["first_node"]["onnxruntime webgpu"]


def test_a_kernel_that_reads_eleven_bits_is_found_by_integers(plant: Callable[[Change], None]) -> None:
    plant(eleven_bits)
    found = answered(subject_of(nets.tiny_resnet(), scheme="zero-2022"))["exact_parts"]
    assert found.status == "fail" and all("webgpu" in how for how in found.numbers["webgpu"]["different"])
    assert not found.numbers["different"], "the CPU is sound"


def test_a_wrong_layout_is_found_and_its_node_named(tmp_path: Path, plant: Callable[[Change], None]) -> None:
    path, images = tmp_path / "net.onnx", torch.zeros(1, 3, 8, 8)
    zc.convert(Square(), (images,), scheme="zero-2022", validate="none").save(path)
    sound = parity(path, Square(), images)
    plant(behind_first("Conv", transposed))
    found = parity(path, Square(), images)
    first = next(node.name for node in onnx.load(path).graph.node if node.op_type == "Conv")
    assert (sound.status, found.status) == ("pass", "fail")
    assert found.numbers["first_node"] == {"onnxruntime webgpu": first}


def test_a_nan_on_the_device_alone_is_found(plant: Callable[[Change], None]) -> None:
    plant(not_a_number("ReduceMean"))
    found = answered(subject_of(nets.tiny_resnet(), scheme="zero-2022"))
    assert found["finite"].status == "fail" and not found["finite"].numbers["not_finite"]
    assert found["finite"].numbers["webgpu"]["not_finite"][0] == "the output in evaluate mode"
    assert found["signal"].status == "fail" and "not finite at" in found["signal"].summary.partition("on webgpu")[2]


def test_a_nan_that_a_relu_hides_is_found(plant: Callable[[Change], None]) -> None:
    plant(not_a_number("Conv"))
    found = answered(subject_of(nets.tiny_resnet(), scheme="zero-2022"))["finite"]
    assert found.status == "fail" and found.numbers["webgpu"]["not_finite"][0] == "the value of conv1"


def test_a_branch_that_is_not_zero_on_the_device_alone_is_found(plant: Callable[[Change], None]) -> None:
    def change(model: onnx.ModelProto) -> None:
        nodes = list(model.graph.node)
        for node in nodes:
            if node.op_type == "Add" and len(nodes) > 8:
                model.graph.initializer.append(numpy_helper.from_array(np.float32([0.5]), "half"))
                for side, name in enumerate(list(node.input)):
                    maker = next((one for one in nodes if name in one.output), None)
                    if maker is not None and maker.op_type in ("MatMul", "Mul", "BatchNormalization", "Conv"):
                        behind(model, maker, side)
                        return

    def behind(model: onnx.ModelProto, maker: onnx.NodeProto, side: int) -> None:
        name = maker.output[0]
        nodes = list(model.graph.node)
        at = nodes.index(maker)
        nodes[at].output[0] = "before"
        _replace_nodes(model, [*nodes[: at + 1], helper.make_node("Add", ["before", "half"], [name]), *nodes[at + 1 :]])

    plant(change)
    found = answered(subject_of(nets.tiny_resnet(), scheme="zero-2022"))["zero_branches"]
    assert found.status == "fail" and found.numbers["webgpu"]["not_zero"] and not found.numbers["not_zero"]


def test_a_node_on_the_cpu_is_an_error_and_named(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = next(node.name for node in onnx.load(exported).graph.node if node.op_type == "Conv")
    monkeypatch.setattr(webgpu, "OPTIONS", {"forceCpuNodeNames": name})
    with pytest.raises(DeviceError) as caught:
        parity(exported)
    assert f"1 node that ran on the CPU: {name} (Conv)" in caught.value.got and caught.value.exit_code == 5
    check = parity(exported, strict=False)
    assert check.status == "warn" and list(check.numbers["left_out"]) == ["onnxruntime webgpu"]


class Signs(nn.Module):
    """The provider has no kernel for signs."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return torch.as_tensor(self.last(torch.sign(self.first(x)) + x))


def test_an_operator_without_a_kernel_is_named(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    zc.convert(Signs(), (torch.zeros(2, 8),), validate="none").save(path)
    with pytest.raises(DeviceError) as caught:
        parity(path, Signs(), torch.zeros(2, 8))
    assert "(Sign)" in caught.value.got and "no kernel" in caught.value.fix
    subject = subject_of(Signs(), torch.zeros(2, 8))
    with pytest.raises(DeviceError, match="Sign"):
        answered(subject)
    told = answered(subject, strict=False)["webgpu"]
    assert told.status == "warn" and "(Sign)" in told.summary


class Repeats(nn.Module):
    """64 MiB a sample in between."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(1024, 4)

    def forward(self, x: Tensor) -> Tensor:
        return torch.as_tensor(self.last(x.repeat(1, 1 << 14).reshape(len(x), 1 << 14, 1024).mean(1)))


def test_a_buffer_beyond_the_limit_gives_a_message_and_a_smaller_batch(tmp_path: Path) -> None:
    path, whole = tmp_path / "net.onnx", torch.zeros(17, 1024)
    zc.convert(Repeats(), (whole,), scheme="zero-2022", validate="none").save(path)
    with pytest.raises(DeviceError, match=r"max buffer size limit|OUT_OF_DEVICE_MEMORY"):
        sessions.run(path, [whole.numpy()], "webgpu")
    check = parity(path, Repeats(), whole)
    assert check.status == "pass" and check.summary.startswith("one sample, because")


def test_a_driver_that_ends_its_process_is_an_error_and_the_next_session_runs(
    exported: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    program = tmp_path / "crash.py"
    program.write_text("import os, sys\nsys.stdin.readline()\nsys.stderr.write('the device is lost')\nos.abort()\n")
    webgpu.close()
    with monkeypatch.context() as patch:
        patch.setattr(webgpu.Server.__init__, "__defaults__", (program,))
        with pytest.raises(DeviceError) as caught:
            sessions.run(exported, [IMAGES.numpy()], "webgpu")
    assert "ended its process" in caught.value.got and caught.value.exit_code == 5
    assert sessions.run(exported, [IMAGES.numpy()], "webgpu").provider == WEBGPU


def test_what_the_device_prints_is_not_on_our_streams(exported: Path, capfd: pytest.CaptureFixture[str]) -> None:
    sessions.run(exported, [IMAGES.numpy()], "webgpu")
    assert capfd.readouterr() == ("", "")


def test_a_check_keeps_the_subject_as_it_was() -> None:
    subject = subject_of(nets.tiny_resnet())
    before = {name: value.clone() for name, value in subject.traced.root.state_dict().items()}
    graphs = [str(graph) for graph in subject.traced.graphs]
    answered(replace(subject))
    assert all(torch.equal(value, before[name]) for name, value in subject.traced.root.state_dict().items())
    assert [str(graph) for graph in subject.traced.graphs] == graphs
