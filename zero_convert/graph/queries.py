"""Reading and editing torch.fx graphs: what a node does, what lies between two nodes, how to put one in.

Knows nothing of schemes or residual blocks.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

from zero_convert.nn.functional import pad_channels, relu0, relu6_0, subsample

from .kinds import FIXED, kind_of

ADDS: frozenset[Any] = frozenset({operator.add, operator.iadd, torch.add, "add", "add_"})
MULTIPLIES: frozenset[Any] = frozenset(
    {operator.mul, operator.imul, torch.mul, torch.multiply, "mul", "mul_", "multiply"}
)
DIVISIONS: frozenset[Any] = frozenset({operator.truediv, operator.itruediv, torch.div, "div", "div_"})
CONCATENATIONS: frozenset[Any] = frozenset({torch.cat, torch.concat, torch.concatenate, torch.stack, torch.hstack})
_RELU: tuple[Any, ...] = (F.relu, F.relu_, torch.relu, torch.relu_, "relu", "relu_")
_RELU6: tuple[Any, ...] = (F.relu6,)
ACTIVATIONS: frozenset[Any] = frozenset(
    {
        *_RELU,
        *_RELU6,
        relu0,
        relu6_0,
        *(F.celu, F.elu, F.gelu, F.hardsigmoid, F.hardswish, F.hardtanh, F.leaky_relu, F.mish, F.selu, F.silu),
        *(F.softplus, F.sigmoid, F.tanh, torch.sigmoid, torch.tanh, torch.celu, torch.selu, F.elu_, F.leaky_relu_),
        *("sigmoid", "sigmoid_", "tanh", "tanh_"),
    }
)
POOLS: frozenset[Any] = frozenset(
    {
        *(F.max_pool1d, F.max_pool2d, F.max_pool3d, F.avg_pool1d, F.avg_pool2d, F.avg_pool3d, torch.max_pool2d),
        *(F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d, torch.adaptive_avg_pool1d),
        *(F.adaptive_max_pool1d, F.adaptive_max_pool2d, F.adaptive_max_pool3d),
        *(subsample, pad_channels, F.pad, F.interpolate),
    }
)
IDENTITIES: frozenset[Any] = frozenset({"contiguous", "clone", torch.clone})
SIZES: frozenset[Any] = frozenset({"size", "dim", "numel", "new_empty", "new_full", "new_ones", "new_zeros"})
AS_ANOTHER: frozenset[Any] = frozenset({"view_as", "reshape_as", "expand_as", "type_as", "to"})
SEVERAL = "it returns several values"  # why an edit that needs one is declined
VIEWS = frozenset({"T", "H", "mT", "mH", "real", "imag", "data"})  # attributes of a tensor that are its values
LIKE: frozenset[Any] = frozenset(
    {torch.empty_like, torch.full_like, torch.ones_like, torch.rand_like, torch.randn_like, torch.zeros_like}
)
CHOOSING: Mapping[str, tuple[int, str]] = {  # which argument is an index or a mask, by position and name
    **dict.fromkeys(("gather", "index_select", "index_add", "index_copy", "scatter", "scatter_add"), (2, "index")),
    "scatter_reduce": (2, "index"),
    "take": (1, "index"),
    "take_along_dim": (1, "indices"),
    "getitem": (1, ""),
    "masked_fill": (1, "mask"),
    "masked_select": (1, "mask"),
    "where": (0, "condition"),
    "embedding": (0, "input"),
}
NORM_FUNCTIONS: frozenset[Any] = frozenset(
    {F.batch_norm, F.group_norm, F.instance_norm, F.layer_norm, F.rms_norm, torch.batch_norm, torch.layer_norm}
)
DROPS: frozenset[Any] = frozenset({F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, torch.dropout})


def kind(node: fx.Node, root: nn.Module) -> str:
    """What the node does: a kind of `layers.kind_of`, or one of "add", "multiply", "concatenate", "parameter",
    "identity", "opaque" (a module kept whole that owns parameters), "other", "placeholder" and "output"."""
    if node.op == "call_module":
        module = root.get_submodule(str(node.target))
        known = kind_of(module)
        if known == FIXED:
            return "other"
        return known or ("opaque" if next(module.parameters(), None) is not None else "other")
    if node.op == "get_attr":
        return "parameter"
    if node.op not in ("call_function", "call_method"):
        return node.op
    target = node.target
    for targets, name in (
        (ADDS, "add"),
        (MULTIPLIES, "multiply"),
        (CONCATENATIONS, "concatenate"),
        (ACTIVATIONS, "activation"),
        (POOLS, "pool"),
        (DROPS, "drop"),
        (NORM_FUNCTIONS, "norm"),
        (IDENTITIES, "identity"),
    ):
        if target in targets:
            return name
    return "drop" if getattr(target, "__name__", "") in ("stochastic_depth", "drop_path") else "other"


def relu_kind(node: fx.Node, root: nn.Module) -> str:
    """ "relu", "relu6" or "" for any other node."""
    if node.op == "call_module":
        module = root.get_submodule(str(node.target))
        if isinstance(module, nn.ReLU6) or (
            isinstance(module, nn.Hardtanh) and (module.min_val, module.max_val) == (0.0, 6.0)
        ):
            return "relu6"
        return "relu" if type(module) is nn.ReLU else ""
    if node.op in ("call_function", "call_method"):
        return "relu" if node.target in _RELU else "relu6" if node.target in _RELU6 else ""
    return ""


def tensors_in(node: fx.Node) -> list[fx.Node]:
    """The node's inputs that are computed values: no parameters, no sizes, no values whose shape or type is taken."""
    inputs = node.all_input_nodes
    if node.op == "call_method" and node.target in AS_ANOTHER and isinstance(node.args[0], fx.Node):
        inputs = [node.args[0]]
    return [n for n in inputs if n.op != "get_attr" and not is_size(n)]


