"""Initialize: every tensor of the state dict gets the values of its formula, or the run stops and lists what has none.

`resolve.py` finds the formulas; here they are written into the module's own tensors. No random number, no device.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch

from zero_convert.formulas import Constant, Formula
from zero_convert.graph.state import stored_tensors
from zero_convert.graph.traced import Traced
from zero_convert.options import RecipeOptions
from zero_convert.records import Assignment, Option, Structure
from zero_convert.runtime.threads import one_thread
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
    """
    state = stored_tensors(traced.root)
    asked, file_values = asked or RecipeOptions(), file_values or {}
    assignments = resolve(Context(state, structure, scheme, options, asked, constructed, drawn, file_values))
    with torch.no_grad():
        for assignment in assignments if write else ():
            if not isinstance(assignment.formula, AsConstructed | Tied):
                _write(state[assignment.tensor.name], assignment.formula)
    return assignments


def _write(target: torch.Tensor, formula: Formula) -> None:
    if isinstance(formula, FileValues):
        target.copy_(formula.values())
    elif isinstance(formula, Constant):
        target.fill_(formula.value)
    elif target.is_contiguous() and target.device.type == "cpu" and target.dtype in (torch.float32, torch.float64):
        formula.fill(target.detach().numpy())
    else:
        values = torch.empty(target.shape, dtype=torch.float32)
        formula.fill(values.numpy())
        target.copy_(values)
