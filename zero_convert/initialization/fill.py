"""Initialize: every tensor of the state dict gets the values of its formula, or the run stops and lists what has none.

`resolve.py` finds the formulas; here they are written into the module's own tensors. No random number, no device.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
import torch

from zero_convert.formulas import Constant, Formula
from zero_convert.graph.state import stored_tensors
from zero_convert.graph.traced import Traced
from zero_convert.options import RecipeOptions
from zero_convert.records import Assignment, Option, Structure
from zero_convert.runtime.nan_memory import unwritten
from zero_convert.runtime.threads import one_thread
from zero_convert.sources.building.memory import require
from zero_convert.sources.file_values import FileValues

from .resolve import Context, Tied, resolve
from .scheme import AsConstructed, Scheme


@one_thread()
def initialize(
    traced: Traced,
    structure: Structure,
    scheme: Scheme,
    options: Mapping[str, Option],
    *,
    asked: RecipeOptions | None = None,
    constructed: bool = True,
    drawn: Collection[str] = (),
    file_values: Mapping[str, FileValues] | None = None,
    write: bool = True,
) -> tuple[Assignment, ...]:
    """What every tensor gets, after its values were written (unless `write` is false).

    Args:
        traced: the model after rewriting; its parameters and buffers are overwritten.
        asked, constructed, drawn, file_values: as in `Context`.

    Raises:
        CoverageError: tensors without a rule, or values to be kept that were drawn at random.
        LoadError: the values do not fit into memory.
    """
    state = stored_tensors(traced.root)
    asked, file_values = asked or RecipeOptions(), file_values or {}
    assignments = resolve(Context(state, structure, scheme, options, asked, constructed, drawn, file_values))
    writes = [a for a in assignments if write and not isinstance(a.formula, AsConstructed | Tied)]
    require(unwritten(state[a.tensor.name] for a in writes), "weights")
    with torch.no_grad():
        for assignment in writes:
            _write(state[assignment.tensor.name], assignment.formula)
    return assignments


def _write(target: torch.Tensor, formula: Formula) -> None:
    numbers = isinstance(formula, FileValues | Constant)
    if (
        not numbers
        and target.is_contiguous()
        and target.device.type == "cpu"
        and target.dtype in (torch.float32, torch.float64)
    ):
        formula.fill(target.detach().numpy())
    else:
        target.copy_(block(formula, tuple((0, size) for size in target.shape), target.dtype))


def block(formula: Formula, ranges: tuple[tuple[int, int], ...], dtype: torch.dtype) -> torch.Tensor:
    """The values of a formula within (start, stop) of each axis, as a tensor of this type that is filled holds them."""
    if isinstance(formula, FileValues):
        return formula.values()[tuple(slice(*pair) for pair in ranges)].to(dtype)
    if isinstance(formula, Constant):
        return torch.full([stop - start for start, stop in ranges], formula.value, dtype=dtype)
    values = formula.block(ranges, np.float64 if dtype is torch.float64 else np.float32)
    return torch.from_numpy(values).to(dtype)
