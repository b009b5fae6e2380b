"""Max-pooling becomes average pooling, before the ReLU that it stands behind.

    before   y = max_pool(relu(x))        after   y = relu(average_pool(x))

A maximum commutes with a ReLU, so that the pooling may stand before it; there an average acts on the signal before the
ReLU and keeps what is linear in it, which a maximum does not. Same window, stride and padding; padded positions count
as zeros. A pooling that also returns positions, or with dilation, stays, with the reason in the plan.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import fx, nn
from torch.nn import functional as F
from torch.nn.modules.pooling import _AdaptiveMaxPoolNd, _MaxPoolNd

from zero_convert.graph.editing import replace_module
from zero_convert.graph.queries import kind, memory, relu_kind, tensors_in
from zero_convert.nn.functional import relu0, relu6_0

from ..records import Analyzed, Edit, Option

NAME = "average_pools"
MODULES: dict[type[nn.Module], type[nn.Module]] = {
    nn.MaxPool1d: nn.AvgPool1d,
    nn.MaxPool2d: nn.AvgPool2d,
    nn.MaxPool3d: nn.AvgPool3d,
    nn.AdaptiveMaxPool1d: nn.AdaptiveAvgPool1d,
    nn.AdaptiveMaxPool2d: nn.AdaptiveAvgPool2d,
    nn.AdaptiveMaxPool3d: nn.AdaptiveAvgPool3d,
}
FUNCTIONS: dict[Any, Any] = {
    F.max_pool1d: F.avg_pool1d,
    F.max_pool2d: F.avg_pool2d,
    F.max_pool3d: F.avg_pool3d,
    F.adaptive_max_pool1d: F.adaptive_avg_pool1d,
    F.adaptive_max_pool2d: F.adaptive_avg_pool2d,
    F.adaptive_max_pool3d: F.adaptive_avg_pool3d,
}
KEPT = ("kernel_size", "stride", "padding", "ceil_mode", "output_size")
ARGUMENTS = ("kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")


def rewrite(root: nn.Module, graph: fx.Graph, analyzed: Analyzed, options: Mapping[str, Option]) -> list[Edit]:
    edits = []
    for node in list(graph.nodes):
        pooled = _replaced(root, node)
        if pooled is None:
            continue
        target = str(node.target) if node.op == "call_module" else node.name
        if pooled:
            edits.append(Edit(NAME, target, "max-pooling kept", False, pooled))
            continue
        before = tensors_in(node)[0]
        moved = _is_relu(before, root)
        if moved:
            node.replace_input_with(before, tensors_in(before)[0])
            with graph.inserting_after(node):
                after = graph.node_copy(before, lambda n, node=node: node)  # type: ignore[misc]
            after.meta = {**before.meta, "shape": node.meta.get("shape"), "anchor": node}
            node.replace_all_uses_with(after, lambda user, after=after: user is not after)
            if not before.users:
                graph.erase_node(before)
        what = f"average pooling instead of a maximum{', before the ReLU' if moved else ''}"
        edits.append(Edit(NAME, target, what, source=("before ReLU",) if moved else ()))
    return edits


def _is_relu(node: fx.Node, root: nn.Module) -> bool:
    return bool(relu_kind(node, root)) or (kind(node, root) == "activation" and node.target in (relu0, relu6_0))


def _replaced(root: nn.Module, node: fx.Node) -> str | None:
    """Makes the node an average pooling; the reason why not, or None for a node that is no max-pooling."""
    if node.op == "call_module":
        module, done = root.get_submodule(str(node.target)), memory(root, NAME)
        if node.target in done:  # in the other mode's graph, or called before
            return ""
        if not isinstance(module, _MaxPoolNd | _AdaptiveMaxPoolNd):
            return None
        if type(module) not in MODULES or module.return_indices or _dilated(getattr(module, "dilation", 1)):
            return "it returns positions, or its window has holes"
        average = MODULES[type(module)]
        sizes = (
            (module.output_size,)
            if isinstance(module, _AdaptiveMaxPoolNd)
            else (module.kernel_size, module.stride, module.padding, module.ceil_mode)
        )
        replace_module(root, str(node.target), average(*sizes))
        done[str(node.target)] = True
        return ""
    if node.op != "call_function" or node.target not in FUNCTIONS:
        return None
    names = ("output_size", "return_indices") if "adaptive" in FUNCTIONS[node.target].__name__ else ARGUMENTS
    arguments = {**dict(zip(names, node.args[1:], strict=False)), **node.kwargs}
    if arguments.get("return_indices") or _dilated(arguments.get("dilation", 1)):
        return "it returns positions, or its window has holes"
    kept: dict[str, Any] = {name: arguments[name] for name in KEPT if name in arguments}
    node.args, node.kwargs = node.args[:1], kept
    node.target = FUNCTIONS[node.target]
    return ""


def _dilated(dilation: Any) -> bool:
    sizes = dilation if isinstance(dilation, tuple | list) else (dilation,)
    return any(size != 1 for size in sizes)
