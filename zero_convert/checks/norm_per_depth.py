"""Does the length of the signal stay the same through the residual blocks?

At every residual join the length of r(z), r a ReLU and z the sum, is compared with that of the signal before the first
block of its stage: a run of blocks that neither drop positions nor narrow, as strides do. Mirrored pairs (c, c + C/2)
say the same before and behind a ReLU, so that this is the length of what they carry; and of each pair one side is 0
behind it. In training and evaluation mode, in the model's own precision and in float64.

Fails if a length is off by more than the scheme's limit, relatively, or in float64 by more than 1e-12 where the weights
are exact there (the files are float32: what cannot be written in it shows as 1e-8 for each block); or if both sides of
a pair are not 0.
"""

from __future__ import annotations

import torch
from torch import Tensor, fx

from .harness import isolation
from .harness.bench import Answer, CheckContext
from .harness.recorder import most
from .harness.watch import axis_of, channels_first, halves, residual_joins, watch

NAME = "norm_per_depth"
QUESTION = "Does every residual block keep the length of the signal?"
AFTER = "symmetry"
LEVELS = ("quick", "full")
NEEDS = ("scheme",)
LEAST = {"blocks": 1}
EXACT = 1e-12
REMEDY = "A layer of that block is not what the scheme makes (see --dry-run), or a norm or activation stands in it."


def ask(context: CheckContext) -> Answer | None:
    limit = context.limits[NAME]
    if not any(join.residual for join in context.subject.structure.joins):
        return None
    if refusal := context.refusal():
        return Answer("skip", refusal)
    ratios: dict[str, dict[str, float]] = {}
    overlap, stopped = 0.0, ""
    for mode in context.modes:
        for exact in (False, True):
            key = f"{mode}, {'float64' if exact else 'own precision'}"
            ratios[key], both, ended = _ratios(context, mode, exact)
            overlap, stopped = most((overlap, both)), ended or stopped
    worst = {key: most(abs(value - 1) for value in values.values()) for key, values in ratios.items()}
    limits = {key: EXACT if "float64" in key else limit for key in ratios}
    off = [node for key, values in ratios.items() for node in values if not abs(values[node] - 1) <= limits[key]]
    crossed = not overlap <= limit
    blocks = max(map(len, ratios.values()), default=0)
    summary = f"{blocks} blocks, length ratio 1 ± " + ", ".join(f"{value:.2g} ({key})" for key, value in worst.items())
    summary += f"; first off at {off[0]}" if off else ""
    summary += f"; both sides of a pair up to {overlap:.2g} at once" if crossed else ""
    summary += f"; stopped early: {stopped}" if stopped else ""
    status = "fail" if off or crossed else "warn" if stopped else "pass"
    return Answer(
        status,
        summary,
        {"ratios": ratios, "both_sides": overlap},
        f"1 ± {limit:g}, in float64 ± {EXACT:g}",
        REMEDY if status == "fail" else "",
        {"blocks": blocks},
    )


def _ratios(context: CheckContext, mode: str, exact: bool) -> tuple[dict[str, float], float, str]:
    """Join → its length over that before the first block of its stage; overlap of pairs; why the run ended early."""
    joins = residual_joins(context, mode)
    nodes = {n: join for join, fork, node in joins for n in (fork, node)}

    def look(n: fx.Node, value: Tensor) -> tuple[float, float, tuple[int, ...]]:
        """The length, how large both sides of a pair are at once, and the shape."""
        sides = halves(value, axis_of(context, nodes[n], value.ndim))
        both = float(torch.minimum(*sides).max() / max(float(torch.stack(sides).max()), 1e-30))
        return float(torch.linalg.vector_norm(isolation.wide(torch.stack(sides)))), both, tuple(value.shape)

    seen, stopped = watch(context, mode, look, nodes=nodes, exact=exact)
    ratios: dict[str, float] = {}
    reference, previous = 0.0, ""
    for join, fork, node in joins:
        if fork.name not in seen or node.name not in seen:
            continue
        before, after = (channels_first(context, join, seen[n.name][2]) for n in (fork, node))
        if before[1:] != after[1:] or after[0] < before[0]:
            previous = ""
            continue
        way = context.subject.structure.layer(join.branch[0]).way
        reference = reference if way is not None and previous and way.name == previous else seen[fork.name][0]
        ratios[join.node] = seen[node.name][0] / reference if reference else float("nan")
        previous = node.name
    return ratios, most(both for _, both, _ in seen.values()), stopped
