#!/bin/sh
# Expectation: a session for a device object of ONNX Runtime's WebGPU provider fails with an exception where the provider
# has no adapter.
# What happens: the session is made on the CPU without an exception, and the provider's error is printed to stdout.
# `enable_fallback=0` gives the exception. Listed is a device without any driver: ORT_WEBGPU_EP_ALLOW_SOFTWARE_ADAPTER=1
# stands for the CPU, whether there is a Vulkan driver or not; here the loader is told of none.
# Versions: onnxruntime 1.31.1, onnxruntime-ep-webgpu 0.4.0, Linux x86-64. No driver is needed.
# Source: README of the package onnxruntime-ep-webgpu ("Usage"), onnxruntime_inference_collection.py (`_do_fallback`).
# Ends with 0 while it is so, with 1 when it changes.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q onnxruntime==1.31.1 onnxruntime-ep-webgpu==0.4.0 onnx numpy ||
    "$folder/venv/bin/pip" install -q onnxruntime-gpu==1.31.1 onnxruntime-ep-webgpu==0.4.0 onnx numpy
ORT_WEBGPU_EP_ALLOW_SOFTWARE_ADAPTER=1 VK_DRIVER_FILES="$folder/none.json" "$folder/venv/bin/python" - <<'PYTHON'
import sys

import numpy as np
import onnxruntime
import onnxruntime_ep_webgpu
from onnx import TensorProto, helper

value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 3]) for name in ("x", "y")]
graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", value[:1], value[1:])
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9).SerializeToString()
onnxruntime.register_execution_provider_library("webgpu", onnxruntime_ep_webgpu.get_library_path())
device = next(one for one in onnxruntime.get_ep_devices() if one.ep_name == "WebGpuExecutionProvider")


def options():
    made = onnxruntime.SessionOptions()
    made.add_provider_for_devices([device], {})
    return made


session = onnxruntime.InferenceSession(model, options())
session.run(None, {"x": np.ones((2, 3), np.float32)})
print("onnxruntime", onnxruntime.__version__, "on", session.get_providers())
try:
    onnxruntime.InferenceSession(model, options(), enable_fallback=0)
    raised = False
except Exception as error:
    raised = True
    print("without fallback:", str(error).strip().rpartition(". ")[2])
sys.exit(not (session.get_providers() == ["CPUExecutionProvider"] and raised))
PYTHON
