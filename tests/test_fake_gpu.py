"""The way over a GPU, walked on one that the CPU plays: what runs there, what is found there, what is refused.

`python -m pytest -p tests.fake_gpu -m gpu tests/test_gpu.py` runs the suite for a real one in the same way.
"""

from __future__ import annotations

import gc
import re
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, backends, nn

import zero_convert as zc
from zero_convert import checks
from zero_convert.checks.exact_parts import ask as exact_parts
from zero_convert.checks.harness import isolation
from zero_convert.checks.harness.bench import CheckContext
from zero_convert.checks.harness.depths import depths
from zero_convert.checks.harness.isolation import pinned
from zero_convert.checks.harness.precision import full_float32
from zero_convert.checks.subject import Subject
from zero_convert.errors import DeviceError
from zero_convert.records import Check

from . import nets
from .fake_gpu import fake_gpu
from .subjects import IMAGES, subject_of

pytestmark = pytest.mark.usefixtures("one_thread")


def test_the_fake_refuses_what_a_gpu_refuses() -> None:
    with fake_gpu() as fake:
        x = torch.ones(3, device="cuda")
        assert (str(x.device), str((x * 2).device), str(x.cpu().device)) == ("cuda:0", "cuda:0", "cpu")
        with pytest.raises(RuntimeError, match="found at least two devices"):
            x + torch.ones(3)
        with pytest.raises(TypeError, match=r"Use Tensor\.cpu"):
            x.numpy()
        with pytest.raises(RuntimeError, match="invalid device ordinal"):
            x.to("cuda:1")
        fake.memory = 1000
        with pytest.raises(torch.OutOfMemoryError):
            torch.zeros(1000, device="cuda")
    with fake_gpu(kind="mps"), pytest.raises(TypeError, match="float64"):
        torch.ones(3, device="mps").double()


@pytest.mark.parametrize("kind", ["cuda", "mps"])
@pytest.mark.parametrize("level", ["quick", pytest.param("full", marks=pytest.mark.slow)])
def test_the_same_checks_run_on_every_device(kind: str, level: str) -> None:
    subject = subject_of(nets.tiny_resnet())
    usual = {check.name: check.status for check in checks.run(subject, level=level, device="cpu")}
    with fake_gpu(kind=kind) as fake:
        device = checks.resolve(kind)[0]
        found = {check.name: check for check in checks.run(subject, level=level, device=device)}
    assert fake.calls > 1000 and {name: check.status for name, check in found.items()} == usual
    assert device in found["exact_parts"].summary


# -- rounding ----------------------------------------------------------------------------------------------------------

SWITCHES: list[tuple[Any, str, Any]] = [
    (backends.cuda.matmul, "allow_tf32", True),
    (backends.cuda.matmul, "fp32_precision", "tf32"),
    (backends.cudnn, "allow_tf32", False),
    (backends.cudnn, "fp32_precision", "tf32"),
    (backends.cudnn.conv, "fp32_precision", "ieee"),
    (backends, "fp32_precision", "tf32"),
    (backends, "fp32_precision", "ieee"),
    (torch, "set_float32_matmul_precision", "high"),
    (torch, "set_float32_matmul_precision", "medium"),
]


def switches() -> list[Any]:
    """All that torch says about rounding; "raises" where its two generations disagree."""
    cuda, cudnn, mkldnn = backends.cuda.matmul, backends.cudnn, backends.mkldnn
    newer = (backends, cudnn, mkldnn, cuda, cudnn.conv, cudnn.rnn, mkldnn.matmul, mkldnn.conv, mkldnn.rnn)
    told: list[Any] = [owner.fp32_precision for owner in newer]
    for ask in (lambda: cuda.allow_tf32, lambda: cudnn.allow_tf32, torch.get_float32_matmul_precision):
        try:
            told.append(ask())
        except RuntimeError:
            told.append("raises")
    return told


@pytest.mark.filterwarnings("ignore:Please use the new API settings")
@pytest.mark.parametrize(
    ("owner", "name", "value"), SWITCHES, ids=[f"{i}-{s[1]}-{s[2]}" for i, s in enumerate(SWITCHES)]
)
def test_no_switch_rounds_inside_and_each_is_as_it_was_afterwards(owner: Any, name: str, value: Any) -> None:
    with full_float32():  # leaves what this test does behind
        setting = getattr(owner, name)
        setting(value) if callable(setting) else setattr(owner, name, value)
        before = switches()
        with full_float32():
            inside = switches()
        after = switches()
        backends.fp32_precision = backends.cudnn.fp32_precision = "none"
    assert after == before
    assert set(inside[:9]) <= {"none", "ieee"} and inside[9:] == [False, False, "highest"]


def test_tf32_which_a_gpu_begins_with_is_found_and_off_in_the_checks() -> None:
    subject = subject_of(nets.tiny_resnet())
    with fake_gpu() as fake:
        rounded = exact_parts(CheckContext(subject, "quick", "cuda:0"))
        with pinned("cuda:0"):
            exact = exact_parts(CheckContext(subject, "quick", "cuda:0"))
    assert rounded is not None and exact is not None
    assert (rounded.status, exact.status) == ("fail", "pass") and fake.calls
    assert all("cuda:0" in how for how in rounded.numbers["different"])


@pytest.mark.parametrize("fused", [True, False])
def test_attention_whose_gradient_adds_in_any_order_is_found_and_not_used(fused: bool) -> None:
    subject = subject_of(nets.TinyAttention(), torch.zeros(2, 16, 32), scheme="zero-2022")
    with fake_gpu(), pinned("cuda:0"):
        if fused:
            isolation.set_fused_attention((True, True, True))
        found = checks.answer("repeat", CheckContext(subject, "full", "cuda:0"))
    assert found is not None and found.status == ("fail" if fused else "pass"), found.summary
    assert isolation.fused_attention() == (True, True, True)


