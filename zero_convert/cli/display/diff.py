"""What people see of `diff`: the first difference, then a summary and a table. Knows records, decides nothing."""

from __future__ import annotations

from collections.abc import Sequence
from math import fsum
from typing import TYPE_CHECKING

from rich.padding import Padding
from rich.text import Text

from zero_convert.artifacts.comparing import Difference, short

from .screen import Screen, facts_table, rest, table_of

if TYPE_CHECKING:
    from zero_convert.artifacts.diff import Comparison, Elements

_SHOWN = 20  # differences, where nobody asked for all
_WORDS = {"missing": "removed", "extra": "added"}


def comparisons(screen: Screen, first: str, second: str, found: Sequence[Comparison]) -> None:
    """`A and B: the same`, or for each comparison what differs."""
    if not found:
        screen.give(Text.assemble(f"{first} and {second}: ", ("the same", "green")))
    for index, one in enumerate(found):
        if index:
            screen.give("")
        _comparison(screen, one)


def _comparison(screen: Screen, one: Comparison) -> None:
    first = one.differences[0]
    place = f"{one.name}: " if one.name else ""
    screen.give(Text.assemble(f"{place}first difference: ", (first.subject, "bold")), Text(f"  {_change(first)}"))
    if len(one.differences) == 1 and not one.elements:
        return
    facts = facts_table()
    for kind in dict.fromkeys(difference.kind for difference in one.differences):
        facts.add_row(Text(kind, "dim"), Text(_summary(one, kind)))
    screen.give(Padding(facts, (0, 0, 0, 2)), "")
    table = table_of("what", "", "A → B", "elements", "max |Δ|")
    shown = one.differences if screen.verbose else one.differences[:_SHOWN]
    for each in shown:
        moved = one.elements.get(each.name) if each.kind == "tensor" else None
        table.add_row(
            f"{each.kind} {each.name}".rstrip(),
            _WORDS.get(each.what, each.what),
            _change(each),
            f"{moved.differing:,} of {moved.count:,}" if moved else "",
            _largest(moved) if moved else "",
        )
    screen.give(table)
    if len(shown) < len(one.differences):
        screen.tell(rest(len(one.differences) - len(shown)))


def _change(one: Difference) -> str:
    return f"{short(one.expected)} → {short(one.got)}"


def _summary(one: Comparison, kind: str) -> str:
    """ "2 removed, 1 dtype, 20 values (123 elements, max |Δ| 1)"."""
    counts = {what: count for (its, what), count in one.counts().items() if its == kind}
    text = ", ".join(f"{count} {_WORDS.get(what, what)}" for what, count in counts.items())
    if kind == "tensor":
        text += f", of {one.tensors[0]} → {one.tensors[1]}"
        if one.elements:
            differing = int(fsum(each.differing for each in one.elements.values()))
            largest = [each.largest for each in one.elements.values() if each.largest is not None]
            text += f"; {differing:,} elements differ" + (f", max |Δ| {max(largest):.6g}" if largest else "")
    return text


def _largest(moved: Elements) -> str:
    text = "" if moved.largest is None else f"{moved.largest:.6g}"
    return f"{text}{', ' if text else ''}{moved.special:,} not finite" if moved.special else text
