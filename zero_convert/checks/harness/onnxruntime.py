"""Sessions of ONNX Runtime that compute what they say they compute, where they say they do. Imports onnxruntime.

Pinned: no graph optimization (a fused batch norm is another network), no TF32, convolution algorithms by heuristics and
not by a race, one thread. A session that was asked for CUDA and gets a CPU is made without a word, while
`get_available_providers()` goes on to list CUDA; so the provider is read from the session, and which node really ran
where from a profile of its run. Where a provider fails, ONNX Runtime's Python goes on with a session on the CPU, unless
it is told not to: it is. Sessions on WebGPU run in a process of their own (`doctor/webgpu.py`).
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from zero_convert.doctor import webgpu
from zero_convert.errors import DeviceError
from zero_convert.runtime.messages import printed_to
from zero_convert.runtime.native_errors import gist
from zero_convert.runtime.signals import undone_by

CPU, CUDA, WEBGPU = "CPUExecutionProvider", "CUDAExecutionProvider", webgpu.PROVIDER
PROVIDERS = {"cpu": CPU, "cuda": CUDA, "webgpu": WEBGPU}
SILENT = 4  # log level: fatal errors only
FLOATS = ("float", "float16", "double", "bfloat16")
COPIES = frozenset({"MemcpyToHost", "MemcpyFromHost"})  # put in by ONNX Runtime between two providers
PICKS = frozenset(
    {"SplitToSequence", "SequenceAt"}
)  # what torch's exporter makes of `split`; CUDA has no kernel to cut
DOCTOR = "`zero-convert doctor` says what is missing; --device cpu compares on the CPU."
LIMIT = "exceeds the max buffer size limit"  # WebGPU's own words
NO_KERNEL = (
    "ONNX Runtime has no kernel for these operators there. --device auto says so and compares without it; "
    "--device cpu compares on the CPU."
)

Values = list[npt.NDArray[Any]]


class MemoryTooSmall(DeviceError):
    """What the device may hold is too small for the model and these inputs."""


@dataclass(frozen=True)
class SessionRun:
    """What a session returned, and where its nodes ran.

    Attributes:
        outputs: name → value; a list of values where the file has a sequence.
        provider: the first one that the session itself names.
        placement: provider → number of nodes that ran there; a part that the provider takes whole is one.
        fallen: nodes that computed floating tensors on the CPU in a session for another device: name and operator.
    """

    outputs: Mapping[str, Any]
    provider: str
    placement: Mapping[str, int]
    fallen: tuple[str, ...]


def provider_of(device: str) -> str:
    """The provider of a device.

    Raises:
        DeviceError: ONNX Runtime has none for it.
    """
    kind = device.partition(":")[0]
    if kind not in PROVIDERS:
        raise DeviceError(
            "ONNX Runtime has no provider for this device here",
            where=device,
            got=f"no provider for {kind}",
            expected=", ".join(PROVIDERS),
            fix="--device cpu",
        )
    return PROVIDERS[kind]


def run(
    model: str | PathLike[str] | bytes, inputs: Sequence[npt.NDArray[Any]], device: str = "cpu", *, strict: bool = True
) -> SessionRun:
    """The outputs of the model on a device.

    Args:
        model: the path of a file, or its bytes.
        inputs: in the order of the model's inputs.
        strict: work that falls back to the CPU is an error; otherwise it is told in the answer.

    Raises:
        DeviceError: the provider is not there, or the session or a part of the graph fell back to the CPU.
    """
    return runs(model, [inputs], device, strict=strict)[0]


def runs(
    model: str | PathLike[str] | bytes, batches: Sequence[Sequence[npt.NDArray[Any]]], device: str, *, strict: bool
) -> list[SessionRun]:
    """As `run`, for several inputs one after the other in one session; the placement is that of all together."""
    provider = provider_of(device)
    if provider == WEBGPU:
        with _explained(device):
            job = webgpu.run(model, batches)
    else:
        job = _here(model, batches, device, provider, strict)
    placement, fallen = placed(job.events, provider)
    if strict and provider != CPU and provider not in placement and not fallen:
        raise _gone(device, "a profile that names no node on it")
    if fallen and strict:
        raise _gone(device, told(fallen), NO_KERNEL if placement.get(provider) else DOCTOR)
    return [SessionRun(made, job.provider, placement, tuple(fallen)) for made in job.runs]


def _here(
    model: str | PathLike[str] | bytes, batches: Sequence[Any], device: str, provider: str, strict: bool
) -> webgpu.Job:
    """A session in this process."""
    import onnxruntime as ort

    if provider == CUDA:
        with printed_to(io.StringIO()), contextlib.suppress(Exception):
            ort.preload_dlls()  # it prints; what it cannot find shows in the session
    if provider not in ort.get_available_providers():
        raise _gone(device, f"providers {', '.join(ort.get_available_providers())}")
    with tempfile.TemporaryDirectory() as folder, undone_by(lambda: shutil.rmtree(folder, ignore_errors=True)):
        options = _options(ort)
        options.profile_file_prefix = str(Path(folder, "profile"))
        source = model if isinstance(model, bytes) else os.fspath(model)
        settings = _settings(provider, device)
        with _explained(device):
            session = ort.InferenceSession(source, options, providers=[settings], enable_fallback=0)
        real = session.get_providers()
        if real[0] != provider and strict:
            raise _gone(device, f"a session on {real[0]}")
        names = [value.name for value in session.get_inputs()]
        outputs = [value.name for value in session.get_outputs()]
        made = []
        for inputs in batches:
            with _explained(device):
                values = session.run(None, dict(zip(names, inputs, strict=True)))
            made.append(dict(zip(outputs, values, strict=True)))
        events = json.loads(Path(session.end_profiling()).read_text("utf-8"))
    return webgpu.Job(real[0], events, made)


def refusal(model: str | PathLike[str]) -> str:
    """Why ONNX Runtime's CPU provider makes no session of the file, "" where it makes one: it lacks a kernel."""
    import onnxruntime as ort

    options = _options(ort)
    options.enable_profiling = False
    try:
        ort.InferenceSession(os.fspath(model), options, providers=[CPU], enable_fallback=0)
    except Exception as error:
        return gist(str(error))
    return ""


