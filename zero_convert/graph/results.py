"""The tensors inside of what a forward returns: one answer for tracing, checks and exporters.

Looked into, in this order: mappings, lists and tuples (named ones and packed sequences are tuples), types that are
registered with torch's pytree, dataclasses, and the attributes of any other object (distributions, classes of the
user). Modules, functions, classes and sets are not looked into: the first two hold state, and a set has no order.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator, Mapping
from types import BuiltinFunctionType, FunctionType, GeneratorType, MethodType, ModuleType
from typing import Any
from weakref import ReferenceType

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

MAX_DEPTH = 8  # of nests that a forward returns
_CLOSED = (
    *(str, bytes, bytearray, int, float, complex, bool, type(None), type, set, frozenset, enum.Enum, ModuleType),
    *(nn.Module, fx.Proxy, fx.Node, FunctionType, BuiltinFunctionType, MethodType, GeneratorType, ReferenceType),
    *(torch.dtype, torch.device, torch.Generator, torch.Size),
)


def tensors_of(value: Any) -> Iterator[Tensor]:
    """The tensors in a nest of containers and objects, in order; what two attributes of an object share, once."""
    return _inside(value, 0, ())


def is_plain(value: Any) -> bool:
    """Whether torch's pytree takes the value apart into nothing but tensors, numbers and None."""
    plain = (Tensor, int, float, bool, type(None))
    return all(isinstance(leaf, plain) for leaf in pytree.tree_leaves(value))


def _inside(value: Any, depth: int, within: tuple[int, ...]) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
        return
    if isinstance(value, _CLOSED) or depth > MAX_DEPTH or id(value) in within:
        return
    parts, distinct = _parts(value)
    seen: set[int] = set()
    for part in parts:
        for tensor in _inside(part, depth + 1, (*within, id(value))):
            if not distinct or id(tensor) not in seen:
                seen.add(id(tensor))
                yield tensor


def _parts(value: Any) -> tuple[Iterable[Any], bool]:
    """What the value holds, and whether it may hold one thing under several names."""
    if isinstance(value, Mapping):
        return list(value.values()), False
    if isinstance(value, (list, tuple)):
        return value, False
    if type(value) in pytree.SUPPORTED_NODES:
        return pytree.SUPPORTED_NODES[type(value)].flatten_fn(value)[0], False
    if hasattr(type(value), "__dataclass_fields__"):
        fields = [getattr(value, name, None) for name in value.__dataclass_fields__]
        rest = [held for name, held in _attributes(value) if name not in value.__dataclass_fields__]
        return [*fields, *rest], bool(rest)
    return [held for _, held in _attributes(value)], True


def _attributes(value: Any) -> list[tuple[str, Any]]:
    """Name and value of what an object holds in its dict and in its slots."""
    found = list(getattr(value, "__dict__", {}).items())
    for base in type(value).__mro__:
        slots = vars(base).get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else tuple(slots):
            if name not in ("__dict__", "__weakref__"):
                name = (
                    f"_{base.__name__.lstrip('_')}{name}" if name.startswith("__") and not name.endswith("__") else name
                )
                found += [(name, getattr(value, name))] if hasattr(value, name) else []
    return found
