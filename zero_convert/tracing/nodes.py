"""Which node of a graph stands for which value, and how a value becomes an argument of a node.

Parts of containers get their nodes when they are first used. Tensors that no recorded call made are parameters,
buffers or constants of the module.
"""

from __future__ import annotations

import contextlib
import functools
import operator
import weakref
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from zero_convert.graph.results import tensors_of

from .symbolic_sizes import _Traced
from .symbolic_sizes import argument as of_size

PLAIN = (str, int, float, bool, complex, type(None), type(Ellipsis), torch.dtype, torch.device, torch.memory_format)


class CannotRecord(Exception):
    """The forward does something that no graph can hold."""


class Nodes:
    """The values of one recording and their nodes.

    Attributes:
        running: paths of the modules whose forward runs now, the innermost last.
        reads: device or dtype → the node that asks a tensor for it.
        attributes: id of every parameter, buffer and tensor attribute → its names.
        alive: what must not be forgotten, so that no id is given twice. Real values are forgotten when the forward
            drops them: a recording needs no more memory than a run.
    """

    def __init__(self, root: nn.Module, graph: fx.Graph, *, real: bool) -> None:
        self.root, self.graph, self.real = root, graph, real
        self.running: list[str] = []
        self.reads: dict[torch.device | torch.dtype, Callable[[], fx.Node]] = {}
        self.attributes = self._tensor_attributes()
        self.alive: list[Any] = []
        self.by_tensor: dict[int, fx.Node] = {}
        self._sources: dict[int, Callable[[], fx.Node]] = {}  # tensor → its node, made when it is first used

    def known(self, tensor: Tensor) -> bool:
        return id(tensor) in self.by_tensor or id(tensor) in self._sources

    def remember(self, value: Any, source: Callable[[], fx.Node], node: fx.Node | None = None) -> None:
        """Every tensor in the value gets its node; inside a container it is made when it is first used."""
        if isinstance(value, Tensor):
            if self.real:
                weakref.finalize(value, self._forget, id(value)).atexit = False
            else:
                self.alive.append(value)
            self._sources[id(value)] = source
            self.by_tensor.pop(id(value), None)
            if node is not None:
                self.by_tensor[id(value)] = node
        elif isinstance(value, Mapping):
            for key, item in value.items():
                self.remember(item, self._part(source, key, item))
        elif isinstance(value, (tuple, list)):
            for i, item in enumerate(value):
                self.remember(item, self._part(source, i, item))
        elif hasattr(value, "__dataclass_fields__"):
            for key in value.__dataclass_fields__:
                self.remember(getattr(value, key), self._field(source, key))

    def _forget(self, key: int) -> None:
        self._sources.pop(key, None)
        self.by_tensor.pop(key, None)

    def _part(self, source: Callable[[], fx.Node], key: Any, item: Any) -> Callable[[], fx.Node]:
        made: list[fx.Node] = []
        shape = tuple(item.shape) if isinstance(item, Tensor) else None

        def part() -> fx.Node:
            if not made:
                made.append(self.graph.call_function(operator.getitem, (source(), key)))
                made[0].meta["part"] = True
                made[0].meta["shape"] = shape
            return made[0]

        return part

    def _field(self, source: Callable[[], fx.Node], key: str) -> Callable[[], fx.Node]:
        made: list[fx.Node] = []

        def part() -> fx.Node:
            if not made:
                made.append(self.graph.call_function(getattr, (source(), key)))
                made[0].meta["part"] = True
            return made[0]

        return part

    def node(self, tensor: Tensor) -> fx.Node:
        node = self.by_tensor.get(id(tensor))
        if node is None:
            source = self._sources.get(id(tensor))
            node = self.by_tensor[id(tensor)] = source() if source is not None else self._state(tensor)
        return node

    def _state(self, tensor: Tensor) -> fx.Node:
        """A node for a tensor that no operation of this forward made."""
        names = self.attributes.get(id(tensor))
        if names is None:
            if isinstance(tensor, torch._subclasses.FakeTensor):
                raise CannotRecord("a tensor appears that no call of torch's Python interface made")
            names = [self._constant_name()]
            setattr(self.root, names[0], tensor.detach() if isinstance(tensor, nn.Parameter) else tensor)
            self.attributes[id(tensor)] = names
        here = f"{self.running[-1]}." if self.running and self.running[-1] else ""
        name = next((n for n in names if n.startswith(here) and "." not in n[len(here) :]), names[0])
        node = self.graph.get_attr(name)
        node.meta["shape"] = tuple(tensor.shape)
        self.alive.append(tensor)
        return node

    def _tensor_attributes(self) -> dict[int, list[str]]:
        """id of every parameter, buffer and tensor attribute → its names, by the modules that have it."""
        found: dict[int, list[str]] = {}
        for path, module in self.root.named_modules(remove_duplicate=False):
            prefix = f"{path}." if path else ""
            for name, value in (*module._parameters.items(), *module._buffers.items(), *vars(module).items()):
                if isinstance(value, Tensor):
                    found.setdefault(id(value), []).append(prefix + name)
        return found

    def argument(self, value: Any) -> Any:
        """The value as a node's argument."""
        if isinstance(value, Tensor):
            if isinstance(value, nn.Parameter) and not self.real and id(value) not in self.attributes:
                raise CannotRecord("a parameter is read that is no part of the module")
            return self.node(value)
        if isinstance(value, _Traced):
            return of_size(value)
        if isinstance(value, (torch.dtype, torch.device)):
            source = self.reads.get(value)
            return source() if source is not None else value
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            return self.graph.call_function(type(value), tuple(map(self.argument, value)))
        if isinstance(value, (tuple, list)):
            made = [self.argument(v) for v in value]
            return tuple(made) if isinstance(value, tuple) else made
        if isinstance(value, slice):
            return slice(*map(self.argument, (value.start, value.stop, value.step)))
        if isinstance(value, range):
            return value
        if isinstance(value, dict) and type(value).__module__ in ("builtins", "collections"):
            return {k: self.argument(v) for k, v in value.items()}
        if hasattr(value, "__dataclass_fields__"):
            fields = {k: self.argument(getattr(value, k)) for k in value.__dataclass_fields__}
            return self.graph.call_function(type(value), (), {k: v for k, v in fields.items() if v is not None})
        if isinstance(value, PLAIN) or (isinstance(value, type) and not list(tensors_of(value))):
            return value
        if isinstance(value, fx.node.base_types) or (callable(value) and not _holds_state(value)):
            return value
        if self.real:
            return self._object(value)
        raise CannotRecord(f"a {type(value).__qualname__} is passed on")

    def result(self, value: Any) -> Any:
        """What the forward returns as the argument of the output node.

        A recording, which nobody runs for its result, has the tensors of an object there instead of the object.
        """
        if not self.real:
            return self.argument(value)
        if isinstance(value, dict):
            return {key if isinstance(key, str) else str(key): self.result(item) for key, item in value.items()}
        if isinstance(value, (tuple, list)):
            return tuple(map(self.result, value))
        if isinstance(value, (Tensor, *PLAIN)):
            return self.argument(value)
        return tuple(map(self.node, tensors_of(value)))

    def _object(self, value: Any) -> fx.Node:
        """A Python object that a recording needs to run again, kept beside the module's state."""
        name = self._constant_name()
        setattr(self.root, name, value)
        return self.graph.get_attr(name)

    def _constant_name(self) -> str:
        return f"_tensor_constant{sum(name.startswith('_tensor_constant') for name in vars(self.root))}"


