"""Programs as networks of torch's layers again: what `torch.export` recorded.

A program is a graph of operations on tensors. Here each operation that is a layer's, on tensors that a layer would own,
becomes that layer at the place where the tensors are; others become the functions that a forward would have called. The
result has the program's names and values, can be traced and trained, and is compared with the program on its example
inputs before it is given out. Nothing here reads files, or knows of schemes.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _NormBase
from torch.utils import _pytree

from zero_convert.errors import LoadError
from zero_convert.runtime import rng
from zero_convert.runtime.user_code import spell

from .layers import Layer, arguments, layer_of, packet

WAY_OUT = "--arch MODEL takes the structure from there, and nothing of the file is run."
_END = (1 << 63) - 1  # how a slice without an end is spelled
_CHECKS = ("_assert", "sym_constrain", "_guards_fn")  # what they would ask is known once the program has run
_ACTIVATIONS = (
    "relu", "relu6", "silu", "mish", "elu", "selu", "celu", "leaky_relu", "hardtanh", "hardswish", "hardsigmoid",
)  # fmt: skip
FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    **{name: getattr(F, name) for name in (
        *_ACTIVATIONS, "gelu", "softplus", "glu", "dropout", "pad", "linear", "bilinear", "conv1d", "conv2d", "conv3d",
        "max_pool1d", "max_pool2d", "max_pool3d", "avg_pool1d", "avg_pool2d", "avg_pool3d", "adaptive_avg_pool1d",
        "adaptive_avg_pool2d", "adaptive_avg_pool3d", "pixel_shuffle", "scaled_dot_product_attention",
    )},
    **{name: getattr(torch, name) for name in ("cat", "stack", "flatten", "bmm", "matmul", "where")},
    "add": operator.add, "add_": operator.iadd, "sub": operator.sub, "sub_": operator.isub, "mul": operator.mul,
    "mul_": operator.imul, "div": operator.truediv, "div_": operator.itruediv, "neg": operator.neg,
}  # fmt: skip # by the names that aten has for them, with the same arguments in the same order
_SIZES = frozenset({"view", "reshape", "permute", "expand", "repeat"})  # methods that take sizes one by one


def from_program(program: Any, parameters: frozenset[str] | None = None) -> nn.Module:
    """The network that a `torch.export.ExportedProgram` describes, in the mode in which it was recorded.

    Args:
        parameters: names of the tensors that are trained, where the program itself calls them buffers.

    Raises:
        LoadError: what came out does not compute what the program computes.
    """
    source = program.module()
    graph = source.graph
    root = _owners(program, source, parameters)
    training = False
    for node in list(graph.nodes):
        if any(str(node.target).startswith(name) or f".{name}" in str(node.target) for name in _CHECKS):
            graph.erase_node(node)
        elif node.op == "call_function" and isinstance(node.target, torch._ops.OpOverload):
            layer = layer_of(node, root)
            training |= layer is not None and layer.training
            _as_layer(node, layer, root) if layer is not None else _as_function(node)
    _sweep(graph, root)
    network = fx.GraphModule(root, graph, "Program")
    for name, value in root.state_dict(keep_vars=True).items():  # of what no operation reads
        if name not in dict(network.state_dict(keep_vars=True)):
            _place(network, name, value)
    network.train(training)
    _compare(program, network)
    return network


def example_inputs(program: Any) -> Any:
    """The arguments that a program was recorded with, by position or by name; None where both are needed or none is."""
    args, kwargs = program.example_inputs or ((), {})
    if bool(args) == bool(kwargs):
        return None
    return tuple(args) if args else dict(kwargs)


# ---------------------------------------------------------------------------------------------------------------------
# tensors


def _owners(program: Any, source: nn.Module, parameters: frozenset[str] | None) -> nn.Module:
    """A tree of empty modules that own the program's tensors under their names."""
    root = nn.Module()
    made: dict[int, Any] = {}
    state = dict(source.state_dict(keep_vars=True))
    for name, value in (*program.state_dict.items(), *state.items(), *program.constants.items()):
        if not isinstance(value, Tensor):
            continue
        wanted = name in parameters if parameters is not None else isinstance(value, nn.Parameter)
        if wanted and not isinstance(value, nn.Parameter):
            value = made.setdefault(id(value), nn.Parameter(value.detach()))
        elif wanted:
            value.requires_grad_(value.is_floating_point())
        _place(root, name, value, persistent=name in program.state_dict)
    return root


def _place(root: nn.Module, name: str, value: Tensor, *, persistent: bool = True) -> None:
    path, _, leaf = name.rpartition(".")
    owner = root
    for step in path.split(".") if path else ():
        if not hasattr(owner, step):
            owner.add_module(step, nn.Module())
        owner = getattr(owner, step)
    if hasattr(owner, leaf):
        return
    if isinstance(value, nn.Parameter):
        owner.register_parameter(leaf, value)
    else:
        owner.register_buffer(leaf, value, persistent=persistent)


