"""A loaded model in the precision in which it is rewritten and checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils._pytree import tree_map

from zero_convert.graph.copies import copy_of
from zero_convert.graph.state import stored_tensors

if TYPE_CHECKING:
    from zero_convert.sources import Loaded
    from zero_convert.sources.inputs import Inputs


def cast(module: nn.Module, dtype: str) -> None:
    """Floating tensors of the module get the dtype; complex and whole ones stay.

    A module that is not in float32 by now insists on its precisions (`single_precision`), and only another one that
    was asked for overrules it.
    """
    if dtype == "float32":
        return
    module._apply(lambda t: t.to(getattr(torch, dtype)) if t.is_floating_point() else t)  # type: ignore[no-untyped-call]


def single_precision(loaded: Loaded) -> Loaded:
    """The model in float32, in which it is rewritten and checked; what is written has the dtype that was asked for.

    One whose forward insists on other precisions, so that it does not run in float32, stays as it is.
    """
    inputs = loaded.example_inputs
    found = {t.dtype for t in stored_tensors(loaded.module).values() if t.is_floating_point()}
    if found <= {torch.float32}:
        return loaded
    if _insists(loaded.module, inputs):
        return loaded
    loaded.module.float()
    return replace(loaded, example_inputs=_float(inputs))


def _float(inputs: Inputs | None) -> Any:
    return tree_map(lambda x: x.float() if isinstance(x, torch.Tensor) and x.is_floating_point() else x, inputs)


def _insists(module: nn.Module, given: Inputs | None) -> bool:
    """Whether the module runs as it is, and not in float32, whatever precision its inputs have."""

    def runs(module: nn.Module, inputs: Any) -> bool:
        try:
            with torch.no_grad():
                call = copy_of(module).eval()
                call(**inputs) if isinstance(inputs, Mapping) else call(*(inputs or ()))
        except Exception:  # whatever a forward raises
            return False
        return True

    if not runs(module, given):
        return False
    single = copy_of(module).float()
    return not runs(single, given) and not runs(single, _float(given))
