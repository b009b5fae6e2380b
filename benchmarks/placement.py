"""Which nodes of exported networks ONNX Runtime's CUDA provider takes. No GPU is needed: nothing is computed.

    python -m benchmarks.placement [--out FILE] [NAME …]

Each network is converted under two schemes and exported; a session of ONNX Runtime is made on CUDA libraries that do
nothing (`tests/cuda_stub.py`), and asked which provider has which node. Told are the nodes of each provider, and the
operators that make floating tensors of more than one value on the CPU: on a named device, `parity` refuses these.
Needs Linux, gcc and onnxruntime-gpu. Ends with 1 if there are any such operators.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import onnxruntime

import zero_convert as zc
from tests import cuda_stub
from tests.tiny_transformers import TINY
from zero_convert.checks.harness.onnxruntime import CPU, CUDA, PICKS
from zero_convert.errors import ZeroConvertError

SCHEMES = ("zero-2021", "zero-2022")
VISION = (
    "resnet18", "densenet121", "googlenet", "mobilenet_v3_small", "efficientnet_b0", "regnet_y_400mf",
    "shufflenet_v2_x0_5", "swin_t", "convnext_tiny", "vit_b_16", "deeplabv3_mobilenet_v3_large", "r3d_18",
)  # fmt: skip
# In a process of its own, which has the stub's libraries: (provider, operator, output's type, its sizes) of each node.
CHILD = """
import json, sys, onnx, onnxruntime
options = onnxruntime.SessionOptions()
options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
options.log_severity_level = 4
options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CUDAExecutionProvider"], enable_fallback=0)
graph = onnx.shape_inference.infer_shapes(onnx.load(sys.argv[1])).graph
types = {value.name: value.type.tensor_type for value in [*graph.value_info, *graph.output]}
made = {node.name: types.get(node.output[0]) for node in graph.node}
found = []
for part in session.get_provider_graph_assignment_info():
    for node in part.get_nodes():
        kind = made.get(node.name)
        name = onnx.TensorProto.DataType.Name(kind.elem_type) if kind else "UNDEFINED"
        sizes = [axis.dim_value or 2 for axis in kind.shape.dim] if kind else []
        found.append((part.ep_name, node.op_type, name, sizes))
print(json.dumps(found))
"""


def placed(path: Path, environment: dict[str, str]) -> tuple[Counter[str], Counter[str]]:
    """Provider → nodes, and operator → nodes that make floating tensors on the CPU."""
    command = [sys.executable, "-c", CHILD, str(path)]
    nodes = json.loads(subprocess.run(command, env=environment, capture_output=True, check=True).stdout)
    providers, fallen = Counter[str](), Counter[str]()
    for provider, operator, kind, sizes in nodes:
        providers[provider] += 1
        values = 1
        for size in sizes:
            values *= size
        if provider == CPU and kind in ("FLOAT", "FLOAT16", "DOUBLE") and values > 1 and operator not in PICKS:
            fallen[operator] += 1
    return providers, fallen


def row(name: str, scheme: str, folder: Path, environment: dict[str, str]) -> tuple[str, bool]:
    """One line of the table, and whether every floating tensor is made on CUDA."""
    path, kind = folder / "model.onnx", name.removeprefix("transformers:")
    arguments = TINY[kind] if kind != name else None
    try:
        zc.convert(name, scheme=scheme, validate="none", model_args=arguments).save(path, force=True)
    except ZeroConvertError as error:
        return f"| {name} | {scheme} | – | – | not exported: {error.what} |", True
    providers, fallen = placed(path, environment)
    told = ", ".join(f"{operator} ({count})" for operator, count in fallen.items()) or "none"
    return f"| {name} | {scheme} | {providers[CUDA]} | {providers[CPU]} | {told} |", not fallen


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("names", nargs="*", default=[*VISION, *(f"transformers:{kind}" for kind in sorted(TINY))])
    given = parser.parse_args()
    lines, well = [], True
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        try:
            environment = cuda_stub.environment(cuda_stub.build(folder))
        except OSError as error:
            parser.exit(5, f"{error}\n")
        for name in given.names:
            for scheme in SCHEMES:
                line, fine = row(name, scheme, folder, environment)
                lines.append(line)
                well &= fine
                print(line, file=sys.stderr, flush=True)
    about = (
        "# Nodes that ONNX Runtime's CUDA provider takes\n\n"
        f"`python -m benchmarks.placement`: onnxruntime-gpu {onnxruntime.__version__} on CUDA libraries that compute "
        "nothing, opset 20, no graph optimization.\nWhat the CPU keeps is arithmetic on sizes and the cutting of "
        "tensors into sequences; `floating on the CPU` names operators beyond that.\n`transformers:` are tiny "
        "configurations.\n\n"
        "| network | scheme | nodes on CUDA | nodes on the CPU | floating on the CPU |\n|---|---|---:|---:|---|"
    )
    page = "\n".join([about, *lines, ""])
    print(page)
    if given.out:
        given.out.write_text(page, "utf-8")
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
