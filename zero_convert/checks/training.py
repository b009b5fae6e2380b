"""Does the network learn: does its loss fall on a batch it sees again and again, without a NaN?

A copy is trained on one synthetic batch with hashed classes (the mean squared distance to hashed signs, where the
output is no scores), dropout off, by plain gradient descent: `--train-steps N` says how many steps, 10 with `full`. Of
the rates 0.1, 0.01 and 0.001 the first is taken with which the loss ends lower than it began, all of it finite.

Told beside the losses: how long the gradient of each step is; how many features are different at each depth before and
after (`distinct_before`, `distinct_after`: the spread of the channels); and of each weight matrix the numerical rank of
W_t - W_0, over at most 128 of its columns, with the largest it could be. A network whose channels repeat each other
moves in few directions only: for partial identities without a mixing transform the rank cannot pass the number of
inputs (ZerO, arXiv 2110.12661, Theorem 1).

Fails if the loss or a gradient is not finite at every rate, or the loss falls at none.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from .harness.bench import Answer, CheckContext, disable_dropout
from .harness.channels import rank
from .harness.depths import length, rounded
from .harness.depths import run as look
from .harness.inputs import floats
from .harness.training import loss

NAME = "training"
QUESTION = "Does the loss fall in training, without a NaN, and in how many directions do the weights move?"
AFTER = "skips"
LEVELS = ("quick", "full")
NEEDS = ("steps", "train")
LEAST = {"steps": 1}
RATES = (0.1, 0.01, 0.001)


@dataclass
class _Run:
    rate: float
    module: nn.Module
    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)

    @property
    def finite(self) -> bool:
        return all(map(math.isfinite, (*self.losses, *self.norms)))

    @property
    def fell(self) -> bool:
        return self.finite and len(self.losses) > 1 and self.losses[-1] < self.losses[0]


def ask(context: CheckContext) -> Answer:
    steps = context.train_steps
    if not context.run("train").outputs:
        return Answer("skip", "nothing to train: no floating output in training mode")
    runs: list[_Run] = []
    for rate in RATES:
        runs.append(_train(context, steps, rate))
        if not runs[-1].losses:
            return Answer("skip", "no output depends on a parameter")
        if runs[-1].fell:
            break
    run = next((r for r in runs if r.fell), next((r for r in runs if r.finite), runs[-1]))
    ranks = _ranks(context, run.module)
    before, after = (_distinct(context, module) for module in (context.module, run.module))
    told = f"loss {run.losses[0]:.4g} → {run.losses[-1]:.4g} in {steps} steps of rate {run.rate:g}"
    if not run.finite:
        told = "loss or gradient not finite: " + ", ".join(
            f"in step {max(1, len(r.norms))} of rate {r.rate:g}" for r in runs
        )
    elif not run.fell:
        told += ", and no lower at any other rate"
    moved_most = max(ranks, key=lambda name: ranks[name][0], default="")
    if moved_most and run.finite:
        found, most = ranks[moved_most]
        told += f"; W_t - W_0 has rank {found} of {most} at most ({moved_most})"
    return Answer(
        "pass" if run.fell else "fail",
        told,
        {
            "rate": run.rate,
            "losses": rounded(run.losses),
            "gradient_norms": rounded(run.norms),
            "rates_refused": [r.rate for r in runs if not r.fell],
            "rank": ranks,
            "distinct_before": before,
            "distinct_after": after,
        },
        "finite, and lower at the end than at the start",
        "A smaller rate or a norm may help; see what the other checks warn of." if not run.fell else "",
        {"steps": len(run.norms)},
    )


def _train(context: CheckContext, steps: int, rate: float) -> _Run:
    run = _Run(rate, disable_dropout(context.fresh().train()))
    with torch.enable_grad():
        for step in range(steps + 1):
            returned = floats(context.forward(run.module, context.small_inputs[0]))
            outputs = [t for t in returned if t.requires_grad and t.numel()]
            if not outputs:
                return run
            value = loss(outputs)
            run.losses.append(float(value.detach()))
            if step == steps or not run.finite:
                return run
            run.norms.append(_step(run.module, value, rate))
    return run


def _step(module: nn.Module, value: Tensor, rate: float) -> float:
    """Makes a step; the Euclidean norm of its whole gradient."""
    module.zero_grad(set_to_none=True)
    value.backward()  # type: ignore[no-untyped-call]
    total = 0.0
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.grad is not None:
                total += length(parameter.grad) ** 2
                parameter.sub_(parameter.grad, alpha=rate)
    module.zero_grad(set_to_none=True)
    return math.sqrt(total)


@torch.no_grad()
def _ranks(context: CheckContext, trained: nn.Module) -> dict[str, tuple[int, int]]:
    start = dict(context.module.named_parameters())
    return {
        name: rank((after - start[name]).detach().flatten(1))
        for name, after in trained.named_parameters()
        if after.ndim > 1 and after.is_floating_point() and after.numel()
    }


def _distinct(context: CheckContext, module: nn.Module) -> list[int]:
    """Different channels at each depth; the depths are those of the check `signal`."""
    subject = context.subject
    seen = look(module, subject.traced.train, subject.structure, context.small_inputs[0], context.device, "channels")
    return [channels.distinct for channels in seen.channels]
