"""ONNX against safetensors and against torch, on networks of full size.

    python -m benchmarks.onnx_models [NAME …]

For each network and scheme: are the initializers the tensors of the safetensors file, bit for bit (both files read by
the reference libraries); is the weights digest the same; does the onnx checker pass; how far is ONNX Runtime on the CPU
from torch, on inputs of small integers, relative to the largest output: with the weights that were written, which often
make the answer 0, and with 0 and ±2⁻ᵏ in every layer of both. Prints one Markdown table; ends with 1 if
anything differs.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from safetensors import safe_open
from torch.utils import _pytree as pytree

import zero_convert as zc
from zero_convert.digests import sha256_file
from zero_convert.exporters import onnx as exporter

MODELS = ("resnet18", "resnet50", "mobilenet_v2", "convnext_tiny", "vit_b_16", "transformers:bert")
SCHEMES = ("zero-2021", "zero-2022")
LIMIT = 1e-5
COLUMNS = "network, scheme, tensors, bit for bit, digest, checker, written, any weights, ONNX, safetensors, export"


def equal(path: Path, weights: Path) -> tuple[int, bool]:
    """How many initializers there are, and whether they are the tensors of the other file."""
    initializers = onnx.load(path).graph.initializer
    with safe_open(weights, "numpy") as file:
        same = sorted(file.keys()) == sorted(tensor.name for tensor in initializers)
        for tensor in initializers if same else ():
            other = file.get_tensor(tensor.name)
            same &= onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type) == other.dtype
            same &= tuple(tensor.dims) == other.shape and tensor.raw_data == other.tobytes()
    return len(initializers), same


def whole_numbers(inputs: Any) -> Any:
    """The inputs, floating ones rounded to integers from -4 to 4."""

    def rounded(value: torch.Tensor) -> torch.Tensor:
        return (value * 2.4).round() if value.is_floating_point() else value

    return pytree.tree_map(rounded, inputs)


def spread(module: torch.nn.Module) -> None:
    """Every parameter of one axis 1 or 0, every other one ±2⁻ᵏ or 0, so that signals keep their size."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            drawn = torch.randint(-1, 2, parameter.shape, generator=generator).float()
            fan = max(1, parameter[0].numel()) if parameter.ndim > 1 else 1
            parameter.copy_(drawn * 2.0 ** -round(np.log2(fan) / 2) if parameter.ndim > 1 else drawn.abs())


def difference(module: torch.nn.Module, inputs: Any, path: str) -> float:
    """The largest difference of an output between ONNX Runtime and torch, relative to the largest value."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    values = list(inputs.values()) if isinstance(inputs, dict) else list(inputs)
    names = [each.name for each in session.get_inputs()]
    answers = session.run(None, dict(zip(names, (value.numpy() for value in values), strict=True)))
    with torch.no_grad():
        expected = pytree.tree_leaves(module(**inputs) if isinstance(inputs, dict) else module(*values))
    worst = 0.0
    for ours, theirs in zip(answers, expected, strict=True):
        scale = float(theirs.abs().max())
        far = float(np.abs(ours - theirs.numpy()).max())
        worst = max(worst, far / scale if scale else far)
    return worst


def row(name: str, scheme: str, folder: Path) -> tuple[str, bool]:
    """One line of the table, and whether all is well."""
    result = zc.convert(name, scheme=scheme, validate="none")
    start = time.perf_counter()
    weights, model = result.save(folder / "a.safetensors", folder / "a.onnx", force=True)
    seconds = time.perf_counter() - start
    count, same = equal(model.path, weights.path)
    digest = model.weights_digest == weights.weights_digest == exporter.file_digests(model.path).weights_digest
    onnx.checker.check_model(model.path, full_check=True)
    module, inputs = result.module.eval(), whole_numbers(result.inputs)
    written = difference(module, inputs, str(model.path))
    spread(module)
    other = onnx.load(model.path)
    state = module.state_dict()
    for tensor in other.graph.initializer:
        tensor.raw_data = state[tensor.name].numpy().tobytes()
    onnx.save(other, folder / "b.onnx")
    any_weights = difference(module, inputs, str(folder / "b.onnx"))
    cells = [
        name.removeprefix("transformers:"),
        scheme,
        str(count),
        "yes" if same else "NO",
        "same" if digest else "NO",
    ]
    cells += [
        "passes",
        f"{written:.1e}",
        f"{any_weights:.1e}",
        f"{model.size:,}",
        f"{weights.size:,}",
        f"{seconds:.1f} s",
    ]
    line = f"| {' | '.join(cells)} |"
    print(line, f"sha256 {sha256_file(model.path)[:16]}", file=sys.stderr, flush=True)
    return line, same and digest and written <= LIMIT and any_weights <= LIMIT


def main() -> int:
    names = sys.argv[1:] or MODELS
    versions = [f"torch {torch.__version__}", f"onnx {onnx.__version__}", f"onnxruntime {onnxruntime.__version__}"]
    lines, sound = [], True
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            for scheme in SCHEMES:
                line, well = row(name, scheme, Path(folder))
                lines.append(line)
                sound &= well
    columns = COLUMNS.split(", ")
    print(", ".join(versions), "", f"| {' | '.join(columns)} |", "|---" * len(columns) + "|", *lines, sep="\n")
    return 0 if sound else 1


if __name__ == "__main__":
    sys.exit(main())