def placed(events: Sequence[Mapping[str, Any]], provider: str) -> tuple[dict[str, int], list[str]]:
    """Provider → number of nodes, and the nodes that fell back, from the events of a profile.

    Arithmetic on shapes belongs on the CPU, whatever the provider: a node falls back if it makes a floating tensor of
    more than one value there. Cutting a tensor into a sequence and picking from it makes none. A node in a loop is one,
    however often it ran; copies between providers are none.
    """
    where: dict[tuple[str, str], str] = {}
    fallen: dict[str, None] = {}
    for event in events:
        args, name = event.get("args", {}), str(event.get("name", ""))
        if event.get("cat") != "Node" or not args.get("provider") or not name.endswith("_kernel_time"):
            continue
        if args.get("op_name") in COPIES:
            continue
        name = name.removesuffix("_kernel_time")
        where[name, args.get("node_index", "")] = args["provider"]
        outputs = () if args.get("op_name") in PICKS else args.get("output_type_shape", ())
        if args["provider"] != provider and _floating(outputs):
            fallen[f"{name} ({args.get('op_name', '?')})"] = None
    return dict(Counter(where.values())), list(fallen)


def told(fallen: Sequence[str]) -> str:
    """Nodes that fell back, the first of them by name."""
    more = ", …" if len(fallen) > 4 else ""
    nodes = f"{len(fallen)} node{'s' if len(fallen) > 1 else ''} that ran on the CPU"
    return f"{nodes}: {', '.join(fallen[:4])}{more}"


def _options(ort: Any) -> Any:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = SILENT
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.enable_profiling = True
    return options


@contextlib.contextmanager
def _explained(device: str) -> Iterator[None]:
    """What ONNX Runtime raises inside, as an error of the device, unless that is the CPU and memory was there."""
    try:
        yield
    except DeviceError:
        raise
    except Exception as error:
        if _ran_out(error):
            raise _full(device, error) from error
        if provider_of(device) == CPU:
            raise
        raise _gone(device, gist(str(error))) from error


def _settings(provider: str, device: str) -> Any:
    if provider == CPU:
        return provider
    index = device.partition(":")[2] or "0"
    return provider, {"device_id": index, "use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"}


def _floating(outputs: Sequence[Mapping[str, Sequence[int]]]) -> bool:
    return any(kind in FLOATS and int(np.prod(shape)) > 1 for each in outputs for kind, shape in each.items())


def _ran_out(error: BaseException) -> bool:
    """Whether memory was too small: in the words of ONNX Runtime's arena, of CUDA, and of its libraries."""
    text = str(error).lower()
    causes = ("allocate memory", "out of memory", "smaller than requested", "alloc_failed", "out_of_device_memory")
    return any(cause in text for cause in (*causes, LIMIT))


def _full(device: str, error: BaseException) -> DeviceError:
    on_cpu = "Give smaller example inputs (--input), or leave the comparison out with --validate quick."
    words = (LIMIT, "OUT_OF_DEVICE_MEMORY")
    line = next((line for line in str(error).splitlines() if any(word in line for word in words)), "")
    return MemoryTooSmall(
        "the device's memory is too small for ONNX Runtime",
        where=device,
        got=gist(line) if line else "too little for the model and one example",
        expected="room for both beside torch",
        fix=on_cpu if device == "cpu" else "Give smaller example inputs (--input); --device cpu compares on the CPU.",
    )


def _gone(device: str, got: str, fix: str = DOCTOR) -> DeviceError:
    return DeviceError(
        "ONNX Runtime does not compute on this device",
        where=f"--device {device}",
        got=got,
        expected=f"every floating tensor made by {provider_of(device)}",
        fix=fix,
    )
