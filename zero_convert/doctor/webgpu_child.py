"""ONNX Runtime's WebGPU provider in a process of its own: a driver that crashes or prints harms this process alone.

Run as a program it imports nothing of this package. What the libraries print goes to stderr, where it is read from.

    webgpu_child.py adapters    what is listed, what the Vulkan loader knows, and whether one convolution runs there
    webgpu_child.py serve       one JSON object a line: a job comes in on stdin, its answer goes out on stdout

A job names a model, the inputs of its runs and where their outputs go, as `.npz` files. A device is taken by its object
and never by its name: asked for by name, ONNX Runtime computes on the CPU where the provider fails. By its object it
does so as well, unless it is told not to fall back.
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

Facts = dict[str, Any]

SOFTWARE = "ORT_WEBGPU_EP_ALLOW_SOFTWARE_ADAPTER"
PROVIDER = "WebGpuExecutionProvider"
LOADERS = ("libvulkan.so.1",)  # elsewhere WebGPU stands on the system's own interface
_TYPES = ("other", "integrated", "discrete", "virtual", "software")  # VkPhysicalDeviceType
_ORDER = ("discrete", "integrated", "virtual", "other", "software")  # in which the fastest adapter is looked for


def adapters(_: str) -> Facts:
    """What is there, and the answer of one convolution of small integers; its error where there is none."""
    facts: Facts = {"asked": os.environ.get(SOFTWARE) == "1", "listed": [], "error": "", "wrong": [], "software": False}
    facts["vulkan"] = vulkan() if sys.platform == "linux" else []
    facts["package"] = importlib.util.find_spec("onnxruntime_ep_webgpu") is not None
    if not facts["package"]:
        return facts
    import onnxruntime

    facts["version"] = onnxruntime.__version__
    try:
        devices = registered()
        facts["listed"] = [_title(device) for device in devices]
        if devices:
            facts["plugin"] = devices[0].ep_metadata.get("version", "")
            listed_as_cpu = devices[0].device.type == onnxruntime.OrtHardwareDeviceType.CPU
            kinds = sorted((one["type"] for one in facts["vulkan"]), key=_ORDER.index)
            facts["software"] = kinds[0] == "software" if kinds else listed_as_cpu
            facts |= _tried(devices[0])
    except Exception as error:
        facts["error"] = _said(error)
    return facts


def registered() -> list[Any]:
    """The provider's devices."""
    import onnxruntime
    import onnxruntime_ep_webgpu

    onnxruntime.set_default_logger_severity(3)
    onnxruntime.register_execution_provider_library(PROVIDER, onnxruntime_ep_webgpu.get_library_path())
    return [device for device in onnxruntime.get_ep_devices() if device.ep_name == PROVIDER]


def session(device: Any, model: str | bytes, options: dict[str, str], profile: str) -> Any:
    """A session on the device, or an error; nothing is optimized, and a profile is written."""
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    settings.log_severity_level = 3
    settings.intra_op_num_threads = settings.inter_op_num_threads = 1
    settings.enable_profiling, settings.profile_file_prefix = True, profile
    settings.add_provider_for_devices([device], options)
    return onnxruntime.InferenceSession(model, settings, enable_fallback=0)


def _tried(device: Any) -> Facts:
    import numpy as np
    from onnx import TensorProto, helper

    image, taps = (1, 1, 3, 3), (1, 1, 2, 2)
    inputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("x", image), ("w", taps))]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, taps)
    graph = helper.make_graph([helper.make_node("Conv", ["x", "w"], ["y"], name="conv")], "one", inputs, [output])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    with tempfile.TemporaryDirectory() as folder:
        one = session(device, model.SerializeToString(), {}, str(Path(folder, "profile")))
        values = {"x": np.arange(9, dtype=np.float32).reshape(image), "w": np.ones(taps, np.float32)}
        sums = one.run(None, values)[0].ravel().tolist()
        events = json.loads(Path(one.end_profiling()).read_text("utf-8"))
    ran = {event["args"]["provider"] for event in events if event.get("args", {}).get("op_name") == "Conv"}
    wrong = [] if sums == [8.0, 12.0, 20.0, 24.0] else ["a convolution of small integers"]
    return {"wrong": wrong + [f"it ran on {name}" for name in sorted(ran - {PROVIDER})]}


def _title(device: Any) -> str:
    """What ONNX Runtime says of the hardware. The provider chooses the adapter by itself."""
    hardware = device.device
    named = hardware.metadata.get("Description", "")
    return named or f"{hardware.vendor or 'vendor'} {hardware.vendor_id:#06x}:{hardware.device_id:#06x}"


