"""Operations in place, and their forms that are not."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx
from torch.nn import functional as F

FUNCTIONS: dict[Any, Any] = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
    F.elu_: F.elu,
    F.hardtanh_: F.hardtanh,
    F.leaky_relu_: F.leaky_relu,
    F.relu_: F.relu,
    F.rrelu_: F.rrelu,
    F.selu_: F.selu,
    F.celu_: F.celu,
    torch.relu_: torch.relu,
}
WITH_FLAG = frozenset({F.relu, F.relu6, F.silu, F.hardswish, F.hardsigmoid, F.mish})  # (input, inplace)
FILLS = frozenset({"bernoulli_", "copy_", "fill_", "zero_"})  # they do not read what they overwrite

ARITHMETIC: dict[Any, str] = {  # the recorder writes `a + b` as a method, fx as an operator
    operator.add: "add",
    operator.sub: "sub",
    operator.mul: "mul",
    operator.truediv: "div",
    "truediv": "div",
    torch.add: "add",
    torch.sub: "sub",
    torch.mul: "mul",
    torch.div: "div",
}

Call = tuple[str, Any, tuple[Any, ...], dict[str, Any]]  # op, target, args, kwargs


def pure_method(name: object) -> str:
    """The method without the underscore; "" for one that has no such form."""
    pure = name.removesuffix("_") if isinstance(name, str) else ""
    known = pure != name and not str(name).endswith("__") and name not in FILLS
    return pure if known and callable(getattr(torch.Tensor, pure, None)) else ""


def flagged(target: Any, args: tuple[Any, ...]) -> bool:
    return target in WITH_FLAG and True in args[1:]


def pure_form(op: str, target: Any, args: Any, kwargs: Any) -> Call:
    """The call that makes the same value and leaves its input alone, in one spelling."""
    if op not in ("call_function", "call_method"):
        return op, target, tuple(args), dict(kwargs)
    if op == "call_function" and target in WITH_FLAG and (flagged(target, args) or False in args[1:]):
        args = args[:1]
    kwargs = {name: value for name, value in kwargs.items() if name != "inplace"}
    pure = FUNCTIONS.get(target, target) if op == "call_function" else pure_method(target) or target
    if pure in ARITHMETIC:
        op, pure = "call_method", ARITHMETIC[pure]
    return op, pure, tuple(args), kwargs


def make_pure(node: fx.Node) -> None:
    if node.op == "call_module":
        return
    if flagged(node.target, node.args):
        node.args = node.args[:1]
    pure = pure_method(node.target) if node.op == "call_method" else ""
    node.target = FUNCTIONS.get(node.target, pure or node.target)
    if "inplace" in node.kwargs:
        node.kwargs = {**node.kwargs, "inplace": False}
