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

from collections.abc import Mapping

import torch
from torch import Tensor, fx

from ..records import Check, Join
from .harness import isolation
from .harness.bench import CheckContext
from .harness.recorder import most
from .harness.watch import axis_of, channels_first, halves, residual_joins, watch

NAME = "norm_per_depth"
QUESTION = "Does every residual block keep the length of the signal?"
AFTER = "symmetry"
LEVELS = ("quick", "full")
NEEDS = ("scheme",)
EXACT = 1e-12
REMEDY = "A layer of that block is not what the scheme makes (see --dry-run), or a norm or activation stands in it."


def ask(context: CheckContext) -> Check | None:
    limit = context.limits[NAME]
    if not any(join.residual for join in context.subject.structure.joins):
        return None
    if refusal := context.refusal():
        return Check(NAME, "skip", QUESTION, refusal)
    ratios: dict[str, dict[str, float]] = {}
    overlap, stopped = 0.0, ""
    for mode in context.modes:
        for exact in (False, True):
            lengths: dict[str, float] = {}
            shapes: dict[str, tuple[int, ...]] = {}
            both: dict[str, float] = {}
            wanted = {n.name: join for join, fork, node in residual_joins(context, mode) for n in (fork, node)}

            def see(
                n: fx.Node,
                value: Tensor,
                wanted: Mapping[str, Join] = wanted,
                lengths: dict[str, float] = lengths,
                shapes: dict[str, tuple[int, ...]] = shapes,
                both: dict[str, float] = both,
            ) -> None:
                if n.name in wanted:
                    join = wanted[n.name]
                    sides = halves(value, axis_of(context, join, value.ndim))
                    lengths[n.name] = float(torch.linalg.vector_norm(isolation.wide(torch.stack(sides))))
                    shapes[n.name] = tuple(value.shape)
                    both[n.name] = float(torch.minimum(*sides).max() / max(float(torch.stack(sides).max()), 1e-30))

            stopped = watch(context, mode, see, exact=exact) or stopped
            ratios[f"{mode}, {'float64' if exact else 'own precision'}"] = _ratios(context, mode, lengths, shapes)
            overlap = most((overlap, *both.values()))
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
    return Check(
        NAME,
        status,
        QUESTION,
        summary,
        {"ratios": ratios, "both_sides": overlap},
        f"1 ± {limit:g}, in float64 ± {EXACT:g}",
        REMEDY if status == "fail" else "",
    )


def _ratios(
    context: CheckContext, mode: str, lengths: Mapping[str, float], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, float]:
    """Join → its length over that before the first block of its stage."""
    ratios: dict[str, float] = {}
    reference, previous = 0.0, ""
    for join, fork, node in residual_joins(context, mode):
        if fork.name not in lengths or node.name not in lengths:
            continue
        before, after = (channels_first(context, join, shapes[n.name]) for n in (fork, node))
        if before[1:] != after[1:] or after[0] < before[0]:
            previous = ""
            continue
        way = context.subject.structure.layer(join.branch[0]).way
        reference = reference if way is not None and previous and way.name == previous else lengths[fork.name]
        ratios[join.node] = lengths[node.name] / reference if reference else float("nan")
        previous = node.name
    return ratios
