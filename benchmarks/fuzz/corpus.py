"""Small sound files to start from, by format. The libraries that write them are imported here only."""

from __future__ import annotations

import tempfile
import warnings
from functools import lru_cache
from pathlib import Path

FORMATS = ("safetensors", "pt", "onnx", "archive")  # archive: .pt2 and TorchScript


@lru_cache
def sound(kind: str) -> tuple[bytes, ...]:
    """The contents of some files of a format."""
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        paths = _MAKERS[kind](Path(folder))
        return tuple(path.read_bytes() for path in paths)


def _safetensors(folder: Path) -> list[Path]:
    import numpy as np
    from safetensors.numpy import save_file

    one, two = folder / "one", folder / "two"
    tensors = {"a.weight": np.arange(6, dtype="<f4").reshape(2, 3), "b": np.array(7, "<i8"), "c": np.empty(0, "<f2")}
    save_file(tensors, one, {"format": "pt"})
    save_file({f"layer{i}": np.full((i, 2), i, "<u1") for i in range(12)}, two)
    return [one, two]


def _torch(folder: Path) -> list[Path]:
    import torch

    base = torch.arange(12.0)
    tied = base[:6].view(2, 3)
    flat = {"a.weight": tied, "b.weight": tied, "c": base[6:].view(3, 2).t(), "n": torch.tensor(3), "h": base.half()}
    nested = {"state_dict": {f"module.{k}": v for k, v in flat.items()}, "epoch": 3, "lr": [0.1, None, {"x": (1, 2)}]}
    paths = []
    for index, (value, zipped, protocol) in enumerate(
        [(flat, True, 2), (nested, True, 2), (flat, False, 2), (nested, True, 4), (torch.nn.Linear(2, 2), True, 2)]
    ):
        paths.append(folder / str(index))
        torch.save(value, paths[-1], _use_new_zipfile_serialization=zipped, pickle_protocol=protocol)
    return paths


def _onnx(folder: Path) -> list[Path]:
    import numpy as np
    import onnx

    make = onnx.helper.make_tensor
    tensors = [
        onnx.numpy_helper.from_array(np.arange(6, dtype="<f4").reshape(2, 3), "w"),
        make("t", onnx.TensorProto.FLOAT, [2], [1.0, 2.0]),
        make("i", onnx.TensorProto.INT32, [3], [1, -2, 300]),
    ]
    value = onnx.helper.make_tensor_value_info
    nodes = [onnx.helper.make_node("MatMul", ["x", "w"], ["y"]), onnx.helper.make_node("Identity", ["t"], ["z"])]
    graph = onnx.helper.make_graph(nodes, "g", [value("x", 1, ["n", 2])], [value("y", 1, ["n", 3])], tensors)
    model = onnx.helper.make_model(graph, producer_name="p", opset_imports=[onnx.helper.make_opsetid("", 20)])
    onnx.helper.set_model_props(model, {"key": "value"})
    onnx.save(model, folder / "a")
    return [folder / "a"]


def _archive(folder: Path) -> list[Path]:
    import torch
    from torch import nn

    network = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)).eval()
    torch.jit.save(torch.jit.script(network), folder / "script.pt")
    torch.export.save(torch.export.export(network, (torch.zeros(2, 2),)), folder / "graph.pt2")
    return [folder / "script.pt", folder / "graph.pt2"]


_MAKERS = {"safetensors": _safetensors, "pt": _torch, "onnx": _onnx, "archive": _archive}
