"""Folding for inference: batch norms and frozen transforms become part of the layers beside them.

    layer → norm        W'[o] = s[o]·W[o],  b' = s·(b - μ) + β             s = γ / sqrt(σ² + ε), in evaluation mode
    norm → layer        W'[:, i] = W[:, i]·s[i],  b' = b + Σ W[:, i]·t[i]  t = β - s·μ; padded zeros must stay zeros
    layer → transform   W' = T·W,  b' = T·b
    transform → layer   W' = W·T

Only where nothing else reads the signal in between and the layer's weight has no other use; what stays is listed with
its reason. The arithmetic is float64, element by element in a fixed order or correctly rounded at once, and each value
is rounded once to the layer's type: the bytes are the same everywhere. The network that is given stays as it is.
"""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn

from zero_convert.formulas import hadamard
from zero_convert.nn.layers import HadamardTransform
from zero_convert.nn.tree import ConvertedModule, uncalled
from zero_convert.records import Edit

Values = NDArray[np.float64]

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
LAYERS = (nn.Linear, *CONVOLUTIONS, *TRANSPOSED)


def fold(own: nn.Module, graph: fx.Graph | None) -> tuple[nn.Module, tuple[Edit, ...]]:
    """The folded network, and what became of each norm and transform in its graphs.

    Args:
        own: in evaluation mode, and nobody else's: it is changed. Tensors that others hold as well are replaced, never
            written to.
        graph: of its forward, where it has none of its own; it stays as it is.
    """
    if graph is not None and not isinstance(own, ConvertedModule):
        copied = copy.deepcopy(graph)
        own = ConvertedModule.assemble(own, copied, copied, uncalled(own, copied))
    names = Counter(id(tensor) for _, tensor in own.named_parameters(remove_duplicate=False))
    edits: list[Edit] = []
    for path, part in own.named_modules():
        if isinstance(part, ConvertedModule):
            edits += _Folding(part, f"{path}." if path else "", names).run()
    return own, tuple(edits)


class _Folding:
    """The folding of one graph in evaluation mode."""

    def __init__(self, root: ConvertedModule, prefix: str, names: Mapping[int, int]) -> None:
        self._root, self._prefix, self._names = root, prefix, names
        self._graph = root.evaluate_graph
        self._calls = Counter(id(root.get_submodule(str(n.target))) for n in self._modules())
        self._read = {str(n.target) for n in self._graph.nodes if n.op == "get_attr"}

    def run(self) -> list[Edit]:
        found: dict[str, Edit] = {}
        before = -1
        while before != sum(edit.applied for edit in found.values()):  # one fold makes neighbours of others
            before = sum(edit.applied for edit in found.values())
            for node in self._modules():
                module = self._root.get_submodule(str(node.target))
                if type(module) in (*NORMS, HadamardTransform):
                    kind = "fold_transform" if isinstance(module, HadamardTransform) else "fold_norm"
                    where = f"{self._prefix}{node.target}"
                    into, reason = self._folded(node, module)
                    action = f"into {', '.join(into)}" if into else "stays"
                    found[where] = Edit(kind, where, action, bool(into), reason, into)
        if before:
            self._root._prune()
            self._root._set_graphs(self._graph, self._graph)
        return list(found.values())

    def _modules(self) -> list[fx.Node]:
        return [node for node in self._graph.nodes if node.op == "call_module"]

    def _folded(self, node: fx.Node, module: nn.Module) -> tuple[tuple[str, ...], str]:
        """The layers it was folded into, or why it was not."""
        if self._calls[id(module)] > 1:
            return (), "it is used more than once"
        source = node.args[0] if node.args else None
        if not isinstance(source, fx.Node):
            return (), "it is called by keyword"
        if not isinstance(module, HadamardTransform) and getattr(module, "running_mean", None) is None:
            return (), "it has no statistics of its own"
        reasons = []
        for after, nodes in ((True, self._before(node)), (False, list(node.users))):
            layers = [self._layer(each, node, after) for each in nodes]
            texts = [each for each in layers if isinstance(each, str)]
            texts = texts or [_misfit(each, module, node, after) for each in layers if isinstance(each, nn.Module)]
            reason = next((text for text in texts if text), "" if layers else "there is none")
            if not reason:
                for each in layers:
                    assert isinstance(each, nn.Module)
                    _into(each, module, after)
                node.replace_all_uses_with(source)
                self._graph.erase_node(node)
                self._remove(str(node.target))
                return tuple(f"{self._prefix}{each.target}" for each in nodes), ""
            reasons.append(f"what {'it reads' if after else 'reads it'}: {reason}")
        return (), "; ".join(reasons)

    def _before(self, node: fx.Node) -> list[fx.Node]:
        return [each for each in node.args[:1] if isinstance(each, fx.Node)]

    def _layer(self, found: fx.Node, node: fx.Node, after: bool) -> nn.Module | str:
        """The layer of a node beside a norm or transform, or why it takes nothing in."""
        module = self._root.get_submodule(str(found.target)) if found.op == "call_module" else None
        if module is None or type(module) not in LAYERS:
            return f"{found.name} is no convolution or linear layer"
        if (list(found.users) != [node]) if after else (found.args != (node,) or bool(found.kwargs)):
            return f"{found.target} is not read by it alone" if after else f"{found.target} reads more than it"
        parameters = list(module.parameters())
        shared = any(self._names[id(tensor)] > 1 for tensor in parameters)
        named = any(f"{found.target}.{name}" in self._read for name in ("weight", "bias"))
        if shared or named or self._calls[id(module)] > 1:
            return f"{found.target} is used elsewhere as well"
        if module._forward_hooks or module._forward_pre_hooks:
            return f"{found.target} has hooks"
        return module

    def _remove(self, target: str) -> None:
        parent, _, name = target.rpartition(".")
        del self._root.get_submodule(parent)._modules[name]


