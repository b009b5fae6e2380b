"""Which modules tracing keeps whole: known layers, unless they do more than their class in torch says."""

from __future__ import annotations

from torch import nn

from zero_convert.graph.kinds import NORMS, is_layer


def kept_whole(module: nn.Module) -> bool:
    """Whether the module is one node. A norm with an activation inside is two layers, and is followed into."""
    return is_layer(module) and not (
        isinstance(module, NORMS) and any(not isinstance(child, nn.Identity) for child in module.children())
    )
