"""A provider of ONNX Runtime that fails is an error with its reason, and never a run on the CPU under its name.

The provider is played: a session of the real library whose own code fails where a GPU's would. What a real second
provider writes into a profile (a part that it takes whole is one node, with a name of its own) is quoted.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from zero_convert.checks.harness import onnxruntime as sessions
from zero_convert.checks.harness.onnxruntime import CPU, CUDA, placed
from zero_convert.errors import DeviceError

# The form of an error of ONNX Runtime's CUDA provider: the place in its source, then what happened.
PLACE = (
    "[ONNXRuntimeError] : 1 : FAIL : /src/onnxruntime/core/providers/cuda/cuda_call.cc:129 std::conditional_t<THRW, "
    "void, onnxruntime::common::Status> onnxruntime::CudaCall(ERRTYPE, const char*, const char*, SUCCTYPE, "
    "const char*, const char*, int) [with ERRTYPE = cudaError; bool THRW = true; SUCCTYPE = cudaError; "
    "std::conditional_t<THRW, void, common::Status> = void] "
)
ZEROS = [np.zeros((2, 3), np.float32)]


class EPFail(RuntimeError):
    """What a provider raises; ONNX Runtime's Python answers it with a session on the CPU."""


class Broken:
    """A session that fails when it runs."""

    def __init__(self, session: Any, words: str) -> None:
        self.session, self.words = session, words

    def run(self, *_: Any) -> None:
        raise EPFail(self.words)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.session, name)


@pytest.fixture
def model(tmp_path: Path) -> str:
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 3]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"], name="relu")], "g", values[:1], values[1:])
    path = str(tmp_path / "relu.onnx")
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), path)
    return path


def play(monkeypatch: pytest.MonkeyPatch, *, made: str = "", ran: str = "", silent: bool = False) -> None:
    """Sessions of the real library for a provider that fails with these words when a session is made, or runs.

    Args:
        silent: the session says that it is on the provider, and its profile names no node.
    """
    monkeypatch.setattr(onnxruntime.capi.onnxruntime_inference_collection.C, "EPFail", EPFail)

    class Session(onnxruntime.InferenceSession):  # type: ignore[misc]
        def _create_inference_session(self, providers: Any, *more: Any) -> None:
            self.plays = providers[0] != CPU
            if self.plays and made:
                self._fallback_providers = [CPU]
                raise RuntimeError(made)
            super()._create_inference_session([CPU], *more)
            if self.plays and ran:
                self._sess = Broken(self._sess, ran)

        def get_providers(self) -> list[str]:
            return [CUDA, CPU] if self.plays else [CPU]

        def end_profiling(self) -> str:
            path = Path(super().end_profiling())
            if silent:
                path.write_text("[]")
            return str(path)

    there = {name: getattr(onnxruntime, name) for name in ("SessionOptions", "GraphOptimizationLevel")}
    played = SimpleNamespace(
        **there, InferenceSession=Session, get_available_providers=lambda: [CUDA, CPU], preload_dlls=lambda: None
    )
    monkeypatch.setitem(sys.modules, "onnxruntime", played)


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("when", ["made", "ran"])
def test_a_provider_that_fails_is_an_error_with_its_reason_and_no_session_on_the_cpu(
    model: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], when: str, strict: bool
) -> None:
    play(monkeypatch, **{when: f"{PLACE}CUDA failure 101: invalid device ordinal ; GPU=-1 ; hostname=h ; line=280 ; "})
    with pytest.raises(DeviceError) as caught:
        sessions.run(model, ZEROS, "cuda:7", strict=strict)
    assert caught.value.got == "CUDA failure 101: invalid device ordinal" and "cuda:7" in str(caught.value)
    assert capsys.readouterr().out == "", "ONNX Runtime says on stdout that it falls back"


@pytest.mark.parametrize("when", ["made", "ran"])
def test_a_device_whose_memory_is_too_small_says_so(model: str, monkeypatch: pytest.MonkeyPatch, when: str) -> None:
    play(monkeypatch, **{when: f"{PLACE}CUDA failure 2: out of memory ; GPU=0 ; hostname=h"})
    with pytest.raises(DeviceError, match="memory is too small"):
        sessions.run(model, ZEROS, "cuda:0")


def test_a_profile_that_names_no_node_proves_nothing(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    play(monkeypatch, silent=True)
    with pytest.raises(DeviceError, match="a profile that names no node on it"):
        sessions.run(model, ZEROS, "cuda:0")


def test_what_a_model_does_wrong_is_no_matter_of_the_device(model: str) -> None:
    with pytest.raises(Exception, match="Got invalid dimensions") as caught:
        sessions.run(model, [np.zeros((5, 3), np.float32)], "cpu")
    assert not isinstance(caught.value, DeviceError)


def test_fused_parts_copies_cuts_and_loops_are_counted_as_what_they_are() -> None:
    def node(name: str, kind: str, provider: str, index: int, **made: list[int]) -> dict[str, Any]:
        shapes = [{type_: size} for type_, size in made.items()]
        args = {"op_name": kind, "provider": provider, "node_index": str(index), "output_type_shape": shapes}
        return {"cat": "Node", "name": f"{name}_kernel_time", "args": args}

    events = [
        node("CUDAExecutionProvider_subgraph_1_0", "subgraph_1", CUDA, 7, float=[3, 4]),
        node("Memcpy_token_12", "MemcpyToHost", CUDA, 8, float=[3, 4]),
        *[node("body/det", "Det", CPU, 0, float=[3])] * 5,
        *[node("body/less", "Less", CPU, 1, bool=[3])] * 5,
        node("Memcpy", "MemcpyFromHost", CUDA, 9, float=[3]),
        node("cut", "SplitToSequence", CPU, 10),
        node("part", "SequenceAt", CPU, 11, float=[3, 4]),
    ]
    assert placed(events, CUDA) == ({CUDA: 1, CPU: 4}, ["body/det (Det)"])
