"""The networks, their ONNX files with live weights, their inputs, and what ONNX Runtime returns for them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime

import zero_convert as zc

Arrays = dict[str, npt.NDArray[Any]]

SCHEMES = ("zero-2021", "zero-2022")
TINY_BERT = {
    "num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64, "vocab_size": 99,
}  # fmt: skip
NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "resnet18": ("torchvision:resnet18", {}),
    "mobilenet_v2": ("torchvision:mobilenet_v2", {}),
    "convnext_tiny": ("torchvision:convnext_tiny", {}),
    "vit_tiny": ("timm:vit_tiny_patch16_224", {}),
    "efficientnet_b0": ("timm:efficientnet_b0", {}),
    "bert": ("transformers:bert", TINY_BERT),
}
SAMPLES = 2


@dataclass(frozen=True)
class Case:
    """One live file, its inputs as `.npz`, and the reference outputs of each set of inputs."""

    network: str
    scheme: str
    model: Path
    inputs: tuple[Path, ...]
    expected: tuple[Arrays, ...]


def case(network: str, scheme: str, folder: Path) -> Case:
    """The files of a network under a scheme, written to the folder."""
    name, arguments = NETWORKS[network]
    result = zc.convert(name, scheme=scheme, model_args=arguments or None, validate="none")
    (saved,) = result.save(folder / "start.onnx", force=True)
    model = onnx.load(saved.path)
    make_live(model)
    path = folder / "live.onnx"
    onnx.save(model, path)
    sets = [inputs(model, whole) for whole in (True, False)]
    paths = []
    for index, arrays in enumerate(sets):
        paths.append(folder / f"inputs{index}.npz")
        np.savez(paths[-1], **arrays)
    return Case(network, scheme, path, tuple(paths), tuple(reference(path, arrays) for arrays in sets))


def make_live(model: onnx.ModelProto) -> None:
    """Other numbers for every float initializer, by its name: factors near 1, variances, weights of unit gain."""
    for tensor in model.graph.initializer:
        if tensor.data_type != onnx.TensorProto.FLOAT:
            continue
        shape, size = tuple(tensor.dims), int(np.prod(tensor.dims))
        seed = int.from_bytes(hashlib.sha256(tensor.name.encode()).digest()[:8], "little")
        chance = np.random.default_rng(seed)
        if "running_var" in tensor.name:
            values = chance.uniform(0.5, 2.0, shape)
        elif len(shape) > 1:
            values = chance.normal(0.0, (size // shape[0]) ** -0.5, shape)
        else:
            values = chance.normal(1.0 if tensor.name.endswith("weight") else 0.0, 0.2, shape)
        tensor.raw_data = values.astype(np.float32).tobytes()


def inputs(model: onnx.ModelProto, whole: bool) -> Arrays:
    """Inputs of two samples: integers from -3 to 3 or normal numbers; token numbers, and masks with a 0 in each row."""
    chance = np.random.default_rng(int(whole))
    made: Arrays = {}
    for value in model.graph.input:
        shape = [d.dim_value or SAMPLES for d in value.type.tensor_type.shape.dim]
        if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT:
            numbers = chance.integers(-3, 4, shape) if whole else chance.normal(size=shape)
            made[value.name] = numbers.astype(np.float32)
        elif "mask" in value.name:
            made[value.name] = np.ones(shape, np.int64)
            made[value.name][:, -1] = 0
        else:
            made[value.name] = chance.integers(0, TINY_BERT["vocab_size"], shape)
    return made


def reference(path: Path, arrays: Arrays) -> Arrays:
    """What ONNX Runtime returns on the CPU, nothing optimized."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_outputs()]
    return dict(zip(names, session.run(None, arrays), strict=True))
