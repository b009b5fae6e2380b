"""Does every branch that starts at zero add exactly 0 to its shortcut?

At each such join the branch operand is looked at the moment before it is added, in training and evaluation mode, so
that an in-place operation that changed it on the way is seen. Required of the residual joins that the scheme names,
whatever the rules say, and of those whose branch ends in layers with the rule "constant 0" or in an attention whose
values V are 0; other joins are counted.

Fails on any magnitude above 0: the sum of zeros is exact in every precision and order. Warns of a join that cannot be
looked at, because the graph is only a recording of what other values decided.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..records import Join
from .harness.bench import Answer, CheckContext
from .harness.recorder import most
from .harness.zero_branches import zero_joins

NAME = "zero_branches"
QUESTION = "Does each residual branch that starts at zero contribute exactly 0 to its join?"
AFTER = "finite"
LEVELS = ("quick", "full")
NEEDS = ()
SESSION = True
LEAST = {"branches": 1}


def ask(context: CheckContext) -> Answer | None:
    required, free = zero_joins(context.subject)
    if not required:
        return None
    seen: dict[str, float] = {}
    for mode in context.modes:
        branches = context.run(mode).branches
        for join in required:
            if join.index in branches:
                seen[join.node] = most((seen.get(join.node, 0.0), branches[join.index]))
    wrong = {node: value for node, value in seen.items() if value != 0}
    missed = [join.node for join in required if join.node not in seen]
    numbers = {
        "joins": len(seen),
        "not_required": [join.node for join in free],
        "not_reached": missed,
        "not_zero": wrong,
    }
    if wrong:
        summary = f"{len(wrong)} of {len(seen)} branches add something: " + ", ".join(
            f"{value:.3g} at {node} ({_behind(required, node)})" for node, value in list(wrong.items())[:4]
        )
    else:
        summary = f"{len(seen)} branches add exactly 0"
        summary += f"; {len(free)} residual joins start with a branch of their own" if free else ""
        summary += f"; {len(missed)} joins were not reached" if missed else ""
    stopped = context.stopped() if missed else ""
    summary += f", because the recording ends early: {stopped}" if stopped else ""
    status = "fail" if wrong or (missed and not stopped) else "warn" if missed else "pass"
    remedy = (
        "Its last layer is not 0 (--dry-run names the rules), or something behind it adds, writes in place or fills."
    )
    return Answer(status, summary, numbers, "exactly 0", remedy if wrong else "", {"branches": len(seen)})


def _behind(joins: Sequence[Join], node: str) -> str:
    """The branch that a join adds, by its last layer."""
    branch = next(join.branch for join in joins if join.node == node)
    return f"behind {branch[-1]}" if branch else "without a layer"