# -- memory ------------------------------------------------------------------------------------------------------------


def test_what_a_check_has_looked_at_is_given_back() -> None:
    context = CheckContext(subject_of(nets.tiny_resnet()), "quick", "cpu")
    assert depths(context, "own") is not None
    module = weakref.ref(context.module)
    del context
    gc.collect()
    assert module() is None


@pytest.mark.slow
def test_a_batch_that_does_not_fit_becomes_smaller_and_nothing_is_left_there() -> None:
    subject, device = subject_of(nets.tiny_resnet(), torch.zeros(1, 3, 48, 48)), torch.device("cuda:0")
    with fake_gpu() as fake:
        peaks = []
        for samples in (4, 1):
            fake.watch()
            with pinned("cuda:0"):
                for name in ("outputs", "finite", "signal"):
                    checks.answer(name, CheckContext(subject, "quick", "cuda:0", None, samples))
            gc.collect()
            peaks.append(fake.peak)
        assert fake.taken(device) == 0
        fake.memory = sum(peaks) // 2
        found = {check.name: check for check in checks.run(subject, level="quick", device="cuda:0")}
        fake.memory = 20_000
        with pytest.raises(DeviceError, match="do not fit into the device's memory"):
            checks.run(subject, level="quick", device="cuda:0")
    assert found["memory"].status == "warn" and found["memory"].numbers["samples"] < 4
    assert not [check.name for check in found.values() if check.status == "fail"]


# -- four ways ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Subject, Path]:
    path = tmp_path_factory.mktemp("fake") / "net.onnx"
    zc.convert(nets.tiny_resnet(), (IMAGES,), scheme="zero-2022", validate="none").save(path)
    return subject_of(nets.tiny_resnet(), scheme="zero-2022"), path


def compared(exported: tuple[Subject, Path], device: str = "cuda:0", *, strict: bool = True, **what: Any) -> Check:
    subject, path = exported
    with fake_gpu(**what):
        return checks.compare_export(subject, path, device=device, dtype="float32", strict=strict)


@pytest.mark.parametrize("index", [0, 1])
def test_four_ways_agree_on_any_of_several_devices(exported: tuple[Subject, Path], index: int) -> None:
    check = compared(exported, f"cuda:{index}", count=2)
    assert check.status == "pass"
    assert list(check.numbers["ways"]) == ["onnxruntime cpu", f"torch cuda:{index}", f"onnxruntime cuda:{index}"]
    assert check.numbers["placement"][f"cuda:{index}"].keys() == {"CUDAExecutionProvider"}


def test_the_first_node_that_a_device_computes_otherwise_is_named(exported: tuple[Subject, Path]) -> None:
    subject, _ = exported
    nodes = [n.name for n in subject.traced.evaluate.nodes if n.op == "call_module" and "conv" in str(n.target)]
    calls = 0

    def distort(name: str, made: Tensor) -> Tensor:
        nonlocal calls
        calls += name == "convolution"
        return made + 0.01 if name == "convolution" and calls % convolutions == 1 else made

    convolutions = sum(isinstance(module, nn.Conv2d) for module in subject.traced.root.modules())
    check = compared(exported, distort=distort)
    assert check.status == "fail" and check.numbers["first_node"] == {"torch cuda:0": nodes[0]}, check.summary


class Halves(nn.Module):
    """What it cuts is a sequence of tensors in ONNX."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.first(x).chunk(2, 1)
        return torch.as_tensor(self.second(torch.cat([b, a], 1)))


def test_the_first_node_that_the_runtime_computes_otherwise_on_the_device_is_named(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    zc.convert(Halves(), (torch.zeros(1, 3, 4, 4),), scheme="zero-2022", validate="none").save(path)
    subject = subject_of(Halves(), torch.zeros(1, 3, 4, 4), scheme="zero-2022")
    nodes = list(onnx.load(path).graph.node)
    assert "SplitToSequence" in [node.op_type for node in nodes]
    last = max(index for index, node in enumerate(nodes) if node.op_type == "Conv")
    changed = {name for node in nodes[last:] for name in node.output}

    def runtime(name: str, value: Any) -> Any:
        return value + np.float32(0.01) if name in changed else value

    check = compared((subject, path), runtime=runtime)
    assert check.status == "fail" and check.numbers["first_node"] == {"onnxruntime cuda:0": nodes[last].name}


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ({"on_cpu": "Conv_1"}, "nodes (that ran on the CPU|fell back)"),
        ({"silent": True}, "nodes (that ran on the CPU|fell back)"),
        ({"provider": False}, "providers CPUExecutionProvider"),
    ],
    ids=["one node", "all in silence", "no provider"],
)
def test_a_fallback_is_an_error_on_a_named_device_and_told_otherwise(
    exported: tuple[Subject, Path], what: dict[str, Any], reason: str
) -> None:
    with pytest.raises(DeviceError, match=reason):
        compared(exported, **what)
    check = compared(exported, strict=False, **what)
    assert check.status == "warn" and list(check.numbers["left_out"]) == ["onnxruntime cuda:0"]
    assert re.search(reason, check.summary)


def test_a_runtime_without_a_provider_for_the_device_is_left_out_with_the_reason(
    exported: tuple[Subject, Path],
) -> None:
    check = compared(exported, "mps", strict=False, kind="mps")
    assert check.numbers["left_out"] == {"onnxruntime mps": "no provider for mps"}
    assert list(check.numbers["ways"]) == ["onnxruntime cpu", "torch mps"]
