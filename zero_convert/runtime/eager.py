"""What was compiled or scripted runs as the Python that it was made of, so that it can be watched.

`torch.compile` and `torch.jit.script` put something in the place of a function that nobody who watches torch's Python
interface can look into. Both keep the function. Here it is called instead, as long as a conversion looks at a network;
numbers are those of eager torch, and nothing is compiled on the way. What torch's scripting did not keep (a traced or
loaded function) runs as it is.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn


@contextmanager
def eager() -> Iterator[None]:
    """While it lasts, compiled and scripted functions are Python. May be nested; also a decorator."""
    with ExitStack() as stack:
        if "torch._dynamo" in sys.modules:  # else nothing was compiled, and loading it takes a second
            stack.enter_context(torch.compiler.set_stance("force_eager"))
            stack.enter_context(torch._dynamo.config.patch(error_on_nested_fx_trace=False))
        stack.enter_context(_unscripted())
        yield


@contextmanager
def _unscripted() -> Iterator[None]:
    scripted: Any = torch._C.ScriptFunction
    before = scripted.__call__

    def call(function: Any, *args: Any, **kwargs: Any) -> Any:
        python = getattr(function, "_torchdynamo_inline", None)
        return before(function, *args, **kwargs) if python is None else python(*args, **kwargs)

    scripted.__call__ = call
    try:
        yield
    finally:
        scripted.__call__ = before


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
