"""How many units of a layer that grows can be different at the start, and are there as many?

Two outputs whose weights are the same row compute the same for every input, and where what reads them treats them alike
training never parts them. So the number of distinct rows of the weight, biases included, is a cap that no input lifts.
It follows from the rule alone, for a layer of m outputs and n inputs (of a patch all its values), m > n:

    partial identity           min(m, n + 1)        n units, and those beyond them are all 0: the signal spans at most n
                                                    dimensions, and so does every later layer that starts as an identity
                                                    (ZerO, arXiv 2110.12661, Theorem 1)
    Hadamard, columns=first    min(m, 2^ceil(log2 n))      the first n Sylvester columns know the low bits of a row only

Fails where the weights have another number of distinct rows than the rule says. A frozen transform behind a layer lifts
the cap again; `channels` counts what is left of it in the signal.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..formulas import Formula, Hadamard, Kernel, PartialIdentity, Patch
from ..records import Assignment
from .harness.bench import Answer, CheckContext
from .harness.channels import distinct

NAME = "distinct_units"
QUESTION = "How many units of each layer that grows can be different, and are they?"
AFTER = "gradient_norms"
LEVELS = ("quick", "full")
NEEDS = ()
LEAST = {"layers": 1}


def ask(context: CheckContext) -> Answer | None:
    layers = {layer.name: layer for layer in context.subject.structure.layers}
    numbers: dict[str, list[int]] = {}
    wrong: list[str] = []
    for assignment in context.subject.assignments:
        layer = layers.get(assignment.layer)
        plain = layer is not None and layer.kind in ("convolution", "linear") and assignment.tensor.local == "weight"
        predicted = cap(assignment.formula) if plain else None
        if predicted is None:
            continue
        found = _distinct_rows(context, assignment)
        numbers[assignment.layer] = [found, predicted, assignment.tensor.shape[0]]
        if found != predicted:
            wrong.append(assignment.layer)
    if not numbers:
        return None
    lowest = min(numbers, key=lambda name: numbers[name][1] / numbers[name][2])
    found, predicted, rows = numbers[lowest]
    summary = f"{len(numbers)} layers that grow: fewest {found} of {rows} different rows, as predicted, at {lowest}"
    if wrong:
        found, predicted, rows = numbers[wrong[0]]
        summary = f"{len(wrong)} of {len(numbers)} layers: {found} different rows instead of {predicted} at {wrong[0]}"
    return Answer(
        "fail" if wrong else "pass",
        summary,
        {"layers": numbers, "columns": ["found", "predicted", "rows"]},
        "as many distinct rows as the rule predicts",
        "A weight is not what its rule makes: the file is damaged or was trained, or the formula is wrong."
        if wrong
        else "",
        {"layers": len(numbers)},
    )


def cap(formula: Formula) -> int | None:
    """The number of distinct rows that the formula of a growing layer leaves; None for other formulas and layers."""
    whole = isinstance(formula, Patch) or (
        isinstance(formula, Kernel) and formula.groups == 1 and not formula.transposed
    )
    matrix = formula.operands[0] if whole else formula
    if not isinstance(matrix, PartialIdentity | Hadamard) or matrix.m <= matrix.n:
        return None
    if isinstance(matrix, PartialIdentity):
        return min(matrix.m, matrix.n + 1)
    sylvester = matrix.columns == "first" and matrix.matrix.paley.kind == 0
    return min(matrix.m, 1 << (matrix.n - 1).bit_length()) if sylvester else None


@torch.no_grad()
def _distinct_rows(context: CheckContext, assignment: Assignment) -> int:
    root = context.subject.traced.root
    weight = root.get_parameter(assignment.tensor.name).detach().flatten(1)
    bias = root.get_submodule(assignment.layer).bias if hasattr(root.get_submodule(assignment.layer), "bias") else None
    if isinstance(bias, Tensor):
        weight = torch.cat([weight, bias.detach().reshape(-1, 1)], 1)
    weight = weight[:, weight.any(0)]
    return distinct(weight.double()) if weight.shape[1] else 1