# ---------------------------------------------------------------------------------------------------------------------
# jobs


def serve(_: str) -> None:
    """Until stdin ends: does each job, and answers with what it found or why it failed."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    devices: list[Any] | None = None
    for line in sys.stdin:
        job = json.loads(line)
        try:
            devices = registered() if devices is None else devices
            facts = run(devices[0], job)
        except Exception as error:
            facts = {"error": _said(error)}
        print(json.dumps(facts), file=answers, flush=True)


def run(device: Any, job: Facts) -> Facts:
    """Runs a session once for each file of inputs: arrays named 0, 1, … in the order of the model's inputs.

    An output that is a sequence becomes several arrays, named NUMBER.POSITION.
    """
    import numpy as np

    one = session(device, job["model"], job["options"], job["profile"])
    names = [value.name for value in one.get_inputs()]
    for source, target in job["runs"]:
        with np.load(source) as arrays:
            given = {name: arrays[str(index)] for index, name in enumerate(names)}
        made: Facts = {}
        for index, value in enumerate(one.run(None, given)):
            if isinstance(value, list):
                made |= {f"{index}.{position}": part for position, part in enumerate(value)}
            else:
                made[str(index)] = value
        np.savez(target, **made)
    outputs = [value.name for value in one.get_outputs()]
    return {"provider": one.get_providers()[0], "outputs": outputs, "profile": one.end_profiling()}


# ---------------------------------------------------------------------------------------------------------------------
# Vulkan, asked directly: ONNX Runtime does not say which adapter it computes on


def vulkan() -> list[Facts]:
    """The adapters of the machine's Vulkan drivers with their limits; none without loader or driver.

    Source: the Vulkan specification, 1.0: VkInstanceCreateInfo, VkPhysicalDeviceProperties (its limits begin at byte
    296; the eighth is the largest buffer that a shader may bind), VkPhysicalDeviceMemoryProperties.
    """
    for name in LOADERS:
        try:
            loader = ctypes.CDLL(name)
            break
        except OSError:
            continue
    else:
        return []
    create = ctypes.create_string_buffer(64)  # of zeros but for its type, 1
    create[0] = b"\1"
    instance, count = ctypes.c_void_p(), ctypes.c_uint32()
    if loader.vkCreateInstance(create, None, ctypes.byref(instance)) != 0:
        return []
    loader.vkEnumeratePhysicalDevices(instance, ctypes.byref(count), None)
    devices = (ctypes.c_void_p * count.value)()
    loader.vkEnumeratePhysicalDevices(instance, ctypes.byref(count), devices)
    found = [_adapter(loader, ctypes.c_void_p(device)) for device in devices]
    loader.vkDestroyInstance(instance, None)
    return sorted(found, key=lambda one: _ORDER.index(one["type"]))


def _adapter(loader: Any, device: ctypes.c_void_p) -> Facts:
    properties, memory = ctypes.create_string_buffer(2048), ctypes.create_string_buffer(1024)
    loader.vkGetPhysicalDeviceProperties(device, properties)
    loader.vkGetPhysicalDeviceMemoryProperties(device, memory)

    def number(of: Any, at: int, size: int = 4) -> int:
        return int.from_bytes(of.raw[at : at + size], sys.byteorder)

    kind = number(properties, 16)
    heaps = [(number(memory, 264 + 16 * i, 8), number(memory, 272 + 16 * i)) for i in range(number(memory, 260))]
    return {
        "name": properties.raw[20:276].split(b"\0")[0].decode("utf-8", "replace"),
        "type": _TYPES[kind] if kind < len(_TYPES) else "other",
        "vulkan": _version(number(properties, 0)),
        "driver": _version(number(properties, 4)),
        "largest_buffer": number(properties, 324),
        "memory": sum(size for size, flags in heaps if flags & 1),
    }


def _version(packed: int) -> str:
    return f"{packed >> 22 & 0x7F}.{packed >> 12 & 0x3FF}.{packed & 0xFFF}"


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).strip()}"[:4000]


def main(arguments: list[str]) -> None:
    if arguments[0] == "serve":
        serve("")
    else:
        answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)
        try:
            facts = adapters("")
        except BaseException as error:
            facts = {"error": _said(error)}
        answers.write(json.dumps(facts))
        answers.flush()
    os._exit(0)  # drivers that end badly have been heard


if __name__ == "__main__":
    main(sys.argv[1:])
