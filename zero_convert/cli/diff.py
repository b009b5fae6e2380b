"""The verb `diff`: what differs between artifacts, receipts and locks. It imports no torch."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from ..errors import MismatchError
from .options import Messages, print_json

_KINDS = "An artifact (.safetensors), a receipt, a lock, or zero.lock#FILE."


def diff(
    first: Annotated[str, typer.Argument(metavar="A", help=_KINDS)],
    second: Annotated[str, typer.Argument(metavar="B", help="What to compare it with.")],
    *,
    messages: Messages,
) -> None:
    """Name the first field, edit or tensor that differs from A to B, then sum up.

    How far values moved is told where both are artifacts. The exit code is 1 where anything differs.
    """
    from zero_convert.artifacts import diff as diffing

    from .display import diff as display_diff

    found = diffing.diff(first, second)
    code = MismatchError.exit_code if found else 0
    if messages.as_json:
        rows = [_row(one) for one in found]
        print_json({"first": first, "second": second, "same": not found, "comparisons": rows, "exit_code": code})
    else:
        display_diff.comparisons(messages.screen(), first, second, found)
    raise typer.Exit(code)


def _row(one: Any) -> dict[str, Any]:
    differences = [
        {
            "kind": each.kind,
            "name": each.name,
            "what": each.what,
            "first": each.expected,
            "second": each.got,
            **({"elements": one.elements[each.name]} if each.name in one.elements else {}),
        }
        for each in one.differences
    ]
    summary = {f"{kind} {what}": count for (kind, what), count in one.counts().items()}
    return {"entry": one.name, "tensors": one.tensors, "summary": summary, "differences": differences}
