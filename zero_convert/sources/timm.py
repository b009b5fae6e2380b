"""The architectures of timm, where it is installed: names, construction without weights, configured input sizes.

Imports timm inside functions only, because importing it takes seconds.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from zero_convert.graph.example_values import reference_tensor

from .inputs.guess import guess

if TYPE_CHECKING:
    from torch import nn


def available() -> bool:
    return importlib.util.find_spec("timm") is not None


def names() -> list[str]:
    import timm

    return sorted(timm.list_models())


def known(name: str) -> bool:
    """Whether timm has the architecture; a tag of trained weights (`resnet50.a1_in1k`) is allowed."""
    import timm

    return bool(timm.is_model(name))


def build(name: str, args: dict[str, Any]) -> nn.Module:
    import timm

    module: nn.Module = timm.create_model(name, pretrained=False, **args)
    return module


def example_inputs(name: str, module: nn.Module) -> tuple[Any, ...] | None:
    """(1, *input_size) of the model's configuration."""
    config = getattr(module, "pretrained_cfg", None) or getattr(module, "default_cfg", None) or {}
    size = config.get("input_size")
    return (reference_tensor((1, *size)),) if size else guess(module)


def candidates(module: nn.Module) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """The architecture that the module's configuration names, with the module's number of classes."""
    import timm

    config = getattr(module, "pretrained_cfg", None)
    name = config.get("architecture") if isinstance(config, dict) else None
    if isinstance(name, str) and timm.is_model(name):
        classes = getattr(module, "num_classes", None)
        yield name, [{}, *([{"num_classes": classes}] if isinstance(classes, int) else [])]
