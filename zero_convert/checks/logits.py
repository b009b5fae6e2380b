"""Does a head whose weights and biases are all 0 return exactly 0, in training and evaluation mode?

Then the first loss is the same for every class, whatever the input, and only the head has a gradient in the first step.

Fails on any magnitude above 0. Warns of a head that cannot be looked at, because the graph is only a recording.
"""

from __future__ import annotations

from .harness.bench import Answer, CheckContext
from .harness.recorder import most
from .harness.zero_branches import all_zero, rules_of

NAME = "logits"
QUESTION = "Are the logits of a head that starts at zero exactly 0?"
AFTER = "binary"
LEVELS = ("quick", "full")
NEEDS = ()
SESSION = True
LEAST = {"heads": 1}

SHOWN = 3


def ask(context: CheckContext) -> Answer | None:
    rules = rules_of(context.subject)
    layers = context.subject.structure.layers
    heads = [layer.name for layer in layers if layer.role == "head" and all_zero(rules.get(layer.name, ()))]
    if not heads:
        return None
    seen: dict[str, dict[str, float]] = {}
    for mode in context.modes:
        for name, value in context.run(mode).logits.items():
            if name in heads:
                seen.setdefault(name, {})[mode] = value
    wrong = [name for name, values in seen.items() if any(value != 0 for value in values.values())]
    missed = [name for name in heads if name not in seen]
    largest = most(value for name in wrong for value in seen[name].values())
    summary = (
        f"{_some(wrong)} returns up to {largest:.3g}"
        if wrong
        else f"exactly 0 from {_some(list(seen))}"
        if seen
        else "no head was reached"
    )
    numbers = {"heads": seen, "not_reached": missed}
    stopped = context.stopped() if missed else ""
    summary += f"; {_some(missed)} not reached" if missed else ""
    summary += f", because the recording ends early: {stopped}" if stopped else ""
    status = "fail" if wrong or (missed and not stopped) else "warn" if missed else "pass"
    remedy = "Its weights or biases are not 0 (--dry-run names the rules), or its input is not finite." if wrong else ""
    return Answer(status, summary, numbers, "exactly 0", remedy, {"heads": len(seen)})


def _some(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
