"""What torch's own functions returned on meta tensors, so that equal blocks ask once.

On meta tensors a result is determined by sizes, strides, types and the other arguments, and many functions take longer
there than on real ones, since Python spells them out. What works in place, or returns anything but tensors, is not
remembered.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor

Like = tuple[tuple[int, ...], tuple[int, ...], torch.dtype]


class Remembered:
    """Calls of functions and methods by what they were given."""

    def __init__(self) -> None:
        self._known: dict[Hashable, tuple[type, list[Like]]] = {}

    def call(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any], compute: Callable[[], Any]) -> Any:
        """The result of `compute()`, or a new one like it if the same was asked before."""
        if not _pure(target):
            return compute()
        try:
            key = (target, _spelled(args), _spelled(kwargs))
            known = self._known.get(key)
        except TypeError:  # an argument that cannot be compared
            return compute()
        if known is None:
            value = compute()
            items = list(value) if type(value) in (tuple, list) else [value]
            if items and all(type(x) is Tensor and x.is_meta and x.layout is torch.strided for x in items):
                self._known[key] = type(value), [(tuple(x.shape), x.stride(), x.dtype) for x in items]
            return value
        kind, likes = known
        made = [torch.empty_strided(shape, stride, dtype=dtype, device="meta") for shape, stride, dtype in likes]
        return made[0] if kind is Tensor else kind(made)


def _pure(target: Any) -> bool:
    """Whether it is a method, or a function of torch, that does not work in place."""
    if isinstance(target, str):
        return not target.endswith("_")
    module, name = getattr(target, "__module__", None) or "", getattr(target, "__name__", "_")
    return not name.endswith("_") and (module == "torch" or module.startswith(("torch.nn.functional", "torch._C")))


def _spelled(value: Any) -> Hashable:
    """The argument, comparable.

    Raises:
        TypeError: it is not; or a tensor has values.
    """
    if isinstance(value, Tensor):
        if type(value) is not Tensor or not value.is_meta:
            raise TypeError("its values may count")
        return (tuple(value.shape), value.stride(), value.dtype)
    if isinstance(value, (tuple, list)):
        return (type(value), *map(_spelled, value))
    if isinstance(value, dict):
        return ("dict", *((key, _spelled(item)) for key, item in value.items()))
    if isinstance(value, slice):
        return ("slice", value.start, value.stop, value.step)
    hash(value)
    return (type(value), value)