def _misfit(layer: nn.Module, module: nn.Module, node: fx.Node, after: bool) -> str:
    """Why the sizes of a layer do not allow it, or ""."""
    spatial = 0 if isinstance(layer, nn.Linear) else len(layer.kernel_size)  # type: ignore[arg-type]
    if isinstance(module, HadamardTransform):
        if module.trailing != spatial:
            return "its channels lie on another axis"
        return "its groups would mix" if getattr(layer, "groups", 1) != 1 else ""
    if len(node.meta.get("shape") or ()) != spatial + 2:
        return "its channels lie on another axis"
    if after or not _norm_numbers(module)[1].any():
        return ""
    padded = getattr(layer, "padding_mode", "") == "zeros" and any(layer._reversed_padding_repeated_twice)  # type: ignore[arg-type]
    return "a constant cannot pass its padding" if padded or isinstance(layer, TRANSPOSED) else ""


def _into(layer: nn.Module, module: nn.Module, after: bool) -> None:
    """The layer gets the weight and bias that do what both did."""
    given, bias = layer.weight, layer.bias
    assert isinstance(given, Tensor)
    weight, offset = _float64(given), None if not isinstance(bias, Tensor) else _float64(bias)
    if isinstance(module, HadamardTransform):
        output = 1 if isinstance(layer, TRANSPOSED) else 0
        axis = output if after else 1 - output
        weight = np.moveaxis(_transformed(module, np.moveaxis(weight, axis, 0), not after), 0, axis)
        offset = _transformed(module, offset, False) if after and offset is not None else offset
    else:
        scale, shift = _norm_numbers(module)
        if after:
            weight = _scaled(layer, weight, scale, True)
            offset = shift if offset is None else offset * scale + shift
        else:
            moved = _scaled(layer, weight, shift, False) if shift.any() else None
            weight = _scaled(layer, weight, scale, False)
            if moved is not None:
                sums = np.array([math.fsum(row.ravel()) for row in moved])
                offset = sums if offset is None else offset + sums
    layer._parameters["weight"] = _parameter(weight, given)
    layer._parameters["bias"] = None if offset is None else _parameter(offset, given)


def _norm_numbers(norm: nn.Module) -> tuple[Values, Values]:
    """Factor and summand of each channel."""
    mean, variance = _float64(norm.running_mean), _float64(norm.running_var)
    scale: Values = 1 / np.sqrt(variance + float(norm.eps))  # type: ignore[arg-type]
    scale = scale if norm.weight is None else _float64(norm.weight) * scale
    shift = -mean * scale
    return scale, shift if norm.bias is None else _float64(norm.bias) + shift


def _scaled(layer: nn.Module, weight: Values, factor: Values, output: bool) -> Values:
    """The weight times one factor for each of the layer's output or input channels, all groups together."""
    groups: Any = getattr(layer, "groups", 1)
    parted = weight.reshape(groups, weight.shape[0] // groups, *weight.shape[1:])
    axis = 1 if output != isinstance(layer, TRANSPOSED) else 2
    sizes = [groups, 1, 1] + [1] * (parted.ndim - 3)
    sizes[axis] = parted.shape[axis]
    product: Values = (parted * factor.reshape(sizes)).reshape(weight.shape)
    return product


def _transformed(given: HadamardTransform, x: Values, transpose: bool) -> Values:
    """T·x, or Tᵀ·x, over the first axis."""
    factors = [factor.astype(np.float64) for factor in hadamard.kronecker_factors(given.order)]
    if not transpose:
        x = x[given.mix.numpy()] if given.mixing == "permute" else _signed(given, x)
    y = np.concatenate([x, np.zeros((given.order - len(x), *x.shape[1:]))])
    inner = given.order
    for factor in factors:
        inner //= len(factor)
        parted = y.reshape(-1, len(factor), inner, *x.shape[1:])
        y = np.stack([_row(factor[:, i] if transpose else factor[i], parted) for i in range(len(factor))], axis=1)
    y = y.reshape(given.order, *x.shape[1:])[: given.channels] * given.scale
    if transpose and given.mixing == "permute":
        back = np.empty_like(y)
        back[given.mix.numpy()] = y
        return back
    return _signed(given, y) if transpose else y


def _row(signs: Values, x: Values) -> Values:
    """Σ signs[j]·x[:, j], in order of j: a library's product would sum in an order of its own."""
    total: Values = signs[0] * x[:, 0]
    for j in range(1, len(signs)):
        total = total + x[:, j] if signs[j] > 0 else total - x[:, j]
    return total


def _signed(given: HadamardTransform, x: Values) -> Values:
    if given.mixing != "signs":
        return x
    signed: Values = x * given.mix.double().numpy().reshape(-1, *[1] * (x.ndim - 1))
    return signed


def _float64(tensor: object) -> Values:
    assert isinstance(tensor, Tensor)
    values: Values = tensor.detach().cpu().double().numpy()
    return values


def _parameter(values: Values, like: Tensor) -> nn.Parameter:
    made = torch.from_numpy(np.ascontiguousarray(values)).to(like.dtype)
    return nn.Parameter(made, requires_grad=False)
