"""Is every trainable value 0 or 1, for a scheme that says so?

Every element of every parameter that is trained is compared; frozen transforms are no parameters. What the user chose
to keep as constructed is counted, and named in a warning.

Fails on any other value.
"""

from __future__ import annotations

from ..initialization.scheme import AsConstructed
from .harness.bench import Answer, CheckContext

NAME = "binary"
QUESTION = "Is every trainable value exactly 0 or 1?"
AFTER = "zero_branches"
LEVELS = ("quick", "full")
NEEDS = ()
LEAST = {"trainable values": 1}


def ask(context: CheckContext) -> Answer | None:
    subject = context.subject
    if not subject.scheme.binary:
        return None
    kept = {a.tensor.name for a in subject.assignments if isinstance(a.formula, AsConstructed)}
    zeros, ones, wrong, other = 0, 0, {}, []
    for name, parameter in subject.traced.root.named_parameters():
        if not parameter.requires_grad:
            continue
        values = parameter.detach()
        none, one = values.numel() - int(values.count_nonzero()), int((values == 1).count_nonzero())
        zeros, ones = zeros + none, ones + one
        if none + one < values.numel():
            if name in kept:
                other.append(name)
            else:
                wrong[name] = values.numel() - none - one
    numbers = {
        "values": zeros + ones + sum(wrong.values()),
        "zeros": zeros,
        "ones": ones,
        "other": wrong,
        "kept": other,
    }
    if wrong:
        summary = f"{sum(wrong.values()):,} values are neither 0 nor 1, in {', '.join(list(wrong)[:4])}"
        remedy = "--dry-run names the rule of each tensor; a file written earlier is damaged, or was trained."
    else:
        summary = f"{zeros + ones:,} trainable values: {zeros:,} zeros, {ones:,} ones"
        summary += f"; other values kept in {', '.join(other[:4])}" if other else ""
        remedy = "A scheme of your own gives them values: --scheme FILE.py (docs/write-a-scheme.md)." if other else ""
    return Answer(
        "fail" if wrong else "warn" if other else "pass",
        summary,
        numbers,
        "0 or 1 exactly",
        remedy,
        {"trainable values": zeros + ones},
    )
