"""Layers whose weight is computed from other tensors: which parametrization it is, and which tensors are what.

    weight_norm     w = g · v / ‖v‖     torch.nn.utils.weight_norm (weight_g, weight_v) and
                                        parametrizations.weight_norm (original0, original1), along any axis
    spectral_norm   w = W / (uᵀ·W·v)    torch.nn.utils.spectral_norm (weight_orig, weight_u, weight_v) and
                                        parametrizations.spectral_norm (original, _u, _v)

Anything else has no closed form here and is refused by name.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn
from torch.nn.utils import parametrizations, parametrize
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

WAY_OUT = "torch.nn.utils.parametrize.remove_parametrizations(layer, 'weight') makes it a plain layer"


@dataclass(frozen=True, slots=True)
class Parametrized:
    """How a layer's weight is computed.

    Attributes:
        kind: "weight_norm" or "spectral_norm", or "" for one that is not known.
        names: its tensors, relative to the layer → "g", "v", "weight", "u" or "right".
        axis: along which lengths are taken, or which gives the rows of the matrix.
        refusal: why it has no rule.
    """

    kind: str
    names: dict[str, str]
    axis: int = 0
    refusal: str = ""


def parametrized(module: nn.Module) -> Parametrized | None:
    """How the layer's weight is computed; None where it is a plain parameter."""
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, WeightNorm):
            names = {f"{hook.name}_g": "g", f"{hook.name}_v": "v"}
            return _allowed("weight_norm", names, hook.name, getattr(hook, "dim", 0))
        if isinstance(hook, SpectralNorm):
            names = {f"{hook.name}_orig": "weight", f"{hook.name}_u": "u", f"{hook.name}_v": "right"}
            return _allowed("spectral_norm", names, hook.name, hook.dim)
        if isinstance(hook, BasePruningMethod):
            name, how = hook._tensor_name, type(hook).__name__
            way = f"torch.nn.utils.prune.remove(layer, '{name}') makes it a plain layer"
            return Parametrized("", {}, 0, f"its {name} is masked by the pruning method {how}; {way}")
    if not parametrize.is_parametrized(module):
        return None
    lists = module.parametrizations
    name = next(iter(lists))  # type: ignore[arg-type]
    chain = list(lists[name])  # type: ignore[index]
    what = ", ".join(type(p).__name__ for p in chain)
    prefix = f"parametrizations.{name}"
    if len(lists) == 1 and len(chain) == 1:  # type: ignore[arg-type]
        if isinstance(chain[0], parametrizations._WeightNorm):
            names = {f"{prefix}.original0": "g", f"{prefix}.original1": "v"}
            return _allowed("weight_norm", names, name, chain[0].dim)
        if isinstance(chain[0], parametrizations._SpectralNorm):
            names = {f"{prefix}.original": "weight", f"{prefix}.0._u": "u", f"{prefix}.0._v": "right"}
            return _allowed("spectral_norm", names, name, chain[0].dim)
    return Parametrized("", {}, 0, f"its {name} is computed by {what}, for which no closed form is known; {WAY_OUT}")


def _allowed(kind: str, names: dict[str, str], weight: str, dim: int | None) -> Parametrized:
    if weight != "weight" or dim is None or dim < 0:
        return Parametrized("", {}, 0, f"its {weight} has a {kind} along axis {dim}; {WAY_OUT}")
    return Parametrized(kind, names, dim)
