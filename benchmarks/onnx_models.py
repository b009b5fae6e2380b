"""ONNX against safetensors and against torch, on networks of full size.

    python -m benchmarks.onnx_models [NAME …]

For each network and scheme: are the initializers the tensors of the safetensors file, bit for bit (both files read by
the reference libraries); is the weights digest the same; does the onnx checker pass; how far is ONNX Runtime on the CPU
from torch, on inputs of small integers, relative to the largest output: with the weights that were written, which often
make the answer 0, and with 0 and ±2⁻ᵏ in every layer of both; the same for the folded network, with such weights; and
what is the difference, which has to be 0, in the part where no rounding happens (`onnx_exact.py`; its layers in
brackets). Prints one Markdown table; ends with 1 if anything differs.
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
from benchmarks.onnx_exact import exact_part
from zero_convert.exporters import onnx as exporter
from zero_convert.exporters.onnx.graph import folded, graph
from zero_convert.formats.digests import sha256_file
from zero_convert.formats.onnx import file_digests
from zero_convert.graph.ties import ties
from zero_convert.saving import entries_of

MODELS = ("resnet18", "resnet50", "mobilenet_v2", "convnext_tiny", "vit_b_16", "transformers:bert")
SCHEMES = ("zero-2021", "zero-2022")
LIMIT = 1e-5
COLUMNS = (
    "network, scheme, tensors, bit for bit, digest, checker, exact part, written, any weights, folded, "
    "ONNX, folded ONNX, safetensors, export"
)


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


def spread(module: torch.nn.Module, shifts: bool = True) -> None:
    """Every parameter of one axis 1 or 0, every other one ±2⁻ᵏ or 0, so that signals keep their size.

    Unless `shifts`, batch norms add nothing, which is how they start, and allows them to be folded before a padding.
    """
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            drawn = torch.randint(-1, 2, parameter.shape, generator=generator).float()
            fan = max(1, parameter[0].numel()) if parameter.ndim > 1 else 1
            parameter.copy_(drawn * 2.0 ** -round(np.log2(fan) / 2) if parameter.ndim > 1 else drawn.abs())
        for norm in module.modules():
            if isinstance(norm, torch.nn.modules.batchnorm._BatchNorm) and not shifts:
                norm.bias.zero_()


def write(module: torch.nn.Module, inputs: Any, path: Path) -> None:
    """The module as an ONNX file."""
    states = ties(module.state_dict(keep_vars=True))
    made, _ = graph(module, inputs, states, exporter.OPSET)
    with path.open("wb") as stream:
        exporter.write(stream, made, entries_of(module), {})


def with_weights(module: torch.nn.Module, path: Path, out: Path) -> str:
    """The path of the same file with the weights that the module has now."""
    other, state = onnx.load(path), module.state_dict()
    for tensor in other.graph.initializer:
        tensor.raw_data = state[tensor.name].numpy().tobytes()
    onnx.save(other, out)
    return str(out)


def exact_difference(result: zc.Result, inputs: Any, path: Path) -> tuple[float, int]:
    """The largest difference in the exact part, and its number of layers."""
    whole = getattr(result.network, "evaluate_graph", result.graph)
    values = tuple(inputs.values()) if isinstance(inputs, dict) else tuple(inputs)
    part, layers = exact_part(result.network, whole, values)
    write(part, inputs, path)
    return difference(part, inputs, str(path)), layers


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
    digest = model.weights_digest == weights.weights_digest == file_digests(model.path).weights_digest
    onnx.checker.check_model(model.path, full_check=True)
    module, inputs = result.module.eval(), whole_numbers(result.inputs)
    exact, layers = exact_difference(result, inputs, folder / "b.onnx")
    written = difference(module, inputs, str(model.path))
    (small,) = result.save(folder / "c.onnx", force=True, fold=True)
    onnx.checker.check_model(small.path, full_check=True)
    spread(module)
    any_weights = difference(module, inputs, with_weights(module, model.path, folder / "b.onnx"))
    spread(module, shifts=False)
    own = folded(module, result.graph, {})[0] if small.folded_from else module
    fold = difference(module, inputs, with_weights(own, small.path, folder / "b.onnx"))
    cells = [
        name.removeprefix("transformers:"),
        scheme,
        str(count),
        "yes" if same else "NO",
        "same" if digest else "NO",
    ]
    cells += [
        "passes",
        f"{exact:g} ({layers})",
        f"{written:.1e}",
        f"{any_weights:.1e}",
        f"{fold:.1e}: {small.note.rpartition('; ')[2].removeprefix('folded ')}",
        f"{model.size:,}",
        f"{small.size:,}",
        f"{weights.size:,}",
        f"{seconds:.1f} s",
    ]
    line = f"| {' | '.join(cells)} |"
    print(line, f"sha256 {sha256_file(model.path)[:16]}", file=sys.stderr, flush=True)
    return line, same and digest and exact == 0 and max(written, any_weights, fold) <= LIMIT


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
