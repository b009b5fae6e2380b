"""One question to one library, in a process of its own: a crash ends this process, and the doctor goes on.

Run as a program, `child.py QUESTION [ARGUMENT]`, it imports nothing of this package and prints one JSON object
on the stdout that it was started with. What a library prints there goes to stderr, where the doctor reads it.

    torch              its version, what it was built for, the devices it sees
    kernel DEVICE      a product and a convolution of small integers, compared exactly
    session PROVIDER   one ONNX node in ONNX Runtime, and where it really ran
    torchvision        whether it imports beside torch and its own kernels are there
    import MODULE      whether a library imports
    fonts              the font of the charts in a report
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import os
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

Facts = dict[str, Any]


def torch_facts(_: str) -> Facts:
    import torch

    devices, why = [], ""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            if torch.version.cuda is None and torch.version.hip is None:
                why = "torch is built without CUDA"
            else:
                torch.cuda.init()  # type: ignore[no-untyped-call]
                devices = [
                    {"name": f"cuda:{index}", "title": torch.cuda.get_device_name(index)}
                    for index in range(torch.cuda.device_count())
                ]
        except Exception as error:  # a missing driver, one that is too old, a device that does not answer
            why = _said(error)
    if torch.backends.mps.is_available():
        devices.append({"name": "mps", "title": "Apple GPU"})
    return {"version": torch.__version__, "cuda": torch.version.cuda, "devices": devices, "no_cuda": why}


def kernel(device: str) -> Facts:
    import torch

    ones = torch.ones(4, 4, device=device)
    product = ones @ ones + 1
    images = torch.arange(9.0, device=device).reshape(1, 1, 3, 3)
    sums = torch.nn.functional.conv2d(images, torch.ones(1, 1, 2, 2, device=device))
    wrong = []
    if bool((product.cpu() != 5).any()):
        wrong.append("a product of ones")
    if sums.flatten().tolist() != [8.0, 12.0, 20.0, 24.0]:
        wrong.append("a convolution of small integers")
    return {"ran_on": str(product.device), "wrong": wrong}


def session(provider: str) -> Facts:
    import numpy as np
    import onnxruntime
    from onnx import TensorProto, helper

    said = ""
    if provider != "CPUExecutionProvider" and hasattr(onnxruntime, "preload_dlls"):
        with contextlib.suppress(Exception):
            onnxruntime.preload_dlls()  # finds the libraries of pip's packages; what it cannot find, the session names
    needed = _needed_libraries(Path(onnxruntime.__file__).parent / "capi", provider)
    image, taps = (1, 1, 3, 3), (1, 1, 2, 2)
    inputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("x", image), ("w", taps))]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, taps)
    graph = helper.make_graph([helper.make_node("Conv", ["x", "w"], ["y"])], "one", inputs, [output])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    options = onnxruntime.SessionOptions()
    if provider != "CPUExecutionProvider":  # else a node that does not run there moves to the CPU in silence
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    providers: list[str] = []
    wrong = []
    try:
        # Else what a provider complains about is printed, and a second session on the CPU is tried.
        content = model.SerializeToString()
        one = onnxruntime.InferenceSession(content, options, providers=[provider], enable_fallback=0)
        providers = one.get_providers()
        values = {"x": np.arange(9, dtype=np.float32).reshape(image), "w": np.ones(taps, np.float32)}
        if one.run(None, values)[0].ravel().tolist() != [8.0, 12.0, 20.0, 24.0]:
            wrong.append("a convolution of small integers")
    except Exception as error:
        said = _said(error)
    version = str(getattr(onnxruntime, "cuda_version", "") or "")
    return {"providers": providers, "wrong": wrong, "error": said, "needed": needed, "cuda": version}


def providers(_: str) -> Facts:
    import onnxruntime

    return {"version": onnxruntime.__version__, "providers": onnxruntime.get_available_providers()}


def torchvision_facts(_: str) -> Facts:
    import torch
    import torchvision

    kept = torchvision.ops.nms(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.ones(1), 0.5)
    cuda = getattr(torchvision.version, "cuda", None)
    return {"version": torchvision.__version__, "cuda": cuda, "wrong": [] if kept.tolist() == [0] else ["nms"]}


def imported(module: str) -> Facts:
    return {"version": str(getattr(importlib.import_module(module), "__version__", ""))}


def fonts(_: str) -> Facts:
    from matplotlib import font_manager

    path = font_manager.findfont("DejaVu Sans", fallback_to_default=False)
    return {"font": "DejaVu Sans", "path": str(path)}


QUESTIONS = {
    "torch": torch_facts,
    "kernel": kernel,
    "providers": providers,
    "session": session,
    "torchvision": torchvision_facts,
    "import": imported,
    "fonts": fonts,
}


def _needed_libraries(folder: Path, provider: str) -> dict[str, str]:
    """What the provider's library asks the loader for → the loader's complaint, "" where it is found.

    The loader itself names the first missing one only.
    """
    kind = provider.removesuffix("ExecutionProvider").lower()
    library = folder / f"libonnxruntime_providers_{kind}.so"
    if not library.is_file():
        return {}
    found = {}
    for name in needed(library.read_bytes()):
        try:
            ctypes.CDLL(name)
        except OSError as error:
            found[name] = str(error)
        else:
            found[name] = ""
    return found


def needed(image: bytes) -> list[str]:
    """The names under DT_NEEDED in a 64-bit little-endian ELF library, in its order; none of anything else.

    Source: System V ABI, chapters 4 and 5 (ELF header, program header, dynamic section).
    """

    def number(at: int, size: int) -> int:
        return int.from_bytes(image[at : at + size], "little")

    if image[:6] != b"\x7fELF\x02\x01":
        return []
    start, size, count = number(0x20, 8), number(0x36, 2), number(0x38, 2)
    headers = [start + index * size for index in range(count)]
    loads = [(number(h + 16, 8), number(h + 8, 8), number(h + 32, 8)) for h in headers if number(h, 4) == 1]
    entries: list[tuple[int, int]] = []
    for header in headers:
        if number(header, 4) == 2:  # PT_DYNAMIC: pairs of tag and value
            offset, length = number(header + 8, 8), number(header + 32, 8)
            entries = [(number(at, 8), number(at + 8, 8)) for at in range(offset, offset + length, 16)]
    strings = next((value for tag, value in entries if tag == 5), None)  # DT_STRTAB, an address
    place = next(
        (offset + strings - at for at, offset, n in loads if strings is not None and at <= strings < at + n), 0
    )
    if not place:
        return []
    names = (place + value for tag, value in entries if tag == 1)
    return [image[at : image.index(b"\0", at)].decode("ascii", "replace") for at in names]


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).strip()}"[:2000]


def main(arguments: list[str]) -> int:
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    try:
        facts: Mapping[str, Any] = QUESTIONS[arguments[0]](arguments[1] if len(arguments) > 1 else "")
    except BaseException as error:
        facts = {"error": _said(error)}
    answers.write(json.dumps(facts))
    answers.flush()
    os._exit(0)  # nothing is left to do, and libraries that end badly have been heard


if __name__ == "__main__":
    main(sys.argv[1:])
