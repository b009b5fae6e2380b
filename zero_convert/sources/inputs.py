"""Example inputs: deterministic values, shapes from the command line, and guesses for networks of unknown origin.

No random numbers: element i of a tensor is a hash of i alone. Conventions of the model libraries are in their files.
"""

from __future__ import annotations

import copy
import difflib
import math
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from zero_convert.errors import UsageError

_FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.complex64)
_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool)
DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in _FLOATS + _INTEGERS}
MAX_ELEMENTS = 1 << 30

# Sides tried for a network that was not built by a library. A first convolution with a stride expects photographs,
# one without expects small images (CIFAR, MNIST); then what else is in use.
SIDES = (224, 256, 299, 384, 512, 128, 96, 64, 32, 28)
SMALL_SIDES = (32, 28, 64, 96, 128, 224, 256, 299, 384, 512)
VOLUMES = (64, 32, 16, 112)
LENGTHS = (1024, 128, 64, 256, 512, 4096, 16000)
TOKENS = (16, 64, 128, 197, 512)


def reference_values(shape: Sequence[int]) -> np.ndarray:
    """Float32 array of `shape` with values in [-1.7, 1.7); element i in row-major order depends on i alone.

    The values are splitmix64's finalizer (Steele, Lea, Flood, OOPSLA 2014) of (i + 1) times the golden-ratio odd
    constant: its upper 24 bits as a fraction u, then (2u - 1) * 1.7 in float32.
    """
    fraction = (_hash(math.prod(shape)) >> np.uint64(40)).astype(np.float32) / np.float32(2**24)
    return ((fraction * 2 - 1) * np.float32(1.7)).reshape(tuple(shape))


def reference_tensor(shape: Sequence[int], dtype: torch.dtype = torch.float32, below: int = 2) -> torch.Tensor:
    """Tensor of `shape` with the reference values; integers and bools are hash bits modulo `below` (0 … below - 1)."""
    if dtype.is_floating_point or dtype.is_complex:
        return torch.from_numpy(reference_values(shape)).to(dtype)
    whole = ((_hash(math.prod(shape)) >> np.uint64(40)) % np.uint64(below)).astype(np.int64)
    return torch.from_numpy(whole.reshape(tuple(shape))).to(dtype)


def _hash(count: int) -> np.ndarray:
    with np.errstate(over="ignore"):
        z = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            z ^= z >> np.uint64(shift)
            z *= np.uint64(factor)
        return z ^ (z >> np.uint64(31))


def parse_input(text: str) -> torch.Tensor:
    """The tensor that "1x3x224x224" or "1x128:int64" describes, with reference values.

    Raises:
        UsageError: not sizes joined by `x`, an unknown dtype, or more than 2^30 elements.
    """
    sizes, colon, name = text.strip().partition(":")
    if not re.fullmatch(r"[1-9][0-9]{0,9}(x[1-9][0-9]{0,9})*", sizes):
        raise UsageError("this is no input shape", where="--input", got=repr(text), expected="1x3x224x224[:dtype]")
    if colon and name not in DTYPES:
        close = difflib.get_close_matches(name, DTYPES, n=1)
        raise UsageError(
            "no such dtype",
            where="--input",
            got=repr(name),
            expected=f"one of {', '.join(DTYPES)}",
            fix=f"Did you mean {close[0]}?" if close else "",
        )
    shape = tuple(map(int, sizes.split("x")))
    if math.prod(shape) > MAX_ELEMENTS:
        raise UsageError("the input is too large", where="--input", got=text, expected="at most 2^30 elements")
    return reference_tensor(shape, DTYPES[name] if colon else torch.float32)


def copied(values: Any) -> Any:
    """The same nest of tuples, lists and dicts with every tensor detached, cloned and on the CPU."""
    if isinstance(values, torch.Tensor):
        return values.detach().clone().cpu()
    if isinstance(values, dict):
        return {key: copied(value) for key, value in values.items()}
    if isinstance(values, tuple) and hasattr(values, "_fields"):
        return type(values)(*map(copied, values))
    if isinstance(values, (tuple, list)):
        return type(values)(map(copied, values))
    return values


def guess(module: nn.Module) -> tuple[torch.Tensor, ...] | None:
    """One input for the module's first weight layer: the first usual size that its forward accepts.

    Tried on the meta device, where nothing is computed; then on a copy. If the forward refuses all of them the
    first one is returned, and its failure is the pipeline's to report. None if there is no layer to go by.
    """
    options = list(_options(module))
    if not options:
        return None
    dtype = next((p.dtype for p in module.parameters() if p.is_floating_point()), torch.float32)
    tensors = [reference_tensor(shape, dtype if below == 0 else torch.int64, below or 2) for shape, below in options]
    for device in ("meta", "cpu"):
        try:
            twin = copy.deepcopy(module).to(device).eval()
        except Exception:
            return (tensors[0],)
        for tensor in tensors:
            if _accepts(twin, tensor.to(device)):
                return (tensor,)
    return (tensors[0],)


def _options(module: nn.Module) -> Iterator[tuple[tuple[int, ...], int]]:
    """(shape, 0) for floats, (shape, n) for indices below n."""
    for layer in module.modules():
        if isinstance(layer, nn.modules.conv._ConvNd):
            spatial = len(layer.kernel_size)
            images = SIDES if max(layer.stride) > 1 else SMALL_SIDES
            sides = {1: LENGTHS, 2: images, 3: VOLUMES}[spatial]
            yield from (((1, layer.in_channels, *[side] * spatial), 0) for side in sides)
            return
        if isinstance(layer, nn.Linear):
            yield (1, layer.in_features), 0
            yield from (((1, length, layer.in_features), 0) for length in TOKENS)
            return
        if isinstance(layer, (nn.Embedding, nn.EmbeddingBag)):
            yield from (((1, length), layer.num_embeddings) for length in TOKENS)
            return
        if isinstance(layer, nn.RNNBase):
            yield from (((1, length, layer.input_size), 0) for length in TOKENS)
            return
        if isinstance(layer, nn.MultiheadAttention):
            yield from (((1, length, layer.embed_dim), 0) for length in TOKENS)
            return


def _accepts(module: nn.Module, tensor: torch.Tensor) -> bool:
    try:
        with torch.no_grad():
            module(tensor)
    except Exception:
        return False
    return True
