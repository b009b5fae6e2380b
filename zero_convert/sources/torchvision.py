"""The 121 builders of torchvision.models: names, construction without weights, and the input sizes of its presets.

Imports torchvision inside functions only, so that naming an origin costs nothing.
"""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from zero_convert.graph.example_values import reference_tensor
from zero_convert.runtime.messages import without_warnings

from .building.deferred_import import compile_deferred

if TYPE_CHECKING:
    import torch
    from torch import nn

# Side of the image where the architecture fixes it and no attribute of the module tells.
SIDES = {"inception_v3": 299, "quantized_inception_v3": 299, "ssd300_vgg16": 300, "ssdlite320_mobilenet_v3_large": 320}
# Frames and side of the clips that the video presets cut.
CLIPS = {"mvit": (16, 224), "swin3d": (16, 224), "s3d": (16, 224), "r3d": (16, 112), "mc3": (16, 112)}
CLIPS["r2plus1d"] = CLIPS["r3d"]
# In training these normalize over the batch what is one value per image: they need two images.
PAIRS = ("deeplabv3", "ssdlite320")
FLOW_SIDE = 128  # RAFT divides by 8 and pools three times more


def available() -> bool:
    return importlib.util.find_spec("torchvision") is not None


def _models() -> Any:
    with compile_deferred():
        from torchvision import models
    return models


def names() -> list[str]:
    return sorted(_models().list_models())


def known(name: str) -> bool:
    return name in names()


def build(name: str, args: dict[str, Any]) -> nn.Module:
    """The network with values as constructed; no weights, no weights of a backbone."""
    builder = _models().get_model_builder(name)
    parameters = inspect.signature(builder).parameters
    without = {key: None for key in ("weights", "weights_backbone") if key in parameters}
    # GoogLeNet and Inception announce another random initialization: it is not drawn here anyway.
    with without_warnings(FutureWarning, "The default weight initialization"):
        module: nn.Module = builder(**{**without, **args})
    return module


def example_inputs(name: str, module: nn.Module) -> tuple[Any, ...]:
    """One image (1, 3, S, S), one clip (1, 3, T, S, S), two frames for optical flow; a list of images for detection.

    A detector wants a list of targets with them in training mode, and lets them be in evaluation mode. One without a
    name, which `owns` knows, gets two images: it may normalize over the batch what is one value per image.
    """
    kind = _kind(name) if name else "detection"
    if kind == "optical_flow":
        frame = reference_tensor((1, 3, FLOW_SIDE, FLOW_SIDE))
        return frame, frame.flip(-1)
    if kind == "video":
        frames, side = next(size for prefix, size in CLIPS.items() if name.startswith(prefix))
        return (reference_tensor((1, 3, frames, side, side)),)
    count = 2 if not name or name.startswith(PAIRS) else 1
    side = SIDES.get(name, 224)
    size = getattr(module, "image_size", side)
    side = size if isinstance(size, int) else side
    if kind == "detection":
        return list(reference_tensor((count, 3, side, side))), [_target(module, side) for _ in range(count)]
    return (reference_tensor((count, 3, side, side)),)


def owns(module: nn.Module) -> bool:
    """Whether a live module is a detector of the library, or made of one by inheritance; it may have any backbone."""
    homes = (base.__module__ for base in type(module).__mro__)
    return hasattr(module, "transform") and any(home.startswith("torchvision.models.detection.") for home in homes)


def _target(module: nn.Module, side: int) -> dict[str, torch.Tensor]:
    """Objects of all sizes, most in the middle of the image, so that each level of a detector learns from one; their
    outlines and key points where the model has heads for them."""
    import torch

    sizes = [side // 16 * part for part in (1, 2, 4, 6, 8, 10, 13, 15)]
    spans = [(1, sizes[5]), *(((side - size) // 2, (side + size) // 2) for size in sizes)]  # along both axes
    target = {
        "boxes": torch.tensor([[low, low, high, high] for low, high in spans], dtype=torch.float32),  # x1, y1, x2, y2
        "labels": torch.ones(len(spans), dtype=torch.int64),
    }
    heads = getattr(module, "roi_heads", None)
    if heads is not None and heads.has_mask():
        target["masks"] = torch.zeros(len(spans), side, side, dtype=torch.uint8)
        for mask, (low, high) in zip(target["masks"], spans, strict=True):
            mask[low:high, low:high] = 1
    if heads is not None and heads.has_keypoint():
        count = heads.keypoint_predictor.kps_score_lowres.out_channels
        along = torch.stack([torch.linspace(low + 1, high - 1, count) for low, high in spans])
        target["keypoints"] = torch.stack([along, along, torch.ones_like(along)], dim=-1)  # (objects, K, 3)
    return target


def candidates(module: nn.Module) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Builders that live in the same file as the module's class, with the module's number of classes."""
    from torch import nn

    home = type(module).__module__
    if not home.startswith("torchvision.models."):
        return
    outputs = [
        layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
        for layer in module.modules()
        if isinstance(layer, (nn.Linear, nn.Conv2d))
    ]
    for name in names():
        if _models().get_model_builder(name).__module__ == home:
            yield name, [{}, *([{"num_classes": outputs[-1]}] if outputs else [])]


def _kind(name: str) -> str:
    """The package of the builder: "detection", "segmentation", "video", "optical_flow", …"""
    package: str = _models().get_model_builder(name).__module__.split(".")[2]
    return package
