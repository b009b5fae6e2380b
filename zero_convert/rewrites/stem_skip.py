"""The first layer gets a parallel path of padding and a frozen Hadamard transform, so that it can start at zero.

    t = C0(x) + T(pad(q(x)))

q is the identity for stride 1. For a larger stride it is the net's own max-pool if that gives C0's output size for
every input (as in a ResNet), else the positions under C0's centre tap. `pad` appends zero channels up to C0's outputs.
Only for first layers that grow; one that keeps or shrinks starts as a partial identity, and one that cuts patches as
a partial identity of the flattened patch. [A] for the ResNet stems, [X] in general.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

from torch import fx, nn
from torch.nn import functional as F
from torch.nn.modules.pooling import _MaxPoolNd

from zero_convert.graph.editing import insert_after
from zero_convert.graph.queries import SEVERAL, kind, only_user, signal_of, tensors_in
from zero_convert.nn.functional import pad_channels, subsample

from ..records import Analyzed, Edit, Geometry, Option
from ._skips import centre_sides, sampled
from ._transforms import add_transform

NAME = "stem_skip"


def rewrite(root: nn.Module, graph: fx.Graph, analyzed: Analyzed, options: Mapping[str, Option]) -> list[Edit]:
    stems = {layer.name: layer for layer in analyzed().layers if layer.role == "stem"}
    edits = []
    for node in list(graph.nodes):
        layer = stems.get(str(node.target)) if node.op == "call_module" else None
        g = None if layer is None else layer.geometry
        if layer is None or g is None or kind(node, root) not in ("convolution", "linear"):
            continue
        if layer.sections:
            reason = "its output is cut into parts, which a transform would mix"
            edits.append(Edit(NAME, layer.name, "no parallel skip", False, reason))
            continue
        if g.out_channels > g.in_channels and not g.patchify and not g.transposed:
            signal = signal_of(node)
            if signal is None:
                edits.append(Edit(NAME, layer.name, "no parallel skip", False, SEVERAL))
                continue
            shape, value = signal.meta.get("shape") or (), tensors_in(node)[0].meta.get("shape") or ()
            if g.kernel and shape[len(shape) - len(g.stride) :] != sampled(value, g.stride, centre_sides(g)):
                reason = "its output has another size than a convolution with its stride and padding makes"
                edits.append(Edit(NAME, str(node.target), "no parallel skip", False, reason))
                continue
            edits.append(_skip(root, graph, node, signal, g, options))
    return edits


def _skip(
    root: nn.Module, graph: fx.Graph, node: fx.Node, signal: fx.Node, g: Geometry, options: Mapping[str, Option]
) -> Edit:
    path, trailing = str(node.target), len(g.kernel)
    value = tensors_in(node)[0]
    pool = _own_pool(root, signal, g) if max(g.stride, default=1) > 1 else None
    with graph.inserting_after(node):
        if pool is not None:
            source = pool.all_input_nodes[0]
            args = tuple(value if a is source else a for a in pool.args)
            q, what = graph.create_node(pool.op, pool.target, args, pool.kwargs), "the net's own max-pool"
            way = "max-pool"
        elif trailing and (max(g.stride) > 1 or any(map(any, centre_sides(g)))):
            q, what = graph.call_function(subsample, (value, g.stride, centre_sides(g))), "subsampling"
            way = what
        else:
            q, what = value, "identity"
            way = what
    with graph.inserting_after(q if q is not value else node):
        padded = graph.call_function(pad_channels, (q, g.out_channels, trailing))
    transform, _ = add_transform(root, path, g, options)
    with graph.inserting_after(padded):
        skip = graph.call_module(transform, (padded,))
    for new in (q, padded, skip):
        if new is not value:
            new.meta["shape"] = signal.meta.get("shape")
    insert_after(graph, signal, operator.add, lambda n: (n, skip))
    action = f"parallel skip: {what}, zero channels up to {g.out_channels}, Hadamard transform"
    return Edit(NAME, path, action, source=(value.name, way, str(g.out_channels)))


def _own_pool(root: nn.Module, node: fx.Node, g: Geometry) -> fx.Node | None:
    """The first max-pool behind the layer, if its output size equals the layer's for every input size."""
    at: fx.Node | None = node
    while at is not None:
        at = only_user(at)
        if at is None or kind(at, root) not in ("norm", "activation", "drop", "pool"):
            return None
        if kind(at, root) == "pool":
            return at if _pool_size(root, at, g) else None
    return None


def _pool_size(root: nn.Module, node: fx.Node, g: Geometry) -> bool:
    """out = floor((L + 2p - d(k - 1) - 1) / s) + 1 for both: equal for every L if s and 2p - d(k - 1) are."""
    dims = len(g.kernel)

    def axes(value: Any) -> tuple[int, ...]:
        return tuple(value) if isinstance(value, tuple | list) else (int(value),) * dims

    if node.op == "call_module":
        module = root.get_submodule(str(node.target))
        if not isinstance(module, _MaxPoolNd) or module.ceil_mode or module.return_indices:
            return False
        sizes = {name: getattr(module, name) for name in ("kernel_size", "stride", "padding", "dilation")}
    elif node.target in (F.max_pool1d, F.max_pool2d, F.max_pool3d):
        names = ("input", "kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")
        sizes = dict(zip(names, node.args, strict=False)) | dict(node.kwargs)
        if sizes.get("ceil_mode", False) or sizes.get("return_indices", False):
            return False
    else:
        return False
    kernel, padding, dilation = sizes["kernel_size"], sizes.get("padding", 0), sizes.get("dilation", 1)
    stride = sizes.get("stride") or kernel
    own = [2 * p - d * (k - 1) for k, p, d in zip(axes(kernel), axes(padding), axes(dilation), strict=True)]
    layer = [sum(p) - d * (k - 1) for k, p, d in zip(g.kernel, g.padding, g.dilation, strict=True)]
    return own == layer and axes(stride) == g.stride
