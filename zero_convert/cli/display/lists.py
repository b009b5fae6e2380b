"""What is asked for by name: schemes and their contract, models, and the answer of `verify`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.columns import Columns
from rich.text import Text

from zero_convert.errors import ZeroConvertError
from zero_convert.records import Check

from .screen import Screen, console_on, message_of, print_lines, table_of

if TYPE_CHECKING:
    from zero_convert.artifacts.verify import Verification
    from zero_convert.initialization.scheme import Scheme


def verification(screen: Screen, path: Path, answer: Verification | ZeroConvertError) -> None:
    """`FILE: OK`, or `FILE: DIFFERS` and what differs, or `FILE: NOT VERIFIED` and what stands against it."""
    if isinstance(answer, ZeroConvertError):
        screen.give(Text.assemble(f"{path}: ", ("NOT VERIFIED", "bold red")))
        print_lines(console_on(stderr=True), message_of(answer))
        return
    sound = not answer.findings
    screen.give(Text.assemble(f"{path}: ", ("OK", "green") if sound else ("DIFFERS", "bold red")))
    if folded := answer.receipt.folded_from:
        screen.tell(Text(f"  folded for inference: the weights digest zc1 {folded} does not apply to it", "dim"))
    screen.tell_first(answer.findings)


def schemes(screen: Screen, known: Sequence[Scheme]) -> None:
    """Name, aliases, options and source of each scheme."""
    table = table_of("scheme", "also", "options", "source")
    for scheme in known:
        options = "\n".join(f"{option.name}={'|'.join(option.spellings)}" for option in scheme.options)
        table.add_row(scheme.name, ", ".join(scheme.aliases), options, scheme.title)
    screen.give(table)


def scheme(screen: Screen, one: Scheme) -> None:
    """The mathematics, source and options of one scheme."""
    names = ", ".join((one.name, *one.aliases))
    screen.give(Text(names, "bold"), "", Text(one.doc.strip()), "")
    table = table_of("--set", "values", "default", "what it does")
    for option in one.options:
        table.add_row(option.name, " | ".join(option.spellings), str(option.default), option.help)
    screen.give(table)


def contract(screen: Screen, name: str, found: Sequence[Check]) -> None:
    """What a scheme was asked, and what of it does not hold."""
    marks = {"pass": ("✓", "green"), "fail": ("✗", "red")}
    for check in found:
        screen.give(
            Text.assemble(marks[check.status], f" {check.name:<12}", f"{check.question}  ", (check.summary, "dim"))
        )
    failed = sum(check.status == "fail" for check in found)
    screen.give("", Text(f"{name}: {f'{failed} of {len(found)} fail' if failed else 'all hold'}", "bold"))


def models(screen: Screen, names: Mapping[str, Sequence[str]]) -> None:
    """Every name that can be typed, in columns for a person and one a line in a pipe."""
    for source, found in names.items():
        if not screen.interactive:
            screen.give(*(f"{source}:{name}" for name in found))
        elif found:
            screen.give(
                Text(f"{source} ({len(found)})", "bold"), Columns([Text(name) for name in found], padding=(0, 2)), ""
            )
