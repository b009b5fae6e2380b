#!/bin/sh
# Expectation: Relu of a NaN is a NaN, as on ONNX Runtime's CPU.
# What happens: on the WebGPU provider it is 0, so that a NaN in between does not reach the output. WGSL lets an
# implementation assume that there are no NaNs, and max(x, 0) returns 0.
# Versions: onnxruntime 1.31.1, onnxruntime-ep-webgpu 0.4.0, SwiftShader of Debian's chromium-common 156, Linux x86-64.
# The driver: a GPU's own, or apt-get install chromium-common libvulkan1, and
# VK_DRIVER_FILES=/usr/lib/chromium/vk_swiftshader_icd.json in the environment.
# Source: WGSL, "Floating Point Evaluation"; ONNX, operator Relu.
# Ends with 0 while it is so, with 1 when it changes.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q onnxruntime==1.31.1 onnxruntime-ep-webgpu==0.4.0 onnx numpy ||
    "$folder/venv/bin/pip" install -q onnxruntime-gpu==1.31.1 onnxruntime-ep-webgpu==0.4.0 onnx numpy
ORT_WEBGPU_EP_ALLOW_SOFTWARE_ADAPTER=1 "$folder/venv/bin/python" - <<'PYTHON'
import sys

import numpy as np
import onnxruntime
import onnxruntime_ep_webgpu
from onnx import TensorProto, helper

value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in ("x", "y")]
graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", value[:1], value[1:])
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9).SerializeToString()
onnxruntime.register_execution_provider_library("webgpu", onnxruntime_ep_webgpu.get_library_path())
device = next(one for one in onnxruntime.get_ep_devices() if one.ep_name == "WebGpuExecutionProvider")
options = onnxruntime.SessionOptions()
options.add_provider_for_devices([device], {})
given = {"x": np.float32([np.nan, 1])}
there = onnxruntime.InferenceSession(model, options, enable_fallback=0)
here = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
a, b = there.run(None, given)[0], here.run(None, given)[0]
print("onnxruntime", onnxruntime.__version__, there.get_providers()[0], a, "CPU", b)
sys.exit(not (a[0] == 0 and np.isnan(b[0])))
PYTHON
