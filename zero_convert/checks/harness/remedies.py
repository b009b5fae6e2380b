"""What to do, and from where on, in the words that several checks share."""

from __future__ import annotations

from ..subject import Subject

FEW = 0.5  # part of the channels: with fewer distinct ones than this the remedy is offered
INFINITE = "Something behind these has an infinite derivative: a root, a logarithm or a quotient at 0."
CANCELS = "Look for a norm or a large factor behind a sum that cancels."


def remedy(subject: Subject) -> str:
    """What the scheme offers against repeated channels, by the options it has."""
    options = subject.options
    if options.get("mixing") == "none":
        return "--set mixing=permute (or signs) gives the frozen transforms different inputs."
    if options.get("break_symmetry") == "none":
        return "--set break_symmetry=dropout:0.01 lets equal channels part."
    if options.get("columns") == "first":
        return "--set columns=spanning makes all rows of a Hadamard weight distinct."
    return ""
