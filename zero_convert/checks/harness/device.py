"""Where the checks run: a device name from the command line to one that has really computed something.

On "webgpu" ONNX Runtime computes what an ONNX file can be asked, and torch the rest on the CPU.

`torch.cuda.is_available()` is a promise, not a fact: a wrong driver or a kernel missing for the card shows only when
something runs. So a tiny computation runs there, and the result and its device are looked at.
"""

from __future__ import annotations

import gc
import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

import torch

from zero_convert.doctor import webgpu
from zero_convert.errors import DeviceError, UsageError
from zero_convert.runtime.messages import without_warnings

WEBGPU = "webgpu"
NAMES = "auto, cpu, cuda, cuda:N, mps or webgpu"


def torch_device(device: str) -> str:
    """Where torch computes when the device is asked for."""
    return "cpu" if device == WEBGPU else device


def is_strict(device: str) -> bool:
    """Whether a device named on the command line is one on which ONNX Runtime must compute all floating tensors."""
    return device.partition(":")[0] in ("cuda", WEBGPU)


@contextmanager
def held() -> Iterator[None]:
    """After: no process of a device goes on. Also a decorator."""
    try:
        yield
    finally:
        webgpu.close()


def resolve(device: str) -> tuple[str, str]:
    """The device for "auto", "cpu", "cuda", "cuda:N", "mps" or "webgpu", and a note.

    The note is "" unless `auto` fell back, or an adapter has to be named: that of WebGPU.

    Raises:
        UsageError: another spelling.
        DeviceError: an explicitly named device that is not there or does not compute.
    """
    if not re.fullmatch(r"auto|cpu|mps|webgpu|cuda(:[0-9]{1,3})?", device):
        raise UsageError("no such device", where="--device", got=repr(device), expected=NAMES)
    if device == "cpu":
        return "cpu", ""
    if device == WEBGPU:
        return WEBGPU, str(webgpu.found())
    with without_warnings():  # a driver that does not fit makes torch warn; what it says is in the message
        if device == "auto":
            return _best()
        name = "cuda:0" if device == "cuda" else device
        problem = _problem(name)
        if problem:
            raise DeviceError(
                f"the device {name} cannot be used",
                where=f"--device {device}",
                got=problem,
                expected="a device that computes",
                fix=f"torch {torch.__version__} sees {_seen()}. Use --device auto or --device cpu, or install a torch "
                "build for this machine's GPU and driver.",
            )
    return name, ""


def _best() -> tuple[str, str]:
    present = [name for name, there in (("cuda:0", torch.cuda.is_available()), ("mps", _mps())) if there]
    failures = []
    for name in present:
        problem = _problem(name)
        if not problem:
            return name, ""
        failures.append(f"{name}: {problem}")
    if find_spec("onnxruntime_ep_webgpu") is not None:
        answer = webgpu.asked()
        against, adapter = webgpu.refusal(answer), webgpu.adapter(answer)
        if against is None and not adapter.software:
            return WEBGPU, str(adapter)
        failures.append(f"webgpu: {against.got if against else f'{adapter.name} is software, and was not named'}")
    return "cpu", "; ".join(failures) if failures else "no GPU that torch can use was found"


def _mps() -> bool:
    return torch.backends.mps.is_available()


def _problem(name: str) -> str:
    """Why nothing can be computed on the device; "" if it works."""
    kind, _, index = name.partition(":")
    if kind == "cuda":
        if not torch.cuda.is_available():
            return "no usable CUDA device"
        if int(index) >= torch.cuda.device_count():
            return f"only {torch.cuda.device_count()} CUDA device(s)"
    elif not _mps():
        return "no usable MPS device"
    try:
        ones = torch.ones(4, 4, device=name)
        result = ones @ ones + 1
        if result.device.type != kind or (kind == "cuda" and result.device.index != int(index)):
            return f"the result lies on {result.device}"
        if bool((result.cpu() != 5).any()):
            return "a 4×4 product of ones came out wrong"
    except (RuntimeError, AssertionError) as error:
        return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"[:300]
    return ""


def _seen() -> str:
    parts = [f"{torch.cuda.device_count()} CUDA device(s)" if torch.cuda.is_available() else "no CUDA device"]
    if torch.version.cuda is None:
        parts.append("and is built without CUDA")
    if _mps():
        parts.append("and an MPS device")
    return " ".join(parts)


def release(device: str) -> None:
    """Gives back what torch holds of the device's memory after a failure."""
    gc.collect()
    if device.startswith("cuda"):
        torch.cuda.empty_cache()
    elif device == "mps":
        torch.mps.empty_cache()
