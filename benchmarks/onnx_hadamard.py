"""How should a frozen Hadamard transform stand in an ONNX file? Measured in ONNX Runtime, on the CPU.

    python -m benchmarks.onnx_hadamard [--threads 1] [--rounds 15]

The shapes are those of ResNet-50 and MobileNetV2 at 224×224. `matrix` is one product with the whole matrix,
`convolution` the same as a 1×1 convolution, `butterfly` additions and subtractions of halves (powers of two only), and
`factors` what the exporter writes: two products with small matrices of ±1. Prints one Markdown table of milliseconds
(the fastest round) and bytes; ends with 1 if `factors` is not the fastest, or its answer is not that of `matrix`.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Sequence

import numpy as np
import onnx
import onnxruntime
from onnx import helper, numpy_helper

from zero_convert.formulas import hadamard

SHAPES = ((64, 56), (256, 56), (512, 28), (1024, 14), (2048, 7), (96, 56), (576, 14), (1280, 7))  # channels, side
Node = tuple[str, list[str], str, dict[str, object]]


def model(channels: int, side: int, nodes: Sequence[Node], constants: dict[str, np.ndarray]) -> bytes:
    """A model of one transform, x → y of shape (batch, channels, side, side)."""
    sizes = ["batch", channels, side, side]
    graph = helper.make_graph(
        [helper.make_node(kind, inputs, outputs.split(), **attributes) for kind, inputs, outputs, attributes in nodes],
        "transform",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, sizes)],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, sizes)],
        [numpy_helper.from_array(np.ascontiguousarray(value), name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10).SerializeToString()


def padded(channels: int) -> tuple[int, list[np.ndarray]]:
    """The order of the transform of so many channels, and its one or two factors."""
    order = channels if hadamard.exact_order(channels) else 1 << (channels - 1).bit_length()
    return order, [factor.astype(np.float32) for factor in hadamard.kronecker_factors(order)]


def whole(channels: int) -> np.ndarray:
    order, factors = padded(channels)
    matrix = np.kron(*factors) if len(factors) == 2 else factors[0]
    return matrix[:channels, :channels] * np.float32(1 / math.sqrt(order))


def by_matrix(channels: int, side: int) -> bytes:
    nodes: list[Node] = [
        ("Transpose", ["x"], "a", {"perm": [0, 2, 3, 1]}),
        ("MatMul", ["a", "h"], "b", {}),
        ("Transpose", ["b"], "y", {"perm": [0, 3, 1, 2]}),
    ]
    return model(channels, side, nodes, {"h": whole(channels).T})


def by_convolution(channels: int, side: int) -> bytes:
    return model(channels, side, [("Conv", ["x", "h"], "y", {})], {"h": whole(channels)[..., None, None]})


def by_factors(channels: int, side: int) -> bytes:
    order, factors = padded(channels)
    left, right = factors if len(factors) == 2 else (np.ones((1, 1), np.float32), factors[0])
    constants = {
        "left": left,
        "right": right,
        "scale": np.float32(1 / math.sqrt(order)),
        "rows": np.array([0, len(left), -1]),
        "blocks": np.array([0, len(left), len(right), side * side]),
        "image": np.array([0, order, side, side]),
    }
    nodes: list[Node] = []
    name = "x"
    if order > channels:
        constants["pads"] = np.array([0, 0, 0, 0, 0, order - channels, 0, 0])
        nodes.append(("Pad", ["x", "pads"], "p", {}))
        name = "p"
    nodes += [
        ("Reshape", [name, "rows"], "a", {}),
        ("MatMul", ["left", "a"], "b", {}),
        ("Reshape", ["b", "blocks"], "c", {}),
        ("MatMul", ["right", "c"], "d", {}),
        ("Reshape", ["d", "image"], "e", {}),
    ]
    if order > channels:
        constants |= {"start": np.array([0]), "stop": np.array([channels]), "axis": np.array([1])}
        nodes.append(("Slice", ["e", "start", "stop", "axis"], "s", {}))
    nodes.append(("Mul", ["s" if order > channels else "e", "scale"], "y", {}))
    return model(channels, side, nodes, constants)


def by_butterfly(channels: int, side: int) -> bytes:
    nodes: list[Node] = []
    constants: dict[str, np.ndarray] = {
        "image": np.array([-1, channels, side, side]),
        "scale": np.array(1 / math.sqrt(channels), np.float32),
    }
    name, size, step = "x", 1, 0
    while size < channels:
        constants[f"halves{step}"] = np.array([-1, 2, size * side * side])
        nodes += [
            ("Reshape", [name, f"halves{step}"], f"r{step}", {}),
            ("Split", [f"r{step}"], f"a{step} b{step}", {"axis": 1, "num_outputs": 2}),
            ("Add", [f"a{step}", f"b{step}"], f"s{step}", {}),
            ("Sub", [f"a{step}", f"b{step}"], f"d{step}", {}),
            ("Concat", [f"s{step}", f"d{step}"], f"c{step}", {"axis": 1}),
        ]
        name, size, step = f"c{step}", 2 * size, step + 1
    nodes += [("Reshape", [name, "image"], "z", {}), ("Mul", ["z", "scale"], "y", {})]
    return model(channels, side, nodes, constants)


def measure(content: bytes, x: np.ndarray, threads: int, rounds: int) -> tuple[float, np.ndarray]:
    """The fastest round in milliseconds, and the answer."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    (answer,) = session.run(None, {"x": x})
    best = math.inf
    for _ in range(rounds):
        start = time.perf_counter()
        session.run(None, {"x": x})
        best = min(best, time.perf_counter() - start)
    return 1000 * best, answer


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=15)
    chosen = parser.parse_args()
    forms = {"matrix": by_matrix, "convolution": by_convolution, "butterfly": by_butterfly, "factors": by_factors}
    print("| channels | side | samples |" + "".join(f" {name} |" for name in forms) + " file: matrix | factors |")
    print("|---" * (len(forms) + 5) + "|")
    failed = False
    for channels, side in SHAPES:
        for samples in (1, 8):
            x = np.arange(samples * channels * side * side, dtype=np.float32).reshape(samples, channels, side, side)
            x = x % 9 - 4
            cells, times, answers, sizes = [], {}, {}, {}
            for name, form in forms.items():
                if name == "butterfly" and channels & (channels - 1):
                    cells.append("")
                    continue
                content = form(channels, side)
                sizes[name] = len(content)
                times[name], answers[name] = measure(content, x, chosen.threads, chosen.rounds)
                cells.append(f"{times[name]:.2f}")
            sound = np.abs(answers["factors"] - answers["matrix"]).max() <= 1e-5 * np.abs(answers["matrix"]).max()
            failed |= not sound or times["factors"] > min(times.values())
            cells = [str(channels), str(side), str(samples), *cells, f"{sizes['matrix']:,}", f"{sizes['factors']:,}"]
            print(f"| {' | '.join(cells)} |", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
