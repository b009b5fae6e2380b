"""Tensors that a module holds outside of its parameters and buffers: what a state dict does not show.

Layers in plain lists, tuples, dicts, dataclasses, closures, partial functions, class attributes and globals, and plain
tensors there. What is registered elsewhere in the model (`self.order = [self.a, self.b]`) is none of them, and neither
is what other parameters make (`weight` of torch's older weight norm). Nothing runs here.
"""

from __future__ import annotations

import argparse
import functools
import inspect
import re
import sys
from collections import UserDict, UserList, deque
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from types import FunctionType, MethodType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from zero_convert.runtime.source_lines import spelled

MAX_DEPTH = 8  # of nests of objects
MAX_OBJECTS = 20_000
SEQUENCES = (list, tuple, set, frozenset, deque, UserList)
_OWN = frozenset(vars(nn.Module())) - {"_forward_hooks", "_forward_pre_hooks"}  # what every module has
_OPEN = (SimpleNamespace, argparse.Namespace, torch.distributions.Distribution)
_CLOSED = frozenset({*sys.stdlib_module_names, "torch", "numpy", "zero_convert"})


@dataclass(frozen=True)
class Outside:
    """A tensor outside of the state dict.

    Attributes:
        name: as Python finds it from the model: `stages[0].conv.weight`.
        tensor: itself.
        layer: class of the layer that it belongs to; "" for a tensor of its own.
        holder: what kind of thing holds it: "list", "tuple", "dict", "function", "class", "object" or "attribute".
        attribute: the first part of the name that a module's constructor assigns.
        place: `net.py:12`, where that is assigned; "" where no source says.
    """

    name: str
    tensor: Tensor
    layer: str
    holder: str
    attribute: str
    place: str

    @property
    def weight(self) -> bool:
        """Whether training is meant to change it."""
        return isinstance(self.tensor, nn.Parameter) or self.tensor.requires_grad


def storage(tensor: Tensor) -> int:
    """What tells whether two tensors share memory."""
    try:
        key: int = tensor.untyped_storage()._cdata
    except (NotImplementedError, RuntimeError):  # sparse layouts have none
        return id(tensor)
    return key


def registered(module: nn.Module) -> set[int]:
    """The storages of all parameters and buffers."""
    tensors = (*module.parameters(), *module.buffers())
    return {storage(tensor) for tensor in tensors if not nn.parameter.is_lazy(tensor)}


def find(module: nn.Module) -> tuple[Outside, ...]:
    """Every tensor that the module's attributes, classes and functions reach and that is not registered."""
    walk = _Walk(registered(module), {id(part) for part in module.modules()})
    for path, part in module.named_modules():
        if not isinstance(part, torch.jit.ScriptModule):
            walk.module(part, path, type(part))
    return tuple(walk.found)


@dataclass(frozen=True)
class _Way:
    """How a value was come to: the path of the module and what was said of it so far."""

    cls: type
    attribute: str
    holder: str = "attribute"
    layer: str = ""
    depth: int = 0
    function: str = ""  # where the innermost function on the way is defined

    def through(self, holder: str, value: Any) -> _Way:
        function = defined(value) if isinstance(value, FunctionType) else self.function
        return replace(self, holder=holder, depth=self.depth + 1, function=function)

    @property
    def place(self) -> str:
        return _assigned(self.cls, self.attribute) or self.function


@dataclass
class _Walk:
    known: set[int]
    modules: set[int]
    found: list[Outside] = field(default_factory=list)
    seen: set[int] = field(default_factory=set)
    classes: set[type] = field(default_factory=set)

    def module(self, part: nn.Module, path: str, cls: type) -> None:
        for name, value in list(vars(part).items()):
            if name in _OWN:
                continue
            self.value(value, f"{path}.{name}" if path else name, _Way(cls, name))
        for base in type(part).__mro__:
            if base not in self.classes and not base.__module__.startswith(("torch.", "builtins")):
                self.classes.add(base)
                for name, value in list(vars(base).items()):
                    self._of_class(base, name, value)

    def _of_class(self, base: type, name: str, value: Any) -> None:
        value = value.fget if isinstance(value, property) else getattr(value, "__func__", value)
        if isinstance(value, FunctionType):
            self.value(value, f"{base.__qualname__}.{name}", _Way(base, name, "function"))
        elif not name.startswith("__") and not isinstance(value, (type, functools.cached_property)):
            self.value(value, f"{base.__qualname__}.{name}", _Way(base, name, "class"))

    def value(self, value: Any, name: str, way: _Way) -> None:
        if isinstance(value, Tensor):
            return self._tensor(value, name, way)
        if value is None or isinstance(value, (str, bytes, int, float, complex, type)):
            return None
        if id(value) in self.seen or way.depth > MAX_DEPTH or len(self.seen) > MAX_OBJECTS:
            return None
        self.seen.add(id(value))
        if isinstance(value, nn.Module):
            return self._layer(value, name, way)
        for part, key, holder in _parts(value):
            self.value(part, f"{name}{key}", way.through(holder, value))
        return None

    def _tensor(self, tensor: Tensor, name: str, way: _Way) -> None:
        made = tensor.grad_fn is not None  # of parameters, which count themselves
        if made or nn.parameter.is_lazy(tensor) or not tensor.numel() or storage(tensor) in self.known:
            return
        self.known.add(storage(tensor))
        self.found.append(Outside(name, tensor, way.layer, way.holder, way.attribute, way.place))

    def _layer(self, layer: nn.Module, name: str, way: _Way) -> None:
        if id(layer) in self.modules or isinstance(layer, torch.jit.ScriptModule):
            return
        for path, part in layer.named_modules():
            self.modules.add(id(part))
            where = f"{name}.{path}" if path else name
            inside = replace(way, layer=type(part).__qualname__, depth=way.depth + 1)
            for local, tensor in (*part._parameters.items(), *part._buffers.items()):
                if tensor is not None:
                    self._tensor(tensor, f"{where}.{local}", inside)
            self.module(part, where, type(part))


