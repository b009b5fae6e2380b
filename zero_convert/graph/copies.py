"""Deep copies of modules in which functions that were made in a constructor call the copy's modules.

`copy.deepcopy` takes a function as it is: `self.mlpf = lambda x: m.c_proj(m.c_fc(x))` of a copied block (minGPT) calls
the layers of the block that was copied. Here such a function becomes one over the copies. One that draws from a default
generator becomes one that draws from the thread's own where there is one (`runtime/rng.py`). It reads no values.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from types import CellType, FunctionType, MethodType
from typing import Any, TypeVar

import torch
from torch import nn

from zero_convert.runtime import rng
from zero_convert.runtime.messages import without_warnings

MADE = (nn.Module, MethodType)
M = TypeVar("M", bound=nn.Module)


def copy_of(module: M, memo: dict[int, Any] | None = None) -> M:
    """A deep copy. `memo` as for `copy.deepcopy`: what stands for which object, by its id.

    Raises:
        Exception: whatever a part raises that cannot be copied.
    """
    memo = {} if memo is None else memo
    for key, function in rng.redirected().items():
        memo.setdefault(key, function)
    for value in _held(module):
        if isinstance(value, torch.jit.ScriptFunction):  # torch does not copy one; it has no state
            memo[id(value)] = value
        if isinstance(value, torch.Tensor) and not value.is_leaf:  # a weight that a hook computed: it loses its history
            memo.setdefault(id(value), value.detach().clone())
    with without_warnings(FutureWarning):  # torch 2.11 warns of its own objects where a recorded program is copied
        twin = copy.deepcopy(module, memo)
    for part in list(twin.modules()):
        _rebind(vars(part), memo)
        for held in list(vars(part).values()):
            if isinstance(held, dict):  # hooks, and tables of functions
                _rebind(held, memo)
    return twin


def _held(module: nn.Module) -> Iterator[Any]:
    """What the module's parts hold, and what is in lists, tuples and dicts that they hold."""
    for part in module.modules():
        for value in vars(part).values():
            inside = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
            yield from (value, *inside)


def _rebind(held: dict[Any, Any], memo: dict[int, Any]) -> None:
    for name, value in held.items():
        if isinstance(value, FunctionType):
            held[name] = _function(value, memo)


def _function(given: FunctionType, memo: dict[int, Any]) -> FunctionType:
    """The same function over copies of what it was made over; itself where nothing of that was copied."""
    if id(given) in memo:
        known: FunctionType = memo[id(given)]
        return known
    cells = tuple(CellType() for _ in given.__closure__ or ())
    made = FunctionType(given.__code__, given.__globals__, given.__name__, None, cells)
    memo[id(given)] = made  # it may be in a cell of its own
    same = True
    for cell, new in zip(given.__closure__ or (), cells, strict=True):
        try:
            new.cell_contents = value = _value(cell.cell_contents, memo)
        except ValueError:  # an empty cell: the name was never given a value
            continue
        same &= value is cell.cell_contents or value is made
    if given.__defaults__:
        made.__defaults__ = tuple(_value(v, memo) for v in given.__defaults__)
        same &= all(a is b for a, b in zip(made.__defaults__, given.__defaults__, strict=True))
    if given.__kwdefaults__:
        made.__kwdefaults__ = {name: _value(v, memo) for name, v in given.__kwdefaults__.items()}
        same &= all(made.__kwdefaults__[name] is v for name, v in given.__kwdefaults__.items())
    if same:
        memo[id(given)] = given
        return given
    made.__dict__.update(given.__dict__)
    made.__doc__, made.__qualname__, made.__module__ = given.__doc__, given.__qualname__, given.__module__
    return made


def _value(value: Any, memo: dict[int, Any]) -> Any:
    if id(value) in memo:
        return memo[id(value)]
    if isinstance(value, FunctionType):
        return _function(value, memo)
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    moves = isinstance(value, MADE) or any(isinstance(item, MADE) for item in inside)
    return copy.deepcopy(value, memo) if moves else value  # a list that a hook fills stays the one that is read
