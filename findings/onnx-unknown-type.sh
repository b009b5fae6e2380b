#!/bin/sh
# Expectation: onnx.checker.check_model with full_check=True refuses a model whose initializer has an element type that
# ONNX does not have.
# What happens: it passes. ONNX Runtime refuses the same file.
# Versions: onnx 1.23.2, onnxruntime 1.31.1, Linux x86-64.
# Source: onnx.proto, TensorProto.DataType.
# Ends with 0 while it is so, with 1 when it changes.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q onnx==1.23.2 onnxruntime==1.31.1 numpy ||
    "$folder/venv/bin/pip" install -q onnx==1.23.2 onnxruntime-gpu==1.31.1 numpy
"$folder/venv/bin/python" - <<'PYTHON'
import onnx
import onnxruntime
from onnx import TensorProto, helper

value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in ("x", "y")]
unused = TensorProto(name="w", data_type=99, dims=[1], raw_data=b"\0")
graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", value[:1], value[1:], [unused])
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
print("onnx", onnx.__version__, "onnxruntime", onnxruntime.__version__)
try:
    onnx.checker.check_model(model, full_check=True)
    checked = True
except onnx.checker.ValidationError as error:
    checked = False
    print("checker:", error)
try:
    onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    runs = True
except Exception as error:
    runs = False
    print("ONNX Runtime:", str(error).splitlines()[0][:160])
print("the checker accepts it:", checked, "| ONNX Runtime accepts it:", runs)
raise SystemExit(not (checked and not runs))
PYTHON
