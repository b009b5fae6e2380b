"""Example inputs for networks of unknown origin: the first usual sizes that their forward accepts.

Sizes come from the weight layers, nothing from names of arguments. No model library is known here.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Iterator

import torch
from torch import nn

from zero_convert.graph.example_values import reference_tensor

from .trials import Trials

# Sides tried for a network that was not built by a library. A first convolution with a stride expects photographs,
# one without expects small images (CIFAR, MNIST); then what else is in use.
SIDES = (224, 256, 299, 384, 512, 128, 96, 64, 32, 28)
SMALL_SIDES = (32, 28, 64, 96, 128, 224, 256, 299, 384, 512)
VOLUMES = (64, 32, 16, 112)
LENGTHS = (1024, 128, 64, 256, 512, 4096, 16000)
TOKENS = (16, 64, 128, 197, 512)

CHANNELS = 3  # of the image that a lazy first convolution may see
MAX_INPUTS = 4  # required arguments of a forward that are tried together
MAX_TRIALS = 150  # combinations tried for them

_Size = tuple[tuple[int, ...], int]  # (shape, 0) for floats, (shape, n) for indices below n


def guess(module: nn.Module) -> tuple[torch.Tensor, ...] | None:
    """One tensor for each argument that the module's forward requires; None if they cannot be told.

    One argument: the usual sizes for the first weight layer, then for the other layers; if the forward refuses all
    of them the first one is returned, and its failure is the pipeline's to report. Several arguments: the first
    combination of usual sizes that the forward accepts, the same size for all of them before different ones.
    """
    layers = _by_layer(module)
    count = _required(module)
    if not layers or count > MAX_INPUTS:
        return None
    dtype = next((p.dtype for p in module.parameters() if p.is_floating_point() or p.is_complex()), torch.float32)
    trials = Trials(module)
    for sizes in itertools.islice(_combinations(layers, count), MAX_TRIALS):
        tensors = tuple(_tensor(size, dtype) for size in sizes)
        if trials.accepts(tensors, values=sizes[0] in layers[0]):
            return tensors
    return (_tensor(layers[0][0], dtype),) if count == 1 else None


def _combinations(layers: list[list[_Size]], count: int) -> Iterator[tuple[_Size, ...]]:
    """Each size for all arguments alike; then the first sizes of each layer in all arrangements."""
    for sizes in layers:
        yield from ((size,) * count for size in sizes)
    if count > 1:
        few = [size for sizes in layers for size in sizes[:3]]
        yield from itertools.product(few, repeat=count)


def _tensor(size: _Size, dtype: torch.dtype) -> torch.Tensor:
    shape, below = size
    return reference_tensor(shape, torch.int64, below) if below else reference_tensor(shape, dtype)


def _required(module: nn.Module) -> int:
    """How many arguments a call needs; 1 where that cannot be asked."""
    try:
        parameters = inspect.signature(module.forward).parameters.values()
    except (TypeError, ValueError):
        return 1
    given = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) and p.default is p.empty]
    return max(1, len(given))


def _by_layer(module: nn.Module) -> list[list[_Size]]:
    """Usual input sizes of the weight layers in order, the same ones once."""
    found: list[list[_Size]] = []
    for layer in module.modules():
        sizes = list(_sizes(layer))
        if sizes and sizes not in found:
            found.append(sizes)
    return found


def _sizes(layer: nn.Module) -> Iterator[_Size]:
    if isinstance(layer, nn.modules.conv._ConvNd):
        spatial = len(layer.kernel_size)
        images = SIDES if max(layer.stride) > 1 else SMALL_SIDES
        sides = {1: LENGTHS, 2: images, 3: VOLUMES}[spatial]
        channels = layer.in_channels or CHANNELS
        yield from (((1, channels, *[side] * spatial), 0) for side in sides)
    elif isinstance(layer, nn.Linear) and layer.in_features:
        yield (1, layer.in_features), 0
        yield from (((1, length, layer.in_features), 0) for length in TOKENS)
    elif isinstance(layer, (nn.Embedding, nn.EmbeddingBag)):
        yield from (((1, length), layer.num_embeddings) for length in TOKENS)
    elif isinstance(layer, nn.RNNBase):
        yield from (((1, length, layer.input_size), 0) for length in TOKENS)
    elif isinstance(layer, nn.MultiheadAttention):
        yield from (((1, length, layer.embed_dim), 0) for length in TOKENS)
