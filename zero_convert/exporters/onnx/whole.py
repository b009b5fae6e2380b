"""A network as one ONNX file in memory, for the checks; a graph with its values in between as outputs."""

from __future__ import annotations

import io
import operator
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import fx, nn

from zero_convert.exporters.entries import entries_of
from zero_convert.graph.state import stored_tensors
from zero_convert.graph.ties import ties

from . import write
from .graph import graph


def content(module: nn.Module, inputs: tuple[Any, ...], *, free: bool) -> bytes:
    """The file of the module's forward in evaluation mode. Errors as for `graph` and `write`.

    Args:
        free: the batch size is to be free, if it can be.
    """
    network, _ = graph(module, inputs, ties(stored_tensors(module)), free=free)
    stream = io.BytesIO()
    write(stream, network, entries_of(module), {})
    return stream.getvalue()


def returning_values(root: nn.Module, graph: fx.Graph, wanted: Mapping[str, Sequence[int] | None]) -> fx.GraphModule:
    """The graph as a module that returns what it returns, and then the values of nodes, each as it is when it is made.

    Args:
        root: what the graph calls into; its tensors are shared.
        wanted: node → which of its values, in order; None for one that has a single value.
    """
    made, copies = fx.Graph(), dict[fx.Node, fx.Node]()
    values: list[fx.Node] = []
    for node in graph.nodes:
        if node.op == "output":
            returned = fx.node.map_arg(node.args[0], copies.__getitem__)
            made.output((returned, tuple(values)))
            continue
        copies[node] = copy = made.node_copy(node, copies.__getitem__)
        if node.name in wanted:
            parts = wanted[node.name]
            each = [copy] if parts is None else [made.call_function(operator.getitem, (copy, part)) for part in parts]
            values += [made.call_function(torch.clone, (value,)) for value in each]  # who comes next may write to it
    return fx.GraphModule(root, made)
