"""ONNX Runtime's real CUDA provider on CUDA libraries that compute nothing: placement, fallback and its own errors."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import zero_convert as zc
from zero_convert.checks.harness.onnxruntime import CPU, CUDA
from zero_convert.doctor import Finding, examine
from zero_convert.doctor.ask import PROGRAM, Answer, ask

from . import cuda_stub, nets
from .subjects import IMAGES

pytestmark = pytest.mark.slow

# The sessions without their package, which imports torch, whose own CUDA libraries would take the place of the stub's.
SESSION = """
import json, sys, types
from pathlib import Path
import numpy as np, onnx
import zero_convert
checks = types.ModuleType("zero_convert.checks")
checks.__path__ = [str(Path(zero_convert.__file__).parent / "checks")]
sys.modules["zero_convert.checks"] = checks
from zero_convert.checks.harness import onnxruntime as sessions
from zero_convert.errors import DeviceError
path, strict = sys.argv[1:]
kinds = [value.type.tensor_type for value in onnx.load(path).graph.input]
zeros = [
    np.zeros([axis.dim_value or 2 for axis in kind.shape.dim], onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type))
    for kind in kinds
]
try:
    answer = sessions.run(path, zeros, "cuda:0", strict=strict == "strict")
    said = {"provider": answer.provider, "placement": dict(answer.placement), "fallen": answer.fallen}
except DeviceError as error:
    said = {"got": error.got, "fix": error.fix}
assert "torch" not in sys.modules
print(json.dumps(said))
"""


class Angles(nn.Module):
    """ONNX Runtime has no arc tangent for CUDA."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return torch.as_tensor(self.last(torch.atan(self.first(x)) + x))


@pytest.fixture(scope="module")
def stub(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    try:
        return cuda_stub.build(tmp_path_factory.mktemp("stub"))
    except OSError as error:
        pytest.skip(str(error))


def session(path: Path, environment: Mapping[str, str], strict: bool = True) -> Any:
    """What `sessions.run` says in a process of its own."""
    command = [sys.executable, "-c", SESSION, str(path), "strict" if strict else "lenient"]
    done = subprocess.run(command, env=dict(environment), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)  # and nothing else was printed


@pytest.mark.parametrize(
    ("model", "inputs"),
    [(nets.tiny_resnet(), (IMAGES,)), (nets.TinyAttention(), (torch.zeros(2, 96, 32),))],
    ids=["convolutions", "attention"],
)
def test_the_real_provider_takes_every_floating_node(
    stub: Mapping[str, Path], tmp_path: Path, model: nn.Module, inputs: tuple[Tensor, ...]
) -> None:
    path = tmp_path / "net.onnx"
    zc.convert(model, inputs, scheme="zero-2022", validate="none").save(path)
    said = session(path, cuda_stub.environment(stub))
    assert said["provider"] == CUDA and said["fallen"] == [] and said["placement"][CUDA] > 10


def test_an_operator_without_a_kernel_is_named_and_the_libraries_are_not_blamed(
    stub: Mapping[str, Path], tmp_path: Path
) -> None:
    path = tmp_path / "net.onnx"
    zc.convert(Angles(), (torch.zeros(2, 8),), validate="none").save(path)
    said = session(path, cuda_stub.environment(stub))
    assert "1 node that ran on the CPU" in said["got"] and "(Atan)" in said["got"]
    assert "no kernel" in said["fix"] and "doctor" not in said["fix"]
    lenient = session(path, cuda_stub.environment(stub), strict=False)
    assert lenient["provider"] == CUDA and len(lenient["fallen"]) == 1
    assert lenient["placement"] == {CUDA: 3, CPU: 1}, "copies between the two are no nodes of the file"


def test_a_driver_that_is_too_old_is_quoted_and_no_other_session_is_tried(
    stub: Mapping[str, Path], tmp_path: Path
) -> None:
    path = tmp_path / "net.onnx"
    zc.convert(Angles(), (torch.zeros(2, 8),), validate="none").save(path)
    said = session(path, {**cuda_stub.environment(stub), "CUDA_STUB_ERROR": "35"})
    assert said["got"] == "CUDA failure 35: CUDA driver version is insufficient for CUDA runtime version"
    assert "doctor" in said["fix"]


def on_the_stub(program: Path = PROGRAM) -> Finding:
    """What the doctor says of the CUDA provider on a machine with a GPU that torch can use."""
    gpu = {"version": torch.__version__, "cuda": "13.0", "devices": [{"name": "cuda:0", "title": "a GPU"}]}
    known: dict[str, dict[str, Any]] = {
        "torch": gpu,
        "kernel": {"ran_on": "cuda:0"},
        "providers": {"version": "1", "providers": [CUDA, CPU]},
        "session": {"providers": [CPU]},
    }

    def asked(question: str, argument: str, limit: float) -> Answer:
        if (question, argument) == ("session", CUDA):
            return ask(question, argument, limit=limit, program=program)
        return Answer(known.get(question, {"version": "1"}))

    found = examine(limit=120, ask=asked, here={"torchvision": "1"}, needs=())
    return next(one for one in found if one.name == CUDA)


def test_the_doctor_runs_a_session_on_the_real_provider_and_quotes_it(
    stub: Mapping[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LD_PRELOAD", cuda_stub.environment(stub)["LD_PRELOAD"])
    computed = on_the_stub()
    assert computed.status == "fail" and "computed wrongly: a convolution" in computed.summary
    monkeypatch.setenv("CUDA_STUB_ERROR", "35")
    old = on_the_stub()
    assert old.status == "fail" and "CUDA driver version is insufficient" in old.summary


def test_the_doctor_names_the_package_of_a_cudnn_that_is_asked_for_while_it_runs(
    stub: Mapping[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("LD_PRELOAD", cuda_stub.environment(stub, cuda_stub.CUDNN)["LD_PRELOAD"])
    program = tmp_path / "without_preloading.py"
    program.write_text(
        "import runpy, onnxruntime\n"
        "onnxruntime.preload_dlls = lambda: None\n"
        f"runpy.run_path({str(PROGRAM)!r}, run_name='__main__')\n"
    )
    found = on_the_stub(program)
    assert found.status == "fail" and [one.package for one in found.missing] == ["nvidia-cudnn-cu13"]
    assert found.fix.startswith("pip install") and "nvidia-cudnn-cu13" in found.fix
