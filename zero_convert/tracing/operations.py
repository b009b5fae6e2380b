"""From what torch calls an operation to what a graph node calls it. Knows nothing of modules or values."""

from __future__ import annotations

import operator
import types
from collections.abc import Callable
from typing import Any

OPERATORS: dict[str, Callable[..., Any]] = {
    "__getitem__": operator.getitem,
    "__and__": operator.and_,
    "__or__": operator.or_,
    "__xor__": operator.xor,
    "__lshift__": operator.lshift,
    "__rshift__": operator.rshift,
    "__invert__": operator.invert,
    "__matmul__": operator.matmul,
    "__mod__": operator.mod,
    "__floordiv__": operator.floordiv,
    "__truediv__": operator.truediv,
    "__neg__": operator.neg,
    "__pos__": operator.pos,
    "__abs__": operator.abs,
    "__add__": operator.add,
    "__sub__": operator.sub,
    "__mul__": operator.mul,
    "__pow__": operator.pow,
    "__eq__": operator.eq,
    "__ne__": operator.ne,
    "__lt__": operator.lt,
    "__le__": operator.le,
    "__gt__": operator.gt,
    "__ge__": operator.ge,
    "__iadd__": operator.iadd,
    "__isub__": operator.isub,
    "__imul__": operator.imul,
    "__itruediv__": operator.itruediv,
}
SWAPPED: dict[str, Callable[..., Any]] = {
    "__radd__": operator.add,
    "__rsub__": operator.sub,
    "__rmul__": operator.mul,
    "__rdiv__": operator.truediv,
    "__rtruediv__": operator.truediv,
    "__rfloordiv__": operator.floordiv,
    "__rmod__": operator.mod,
    "__rpow__": operator.pow,
    "__rmatmul__": operator.matmul,
    "__rand__": operator.and_,
    "__ror__": operator.or_,
    "__rxor__": operator.xor,
}
METHODS = (types.MethodDescriptorType, types.WrapperDescriptorType, types.MethodWrapperType)

# Questions with a plain answer: nothing is computed, and the graph need not ask them again.
QUESTIONS = frozenset(
    {
        *("__hash__", "__repr__", "__str__", "__format__", "__dir__", "__reduce_ex__", "__len__", "__class__"),
        *("dim", "ndimension", "element_size", "stride", "storage_offset", "is_contiguous", "is_pinned", "data_ptr"),
        *("is_floating_point", "is_complex", "is_signed", "is_same_size", "get_device", "storage", "untyped_storage"),
        *("is_tensor", "is_storage", "result_type", "can_cast", "register_hook", "retain_grad", "is_inference"),
        *("is_shared", "has_names", "numpy", "is_coalesced", "_version", "_is_view"),
    }
)
VALUES = frozenset(
    {
        *("__bool__", "__int__", "__float__", "__index__", "__complex__", "__contains__", "item", "tolist"),
        *("is_nonzero", "equal", "allclose"),
    }
)


def target(function: Callable[..., Any]) -> tuple[str, Callable[..., Any] | str, bool]:
    """The node's op ("call_function" or "call_method"), its target, and whether its two arguments are swapped."""
    name = getattr(function, "__name__", "")
    if name in SWAPPED:
        return "call_function", SWAPPED[name], True
    if is_method(function):
        if name in OPERATORS:
            return "call_function", OPERATORS[name], False
        return "call_method", name, False
    return "call_function", function, False


def is_method(function: Callable[..., Any]) -> bool:
    """Whether torch means a method of a tensor, which its first argument is."""
    owner = getattr(function, "__qualname__", "").partition(".")[0]
    return isinstance(function, METHODS) or (owner in ("Tensor", "TensorBase") and not isinstance(function, type))


def attribute(function: Callable[..., Any]) -> str:
    """The attribute's name where torch reads an attribute of a tensor, else ""."""
    if getattr(function, "__name__", "") != "__get__":
        return ""
    return str(getattr(getattr(function, "__self__", None), "__name__", ""))


def assigned_attribute(function: Callable[..., Any]) -> str:
    """The attribute's name where torch assigns to an attribute of a tensor, else ""."""
    if getattr(function, "__name__", "") != "__set__":
        return ""
    return str(getattr(getattr(function, "__self__", None), "__name__", ""))
