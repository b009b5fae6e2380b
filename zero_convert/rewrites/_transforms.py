"""Where the rewrites put a Hadamard transform: beside the layer whose channels it mixes."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from zero_convert.graph.editing import add_module
from zero_convert.nn.layers import HadamardTransform

from ..records import Geometry, Option


def add_transform(root: nn.Module, path: str, g: Geometry, options: Mapping[str, Option]) -> tuple[str, str]:
    """A transform over the output channels of the layer at `path`, and "" or what keeps it from being an isometry.

    Transforms of one width hold their numbers in common.

    Returns:
        The path at which the transform is registered, and the note.
    """
    like = (module for module in root.modules() if isinstance(module, HadamardTransform))
    transform = HadamardTransform(g.out_channels, len(g.kernel), str(options["mixing"]), path, like)
    note = "" if transform.isometry else ", cropped from the next power of two: no isometry"
    return add_module(root, f"{path}_transform", transform), note
