"""Example inputs: deterministic values, shapes from the command line, and nests of tensors.

No random numbers: element i of a tensor is a hash of i alone. Conventions of the model libraries are in their files,
guesses for networks of unknown origin in `guess.py`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from zero_convert.errors import UsageError, closest
from zero_convert.formats.dtypes import DTYPES
from zero_convert.graph.example_values import reference_tensor

# What a forward is called with: positional arguments, or keyword arguments by name.
Inputs = tuple[Any, ...] | dict[str, Any]

_DTYPES = {row.torch: getattr(torch, row.torch) for row in DTYPES.values() if row.torch and row.written}
MAX_ELEMENTS = 1 << 30


def parse_input(text: str) -> torch.Tensor:
    """The tensor that "1x3x224x224" or "1x128:int64" describes, with reference values.

    Raises:
        UsageError: not sizes joined by `x`, an unknown dtype, or more than 2^30 elements.
    """
    sizes, colon, name = text.strip().partition(":")
    if not re.fullmatch(r"[1-9][0-9]{0,9}(x[1-9][0-9]{0,9})*", sizes):
        raise UsageError("this is no input shape", where="--input", got=repr(text), expected="1x3x224x224[:dtype]")
    if colon and name not in _DTYPES:
        raise UsageError(
            "no such dtype",
            where="--input",
            got=repr(name),
            expected=f"one of {', '.join(_DTYPES)}",
            fix=closest(name, _DTYPES),
        )
    shape = tuple(map(int, sizes.split("x")))
    if math.prod(shape) > MAX_ELEMENTS:
        raise UsageError("the input is too large", where="--input", got=text, expected="at most 2^30 elements")
    return reference_tensor(shape, _DTYPES[name] if colon else torch.float32)


def parse_inputs(texts: Sequence[str]) -> Inputs:
    """The example inputs that texts spell: all in the order of `forward`'s arguments, or all by name, "mask=1x9:bool".

    Raises:
        UsageError: as `parse_input`; some have names and others none, or a name comes twice.
    """
    names = [name if mark else "" for name, mark, _ in (text.partition("=") for text in texts)]
    if not any(names):
        return tuple(parse_input(text) for text in texts)
    if not all(name.strip().isidentifier() for name in names) or len(set(names)) < len(names):
        raise UsageError(
            "these inputs are not all named, or not by different names",
            where="--input",
            got=", ".join(texts),
            expected="a name for each, --input input_ids=1x128:int64 --input mask=1x128:bool, or names for none",
        )
    return {name.strip(): parse_input(text.partition("=")[2]) for name, text in zip(names, texts, strict=True)}


def copied(values: Any) -> Any:
    """The same nest of tuples, lists and dicts with every tensor detached, cloned and on the CPU."""
    return _mapped(values, lambda tensor: tensor.detach().clone().cpu())


def moved(values: Any, device: str) -> Any:
    """The same nest with every tensor on `device`."""
    return _mapped(values, lambda tensor: tensor.to(device))


def as_inputs(values: Sequence[Any] | Mapping[str, Any] | torch.Tensor) -> Inputs:
    """Example inputs as a tuple of positional arguments or a dict by name; a single tensor is one argument."""
    if isinstance(values, torch.Tensor):
        return (values,)
    return dict(values) if isinstance(values, Mapping) else tuple(values)


def run(module: nn.Module, inputs: Inputs) -> Any:
    """What the module returns for its inputs, by position or by name."""
    return module(**inputs) if isinstance(inputs, dict) else module(*inputs)


def _mapped(values: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    if isinstance(values, torch.Tensor):
        return change(values)
    if isinstance(values, dict):
        return {key: _mapped(value, change) for key, value in values.items()}
    if isinstance(values, tuple) and hasattr(values, "_fields"):
        return type(values)(*(_mapped(value, change) for value in values))
    if isinstance(values, (tuple, list)):
        return type(values)(_mapped(value, change) for value in values)
    return values