def _holds_state(value: Any) -> bool:
    """Whether something that can be called takes a module or tensors with it, which no node would show."""
    if isinstance(value, (Tensor, nn.Module)) or next(tensors_of(value), None) is not None:
        return True
    if isinstance(value, functools.partial):
        return any(map(_holds_state, (value.func, *value.args, *value.keywords.values())))
    held = [getattr(value, "__self__", None)]
    for cell in getattr(value, "__closure__", None) or ():
        with contextlib.suppress(ValueError):  # an empty one
            held.append(cell.cell_contents)
    return any(isinstance(each, (Tensor, nn.Module)) for each in held)


WRITES = frozenset(
    {
        *("index_add_", "index_copy_", "index_put_", "index_reduce_", "index_fill_"),
        *("scatter_", "scatter_add_", "scatter_reduce_", "masked_scatter_"),
    }
)


def follow_writes(graph: fx.Graph) -> None:
    """Lets what comes after a write, and reads the tensor written to, read the result of the write."""
    place = {node: i for i, node in enumerate(graph.nodes)}
    for node in graph.nodes:
        base = node.args[0] if node.op == "call_method" and node.target in WRITES and node.args else None
        if isinstance(base, fx.Node):
            for user in list(base.users):
                if place[user] > place[node]:
                    user.replace_input_with(base, node)
