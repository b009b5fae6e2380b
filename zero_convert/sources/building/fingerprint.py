"""Which builder makes a given live module, and a fingerprint of any module's structure.

A candidate is built as a skeleton (no values, almost no memory) and compared module by module. Candidates come from
the origins' files; no library is named here.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from typing import Any

from torch import nn

from zero_convert import sources
from zero_convert.graph.state import stored_tensors

from .nan_constructor import skeleton

# What decides a layer's arithmetic besides its tensors. Read by name rather than from `extra_repr`, whose spelling
# changes between releases; `inplace` is left out because it changes no value.
_GEOMETRY_NAMES = """
    kernel_size stride padding dilation output_padding groups padding_mode ceil_mode count_include_pad
    divisor_override output_size scale_factor mode align_corners size eps momentum affine track_running_stats
    normalized_shape elementwise_affine num_groups num_heads batch_first dropout bidirectional num_layers p
    negative_slope alpha beta threshold min_val max_val approximate dim start_dim end_dim upscale_factor
    num_embeddings embedding_dim padding_idx
"""
GEOMETRY = _GEOMETRY_NAMES.split()


def recognize(module: nn.Module) -> tuple[str, dict[str, Any]] | None:
    """(MODEL string, model arguments) of a builder that makes the same structure, or None.

    The same structure: module paths, classes, what they print of themselves, their plain attributes, and names,
    shapes and dtypes of parameters and buffers. A module with hooks or a replaced `forward` is not recognized.
    """
    if any(_changed(part) for part in module.modules()):
        return None
    tree = _tree(module)
    for prefix, name, attempts in sources.known_candidates(module):
        for args in attempts:
            twin = _skeleton_of(prefix, name, args)
            if twin is None or _tree(twin) != tree:
                break
            if _same(twin, module):
                return f"{prefix}:{name}", args
    return None


def fingerprint(module: nn.Module) -> str:
    """SHA-256 (hex) of the module's structure: no values, no device, no library versions.

    Canonical JSON of `[path, class, {geometry}]` for every module in order and `[name, shape, dtype]` for every
    parameter and buffer of the state dict. Classes by their name without the package, which moves between releases.
    """
    modules = [[path, type(part).__qualname__, _geometry(part)] for path, part in module.named_modules()]
    tensors = [[name, list(t.shape), str(t.dtype)] for name, t in stored_tensors(module).items()]
    text = json.dumps([modules, tensors], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def _skeleton_of(prefix: str, name: str, args: dict[str, Any]) -> nn.Module | None:
    origin = sources._origin(prefix)
    try:
        with skeleton():
            twin: nn.Module = origin.build(name, args)
        if hasattr(origin, "settle"):
            origin.settle(twin, args)
    except Exception:  # a builder that does not take these arguments is no candidate
        return None
    return twin


def _tree(module: nn.Module) -> list[tuple[str, str]]:
    """Paths and names of the classes; a parametrized layer has a class of its own, made for it alone."""
    return [(path, f"{type(part).__module__}.{type(part).__qualname__}") for path, part in module.named_modules()]


def _same(twin: nn.Module, module: nn.Module) -> bool:
    return _tree(twin) == _tree(module) and _outline(twin) == _outline(module) and _same_attributes(twin, module)


def _outline(module: nn.Module) -> list[Any]:
    parts: list[Any] = [part.extra_repr() for part in module.modules()]
    for tensors in (module.named_parameters(remove_duplicate=False), module.named_buffers(remove_duplicate=False)):
        parts += [(name, tensor.shape, tensor.dtype) for name, tensor in tensors]
    return parts


def _same_attributes(twin: nn.Module, module: nn.Module) -> bool:
    """Every plain attribute that the builder sets has the same value; attributes the user added are ignored."""
    for one, other in zip(twin.modules(), module.modules(), strict=True):
        for key, value in vars(one).items():
            if key != "training" and _simple(value) and vars(other).get(key) != value:
                return False
    return True


def _changed(module: nn.Module) -> bool:
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return any(hooks) or "forward" in vars(module)


def _geometry(module: nn.Module) -> dict[str, Any]:
    found = {}
    for name in GEOMETRY:
        with contextlib.suppress(Exception):  # a property may fail, or not be there
            value = getattr(module, name)
            if _simple(value):
                found[name] = value
    return found


def _simple(value: Any) -> bool:
    if isinstance(value, (tuple, list)):
        return all(map(_simple, value))
    return isinstance(value, (str, int, float, bool, type(None)))
