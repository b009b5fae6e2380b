"""The graph of a forward that really runs, on example values: fake tensors without memory, or real ones.

A mode sees every call of torch's Python interface and writes it down; known layers and `leaves` are one node each.
Since Python runs as it is, control flow follows the example; sizes stay free (`sizes.py`). Where the code asks for the
value of a fake tensor, the answer is computed if it depends on no parameter; otherwise the module that asks cannot be
followed (`ValueNeeded`). On real tensors every forward can be followed, but what the values decided is decided in the
graph: such a graph is for looking at. The module and its state are afterwards as they were.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from zero_convert.graph.results import tensors_of
from zero_convert.graph.scopes import Scope, ScopeCall, ScopedGraph
from zero_convert.nn.functional import FunctionCall, assigned
from zero_convert.runtime import rng
from zero_convert.runtime.patches import replaced

from .call_signatures import Call
from .known_shapes import known_output, known_value
from .nodes import CannotRecord, Nodes
from .operations import QUESTIONS, VALUES, assigned_attribute, attribute, is_method, target
from .shapes import example_output, quiet, tensor_summary
from .side_effects import refuse_draws, restored, unassigned
from .symbolic_sizes import Size, sizes_of, traced
from .vmap import one_by_one

KNOWN = ("placeholder", "get_attr")
MAX_CALLS = 3  # different ways in which a module is called, that are looked at
MAX_FOLLOWED = 100_000  # operations: a forward with more is a loop over time steps that nobody wants as a graph


class ValueNeeded(Exception):
    """The forward asks for the value of a tensor that depends on parameters, or takes a number from an input."""


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
        self.root, self.graph = root, ScopedGraph()
        self.decisions: list[str] = []
        self._leaves, self._is_leaf = frozenset(leaves), is_leaf
        self._fake = None if real else FakeTensorMode(allow_non_fake_inputs=True)
        self.calls: dict[str, list[Call]] = {}  # path → how a module was called, each way once
        self.entered: dict[str, None] = {}  # paths of modules of which a part was called, but not by themselves
        self._paths: dict[int, str] = {}
        for path, module in root.named_modules():
            self._paths.setdefault(id(module), path)
        self._values = Nodes(root, self.graph, real=real)
        self._running = self._values.running
        self._paused = False
        self._gradients = True
        self._examples: dict[fx.Node, Any] = {}
        self._buffers: dict[str, Tensor] = {}  # the real ones, by name
        self._count = 0
        self._numbers: dict[str, int] = {}  # path → of its last call
        self._scope_calls: dict[Scope, ScopeCall] = {}

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
            maps = one_by_one(lambda: not self._paused, self._from_input)
            with whole, self._calls_seen(), sizes_of(self.graph), maps, self:
                value = self.root(*faked[: len(args)], **dict(zip(keywords, faked[len(args) :], strict=True)))
                node = self.graph.output(self._values.result(value))
            node.meta |= {"outputs": tensor_summary(value), "calls": self._scope_calls}
            self.graph.__class__ = fx.Graph  # type: ignore[assignment]  # what is added from here on is no part of the forward
        return self.graph

    def _input(self, value: Any, name: str) -> Any:
        node = self.graph.placeholder(name)
        faked = tree_map(lambda t: self._example(t) if isinstance(t, Tensor) else t, value)
        node.meta["shape"] = tuple(value.shape) if isinstance(value, Tensor) else None
        self._examples[node] = value
        self._values.remember(faked, lambda: node, node)
        for tensor in tensors_of(faked):
            self._values.reads.setdefault(tensor.device, partial(self._attribute_node, tensor, "device"))
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
                    self._values.attributes.setdefault(id(fake), []).append(full)
                    self._values.alive.append(fake)

    def _example(self, tensor: Tensor) -> Tensor:
        made: Tensor = tensor.detach().clone() if self._fake is None else self._fake.from_tensor(tensor.detach())
        return made

    @contextmanager
    def _calls_seen(self) -> Iterator[None]:
        """While it lasts, a call of a module or of an autograd function comes to the recorder."""

        def called(module_call: Any, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            if self._paused:
                return module_call(module, *args, **kwargs)
            return self._call_module(module_call, module, args, kwargs)

        def applied(apply: Any, cls: Any, *args: Any, **kwargs: Any) -> Any:
            original = partial(apply, cls, *args, **kwargs)
            if self._paused:
                return original()
            return self._record("call_function", FunctionCall(cls), args, kwargs, original)

        with (
            replaced(nn.Module, "__call__", partial(partial, called)),
            replaced(torch.autograd.Function, "apply", partial(partial, applied)),
        ):
            yield

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
            outer = accumulate(path.split(".")[:-1], "{}.{}".format)
            self.entered |= dict.fromkeys(part for part in outer if part not in self._running)
            seen = self.calls.setdefault(path, [])
            if len(seen) <= MAX_CALLS and not (call := self._call_of(args, kwargs)).among(seen):
                seen.append(call)
        self._running.append(path if path is not None else self._running[-1])
        around = self.graph.scope
        if path:
            number = self._numbers[path] = self._numbers.get(path, -1) + 1
            self.graph.scope = (*around, (path, number))
        before = rng.states() if self._fake is not None else None
        try:
            made = ScopeCall.of((args, kwargs), Tensor, self._node_of) if path else None
            value = original(module, *args, **kwargs)
            if made is not None:
                self._scope_calls[self.graph.scope] = made.returning(value, Tensor, self._node_of)
            if before is not None:
                refuse_draws(before, path or "")
            return value
        except Exception as error:
            if not hasattr(error, "zero_convert_path"):
                error.zero_convert_path = self._running[-1]  # type: ignore[attr-defined]
            raise
        finally:
            self._running.pop()
            self.graph.scope = around

    def _node_of(self, tensor: Tensor) -> fx.Node | None:
        return self._values.by_tensor.get(id(tensor))

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
        arguments, keywords = (
            self._values.argument(tuple(args)),
            {k: self._values.argument(v) for k, v in kwargs.items()},
        )
        node = self.graph.create_node(op, what, arguments, keywords)
        self._count += 1
        if self._count > MAX_FOLLOWED:
            raise CannotRecord(f"more than {MAX_FOLLOWED} operations")
        node.meta["shape"] = tuple(value.shape) if isinstance(value, Tensor) else None
        node.meta["within"] = self._running[-1] if self._running else ""
        if not self._gradients and any(t.is_floating_point() for t in tensors):
            node = self._detached(node, value)
        self._values.remember(value, lambda: node, node)
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
            if value is tensor or id(value) in self._values.by_tensor or id(value) in self._values.attributes:
                return value
            return self._record("call_function", getattr, (tensor, name), {}, lambda: value)
        if name == "shape" and self._values.known(tensor):
            return torch.Size([self._dimension(tensor, i, n) for i, n in enumerate(value)])
        if name in ("device", "dtype") and (self._values.known(tensor) or id(tensor) in self._values.attributes):
            self._values.reads[value] = lambda: self._attribute_node(tensor, name)
        return value

    def _attribute_node(self, tensor: Tensor, name: str) -> fx.Node:
        return self.graph.call_function(getattr, (self._values.node(tensor), name))

    def _size(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        value = func(*args, **kwargs)
        if not self._values.known(args[0]):
            return value
        if isinstance(value, torch.Size):
            return torch.Size([self._dimension(args[0], i, n) for i, n in enumerate(value)])
        rest = tuple(int(a) for a in args[1:]) or tuple(int(a) for a in kwargs.values())
        name = func.__name__
        return traced(value, lambda: self.graph.call_method(name, (self._values.node(args[0]), *rest)))

    def _dimension(self, tensor: Tensor, index: int, size: int) -> Any:
        if type(size) is not int:
            return size
        return Size(size, lambda: self.graph.call_method("size", (self._values.node(tensor), index)))

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
        node = self._values.by_tensor.get(id(tensor)) if isinstance(tensor, Tensor) else None
        if node is None or not node.all_input_nodes:
            return None
        asked = (_name(node.target), _name(node.all_input_nodes[0].target))
        return {("any", "isinf"): False, ("any", "isnan"): False, ("all", "isfinite"): True}.get(asked)

    def _concrete(self, tensor: Tensor) -> tuple[Any, bool]:
        """The tensor's value, computed on the CPU, and whether it depends on an input."""
        if self._fake is None:
            return tensor, False
        if not self._values.known(tensor):
            if isinstance(tensor, nn.Parameter):
                raise ValueNeeded("control flow depends on the value of a parameter")
            names = self._values.attributes.get(id(tensor), [""])
            return self._buffers.get(names[0], tensor), False
        needed = self._ancestors(tensor)
        for node in needed:
            if node.op == "call_module" or (node.op == "get_attr" and self._trainable(str(node.target))):
                raise ValueNeeded("control flow depends on values that parameters make")
        depends = any(node.op == "placeholder" for node in needed)
        with unset_fake_temporarily(), torch.no_grad(), rng.seeded():
            run, before = fx.Interpreter(self.root, graph=self.graph), rng.states()
            for node in self.graph.nodes:
                if node in needed:
                    run.env[node] = self._known_value(node) if node.op in KNOWN else run.run_node(node)
            refuse_draws(before, self._running[-1])
            return run.env[self._values.node(tensor)], depends

    def _ancestors(self, tensor: Tensor) -> dict[fx.Node, None]:
        """The nodes that a recorded tensor is made of, its own first."""
        found: dict[fx.Node, None] = {}
        todo = [self._values.node(tensor)]
        while todo:
            node = todo.pop()
            if node not in found:
                found[node] = None
                todo += node.all_input_nodes
        return found

    def _from_input(self, tensor: Tensor) -> bool:
        """Whether a graph that fixes the tensor's size would fix the size of an input."""
        if self._fake is None or not self._values.known(tensor):
            return False
        return any(node.op == "placeholder" for node in self._ancestors(tensor))

    def _known_value(self, node: fx.Node) -> Any:
        name = str(node.target)
        return copy.deepcopy(self._examples[node] if node.op == "placeholder" else self._value_of(name))

    def _value_of(self, name: str) -> Any:
        return self._buffers[name] if name in self._buffers else _get(self.root, name)

    def _trainable(self, path: str) -> bool:
        return isinstance(_get(self.root, path), nn.Parameter)

    # -- from values to nodes ------------------------------------------------------------------------------------------


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
