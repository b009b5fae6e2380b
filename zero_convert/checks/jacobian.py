"""Are all singular values of the residual blocks' Jacobian 0 or 1?

The Jacobian of what the last residual join carries, by what the fork of the first one does: both as the differences of
their mirrored pairs (c, c + C/2) behind a ReLU. Every block in between takes part, so that a factor of 1 + e in each
shows as its power. Row by row by reverse differentiation, on pictures as small as the network takes, in the model's own
precision, at hashed values of the pairs (with few channels the network's own input reaches a part of them only, and a
ReLU that reads exactly 0 has no derivative).

Strides drop positions: then some singular values are 0. Only asked where the Jacobian has at most 512 rows and the
network is small enough for a few seconds; otherwise skipped, with the size.

Fails if a singular value is further than the scheme's limit from 0 and from 1, or if all are 0.
"""

from __future__ import annotations

import torch
from torch import Tensor, fx

from zero_convert.formulas.hashing import words
from zero_convert.runtime import rng

from ..records import Join
from .harness import isolation
from .harness.bench import Answer, CheckContext, disable_dropout
from .harness.inputs import Inputs, moved
from .harness.watch import Watcher, axis_of, halves, residual_joins

NAME = "jacobian"
QUESTION = "Are all singular values of the residual blocks' Jacobian 0 or 1?"
AFTER = "norm_per_depth"
LEVELS = ("quick", "full")
NEEDS = ("scheme",)
LEAST = {"singular values": 1}
SIDES = (8, 16, 32, 48, 64)
REMEDY = "The check norm_per_depth names the first block that changes the length of the signal."
ROWS = 512
WORK = 6e9  # rows times parameters


def ask(context: CheckContext) -> Answer | None:
    limit = context.limits[NAME]
    mode = next(iter(reversed(context.modes)), "")
    joins = residual_joins(context, mode) if mode else []
    if not joins:
        return None
    (first, start, _), (last, _, end) = joins[0], joins[-1]
    inputs = tuple(x[:1] if isinstance(x, Tensor) else x for x in context.fitting(SIDES)[mode != "train"])
    seen = _values(context, mode, inputs, {}, (start, end))
    if len(seen) < 2:
        return Answer("skip", "the joins are not reached in one run")
    first_value, last_value = seen[start.name].detach(), seen[end.name]
    rows = _pairs(context, last, last_value).numel()
    size = sum(p.numel() for p in context.module.parameters())
    if rows > ROWS or rows * size > WORK:
        return Answer("skip", f"{rows} rows for {size:,} parameters are too many")
    axis = axis_of(context, first, first_value.ndim)
    pairs = _hashed(_pairs(context, first, first_value)).repeat_interleave(rows, 0).requires_grad_()
    both = torch.cat([pairs, -pairs], axis)
    with torch.enable_grad():
        both = both.relu() if bool((first_value >= 0).all()) else both
        carried = _pairs(context, last, _values(context, mode, inputs, {start.name: both}, (end,))[end.name])
        (jacobian,) = torch.autograd.grad(carried.reshape(rows, -1).diagonal().sum(), pairs)
    if not bool(torch.isfinite(jacobian).all()):
        summary = f"the Jacobian is not finite ({len(joins)} blocks, from {start.name} to {end.name})"
        return Answer("fail", summary, {}, f"within {limit:g} of 0 or 1", REMEDY)
    values = torch.linalg.svdvals(jacobian.reshape(rows, -1).cpu().double())
    off = float(torch.minimum(values.abs(), (values - 1).abs()).max())
    ones = int((values > 0.5).sum())
    wrong = off > limit or ones == 0
    return Answer(
        "fail" if wrong else "pass",
        f"{ones} singular values are 1, {len(values) - ones} are 0, up to {off:.2g} "
        f"({rows}×{jacobian[0].numel()}, {len(joins)} blocks; {float(values.min()):.6g} … {float(values.max()):.6g})",
        {"off": off, "ones": ones, "zeros": len(values) - ones, "largest": float(values.max())},
        f"within {limit:g} of 0 or 1",
        REMEDY if wrong else "",
        {"singular values": len(values)},
    )


def _hashed(like: Tensor) -> Tensor:
    """Values in ±1, none of them 0, of the same shape."""
    bits = words(0, "check jacobian", 0, like.numel()) >> 40
    values = (bits.astype("float64") + 0.5) / 2**23 - 1
    return torch.from_numpy(values).reshape(like.shape).to(like)


def _pairs(context: CheckContext, join: Join, value: Tensor) -> Tensor:
    one, other = halves(value, axis_of(context, join, value.ndim))
    return one - other


def _values(
    context: CheckContext, mode: str, inputs: Inputs, instead: dict[str, Tensor], wanted: tuple[fx.Node, ...]
) -> dict[str, Tensor]:
    """Values of nodes in one run, and their graph of derivatives; without those that it does not reach."""
    module, names = context.module, {node.name for node in wanted}
    seen: dict[str, Tensor] = {}

    def see(n: fx.Node, value: Tensor) -> None:
        if n.name in names:
            seen[n.name] = value

    with isolation.kept(module), torch.enable_grad():
        disable_dropout(module.train(mode == "train"))
        rng.seed()
        try:
            Watcher(module, context.graph(mode), see, instead).run(*moved(inputs, module, context.device))
        except Exception as error:  # behind the joins: the batch of rows may not fit what comes then
            if len(seen) < len(names) or isolation.ran_out(error):
                raise
    return seen
