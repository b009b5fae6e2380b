"""Detectors of torchvision scale an image to 800 pixels whatever they are given, and look at hundreds of regions in it.

What a network is made of depends on neither, but the cost of every run does: while a detector is looked at here, it
works on small images and few regions. `settings.restore` gives it back what it was made with.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

from torch import nn

from .settings import Setting, apply

SIDE = 128  # pixels: two by two cells on the coarsest level with weights of a feature pyramid, whose stride is 64
REGIONS = 32  # sampled from each image in training; a quarter of them on objects
DETECTIONS = 8  # returned for each image in evaluation mode
_ROOM = "torchvision.models.detection"


def reduce(module: nn.Module) -> tuple[Setting, ...]:
    """The settings of the detectors inside `module` that are lower from now on; empty for other networks."""
    return apply((*_images(module), *_regions(module)))


def told(reduced: tuple[Setting, ...]) -> tuple[str, ...]:
    """A sentence for the plan, where images were reduced."""
    sizes = sorted({str(max(setting.made)) for setting in reduced if setting.name == "min_size"})
    return (f"every run here scaled images to {SIDE} pixels instead of {' or '.join(sizes)}",) if sizes else ()


def _images(module: nn.Module) -> Iterator[Setting]:
    """`min_size` are the shorter sides that images are scaled to (one is drawn in training) as long as the longer ones
    stay below `max_size`."""
    for layer in _layers(module, "transform", "GeneralizedRCNNTransform"):
        shorter, longer = layer.min_size, layer.max_size
        if layer.fixed_size is None and shorter and min(shorter) > SIDE:
            yield Setting(layer, "min_size", shorter, (SIDE,))
            yield Setting(layer, "max_size", longer, max(SIDE, round(longer * SIDE / max(shorter))))


def _regions(module: nn.Module) -> Iterator[Setting]:
    for layer in _layers(module, "roi_heads", "RoIHeads"):
        for owner, name, few in (
            (layer.fg_bg_sampler, "batch_size_per_image", REGIONS),
            (layer, "detections_per_img", DETECTIONS),
        ):
            if getattr(owner, name) > few:
                yield Setting(owner, name, getattr(owner, name), few)


def _layers(module: nn.Module, room: str, name: str) -> Iterator[Any]:
    library = sys.modules.get(f"{_ROOM}.{room}")  # who has not imported it has no such layer
    if library is not None:
        yield from (layer for layer in module.modules() if isinstance(layer, getattr(library, name)))
