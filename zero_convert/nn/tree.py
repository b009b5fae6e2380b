"""The rewritten network: one set of modules, and the graphs of its forward in training and evaluation mode."""

from __future__ import annotations

import copy
import inspect
import re
from collections.abc import Callable, Collection
from keyword import iskeyword
from typing import Any, Self

import torch
from torch import fx, nn

FIXED_MARK = "_zero_convert_fixed"  # of a module: names of its tensors that its author fixed


class Container(nn.Module):
    """Holds submodules under their original names. It has no forward: the graph is the forward."""


class _Stateful(nn.Module):
    """Keeps the extra state which the original module added to a state dict."""

    def get_extra_state(self) -> Any:
        return self.__dict__["kept_state"]

    def set_extra_state(self, state: Any) -> None:
        self.__dict__["kept_state"] = state


class StatefulContainer(_Stateful, Container):
    """A container with extra state."""


def uncalled(root: nn.Module, *graphs: fx.Graph) -> list[str]:
    """Paths of the modules that the graphs neither call nor have inside a module that they call."""
    called = {str(node.target) for graph in graphs for node in graph.nodes if node.op == "call_module"}
    inside = tuple(f"{path}." for path in called)
    return [path for path, _ in root.named_modules() if path not in called and not path.startswith(inside)]


class ConvertedModule(nn.Module):
    """A network whose forward is a graph; trainable, copyable, compilable, with the original's parameter names.

    `train_graph` and `evaluate_graph` are the same object where the modes do not differ. Each instance has a class of
    its own, so that `forward` keeps the argument names of the original. Where it takes the place of a part of another
    module, `stands_for` is that part's class, whose other methods (a mask, an embedding) the Python around may call.
    """

    train_graph: fx.Graph
    evaluate_graph: fx.Graph
    stands_for: type[nn.Module] | None = None

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        own = type(cls.__name__, (cls,), {"__module__": cls.__module__, "__qualname__": cls.__qualname__})
        return super().__new__(own)

    @classmethod
    def assemble(cls, root: nn.Module, train: fx.Graph, evaluate: fx.Graph, uncalled: Collection[str]) -> Self:
        """From the modules of `root` that the graphs call, and those at `uncalled` paths, which no graph ever called.

        What is neither was rewritten away.
        """
        made = cls()
        called = {str(n.target): None for g in (train, evaluate) for n in g.nodes if n.op == "call_module"}
        kept = set(uncalled)
        for path, module in root.named_modules():
            if path in called:
                made._place(path, module)
            elif path in kept and path and not module._modules:
                made._place(path, module)  # a layer whose weights a function reads
            elif path in kept:
                holder = made._holder(path)
                for name, parameter in module._parameters.items():
                    holder.register_parameter(name, parameter)
                for name, buffer in module._buffers.items():
                    holder.register_buffer(name, buffer, name not in module._non_persistent_buffers_set)
                if FIXED_MARK in module.__dict__:
                    holder.__dict__[FIXED_MARK] = module.__dict__[FIXED_MARK]
                if type(module).get_extra_state is not nn.Module.get_extra_state:
                    made._keep_state(holder, copy.deepcopy(module.get_extra_state()))
        made._prune()
        for target in dict.fromkeys(str(n.target) for g in (train, evaluate) for n in g.nodes if n.op == "get_attr"):
            made._constant(root, target)
        made.training = root.training
        made._set_graphs(train, evaluate)
        return made

    def _keep_state(self, holder: nn.Module, state: Any) -> None:
        holder.__dict__["kept_state"] = state
        if holder is self:
            for name in ("get_extra_state", "set_extra_state"):
                setattr(type(self), name, vars(_Stateful)[name])
        else:
            holder.__class__ = StatefulContainer

    def _holder(self, path: str) -> nn.Module:
        node: nn.Module = self
        for part in path.split(".") if path else ():
            if part not in node._modules:
                node.add_module(part, Container())
            node = node.get_submodule(part)
        return node

    def _place(self, path: str, module: nn.Module) -> None:
        parent, _, name = path.rpartition(".")
        self._holder(parent).add_module(name, module)

    def _constant(self, root: nn.Module, target: str) -> None:
        """A tensor that tracing found in the code, not among parameters and buffers: kept outside the state dict."""
        path, _, name = target.rpartition(".")
        holder = self._holder(path)
        if not hasattr(holder, name):
            value = getattr(root.get_submodule(path), name)
            if isinstance(value, torch.Tensor):
                holder.register_buffer(name, value, persistent=False)
            else:
                setattr(holder, name, value)

    def _prune(self) -> None:
        """Takes away containers that hold nothing."""
        for path, module in reversed(list(self.named_modules())):
            if path and type(module) is Container and not (module._modules or module._parameters or module._buffers):
                parent, _, name = path.rpartition(".")
                del self.get_submodule(parent)._modules[name]

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            found = inspect.getattr_static(self.stands_for, name, None) if self.stands_for else None
            if found is None:
                raise
            return found.__get__(self, type(self)) if hasattr(found, "__get__") else found

    def _set_graphs(self, train: fx.Graph, evaluate: fx.Graph) -> None:
        self.__dict__["train_graph"], self.__dict__["evaluate_graph"] = train, evaluate
        forward = _compile(train)
        if train is not evaluate:
            forward = _either(train, forward, _compile(evaluate))
        type(self).forward = forward

    def __reduce__(self) -> tuple[Any, ...]:
        return ConvertedModule, (), self.__dict__.copy()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        if "kept_state" in state:
            self._keep_state(self, state["kept_state"])
        self._set_graphs(state["train_graph"], state["evaluate_graph"])


def source_of(graph: fx.Graph) -> tuple[str, dict[str, Any]]:
    """The definition of a function `forward` that does what the graph does, and what its text refers to."""
    code = graph.python_code("self")
    return _without_keywords(code.src, graph), dict(code.globals)


def _compile(graph: fx.Graph) -> Callable[..., Any]:
    source, space = source_of(graph)
    exec(compile(source, "<zero_convert graph>", "exec"), space)
    function: Callable[..., Any] = space["forward"]
    return function


def _without_keywords(source: str, graph: fx.Graph) -> str:
    """The code that torch writes for a graph, where names like `in` and `from`, which may well be keys of a ModuleDict,
    are read with getattr: torch does so only with what is no identifier."""
    targets = {str(node.target): None for node in graph.nodes if node.op in ("call_module", "get_attr")}
    for target in sorted(targets, key=len, reverse=True):
        parts = target.split(".")
        if any(map(iskeyword, parts)):
            written, right = "self", "self"
            for part in parts:
                written = f"{written}.{part}" if part.isidentifier() else f'getattr({written}, "{part}")'
                plain = part.isidentifier() and not iskeyword(part)
                right = f"{right}.{part}" if plain else f'getattr({right}, "{part}")'
            source = re.sub(rf"(?<![\w.]){re.escape(written)}(?!\w)", lambda _, right=right: right, source)  # type: ignore[misc]
    return source


def _either(graph: fx.Graph, train: Callable[..., Any], evaluate: Callable[..., Any]) -> Callable[..., Any]:
    names = ", ".join(str(node.target) for node in graph.nodes if node.op == "placeholder")
    space: dict[str, Any] = {"train": train, "evaluate": evaluate, "torch": torch}
    source = (
        f"def forward(self, {names}):\n"
        f"    if self.training:\n        return train(self, {names})\n"
        f"    return evaluate(self, {names})\n"
    )
    exec(compile(source, "<zero_convert graph>", "exec"), space)
    function: Callable[..., Any] = space["forward"]
    return function
