"""Are all channels of every layer identical?

The spread of a signal is the largest difference between one of its channels and the first. It is measured behind every
weight layer but the heads, every norm and every residual join, in training and evaluation mode, in the model's own
precision. A layer that reads every channel of its input has spread 0 whatever it reads; a norm, a grouped layer or a
join only where what goes in has none (behind a concatenation of different signals, or at the network's input, it has).

Pictures are 64×64 where the network takes them: torch's 1×1 convolution onto exactly 3×3 positions, to which others
shrink, adds up some channels in another order (1e-6, measured).

Fails if a spread of 0 goes in and more comes out, or if a layer that reads all channels returns any, beyond rounding.
Warns where it is rounding (at most 1e-5 of the largest value): the device's kernels do not add up all channels in the
same order.
"""

from __future__ import annotations

from .harness.bench import Answer, CheckContext
from .harness.recorder import most
from .harness.watch import SPREAD_SIDES, spreads, unseen

NAME = "channel_spread"
QUESTION = "Are all channels of every layer identical at the start?"
AFTER = "branch_bound"
LEVELS = ("quick", "full")
NEEDS = ("scheme",)
LEAST = {"places": 1}
ROUNDING = 1e-5
REMEDY = "Its layer starts with other values (--dry-run names the rules), or does not treat all channels alike."


def ask(context: CheckContext) -> Answer:
    limit = context.limits[NAME]
    worst: dict[str, float] = {}
    rounding: dict[str, float] = {}
    scale, stopped, inputs = 0.0, "", context.fitting(SPREAD_SIDES)
    for mode in context.modes:
        apart, sizes, ended = spreads(context, mode, inputs[mode != "train"])
        stopped = ended or stopped
        for node, spread in apart.items():
            worst[node] = max(spread, worst.get(node, 0.0))
            scale = max(scale, sizes[node])
            if spread > limit:
                rounding[node] = most((spread / max(sizes[node], 1e-30), rounding.get(node, 0.0)))
    if not worst:
        return unseen(context, stopped, "layer", "none reads all channels of its input")
    wrong = [node for node, share in rounding.items() if not share <= ROUNDING]
    if rounding:
        node = (wrong or list(rounding))[0]
        what = "not identical" if wrong else "identical up to rounding"
        summary = (
            f"{what} at {len(wrong or rounding)} of {len(worst)} places, first at {node}: spread {worst[node]:.3g}"
        )
    else:
        summary = f"spread exactly 0 at {len(worst)} places (values up to {scale:.3g})"
    summary += f"; the recording ends early: {stopped}" if stopped else ""
    status = "fail" if wrong else "warn" if rounding or stopped else "pass"
    return Answer(
        status,
        summary,
        {"spread": worst, "largest": scale},
        f"a spread of {limit:g}",
        REMEDY if wrong else "",
        {"places": len(worst)},
    )
