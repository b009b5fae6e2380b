"""`torch.vmap` without batched tensors, which torch makes where its Python interface cannot be watched.

The mapped function is called once for each member, and what it returns is stacked: the same values, in a graph that
holds each member's operations. That fits what is mapped over an ensemble of parameters; the number of samples in a
batch must not be fixed by a graph, so a map over values of an input is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch._functorch.apis
from torch import Tensor
from torch.utils._pytree import _broadcast_to_and_flatten, tree_flatten, tree_unflatten

from zero_convert.runtime.patches import replaced

from .nodes import CannotRecord


@contextmanager
def one_by_one(follows: Callable[[], bool], from_input: Callable[[Tensor], bool]) -> Iterator[None]:
    """While it lasts, mapped functions are called for one member at a time.

    Args:
        follows: whether calls are to be followed now; otherwise torch maps.
        from_input: whether a tensor depends on an input of the forward.
    """

    def mapped(
        torch_maps: Any,
        func: Any,
        in_dims: Any,
        out_dims: Any,
        randomness: Any,
        chunk_size: Any,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        if not follows():
            return torch_maps(func, in_dims, out_dims, randomness, chunk_size, *args, **kwargs)
        values, spec = tree_flatten(args)
        axes = _broadcast_to_and_flatten(in_dims, spec)
        over = [value for value, axis in zip(values, axes or (), strict=True) if axis is not None]
        if any(isinstance(value, Tensor) and from_input(value) for value in over):
            raise CannotRecord("torch.vmap maps over values of an input, and a graph would fix their number")
        sizes = {int(v.shape[axis]) for v, axis in zip(values, axes or (), strict=True) if axis is not None}
        if len(sizes) != 1 or randomness == "same":  # torch says what is wrong, or draws once for all
            return torch_maps(func, in_dims, out_dims, randomness, chunk_size, *args, **kwargs)
        returned = []
        for i in range(sizes.pop()):
            each = [v if axis is None else v.select(axis, i) for v, axis in zip(values, axes or (), strict=True)]
            returned.append(func(*tree_unflatten(each, spec), **kwargs))
        return _stacked(returned, out_dims)

    # What torch.vmap and torch.func.vmap call, whenever they were called themselves.
    with replaced(torch._functorch.apis, "vmap_impl", partial(partial, mapped)):
        yield


def _stacked(returned: list[Any], out_dims: Any) -> Any:
    first, spec = tree_flatten(returned[0])
    axes = _broadcast_to_and_flatten(out_dims, spec) or [out_dims]
    if isinstance(out_dims, tuple) and len(out_dims) == len(first) == 1:
        axes = list(out_dims)
    columns = zip(*(tree_flatten(value)[0] for value in returned), strict=True)
    made = [
        column[0] if axis is None else torch.stack(column, axis) for column, axis in zip(columns, axes, strict=True)
    ]
    return tree_unflatten(made, spec)
