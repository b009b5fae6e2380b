"""How many channels are different, how many repeat another one, how many hardly vary?

On a batch in training mode. Distinct channels are counted in float64 (in the model's own precision where it does not
run in float64) in what each weight layer reads; two that differ by less than 1e-7 of the largest value count as one.
Repeated channels get equal gradients as long as everything after them treats them alike, so they may never part. A
channel is of low variance if a norm returns it with a variance below 1e-6, in the model's own precision: its input was
constant up to rounding (the norm adds eps = 1e-5 to the variance, and multiplies rounding noise by up to 316), and it
carries no signal.

Never fails: it is a property of the start, not an error. Warns if a head reads less than half as many different
features as it has inputs, or if at least half of the channels that some norm returns are of low variance (a norm after
a zero layer returns only zeros, and does not count). Half, because features that come in pairs are what mixing=signs
leaves, and it trains well; less has another cause. The remedy depends on the scheme. On a device where ONNX Runtime
computes, in evaluation mode, the counts are compared with those of torch on the CPU; a difference is a warning.
"""

from __future__ import annotations

from collections.abc import Mapping

from .harness.bench import Answer, CheckContext
from .harness.channels import Channels
from .harness.remedies import FEW, remedy

NAME = "channels"
QUESTION = "How many channels are distinct, duplicate or of almost no variance?"
AFTER = "repeat"
LEVELS = ("quick", "full")
NEEDS = ("train",)
SESSION = True
LEAST = {"heads and norms": 1}
MANY = 0.5  # part of a norm's channels
SMALL = 16  # norms over fewer channels are not judged


def ask(context: CheckContext) -> Answer:
    seen, exact = context.run(context.mode), context.reading_run()
    roles = {layer.name: layer.role for layer in context.subject.structure.layers}
    heads = {name: c for name, c in exact.reads.items() if roles[name] == "head"}
    norms = {name: c for name, c in seen.returns.items() if c.zero < c.total and c.total >= SMALL}
    worst = max(norms, key=lambda name: _low(norms[name]), default="")
    low = _low(norms[worst]) if worst else 0.0
    warn = not context.session and (low >= MANY or any(c.distinct < FEW * c.total for c in heads.values()))
    other = _otherwise(context, exact.reads) if context.session else ""
    parts = [f"{other} has other channels there than on the CPU"] if other else []
    if heads:
        poorest = min(heads, key=lambda name: heads[name].distinct / max(1, heads[name].total))
        counts = f"{heads[poorest].distinct} of {heads[poorest].total}"
        more = f" {poorest}, the poorest of {len(heads)} heads" if len(heads) > 1 else ""
        parts.append(f"distinct features at the head's input{more}: {counts}")
    if worst:
        parts.append(
            f"up to {low:.0%} near-zero-variance channels of a norm ({worst})" if low else "none of low variance"
        )
    return Answer(
        "warn" if warn or other else "pass",
        "; ".join(parts) or "no head and no norm to look at",
        {
            "heads": {name: [c.distinct, c.total] for name, c in heads.items()},
            "worst_norm": worst,
            "worst_low_variance": low,
            "layers": {name: _numbers(c) for name, c in (*exact.reads.items(), *seen.returns.items())},
        },
        f"at least {FEW:.0%} distinct features, less than {MANY:.0%} of a norm's channels below a variance of 1e-6",
        (remedy(context.subject) or "No option of this scheme makes them different; another scheme does.")
        if warn
        else "The check parity names the first node that the device computes otherwise."
        if other
        else "",
        {"heads and norms": len(heads) + len(norms)},
    )


def _otherwise(context: CheckContext, seen: Mapping[str, Channels]) -> str:
    """The first layer that reads another number of distinct channels than torch's on the CPU."""
    exact = context.exact_run(context.mode)
    known = {} if exact is None else exact.reads
    return next((name for name, c in seen.items() if name in known and c.distinct != known[name].distinct), "")


def _numbers(channels: Channels) -> dict[str, int]:
    return {
        "channels": channels.total,
        "distinct": channels.distinct,
        "duplicate": channels.total - channels.distinct,
        "zero": channels.zero,
        "low_variance": channels.low_variance,
    }


def _low(channels: Channels) -> float:
    return channels.low_variance / max(1, channels.total)
