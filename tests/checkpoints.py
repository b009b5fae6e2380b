"""Ten shapes of checkpoint as people meet them, small: each as its own library or habit writes it."""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn


class Block(nn.Module):
    """A residual block with a buffer of its own."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.bn(self.conv(x)).relu()


class Net(nn.Module):
    """Two blocks between a stem and a head."""

    def __init__(self, width: int = 4, classes: int = 3) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.blocks = nn.Sequential(Block(width), Block(width))
        self.head = nn.Linear(width, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


def trained() -> tuple[Net, torch.optim.Optimizer]:
    """A network after a step, and its optimizer."""
    torch.manual_seed(0)
    network = Net()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    network(torch.randn(2, 3, 8, 8)).square().sum().backward()
    optimizer.step()
    return network, optimizer


def prefixed(prefix: str, network: nn.Module) -> dict[str, torch.Tensor]:
    return {f"{prefix}{name}": value for name, value in network.state_dict().items()}


def lightning(folder: Path) -> Path:
    network, optimizer = trained()
    hyper = {"lr": 1e-3, "arch": "net"}
    torch.save(
        {
            "epoch": 12, "global_step": 3400, "pytorch-lightning_version": "2.4.0",
            "state_dict": {**prefixed("model.", network), "loss.weight": torch.ones(3)},
            "loops": {"fit_loop": {"state_dict": {}}}, "callbacks": {}, "optimizer_states": [optimizer.state_dict()],
            "lr_schedulers": [], "hyper_parameters": hyper,
        },
        folder / "epoch=12.ckpt",
    )  # fmt: skip
    return folder / "epoch=12.ckpt"


def timm(folder: Path) -> Path:
    import timm

    network = timm.create_model("resnet10t", num_classes=10)
    saved = {"epoch": 299, "arch": "resnet10t", "state_dict": network.state_dict(), "version": 2, "metric": 71.3}
    torch.save({**saved, "state_dict_ema": copy.deepcopy(network.state_dict())}, folder / "model_best.pth.tar")
    return folder / "model_best.pth.tar"


def sharded(folder: Path) -> Path:
    import transformers

    config = transformers.BertConfig(
        vocab_size=60, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16
    )
    transformers.BertForMaskedLM(config).save_pretrained(folder, max_shard_size="4KB")
    return folder / "model.safetensors.index.json"


def ema(folder: Path) -> Path:
    network, _ = trained()
    average = copy.deepcopy(network)
    torch.save({"model": network.state_dict(), "ema": average.state_dict(), "updates": 100}, folder / "last.pt")
    return folder / "last.pt"


def ddp(folder: Path) -> Path:
    torch.save(prefixed("module.", trained()[0]), folder / "ddp.pth")
    return folder / "ddp.pth"


def optimizer(folder: Path) -> Path:
    network, states = trained()
    torch.save(
        {
            "model_state_dict": network.state_dict(),
            "optimizer_state_dict": states.state_dict(),
            "epoch": 5,
            "loss": 0.25,
        },
        folder / "checkpoint.tar",
    )
    return folder / "checkpoint.tar"


def script(folder: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(trained()[0].eval()).save(str(folder / "model.pt"))
    return folder / "model.pt"


def program(folder: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exported = torch.export.export(trained()[0].eval(), (torch.zeros(2, 3, 8, 8),))
        torch.export.save(exported, folder / "model.pt2")
    return folder / "model.pt2"


def whole(folder: Path) -> Path:
    torch.save(trained()[0], folder / "whole.pt")
    return folder / "whole.pt"


def onnx(folder: Path) -> Path:
    import numpy as np
    import onnx as library

    tensors = [
        library.numpy_helper.from_array(np.asarray(value.detach()), name)
        for name, value in trained()[0].state_dict().items()
    ]
    kinds = [library.helper.make_tensor_value_info(name, 1, ["batch", 3, 8, 8]) for name in ("image", "output")]
    node = library.helper.make_node("Conv", ["image", "stem.weight", "stem.bias"], ["output"])
    graph = library.helper.make_graph([node], "net", kinds[:1], kinds[1:], tensors)
    model = library.helper.make_model(graph, producer_name="pytorch", producer_version="2.11")
    library.save(model, folder / "model.onnx", save_as_external_data=True, location="model.data", size_threshold=0)
    return folder / "model.onnx"


MAKERS: dict[str, Callable[[Path], Path]] = {
    maker.__name__: maker for maker in (lightning, timm, sharded, ema, ddp, optimizer, script, program, whole, onnx)
}


def index_of(path: Path) -> Any:
    return json.loads(path.read_text("utf-8"))