def signals_in(node: fx.Node) -> list[fx.Node]:
    """The computed values that a node's value is made of: not the indices and masks that only choose among them."""
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    if node.op not in ("call_function", "call_method") or name.removesuffix("_") not in CHOOSING:
        return tensors_in(node)
    position, word = CHOOSING[name.removesuffix("_")]
    if node.target == "where":  # the method's first argument is a signal: x.where(condition, other)
        position = 1
    kept = [a for i, a in enumerate(node.args) if i != position] + [a for k, a in node.kwargs.items() if k != word]
    signals: dict[fx.Node, None] = {}
    fx.map_arg(kept, lambda n: signals.setdefault(n))
    return [n for n in tensors_in(node) if n in signals]


def is_size(node: fx.Node) -> bool:
    """Whether the node is an attribute of a tensor (`x.shape`) or computed from such attributes alone.

    So is a tensor of a given size, whatever fills it: the mask of a stochastic depth is no computed value.
    """
    if node.op == "call_function" and node.target is getattr:
        return node.args[1] not in VIEWS
    if node.op == "call_function" and node.target in LIKE:
        return True
    if node.op == "call_method" and node.target in SIZES:
        return True
    if node.op not in ("call_function", "call_method") or not node.all_input_nodes:
        return False
    if "size" not in node.meta:
        node.meta["size"] = all(is_size(n) for n in node.all_input_nodes)
    return bool(node.meta["size"])


class Reach:
    """Which nodes can be reached from which, along computed values."""

    def __init__(self, graph: fx.Graph) -> None:
        self.nodes = list(graph.nodes)
        self.position = {node: i for i, node in enumerate(self.nodes)}
        self._before: list[int] = []  # bit set of a node's ancestors, itself included
        for i, node in enumerate(self.nodes):
            bits = 1 << i
            for source in tensors_in(node):
                bits |= self._before[self.position[source]]
            self._before.append(bits)

    def reaches(self, a: fx.Node, b: fx.Node) -> bool:
        """Whether b is a or is computed from a."""
        return bool(self._before[self.position[b]] >> self.position[a] & 1)

    def nearest_common(self, a: fx.Node, b: fx.Node) -> fx.Node | None:
        """The last node, in order of execution, that both are computed from."""
        common = self._before[self.position[a]] & self._before[self.position[b]]
        return self.nodes[common.bit_length() - 1] if common else None

    def between(self, fork: fx.Node, end: fx.Node) -> list[fx.Node]:
        """The nodes on paths from fork (excluded) to end (included), in order of execution."""
        bits = self._before[self.position[end]]
        first = self.position[fork]
        return [
            self.nodes[i]
            for i in range(first + 1, self.position[end] + 1)
            if bits >> i & 1 and self._before[i] >> first & 1
        ]


def signal_of(node: fx.Node) -> fx.Node | None:
    """The one tensor that a layer makes: its value, or the first item of several (features with their lengths).

    None where the node's value is handed on as a whole, or nothing reads its first item.
    """
    if node.meta.get("shape") is not None:
        return node
    items = list(node.users)
    if any(user.target is not operator.getitem for user in items):
        return None
    first = [user for user in items if user.args[1] == 0]
    return first[0] if len(first) == 1 and first[0].meta.get("shape") is not None else None


def made_from(node: fx.Node, source: fx.Node) -> bool:
    """Whether the node needs the source: its values, or only its size."""
    todo, seen = [node], {node}
    while todo:
        at = todo.pop()
        if at is source:
            return True
        new = [n for n in at.all_input_nodes if n not in seen]
        seen.update(new)
        todo += new
    return False


def memory(root: nn.Module, key: str) -> dict[Any, Any]:
    """What rewrites remember from one graph to the other; it goes with `root` when the new module is assembled."""
    found: dict[Any, Any] = root.__dict__.setdefault("_rewrites", {}).setdefault(key, {})
    return found


def only_user(node: fx.Node) -> fx.Node | None:
    """The node's user, if there is exactly one apart from reads of its size."""
    users = [user for user in node.users if not is_size(user)]
    return users[0] if len(users) == 1 else None
