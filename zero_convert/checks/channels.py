"""How many channels are different, how many repeat another one, how many hardly vary?

On a batch in training mode. Distinct channels are counted in float64 in what each weight layer reads; two that differ
by less than 1e-7 of the largest value count as one. Repeated channels get equal gradients as long as everything after
them treats them alike, so they may never part. A channel is of low variance if a norm returns it with a variance below
1e-6, in the model's own precision: its input was constant up to rounding (the norm adds eps = 1e-5 to the variance,
and multiplies rounding noise by up to 316), and it carries no signal.

Never fails: it is a property of the start, not an error. Warns if a head reads less than half as many different
features as it has inputs, or if at least half of the channels that some norm returns are of low variance. Half, because one
Hadamard transform of features that come in pairs leaves half of them; less has another cause. The remedy depends on
the scheme.
"""

from __future__ import annotations

from ..live import Subject
from ..records import Check
from ._bench import Bench
from ._channels import Channels

QUESTION = "How many channels are distinct, duplicate or of almost no variance?"
FEW = 0.5  # part of a head's features
MANY = 0.5  # part of a norm's channels
SMALL = 16  # a norm over fewer channels is not judged


def ask(bench: Bench) -> Check:
    if "train" not in bench.modes:
        return Check("channels", "skip", QUESTION, f"does not run in training mode: {bench.refused['train']}")
    seen, exact = bench.run("train"), bench.run("train", exact=True)
    heads = [
        layer.name for layer in bench.subject.structure.layers if layer.role == "head" and layer.name in exact.reads
    ]
    layers = {
        name: {
            "channels": c.total,
            "distinct": c.distinct,
            "duplicate": c.total - c.distinct,
            "zero": c.zero,
            "low_variance": c.low_variance,
        }
        for name, c in (*exact.reads.items(), *seen.returns.items())
    }
    norms = {
        name: c for name, c in seen.returns.items() if c.zero < c.total
    }  # after a zero layer there is nothing to see
    worst = max(norms.items(), key=lambda item: _low(item[1]), default=None)
    few = [name for name in heads if exact.reads[name].distinct < FEW * exact.reads[name].total]
    many = worst is not None and worst[1].total >= SMALL and _low(worst[1]) >= MANY
    parts = [
        f"distinct features at the head's input: {exact.reads[n].distinct} of {exact.reads[n].total}" for n in heads
    ]
    if worst is not None:
        parts.append(f"up to {_low(worst[1]):.0%} near-zero-variance channels of a norm ({worst[0]})")
    return Check(
        "channels",
        "warn" if few or many else "pass",
        QUESTION,
        "; ".join(parts) or "no head and no norm to look at",
        {
            "heads": {name: [exact.reads[name].distinct, exact.reads[name].total] for name in heads},
            "worst_norm": worst[0] if worst else "",
            "worst_low_variance": _low(worst[1]) if worst else 0.0,
            "layers": layers,
        },
        f"at least {FEW:.0%} distinct features, less than {MANY:.0%} of a norm's channels below a variance of 1e-6",
        remedy(bench.subject) if few or many else "",
    )


def _low(channels: Channels) -> float:
    return channels.low_variance / max(1, channels.total)


def remedy(subject: Subject) -> str:
    """What the scheme offers against repeated channels, by the options it has."""
    options = subject.options
    if options.get("mixing") == "none":
        return "--set mixing=permute (or signs) gives the frozen transforms different inputs."
    if options.get("columns") == "first":
        return "--set columns=spanning makes all rows of a Hadamard weight distinct."
    return ""
