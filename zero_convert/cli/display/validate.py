"""What people see of `validate`: the checks on stderr, one line for the file on stdout. Decides nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.padding import Padding
from rich.text import Text

from . import Screen, checks_table, facts_table

if TYPE_CHECKING:
    from zero_convert.validation import Validation


def validation(screen: Screen, answer: Validation) -> None:
    """`FILE: OK`, or `FILE: FAILS` and which checks; what each of them found goes to the reader."""
    facts = facts_table()
    facts.add_row(Text("device", "dim"), Text(answer.device))
    facts.add_row(Text("checks", "dim"), checks_table(answer.checks))
    screen.tell(Padding(facts, (0, 0, 0, 2)))
    failed = ", ".join(check.name for check in answer.failed)
    word = (f"FAILS: {failed}", "bold red") if failed else ("OK", "green")
    screen.give(Text.assemble(f"{answer.path}: ", word))
