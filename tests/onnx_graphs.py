"""Modules whose export holds constants to fold and shapes to write down, and how tests export them."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zero_convert.exporters import onnx as exporter
from zero_convert.exporters.onnx import canonical as forms
from zero_convert.exporters.onnx import graph as graph_module
from zero_convert.graph.ties import ties
from zero_convert.saving import entries_of


class Net(nn.Module):
    """A forward of its own over a linear layer, so that there is a weight."""

    def __init__(self, forward: Callable[[nn.Module, Tensor], Tensor], **parts: nn.Module) -> None:
        super().__init__()
        self.run = [forward]
        self.fc = nn.Linear(6, 6)
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, x: Tensor) -> Tensor:
        return self.run[0](self, x)


def _masked(net: Any, x: Tensor) -> Tensor:
    """A causal mask, made in the forward."""
    scores = net.fc(x) @ x.transpose(1, 2)
    mask = torch.ones(4, 4, dtype=torch.bool).tril()
    return scores.masked_fill(~mask, float("-inf")).softmax(-1) @ x


def _positions(net: Any, x: Tensor) -> Tensor:
    return net.fc(x) + net.table(torch.arange(4).unsqueeze(0))


def _waves(net: Any, x: Tensor) -> Tensor:
    """A sinusoid over positions; the angles are whole numbers over 4, the sines are left to the runtime."""
    angles = torch.arange(4).unsqueeze(1) * (torch.arange(6) / 4)
    return net.fc(x) + torch.sin(angles)


def _attention(net: Any, x: Tensor) -> Tensor:
    q, k, v = (y.unflatten(-1, (2, 3)).transpose(1, 2) for y in (net.fc(x), x, x + 1))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def _mean(net: Any, x: Tensor) -> Tensor:
    return net.fc(x).unflatten(-1, (2, 3)).mean((-1, 1), keepdim=True)


def _strided(net: Any, x: Tensor) -> Tensor:
    return net.fc(x)[:, 1::2, ::3]


def _butterfly(net: Any, x: Tensor) -> Tensor:
    y = torch.tensor([[1.0, 1.0], [1.0, -1.0]]) @ net.fc(x).reshape(x.shape[0], 4, 2, 3)
    return y.reshape(len(x), 4, 6)


def _windows(net: Any, x: Tensor) -> Tensor:
    """Samples and windows on one axis."""
    parts = x.reshape(x.shape[0], 2, 2, 6).flatten(0, 1)
    return net.fc(parts - parts.mean(1, keepdim=True)).reshape(-1, 4, 6)


def _relative(net: Any, x: Tensor) -> Tensor:
    """A table that is read by differences of positions."""
    at = torch.arange(4)
    return (net.fc(x) @ x.transpose(1, 2) + net.table(at[None] - at[:, None] + 3)[..., 0]) @ x


def _rolled(net: Any, x: Tensor) -> Tensor:
    return F.pad(net.fc(x).roll(1, 1), (1, 0)) * torch.linspace(0, 6, 7)


def _class_token(net: Any, x: Tensor) -> Tensor:
    return torch.cat([net.table.weight[:1].expand(len(x), 1, 6), net.fc(x)], 1)


def _one_hot(net: Any, x: Tensor) -> Tensor:
    return net.fc(x) * F.one_hot(torch.arange(4) % 3, 6)


def _clamped(net: Any, x: Tensor) -> Tensor:
    limit = torch.tensor(9.0).sqrt() / math.sqrt(4)
    return torch.where(torch.arange(6) < 3, net.fc(x).clamp(-limit, limit), x.new_full((6,), 0.5))


def _chunked(net: Any, x: Tensor) -> Tensor:
    a, b, c = net.fc(x).chunk(3, -1)
    return a * b.sigmoid() + c.reshape(x.size(0), -1).view(x.size(0), 4, 2)


@dataclass(frozen=True)
class Case:
    """A module, and the kinds of nodes that only read constants and are left to the runtime."""

    build: Callable[[], nn.Module]
    left: frozenset[str] = field(default_factory=frozenset)


CASES: dict[str, Case] = {
    "masked": Case(lambda: Net(_masked)),
    "positions": Case(lambda: Net(_positions, table=nn.Embedding(9, 6))),
    "waves": Case(lambda: Net(_waves), frozenset({"Sin"})),
    "attention": Case(lambda: Net(_attention)),
    "mean": Case(lambda: Net(_mean)),
    "strided": Case(lambda: Net(_strided)),
    "butterfly": Case(lambda: Net(_butterfly)),
    "windows": Case(lambda: Net(_windows)),
    "relative": Case(lambda: Net(_relative, table=nn.Embedding(7, 1))),
    "rolled": Case(lambda: Net(_rolled)),
    "class_token": Case(lambda: Net(_class_token, table=nn.Embedding(2, 6))),
    "one_hot": Case(lambda: Net(_one_hot)),
    "clamped": Case(lambda: Net(_clamped)),
    "chunked": Case(lambda: Net(_chunked)),
}
INPUT = torch.linspace(-1, 1, 48).reshape(2, 4, 6)


def written(module: nn.Module, inputs: Any, opset: int | None = None) -> tuple[bytes, exporter.Graph]:
    """The file of a module in evaluation mode, and its graph."""
    made, fixed = graph_module.graph(module.eval(), inputs, ties(module.state_dict(keep_vars=True)), opset)
    assert not fixed
    stream = io.BytesIO()
    exporter.write(stream, made, entries_of(module), {})
    return stream.getvalue(), made


def written_both_ways(module: nn.Module, inputs: Any) -> tuple[bytes, bytes]:
    """The file of a module, and what it would be without simplification, of one export."""
    graphs: list[exporter.Graph] = []

    def canonical(model: ir.Model, *given: Any, **more: Any) -> Any:
        plain = ir.from_proto(ir.to_proto(model))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(forms, "simplify", lambda *_: None)
            head, tail, _ = forms.canonical(plain, *given, **more)
        graphs.append(exporter.Graph(head, tail, exporter.OPSET))
        return forms.canonical(model, *given, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(graph_module, "canonical", canonical)
        whole, _ = written(module, inputs)
    stream = io.BytesIO()
    exporter.write(stream, graphs[-1], entries_of(module), {})
    return whole, stream.getvalue()


def answers(model: bytes, *values: Tensor) -> list[Any]:
    """What ONNX Runtime returns, nothing optimized, one thread."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]
    return list(session.run(None, dict(zip(names, (value.numpy() for value in values), strict=True))))


def parsed(model: bytes) -> onnx.ModelProto:
    return onnx.load_model_from_string(model)
