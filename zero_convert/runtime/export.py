"""`torch.export` for the calling thread only.

While torch exports, it sets what every thread sees: oneDNN is off, `torch.compiler` says that something is compiled,
`max` and `math.pow` are others, the state of the random generator is put back at the end. A training beside it would
compute other bits. Each of these is done here for one thread. Nothing is exported here.
"""

from __future__ import annotations

import builtins
import importlib
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from typing import Any

import torch

from . import rng
from .eager import fx_in_this_thread
from .patches import replaced

_FLAGS = ("_is_compiling_flag", "_is_exporting_flag")


@contextmanager
def export_in_this_thread() -> Iterator[None]:
    """Inside, the calling thread may call `torch.export` and `torch.onnx.export` while others compute."""
    import torch.export._trace

    onnx: Any = None
    with suppress(ImportError):  # of what ONNX needs besides torch
        onnx = importlib.import_module("torch.onnx._internal.exporter._core")

    def whole(_: Any) -> Callable[[], AbstractContextManager[None]]:
        return _compiling

    with ExitStack() as stack:
        stack.enter_context(fx_in_this_thread())
        stack.enter_context(rng.seeded(operations=False))
        for module in ("torch.export._trace", "torch._dynamo.functional_export"):
            stack.enter_context(_replaced(sys.modules.get(module), "_compiling_state_context", whole))
        # It switches oneDNN off, of which decompositions ask Python, and backends that no fake tensor reaches.
        stack.enter_context(_replaced(torch.export._trace, "_ignore_backend_decomps", lambda _: nullcontext))
        stack.enter_context(_replaced(torch._C, "_get_mkldnn_enabled", lambda _: lambda: False))
        stack.enter_context(_replaced(torch.export._trace, "_override_builtin_ops", _with_builtins))
        stack.enter_context(_replaced(onnx, "export", lambda export: _exporting_onnx(export, onnx)))
        yield


def _replaced(owner: Any, name: str, make: Callable[[Any], Any]) -> AbstractContextManager[None]:
    """As `replaced`, where this version of torch has the name."""
    return replaced(owner, name, make) if hasattr(owner, name) else nullcontext()


@contextmanager
def _compiling() -> Iterator[None]:
    with ExitStack() as stack:
        for flag in _FLAGS:
            stack.enter_context(_replaced(torch.compiler, flag, lambda _: True))
        yield


def _with_builtins(manager: Callable[[], AbstractContextManager[None]]) -> Callable[[], AbstractContextManager[None]]:
    """The context manager, whose functions are in their places for this thread only."""
    places: list[tuple[Any, str]] = [(builtins, "max"), (builtins, "min"), (math, "pow")]

    @contextmanager
    def block() -> Iterator[None]:
        before = [getattr(owner, name) for owner, name in places]
        with manager(), ExitStack() as stack:
            for (owner, name), function in zip(places, before, strict=True):
                own = getattr(owner, name)
                setattr(owner, name, function)
                stack.enter_context(replaced(owner, name, lambda _, own=own: own))  # type: ignore[misc]
            yield

    return block


def _exporting_onnx(export: Any, onnx: Any) -> Callable[..., Any]:
    """The function without the flag that it sets for all threads; with one for this thread."""
    plain = getattr(export, "__wrapped__", None)
    if plain is None:
        return export  # type: ignore[no-any-return]

    def exported(*args: Any, **kwargs: Any) -> Any:
        with _replaced(onnx._flags, "_is_onnx_exporting", lambda _: True):
            return plain(*args, **kwargs)

    return exported
