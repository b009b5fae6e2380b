"""How does the signal fare from depth to depth, forwards and backwards, in the original and in the converted network?

One batch in training mode, dropout off. What every weight layer reads and what every residual join returns is looked
at, in order of execution: the root mean square of its values (`activation`) and of the gradient that comes back there
(`gradient`; see `harness/depths.py` for what is sent back; 0 in front of a layer that starts at 0), how many of its
channels are different (two that differ by less than 1e-7 of the largest value count as one), repeat another one, or
vary by less than 1e-6, and the numerical rank of the matrix channels × positions with the largest that it could have
(singular values above 1e-6 of the largest; 128 positions at most).

Channels of the converted network are counted in float64, so that rounding noise makes none different; in the model's
own precision where it does not run in float64. The original is the network before the rewrites with He's weights,
hashed, in its own precision: what a user would have started from otherwise. Its numbers are there to compare, and are
not judged.

Fails if a value or gradient is not finite. Warns if the longest signal is more than 1e4
times as long as the shortest that is not 0: float32 has 7 digits, and a network that spends 4 of them on its depth
trains badly in 16 bits.

On a device where ONNX Runtime computes, in evaluation mode and without gradients, the lengths are compared with those
of torch in float64 on the CPU: fails if one is off by more than 1e-3.
"""

from __future__ import annotations

import math
from typing import Any

from .harness.bench import Answer, CheckContext
from .harness.channels import Channels
from .harness.depths import Depths, depths, rounded
from .harness.remedies import FEW, remedy

NAME = "signal"
QUESTION = "How do signal, gradient and distinct channels change with depth?"
AFTER = "precision"
LEVELS = ("quick", "full")
NEEDS = ("train",)
SESSION = True
LEAST = {"depths": 1}
RANGE = 1e4
APART = 1e-3  # of a length


def ask(context: CheckContext) -> Answer | None:
    seen = depths(context, "own")
    if seen is None or not seen.names:
        return None
    _count(context, seen)
    original = depths(context, "original")
    numbers: dict[str, Any] = {"converted": _columns(seen)}
    if original is not None and original.names:
        numbers["original"] = _columns(original)
    broken = [
        name
        for name, a, g in zip(seen.names, seen.activation, seen.gradient, strict=True)
        if not math.isfinite(a) or (g is not None and not math.isfinite(g))
    ]
    spread, back = _range(seen.activation), _range(seen.gradient)
    if broken:
        summary = f"not finite at {', '.join(dict.fromkeys(broken))}"
    else:
        summary = f"{len(seen.names)} depths: signal within a factor of {spread:.3g}, gradient within {back:.3g}"
        counted = [
            (c.distinct / c.total, c, name) for name, c in zip(seen.names, seen.channels, strict=True) if c.total > 0
        ]
        if counted:
            _, counts, poorest = min(counted, key=lambda each: each[0])
            summary += f"; fewest distinct channels {counts.distinct} of {counts.total} at {poorest}"
        if original is not None and original.names:
            summary += f"; original {_range(original.activation):.3g} and {_range(original.gradient):.3g}"
    summary += f"; stopped early: {seen.stopped}" if seen.stopped else ""
    apart = "" if broken or not context.session else _apart(context, seen)
    summary += f"; first off at {apart}" if apart else ""
    warn = not context.session and (spread > RANGE or back > RANGE)
    repeated = any(c.distinct < FEW * c.total for c in seen.channels)  # constant behind a norm, which amplifies them
    broken_by = "Look at what stands between the first of these and the depth before it."
    lengths = "Lengths that grow or shrink so much with depth need warm-up or a norm."
    return Answer(
        "fail" if broken or apart else "warn" if warn else "pass",
        summary,
        numbers,
        f"finite; within {APART:.0e} of the CPU"
        if context.session
        else f"finite; largest over smallest at most {RANGE:.0e}",
        broken_by if broken or apart else ((remedy(context.subject) if repeated else "") or lengths) if warn else "",
        {"depths": len(seen.names)},
    )


def _apart(context: CheckContext, seen: Depths) -> str:
    """The first depth whose length is another one than in float64 on the CPU."""
    exact = depths(context, "exact")
    for name, own, right in zip(seen.names, seen.activation, exact.activation if exact else (), strict=False):
        if abs(own - right) > APART * right:
            return f"{name} ({own:.4g}, on the CPU {right:.4g})"
    return ""


def _count(context: CheckContext, seen: Depths) -> None:
    """Fills in the channels, as the run in float64 saw them; -1 for a depth that it did not come to."""
    counted = context.reading_run().signal
    unknown = Channels(-1, -1, -1, -1), (-1, -1)
    counts = [counted.get(name, unknown) for name in seen.names]
    seen.channels, seen.rank = [channels for channels, _ in counts], [rank for _, rank in counts]


def _columns(seen: Depths) -> dict[str, list[Any]]:
    """One list for each quantity, all as long as there are depths."""
    return {
        "name": seen.names,
        "kind": seen.kinds,
        "activation": rounded(seen.activation),
        "gradient": rounded(seen.gradient),
        "channels": [c.total for c in seen.channels],
        "distinct": [c.distinct for c in seen.channels],
        "duplicate": [c.total - c.distinct for c in seen.channels],
        "zero": [c.zero for c in seen.channels],
        "low_variance": [c.low_variance for c in seen.channels],
        "rank": [rank for rank, _ in seen.rank],
        "rank_limit": [most for _, most in seen.rank],
    }


def _range(values: list[float] | list[float | None]) -> float:
    """Largest over smallest of those that are not 0; 1 where there are none."""
    there = [value for value in values if value]
    return max(there) / min(there) if there else 1.0
