"""What was compiled or scripted runs as the Python that it was made of, so that it can be watched.

`torch.compile` and `torch.jit.script` put something in the place of a function that nobody who watches torch's Python
interface can look into. Both keep the function. Here it is called instead, as long as a conversion looks at a network;
numbers are those of eager torch, and nothing is compiled on the way. What torch's scripting did not keep (a traced or
loaded function) runs as it is.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.fx
from torch import nn

from .patches import one_at_a_time, replaced


@contextmanager
def eager() -> Iterator[None]:
    """In the calling thread, compiled and scripted functions are Python. May be nested; also a decorator."""
    with ExitStack() as stack:
        if "torch._dynamo" in sys.modules:  # else nothing was compiled, and loading it takes a second
            frames: Any = sys.modules["torch._dynamo.eval_frame"]  # `torch.compiler.set_stance` is for all threads
            stack.enter_context(replaced(frames, "_stance", lambda _: frames.DynamoStance("force_eager")))
            stack.enter_context(torch._dynamo.config.patch(error_on_nested_fx_trace=False))
        stack.enter_context(replaced(torch._C.ScriptFunction, "__call__", _unscripted))
        stack.enter_context(fx_in_this_thread())
        yield


@contextmanager
def fx_in_this_thread() -> Iterator[None]:
    """What fx replaces while it traces (calls of modules, functions in a model's file) is replaced for this thread."""
    with replaced(torch.fx._symbolic_trace, "_new_patcher", lambda _: _patcher):
        yield


@contextmanager
def _patcher() -> Iterator[_Patcher]:
    with one_at_a_time(), ExitStack() as stack:  # to fx, another thread's dispatcher is no function of `math`
        yield _Patcher(stack)


class _Patcher:
    """In the place of fx's class of this name."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack, self._seen = stack, set[Any]()

    def patch(self, owner: Any, name: str, function: Any, deduplicate: bool = True) -> None:
        if not deduplicate or self.visit_once(owner, name):
            self._stack.enter_context(replaced(owner, name, lambda _: function))

    patch_method = patch

    def visit_once(self, thing: object, name: str = "") -> bool:
        before = len(self._seen)
        self._seen.add((id(thing), name))
        return len(self._seen) > before


def _unscripted(scripted: Callable[..., Any]) -> Callable[..., Any]:
    def call(function: Any, *args: Any, **kwargs: Any) -> Any:
        python = getattr(function, "_torchdynamo_inline", None)
        return scripted(function, *args, **kwargs) if python is None else python(*args, **kwargs)

    return call


class _Uncompiled(nn.Module):
    """In the place of a compiled part: what it was made of, under the same names."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._orig_mod = module
        self.training = module.training

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self._orig_mod(*args, **kwargs)


def uncompiled(module: nn.Module) -> nn.Module:
    """The module that `torch.compile` was given; compiled parts of the module are replaced in it.

    A module that was compiled whole loses the prefix `_orig_mod.`, as its tensors are named in every checkpoint that
    others can load; within a module names stay.
    """
    if "torch._dynamo" not in sys.modules:
        return module
    compiled: Any = torch._dynamo.OptimizedModule
    while isinstance(module, compiled):
        module = module._orig_mod
    for part in list(module.modules()):
        for name, child in list(part._modules.items()):
            if isinstance(child, compiled):
                setattr(part, name, _Uncompiled(uncompiled(child)))
    return module
