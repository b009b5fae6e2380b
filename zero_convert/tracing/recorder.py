"""The graph of a forward that really runs, on example values: fake tensors without memory, or real ones.

A mode sees every call of torch's Python interface and writes it down; known layers and `leaves` are one node each.
Since Python runs as it is, control flow follows the example; sizes stay free (`sizes.py`). Where the code asks for the
value of a fake tensor, the answer is computed if it depends on no parameter; otherwise the module that asks cannot be
followed (`ValueNeeded`). On real tensors every forward can be followed, but what the values decided is decided in the
graph: such a graph is for looking at. The module and its state are afterwards as they were.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from ..modules import FunctionCall, assigned
from .known import known_output, known_value
from .operations import QUESTIONS, VALUES, assigned_attribute, attribute, is_method, target
from .shapes import example_output, quiet, tensor_summary, tensors_of
from .sizes import Size, _Traced, argument, sizes_of, traced
from .state import restored, unassigned

PLAIN = (str, int, float, bool, complex, type(None), type(Ellipsis), torch.dtype, torch.device, torch.memory_format)
KNOWN = ("placeholder", "get_attr")
MAX_FOLLOWED = 100_000  # operations: a forward with more is a loop over time steps that nobody wants as a graph


class ValueNeeded(Exception):
    """The forward asks for the value of a tensor that depends on parameters, or takes a number from an input."""


class CannotRecord(Exception):
    """The forward does something that no graph can hold."""


@dataclass(frozen=True)
class Like:
    """What a tensor was like: its sizes, strides and dtype, without its memory."""

    size: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype

    def zeros(self) -> Tensor:
        return torch.empty_strided(self.size, self.stride, dtype=self.dtype).zero_()


@dataclass(frozen=True)
class Call:
    """The arguments that a module was called with, `Like` in the place of tensors."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    @classmethod
    def of(cls, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Call:
        return cls(
            *tree_map(lambda x: Like(x.shape, x.stride(), x.dtype) if isinstance(x, Tensor) else x, (args, kwargs))
        )


class Recorder(TorchFunctionMode):
    """Records one forward.

    Args:
        root: the module; in the mode that is to be recorded.
        leaves: paths of submodules to keep whole besides what `is_leaf` says.
        is_leaf: whether a module is kept whole.
        real: run on real tensors. The root is trained on nothing, but its buffers may be written to: give a copy.
    """

    def __init__(
        self, root: nn.Module, leaves: Collection[str], is_leaf: Callable[[nn.Module], bool], *, real: bool = False
    ) -> None:
        super().__init__()
        self.root, self.graph = root, fx.Graph()
        self.decisions: list[str] = []
        self._leaves, self._is_leaf = frozenset(leaves), is_leaf
        self._fake = None if real else FakeTensorMode(allow_non_fake_inputs=True)
        self.first_calls: dict[str, Call | None] = {}  # path → how a module was called; None if more than once
        self._paths: dict[int, str] = {}
        for path, module in root.named_modules():
            self._paths.setdefault(id(module), path)
        self._sources: dict[int, Callable[[], fx.Node]] = {}  # tensor → its node, made when it is first used
        self._nodes: dict[int, fx.Node] = {}
        self._alive: list[Any] = []  # so that no id is given twice
        self._attributes = self._tensor_attributes()
        self._reads: dict[torch.device | torch.dtype, Callable[[], fx.Node]] = {}
        self._running: list[str] = []
        self._paused = False
        self._gradients = True
        self._examples: dict[fx.Node, Any] = {}
        self._buffers: dict[str, Tensor] = {}  # the real ones, by name
        self._count = 0

    # -- the forward ---------------------------------------------------------------------------------------------------

    def record(self, args: Sequence[Any], keywords: Mapping[str, Any], names: Sequence[str]) -> fx.Graph:
        """The graph; `names` are those of the placeholders, first for `args`, then for `keywords`."""
        given = [*args, *keywords.values()]
        fake = self._fake or nullcontext()
        with (
            unset_fake_temporarily(),
            restored(self.root),
            quiet(),
            fake,
            torch.set_grad_enabled(self._fake is not None),
        ):
            self._shield_buffers()
            faked = [self._input(value, name) for value, name in zip(given, names, strict=True)]
            whole = unassigned(self.root, self._leaves) if self._fake is not None else nullcontext()
            with whole, self._calls_seen(), sizes_of(self.graph), self:
                value = self.root(*faked[: len(args)], **dict(zip(keywords, faked[len(args) :], strict=True)))
                node = self.graph.output(self._argument(value))
            node.meta["outputs"] = tensor_summary(value)
        return self.graph

    def _input(self, value: Any, name: str) -> Any:
        node = self.graph.placeholder(name)
        faked = tree_map(lambda t: self._example(t) if isinstance(t, Tensor) else t, value)
        node.meta["shape"] = tuple(value.shape) if isinstance(value, Tensor) else None
        self._examples[node] = value
        self._remember(faked, lambda: node, node)
        for tensor in tensors_of(faked):
            self._reads.setdefault(tensor.device, partial(self._attribute_node, tensor, "device"))
        return faked

    def _shield_buffers(self) -> None:
        """Fake buffers for the time of the forward: torch writes to a real one even where all else is fake."""
        if self._fake is None:
            return
        for path, module in self.root.named_modules():
            for name, buffer in module._buffers.items():
                if buffer is not None:
                    module._buffers[name] = fake = self._example(buffer)
                    full = f"{path}.{name}" if path else name
                    self._buffers[full] = buffer
                    self._attributes.setdefault(id(fake), []).append(full)
                    self._alive.append(fake)

    def _example(self, tensor: Tensor) -> Tensor:
        made: Tensor = tensor.detach().clone() if self._fake is None else self._fake.from_tensor(tensor.detach())
        return made

    @contextmanager
    def _calls_seen(self) -> Iterator[None]:
        """While it lasts, a call of a module or of an autograd function comes to the recorder."""
        module_call, apply = nn.Module.__call__, torch.autograd.Function.__dict__["apply"]
        recorder = self

        def call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            if recorder._paused:
                return module_call(module, *args, **kwargs)
            return recorder._call_module(module_call, module, args, kwargs)

        def applied(cls: Any, *args: Any, **kwargs: Any) -> Any:
            original = apply.__get__(None, cls)
            if recorder._paused:
                return original(*args, **kwargs)
            return recorder._record("call_function", FunctionCall(cls), args, kwargs, lambda: original(*args, **kwargs))

        nn.Module.__call__ = call  # type: ignore[method-assign]
        torch.autograd.Function.apply = classmethod(applied)
        try:
            yield
        finally:
            nn.Module.__call__ = module_call  # type: ignore[method-assign]
            torch.autograd.Function.apply = apply

    # -- calls ---------------------------------------------------------------------------------------------------------

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if self._paused:
            return func(*args, **kwargs)
        name = getattr(func, "__name__", "")
        if read := attribute(func):
            return self._read(func, read, args[0])
        if func is torch._C._set_grad_enabled:
            self._gradients = bool(args[0])
            return None if self._fake is None else func(*args, **kwargs)
        if assigned_attribute(func) or name in QUESTIONS:
            return func(*args, **kwargs)
        if name in VALUES:
            return self._value(func, args, kwargs)
        if name in ("size", "numel", "nelement") and is_method(func):
            return self._size(func, args, kwargs)
        if name == "__setitem__":
            self._record("call_function", assigned, args, kwargs, lambda: _assign(*args))
            return None
        if func is F.batch_norm and (known := known_value(func, args)) is not None:
            return self._record("call_function", func, args, kwargs, lambda: known)
        op, what, swap = target(func)
        return self._record(op, what, args[::-1] if swap else args, kwargs, lambda: func(*args, **kwargs))

    def _call_module(
        self, original: Callable[..., Any], module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        path = self._paths.get(id(module))
        if path and (path in self._leaves or self._is_leaf(module)):
            return self._record("call_module", path, args, kwargs, lambda: self._whole(original, module, args, kwargs))
        if path and self._fake is None:
            self.first_calls[path] = None if path in self.first_calls else self._call_of(args, kwargs)
        self._running.append(path if path is not None else self._running[-1])
        try:
            return original(module, *args, **kwargs)
        except Exception as error:
            if not hasattr(error, "zero_convert_path"):
                error.zero_convert_path = self._running[-1]  # type: ignore[attr-defined]
            raise
        finally:
            self._running.pop()

    def _call_of(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Call:
        self._paused = True
        try:
            return Call.of(args, kwargs)
        finally:
            self._paused = False

    def _whole(self, original: Callable[..., Any], module: nn.Module, args: Any, kwargs: Any) -> Any:
        """What the module returns; from an example on real values where fake ones do not lead through it."""
        hooked = module._forward_hooks or module._forward_pre_hooks
        known = None if kwargs or hooked else known_output(module, *args)
        if known is not None:
            return known
        try:
            return original(module, *args, **kwargs)
        except Exception:
            if self._fake is None or self._paths[id(module)] not in self._leaves:
                raise
        return example_output(self._fake, module, args, kwargs)

    def _record(self, op: str, what: Any, args: Any, kwargs: Mapping[str, Any], compute: Callable[[], Any]) -> Any:
        """The value of `compute`, with a node for it if it holds tensors."""
        self._paused = True
        try:
            value = compute()
        finally:
            self._paused = False
        tensors = list(tensors_of(value))
        if not tensors:
            return value
        arguments, keywords = self._argument(tuple(args)), {k: self._argument(v) for k, v in kwargs.items()}
        node = self.graph.create_node(op, what, arguments, keywords)
        self._count += 1
        if self._count > MAX_FOLLOWED:
            raise CannotRecord(f"more than {MAX_FOLLOWED} operations")
        node.meta["shape"] = tuple(value.shape) if isinstance(value, Tensor) else None
        node.meta["within"] = self._running[-1] if self._running else ""
        if not self._gradients and any(t.is_floating_point() for t in tensors):
            node = self._detached(node, value)
        self._remember(value, lambda: node, node)
        return value

    def _detached(self, node: fx.Node, value: Any) -> fx.Node:
        """Within `torch.no_grad()`: the same value, without a way back."""
        if not isinstance(value, Tensor):
            return node
        made = self.graph.call_method("detach", (node,))
        made.meta |= node.meta
        return made

    # -- attributes, sizes and values ----------------------------------------------------------------------------------

    def _read(self, func: Callable[..., Any], name: str, tensor: Tensor) -> Any:
        value = func(tensor)
        if isinstance(value, Tensor):  # x.T, x.data
            if value is tensor or id(value) in self._nodes or id(value) in self._attributes:
                return value
            return self._record("call_function", getattr, (tensor, name), {}, lambda: value)
        if name == "shape" and self._known(tensor):
            return torch.Size([self._dimension(tensor, i, n) for i, n in enumerate(value)])
        if name in ("device", "dtype") and (self._known(tensor) or id(tensor) in self._attributes):
            self._reads[value] = lambda: self._attribute_node(tensor, name)
        return value

    def _attribute_node(self, tensor: Tensor, name: str) -> fx.Node:
        return self.graph.call_function(getattr, (self._node(tensor), name))

    def _size(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        value = func(*args, **kwargs)
        if not self._known(args[0]):
            return value
        if isinstance(value, torch.Size):
            return torch.Size([self._dimension(args[0], i, n) for i, n in enumerate(value)])
        rest = tuple(int(a) for a in args[1:]) or tuple(int(a) for a in kwargs.values())
        name = func.__name__
        return traced(value, lambda: self.graph.call_method(name, (self._node(args[0]), *rest)))

    def _dimension(self, tensor: Tensor, index: int, size: int) -> Any:
        if type(size) is not int:
            return size
        return Size(size, lambda: self.graph.call_method("size", (self._node(tensor), index)))

    def _value(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """What a question for a tensor's value is answered with."""
        if self._fake is not None and (finite := self._asks_for_finiteness(args[0])) is not None:
            self.decisions.append(f"in {self._running[-1] or 'the model'}: values are taken to be finite")
            return func(torch.tensor(finite))
        known = [self._concrete(a) if isinstance(a, Tensor) else (a, False) for a in args]
        with unset_fake_temporarily():
            value = func(*(x for x, _ in known), **kwargs)
        if any(depends for _, depends in known):
            if not isinstance(value, bool):
                raise ValueNeeded(f"a number is taken from the values of an input ({func.__name__})")
            self.decisions.append(f"in {self._running[-1] or 'the model'}: {value} for the example inputs")
        return value

    def _asks_for_finiteness(self, tensor: Any) -> bool | None:
        """The answer for finite values where the question is `isinf(x).any()`, `isnan(x).any()` or `isfinite(x).all()`;
        None for any other."""
        node = self._nodes.get(id(tensor)) if isinstance(tensor, Tensor) else None
        if node is None or not node.all_input_nodes:
            return None
        asked = (_name(node.target), _name(node.all_input_nodes[0].target))
        return {("any", "isinf"): False, ("any", "isnan"): False, ("all", "isfinite"): True}.get(asked)

    def _concrete(self, tensor: Tensor) -> tuple[Any, bool]:
        """The tensor's value, computed on the CPU, and whether it depends on an input."""
        if self._fake is None:
            return tensor, False
        if not self._known(tensor):
            if isinstance(tensor, nn.Parameter):
                raise ValueNeeded("control flow depends on the value of a parameter")
            names = self._attributes.get(id(tensor), [""])
            return self._buffers.get(names[0], tensor), False
        needed: dict[fx.Node, None] = {}
        todo = [self._node(tensor)]
        while todo:
            node = todo.pop()
            if node not in needed:
                needed[node] = None
                todo += node.all_input_nodes
        for node in needed:
            if node.op == "call_module" or (node.op == "get_attr" and self._trainable(str(node.target))):
                raise ValueNeeded("control flow depends on values that parameters make")
        depends = any(node.op == "placeholder" for node in needed)
        with unset_fake_temporarily(), torch.no_grad(), torch.random.fork_rng(devices=[]):
            run = fx.Interpreter(self.root, graph=self.graph)
            for node in self.graph.nodes:
                if node in needed:
                    run.env[node] = self._known_value(node) if node.op in KNOWN else run.run_node(node)
            return run.env[self._node(tensor)], depends

    def _known_value(self, node: fx.Node) -> Any:
        name = str(node.target)
        return copy.deepcopy(self._examples[node] if node.op == "placeholder" else self._value_of(name))

    def _value_of(self, name: str) -> Any:
        return self._buffers[name] if name in self._buffers else _get(self.root, name)

    def _trainable(self, path: str) -> bool:
        return isinstance(_get(self.root, path), nn.Parameter)

    # -- from values to nodes ------------------------------------------------------------------------------------------

    def _known(self, tensor: Tensor) -> bool:
        return id(tensor) in self._nodes or id(tensor) in self._sources

    def _remember(self, value: Any, source: Callable[[], fx.Node], node: fx.Node | None = None) -> None:
        """Every tensor in the value gets its node; inside a container it is made when it is first used."""
        if isinstance(value, Tensor):
            self._alive.append(value)
            self._sources[id(value)] = source
            self._nodes.pop(id(value), None)
            if node is not None:
                self._nodes[id(value)] = node
        elif isinstance(value, Mapping):
            for key, item in value.items():
                self._remember(item, self._part(source, key, item))
        elif isinstance(value, (tuple, list)):
            for i, item in enumerate(value):
                self._remember(item, self._part(source, i, item))
        elif hasattr(value, "__dataclass_fields__"):
            for key in value.__dataclass_fields__:
                self._remember(getattr(value, key), self._field(source, key))

    def _part(self, source: Callable[[], fx.Node], key: Any, item: Any) -> Callable[[], fx.Node]:
        made: list[fx.Node] = []

        def part() -> fx.Node:
            if not made:
                made.append(self.graph.call_function(operator.getitem, (source(), key)))
                made[0].meta["part"] = True
                made[0].meta["shape"] = tuple(item.shape) if isinstance(item, Tensor) else None
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

    def _node(self, tensor: Tensor) -> fx.Node:
        node = self._nodes.get(id(tensor))
        if node is None:
            source = self._sources.get(id(tensor))
            node = self._nodes[id(tensor)] = source() if source is not None else self._state(tensor)
        return node

    def _state(self, tensor: Tensor) -> fx.Node:
        """A node for a tensor that no operation of this forward made."""
        names = self._attributes.get(id(tensor))
        if names is None:
            if isinstance(tensor, torch._subclasses.FakeTensor):
                raise CannotRecord("a tensor appears that no call of torch's Python interface made")
            names = [self._constant_name()]
            setattr(self.root, names[0], tensor)
            self._attributes[id(tensor)] = names
        here = f"{self._running[-1]}." if self._running and self._running[-1] else ""
        name = next((n for n in names if n.startswith(here) and "." not in n[len(here) :]), names[0])
        node = self.graph.get_attr(name)
        node.meta["shape"] = tuple(tensor.shape)
        self._alive.append(tensor)
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

    def _argument(self, value: Any) -> Any:
        """The value as a node's argument."""
        if isinstance(value, Tensor):
            return self._node(value)
        if isinstance(value, _Traced):
            return argument(value)
        if isinstance(value, (torch.dtype, torch.device)):
            source = self._reads.get(value)
            return source() if source is not None else value
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            return self.graph.call_function(type(value), tuple(map(self._argument, value)))
        if isinstance(value, (tuple, list)):
            made = [self._argument(v) for v in value]
            return tuple(made) if isinstance(value, tuple) else made
        if isinstance(value, slice):
            return slice(*map(self._argument, (value.start, value.stop, value.step)))
        if isinstance(value, range):
            return value
        if isinstance(value, dict) and type(value).__module__ in ("builtins", "collections"):
            return {k: self._argument(v) for k, v in value.items()}
        if hasattr(value, "__dataclass_fields__"):
            fields = {k: self._argument(getattr(value, k)) for k in value.__dataclass_fields__}
            return self.graph.call_function(type(value), (), {k: v for k, v in fields.items() if v is not None})
        if isinstance(value, PLAIN) or (isinstance(value, type) and not list(tensors_of(value))):
            return value
        if isinstance(value, fx.node.base_types) or (callable(value) and next(tensors_of(value), None) is None):
            return value
        if self._fake is None:
            return self._object(value)
        raise CannotRecord(f"a {type(value).__qualname__} is passed on")

    def _object(self, value: Any) -> fx.Node:
        """A Python object that a recording needs to run again, kept beside the module's state."""
        name = self._constant_name()
        setattr(self.root, name, value)
        return self.graph.get_attr(name)

    def _constant_name(self) -> str:
        return f"_tensor_constant{sum(name.startswith('_tensor_constant') for name in vars(self.root))}"


def _name(target: Any) -> str:
    return target if isinstance(target, str) else getattr(target, "__name__", "")


def _get(root: nn.Module, path: str) -> Any:
    value: Any = root
    for part in path.split("."):
        value = getattr(value, part)
    return value


def _assign(tensor: Tensor, index: Any, value: Any) -> Tensor:
    tensor[index] = value
    return tensor
