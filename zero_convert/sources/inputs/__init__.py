"""Example inputs: deterministic values, shapes from the command line, and nests of tensors.

No random numbers: element i of a tensor is a hash of i alone. Conventions of the model libraries are in their files,
guesses for networks of unknown origin in `guess.py`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from zero_convert.errors import UsageError, closest
from zero_convert.formats.dtypes import DTYPES
from zero_convert.graph.example_values import reference_tensor
from zero_convert.tracing.shapes import runs

# What a forward is called with: positional arguments, or keyword arguments by name.
Inputs = tuple[Any, ...] | dict[str, Any]

_DTYPES = {row.torch: getattr(torch, row.torch) for row in DTYPES.values() if row.torch and row.written}
MAX_ELEMENTS = 1 << 30
LISTED = 16  # whole numbers that a recipe spells out: lengths, offsets


def parse_input(text: str) -> torch.Tensor:
    """The tensor that "1x3x224x224" or "1x128:int64" describes, with reference values; or "[7,5]", with these.

    Numbers without a point are int64, with one float32, unless a dtype is given.

    Raises:
        UsageError: neither sizes joined by `x` nor a list of numbers, an unknown dtype, or more than 2^30 elements.
    """
    sizes, colon, name = text.strip().partition(":")
    if sizes.startswith("[") and (not colon or name in _DTYPES):
        return _listed(sizes, text, _DTYPES[name] if colon else None)
    if not re.fullmatch(r"[1-9][0-9]{0,9}(x[1-9][0-9]{0,9})*", sizes):
        raise UsageError(
            "this is no input shape", where="--input", got=repr(text), expected="1x3x224x224[:dtype] or [7,5]"
        )
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


def _listed(numbers: str, text: str, dtype: torch.dtype | None) -> torch.Tensor:
    try:
        values = json.loads(numbers)
        made = torch.tensor(values, dtype=dtype)
    except (ValueError, TypeError, RuntimeError, OverflowError, RecursionError) as error:
        raise UsageError(
            "these are no numbers for an input", where="--input", got=repr(text)[:80], expected="[7,5] or [[0.5],[1]]"
        ) from error
    return made


def spell_inputs(given: Inputs, runs: Callable[[Inputs], bool]) -> tuple[str, ...]:
    """The texts that `parse_inputs` makes such inputs of: sizes, where the forward runs with reference values.

    Otherwise whole numbers are spelled out where they are few: lengths and offsets, which have to make sense.
    """
    named = given if isinstance(given, dict) else dict(enumerate(given))
    prefixes = [f"{name}=" if isinstance(name, str) else "" for name in named]
    texts = [f"{prefix}{_sizes(value)}" for prefix, value in zip(prefixes, named.values(), strict=True)]
    listed = [f"{prefix}{_values(value)}" for prefix, value in zip(prefixes, named.values(), strict=True)]
    return tuple(texts if texts == listed or runs(parse_inputs(texts)) else listed)


def _sizes(value: torch.Tensor) -> str:
    return f"{'x'.join(map(str, value.shape))}:{str(value.dtype).removeprefix('torch.')}"


def _values(value: torch.Tensor) -> str:
    whole = not value.is_floating_point() and not value.is_complex() and value.dtype is not torch.bool
    if not whole or not value.ndim or not 0 < value.numel() <= LISTED:
        return _sizes(value)
    return f"{json.dumps(value.tolist(), separators=(',', ':'))}:{str(value.dtype).removeprefix('torch.')}"


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


def needed_inputs(loaded: Any, usual: Inputs | None, capture: str) -> tuple[str, ...]:
    """The given example inputs as the recipe spells them, where the source's own would not do to trace the model.

    In the capture `fx` those do that run: sizes decide no branch of its graph. In the others the graph is what these
    inputs make of the forward, so they have to be of the same sizes.

    Args:
        loaded: the model with the given inputs, a `sources.Loaded`.
        usual: the source's own.
    """
    given = loaded.example_inputs or ()
    named = given if isinstance(given, Mapping) else dict.fromkeys(range(0))
    values = tuple(named.values()) if named else tuple(given)
    if not loaded.name or not all(isinstance(x, torch.Tensor) for x in values):
        return ()
    if (
        usual is not None
        and len(usual) == len(values)
        and isinstance(usual, Mapping) == bool(named)
        and (capture == "fx" or _tensor_sizes(usual) == _tensor_sizes(given))
        and runs(loaded.module, usual)
    ):
        return ()
    return spell_inputs(given, lambda inputs: runs(loaded.module, inputs))


def _tensor_sizes(inputs: Inputs) -> list[tuple[Any, ...] | None]:
    values = inputs.values() if isinstance(inputs, Mapping) else inputs
    return [tuple(x.shape) if hasattr(x, "shape") else None for x in values]
