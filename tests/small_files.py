"""One small sound file of each format, with those that it names beside it, alone in a folder."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import torch
from safetensors.numpy import save_file
from torch import nn

from tests.test_readers_old import gguf

TENSORS = {"a.weight": np.arange(6, dtype="<f4").reshape(2, 3), "b": np.array(7, "<i8"), "c": np.empty(0, "<f2")}


def state() -> dict[str, torch.Tensor]:
    base = torch.arange(12.0)
    tied = base[:6].view(2, 3)
    return {"a.weight": tied, "b.weight": tied, "c": base[6:].view(3, 2).t(), "n": torch.tensor(3)}


def safetensors(folder: Path) -> Path:
    save_file(TENSORS, folder / "model.safetensors", {"format": "pt"})
    return folder / "model.safetensors"


def sharded(folder: Path) -> Path:
    places = {}
    for index, (name, value) in enumerate(TENSORS.items()):
        places[name] = f"part{index}.safetensors"
        save_file({name: value}, folder / places[name])
    (folder / "model.json").write_text(json.dumps({"metadata": {"total_size": 32}, "weight_map": places}))
    return folder / "model.json"


def zipped(folder: Path) -> Path:
    torch.save({"state_dict": state(), "epoch": 3, "lr": [0.1, None]}, folder / "model.pt")
    return folder / "model.pt"


def legacy(folder: Path) -> Path:
    torch.save(state(), folder / "model.pt", _use_new_zipfile_serialization=False)
    return folder / "model.pt"


def whole(folder: Path) -> Path:
    torch.save(nn.Linear(2, 2), folder / "model.pt")
    return folder / "model.pt"


def script(folder: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(nn.Linear(2, 2).eval()), folder / "model.pt")
    return folder / "model.pt"


def program(folder: Path) -> Path:
    torch.export.save(torch.export.export(nn.Linear(2, 2).eval(), (torch.zeros(2, 2),)), folder / "model.pt2")
    return folder / "model.pt2"


def external(folder: Path) -> Path:
    make = onnx.helper.make_tensor
    tensors = [
        onnx.numpy_helper.from_array(TENSORS["a.weight"], "w"),
        onnx.numpy_helper.from_array(np.arange(3, dtype="<f4"), "v"),
        make("i", onnx.TensorProto.INT32, [3], [1, -2, 300]),
    ]
    value = onnx.helper.make_tensor_value_info
    node = onnx.helper.make_node("MatMul", ["x", "w"], ["y"])
    graph = onnx.helper.make_graph([node], "g", [value("x", 1, ["n", 2])], [value("y", 1, ["n", 3])], tensors)
    model = onnx.helper.make_model(graph, producer_name="p", opset_imports=[onnx.helper.make_opsetid("", 20)])
    onnx.save(model, folder / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=20)
    return folder / "m.onnx"


def header(folder: Path) -> Path:
    (folder / "m.gguf").write_bytes(gguf(("w", (2, 3), 0, TENSORS["a.weight"].tobytes())))
    return folder / "m.gguf"


SMALL: dict[str, Callable[[Path], Path]] = {
    "safetensors": safetensors, "sharded safetensors": sharded, "torch zip": zipped, "torch legacy": legacy,
    "whole network": whole, "TorchScript": script, "pt2": program, "ONNX": external,
    "GGUF": header,
}  # fmt: skip
