"""On a machine with a CUDA device: `pytest -m gpu`. Elsewhere each test skips and says what is missing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import zero_convert as zc
from zero_convert import checks, cli
from zero_convert.checks.exact_parts import ask as exact_parts
from zero_convert.checks.harness import onnxruntime
from zero_convert.checks.harness.bench import CheckContext
from zero_convert.checks.harness.isolation import pinned
from zero_convert.errors import DeviceError

from . import nets
from .goldens import CASES, FILE
from .subjects import IMAGES, subject_of

pytestmark = pytest.mark.gpu


@pytest.fixture
def cuda() -> str:
    try:
        return checks.resolve("cuda")[0]
    except DeviceError as error:
        pytest.skip(f"no CUDA device: {error.got}")


@pytest.fixture
def runtime(cuda: str) -> str:
    """A device on which ONNX Runtime really computes a node."""
    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [4])
    made = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [4])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Add", ["x", "x"], ["y"], "add")], "one", [value], [made])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
    try:
        onnxruntime.run(model.SerializeToString(), [np.ones(4, np.float32)], cuda)
    except DeviceError as error:
        pytest.skip(f"ONNX Runtime does not compute on {cuda}: {error.got}")
    return cuda


@pytest.mark.parametrize("level", ["quick", "full"])
@pytest.mark.parametrize("scheme", ["zero-2021", "zero-2022"])
def test_no_check_fails_on_a_gpu(cuda: str, scheme: str, level: str) -> None:
    subject = subject_of(nets.tiny_resnet(), scheme=scheme)
    found = checks.run(subject, level=level, device=cuda)
    assert [(check.name, check.summary) for check in found if check.status == "fail"] == []
    assert all(p.device.type == "cpu" for p in subject.traced.root.parameters())


@pytest.mark.parametrize("case", [case for case in CASES if case.quick], ids=lambda case: case.key)
def test_the_digests_are_those_of_the_cpu(cuda: str, case: object) -> None:
    golden = json.loads(FILE.read_text("utf-8"))[case.key]
    result = zc.convert(case.model, scheme=case.scheme, options=case.options, dtype=case.dtype, device=cuda)
    assert result.device == cuda and not result.failed
    assert result.weights_digest == golden["weights_digest"]


@pytest.mark.parametrize("rate", ["none", "dropout:0.1"])
def test_the_symmetry_of_equal_channels_is_watched_on_the_gpu(cuda: str, rate: str) -> None:
    subject = subject_of(nets.tiny_resnet(), scheme="constnet", break_symmetry=rate)
    found = {check.name: check for check in checks.run(subject, level="quick", device=cuda)}
    spread = found["symmetry"].numbers["spread_after_step"]
    assert found["symmetry"].numbers["device"] == cuda and spread[0] == 0
    assert rate == "none" or max(spread) > 0, "dropout parts the channels on any device"


def test_tf32_is_found_where_it_is_on(cuda: str) -> None:
    subject = subject_of(nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 8)), torch.zeros(1, 64))
    switch, before = torch.backends.cuda.matmul, torch.backends.cuda.matmul.fp32_precision
    if torch.cuda.get_device_capability(cuda) < (8, 0):
        pytest.skip("this GPU has no TF32")
    try:
        switch.fp32_precision = "tf32"
        found = exact_parts(CheckContext(subject, "full", cuda))
    finally:
        switch.fp32_precision = before
    assert found is not None and found.status == "fail"
    sound = [check for check in checks.run(subject, level="full", device=cuda) if check.name == "exact_parts"]
    assert [check.status for check in sound] == ["pass"]


@pytest.mark.parametrize("scheme", ["zero-2021", "zero-2022"])
def test_four_ways_return_the_same(runtime: str, tmp_path: Path, scheme: str) -> None:
    path = tmp_path / "net.onnx"
    zc.convert("resnet18", scheme=scheme, validate="none").save(path)
    answer = zc.validate(path, device="cuda")
    (check,) = [check for check in answer.checks if check.name == "parity"]
    assert check.status == "pass", check.summary
    assert list(check.numbers["ways"]) == ["onnxruntime cpu", f"torch {runtime}", f"onnxruntime {runtime}"]
    assert check.numbers["placement"][runtime].get(onnxruntime.CUDA, 0) > 20


def test_the_command_validates_on_a_gpu(cuda: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(tmp_path / "net.safetensors")
    assert cli.main(["resnet18", "--out", path, "--device", "cuda", "--quiet"]) == 0
    capsys.readouterr()
    assert cli.main(["validate", path, "--device", "cuda", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["device"] == cuda
    beyond = f"cuda:{torch.cuda.device_count()}"
    assert cli.main(["validate", path, "--device", beyond]) == 5


def test_the_second_device_can_be_named(cuda: str) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("fewer than two CUDA devices")
    result = zc.convert(nets.tiny_resnet(), (IMAGES,), device="cuda:1")
    assert result.device == "cuda:1" and not result.failed


def test_attention_repeats_itself_though_its_fused_kernels_do_not(cuda: str) -> None:
    """Their backward adds in any order, and torch leaves it at that where operations may warn."""
    subject = subject_of(nets.TinyAttention(), torch.zeros(2, 96, 32), scheme="zero-2022")
    found = {check.name: check for check in checks.run(subject, level="full", device=cuda)}
    assert found["repeat"].status == "pass", found["repeat"].summary


def limited(cuda: str, megabytes: float) -> None:
    """Leaves so much memory beside what torch and cuBLAS hold by now."""
    index, total = torch.device(cuda).index, torch.cuda.mem_get_info(cuda)[1]
    torch.cuda.empty_cache()
    share = (torch.cuda.memory_reserved(cuda) + megabytes * 2**20) / total
    torch.cuda.set_per_process_memory_fraction(share, index)


def test_a_full_memory_ends_with_a_message(cuda: str) -> None:
    limited(cuda, 24)  # for what `resolve` computes, and not for 47 MB of weights
    try:
        with pytest.raises(DeviceError, match="do not fit into the device's memory"):
            zc.convert("resnet18", device=cuda)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, torch.device(cuda).index)


def test_a_batch_that_does_not_fit_becomes_smaller(cuda: str) -> None:
    subject, index = subject_of(nets.tiny_resnet(), torch.zeros(1, 3, 128, 128)), torch.device(cuda).index

    def taken(samples: int) -> int:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(cuda)
        with pinned(cuda):
            checks.answers(CheckContext(subject, "full", cuda, None, samples))
        return torch.cuda.max_memory_reserved(cuda)

    between = (taken(4) + taken(1)) / 2
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(between / torch.cuda.mem_get_info(cuda)[1], index)
    try:
        found = {check.name: check for check in checks.run(subject, level="full", device=cuda)}
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, index)
    assert found["memory"].status == "warn" and found["memory"].numbers["samples"] < 4
    assert not [check.name for check in found.values() if check.status == "fail"]