def defined(function: FunctionType) -> str:
    """`net.py:12` of a function."""
    return f"{spelled(function.__code__.co_filename)}:{function.__code__.co_firstlineno}"


def _parts(value: Any) -> Iterator[tuple[Any, str, str]]:
    """(part, how Python spells the way to it, what kind of thing holds it)."""
    if isinstance(value, (dict, UserDict)):
        for key, part in list(value.items()):
            yield part, f"[{key!r}]" if isinstance(key, (str, int)) else "[…]", "dict"
    elif isinstance(value, SEQUENCES):
        kind = "tuple" if isinstance(value, tuple) else "list"
        for index, part in enumerate(value):
            yield part, f"[{index}]", kind
    elif isinstance(value, functools.partial):
        for part, key in ((value.func, ".func"), (value.args, ".args"), (value.keywords, ".keywords")):
            yield part, key, "function"
    elif isinstance(value, MethodType):
        yield value.__self__, ".__self__", "function"
    elif isinstance(value, FunctionType):
        yield from _of_function(value)
    elif _is_open(value):
        for name, part in (*getattr(value, "__dict__", {}).items(), *_slots(value)):
            yield part, f".{name}", "object"


def _is_open(value: Any) -> bool:
    if isinstance(value, _OPEN):
        return True
    return (type(value).__module__ or "").partition(".")[0] not in _CLOSED


def _slots(value: Any) -> Iterator[tuple[str, Any]]:
    for base in type(value).__mro__:
        names = vars(base).get("__slots__", ())
        for name in (names,) if isinstance(names, str) else tuple(names):
            if not name.startswith("__") and hasattr(value, name):
                yield name, getattr(value, name)


def _of_function(function: FunctionType) -> Iterator[tuple[Any, str, str]]:
    """What a function takes along: its closure, its defaults, and tensors and layers that it names as globals."""
    code = function.__code__
    for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
        try:
            yield cell.cell_contents, f", closure `{name}`", "function"
        except ValueError:  # an empty one
            continue
    names = code.co_varnames[: code.co_argcount]
    for name, value in zip(reversed(names), reversed(function.__defaults__ or ()), strict=False):
        yield value, f", default of `{name}`", "function"
    for name, value in (function.__kwdefaults__ or {}).items():
        yield value, f", default of `{name}`", "function"
    for name in code.co_names:
        value = function.__globals__.get(name)
        inside = list(value.values()) if isinstance(value, dict) else [value]
        inside = list(value) if isinstance(value, (list, tuple)) else inside
        if any(isinstance(each, (Tensor, nn.Module)) for each in inside):
            yield value, f", global `{name}`", "function"


@functools.lru_cache(maxsize=1024)
def _assigned(cls: type, attribute: str) -> str:
    """`net.py:12`, where a class or one of its bases assigns the attribute or defines the function."""
    pattern = re.compile(rf"(\bself\.{re.escape(attribute)}\b[^=\n]*=|\b(def\s+)?{re.escape(attribute)}\s*[(:=])(?!=)")
    for base in cls.__mro__:
        if base.__module__.startswith("torch."):
            break
        try:
            file, (lines, first) = inspect.getsourcefile(base), inspect.getsourcelines(base)
        except (OSError, TypeError):
            continue
        for number, line in enumerate(lines, first):
            if file and pattern.search(line):
                return f"{spelled(file)}:{number}"
    return ""
