"""torch.compile stays unloaded while torchvision is imported.

`torchvision.ops.roi_align` (0.29) imports one function of `torch._dynamo.utils`, and with it all of torch.compile and
its inductor: longer than torch itself takes. For the time of the import two stand-ins take their places. The function
is a deferred one, which imports the real one when it is called; whatever else anybody asks of a stand-in loads the
real module.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

PACKAGE = "torch._dynamo"
FUNCTIONS = {"torch._dynamo.utils": ("is_compile_supported",)}


@contextmanager
def compile_deferred() -> Iterator[None]:
    """While it lasts, importing torchvision does not import torch.compile. Does nothing where that has happened."""
    if PACKAGE in sys.modules:
        yield
        return
    stand_ins = {name: _StandIn(name) for name in (PACKAGE, *FUNCTIONS)}
    sys.modules.update(stand_ins)
    try:
        yield
    finally:
        _remove(stand_ins)


class _StandIn(ModuleType):
    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__path__: list[str] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if name in FUNCTIONS.get(self.__name__, ()):
            return _deferred(self.__name__, name)
        return getattr(_real(self.__name__), name)


def _deferred(module: str, name: str) -> Callable[..., Any]:
    def function(*args: Any, **kwargs: Any) -> Any:
        return getattr(_real(module), name)(*args, **kwargs)

    function.__name__ = name
    return function


def _real(name: str) -> ModuleType:
    _remove({key: value for key, value in sys.modules.items() if isinstance(value, _StandIn)})
    return importlib.import_module(name)


def _remove(stand_ins: dict[str, Any]) -> None:
    for name, module in stand_ins.items():
        if sys.modules.get(name) is module:
            del sys.modules[name]