# ---------------------------------------------------------------------------------------------------------------------
# operations


def _as_layer(node: fx.Node, layer: Layer, root: nn.Module) -> None:
    root.set_submodule(layer.path, layer.module)
    if isinstance(layer.module, nn.LSTM):  # returns (x, (h, c)) where the operation returns (x, h, c)
        for user in list(node.users):
            if user.target is operator.getitem and user.args[1] in (1, 2):
                with node.graph.inserting_before(user):
                    states = node.graph.call_function(operator.getitem, (node, 1))
                user.args = (states, int(str(user.args[1])) - 1)
    _become(node, "call_module", layer.path, layer.inputs)


def _as_function(node: fx.Node) -> None:
    """The function, operator or method that a forward would have called, where there is one of the same meaning."""
    name, known = packet(node), dict(arguments(node))
    first = next(iter(known.values()), None)
    args = node.args
    if name.removesuffix("_") in _ACTIVATIONS and name.endswith("_"):
        _become(node, "call_function", FUNCTIONS[name[:-1]], args, {**node.kwargs, "inplace": True})
    elif name == "slice" and isinstance(first, fx.Node) and known["step"] is not None:
        end = None if known["end"] == _END else known["end"]
        part = (*[slice(None)] * known["dim"], slice(known["start"], end, known["step"]))
        if known["dim"] >= 0:
            _become(node, "call_function", operator.getitem, (first, part))
    elif name == "select" and known["dim"] >= 0:
        _become(node, "call_function", operator.getitem, (first, (*[slice(None)] * known["dim"], known["index"])))
    elif name in FUNCTIONS and known.get("alpha", 1) == 1 and "rounding_mode" not in known:
        kwargs = {key: value for key, value in node.kwargs.items() if key != "alpha"}
        _become(node, "call_function", FUNCTIONS[name], args, kwargs)
    elif name == "sym_size":
        _become(node, "call_method", "size", args)
    elif name == "softmax":
        _become(node, "call_function", F.softmax, (first,), {"dim": known["dim"], "dtype": known["dtype"]})
    elif name in _SIZES and isinstance(first, fx.Node) and not node.kwargs:
        sizes: Any = args[1]
        _become(node, "call_method", name, (first, *sizes))
    elif hasattr(Tensor, name) and isinstance(first, fx.Node) and not node.kwargs and _is_method(node):
        _become(node, "call_method", name, args)


def _is_method(node: fx.Node) -> bool:
    """Whether the tensor's method takes the operation's arguments in their order."""
    return packet(node) not in ("to", "index", "slice", "type_as", "new_zeros", "new_ones", "new_full", "new_empty")


def _become(
    node: fx.Node, op: str, target: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any] | None = None
) -> None:
    node.op, node.target, node.args, node.kwargs = op, target, args, dict(kwargs or {})


def _sweep(graph: fx.Graph, root: nn.Module) -> None:
    """Without reads that nobody uses, and without the counting of batches that a batch norm now does itself."""
    counting = [name for name, module in root.named_modules() if isinstance(module, _NormBase)]
    counters = [f"{name}.num_batches_tracked" for name in counting]
    for node in reversed(list(graph.nodes)):
        counts = node.target is operator.iadd and str(getattr(node.args[0], "target", "")) in counters
        if not node.users and (counts or node.op == "get_attr"):
            graph.erase_node(node)


# ---------------------------------------------------------------------------------------------------------------------
# the same?


def _compare(program: Any, network: nn.Module) -> None:
    """Raises LoadError unless network and program return the same for the program's example inputs."""
    args, kwargs = program.example_inputs or ((), {})
    if not args and not kwargs:
        return
    answers = []
    try:
        for each in (program.module(), network):
            given = _pytree.tree_map(_own, (args, kwargs))
            with torch.no_grad(), rng.seeded(0):
                answers.append(_pytree.tree_leaves(each(*given[0], **given[1])))
    except Exception as error:  # whatever a forward raises
        raise LoadError("the program does not run", got=spell(error), fix=WAY_OUT) from error
    if len(answers[0]) != len(answers[1]) or not all(map(_alike, *answers)):
        raise LoadError(
            "the network made of this program does not compute what the program computes",
            expected="the same outputs for its example inputs",
            fix=f"{WAY_OUT} Please report the program.",
        )


def _own(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else value


def _alike(one: Any, two: Any) -> bool:
    if not (isinstance(one, Tensor) and isinstance(two, Tensor)):
        return bool(one == two)
    fits = (one.shape, one.dtype) == (two.shape, two.dtype)
    return fits and torch.allclose(one, two, rtol=1e-4, atol=1e-5, equal_nan=True)
