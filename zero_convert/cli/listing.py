"""The verbs that list: `schemes`, with the mathematics of one or a test of it, and `models`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
import typer.core

from ..errors import FindingError, UsageError, ZeroConvertError
from .options import Json, print_json, stdout_kept_clean, third_party_warnings

if TYPE_CHECKING:
    from .display import Screen


def schemes(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="Show this scheme's mathematics: a name, or a file.py.")
    ] = None,
    test: Annotated[
        bool, typer.Option("--test", help="Put the scheme NAME through what every scheme is held to.", metavar="")
    ] = False,
    as_json: Json = False,
) -> None:
    """List the schemes; with NAME its mathematics, source and options. A scheme in a file is run."""
    from zero_convert import schemes

    from . import display

    screen = display.Screen()
    if test:
        _test_scheme(screen, name, as_json)
        return
    known = [schemes.get(name)] if name is not None else [schemes.get(each) for each in schemes.names()]
    for each in schemes.installed() if name is None else ():
        try:
            known.append(schemes.get(each))
        except ZeroConvertError as error:  # another's package does not keep ours from being listed
            screen.tell(f"{each} is installed, and fails: {error}")
    if as_json:
        rows = [
            {"name": s.name, "aliases": s.aliases, "title": s.title, "options": s.options, "doc": s.doc} for s in known
        ]
        print_json({"schemes": rows, "exit_code": 0})
    elif name is not None:
        display.scheme(screen, known[0])
    else:
        display.schemes(screen, known)


def _test_scheme(screen: Screen, name: str | None, as_json: bool) -> None:
    from zero_convert import schemes

    from . import display

    if name is None:
        raise UsageError("no scheme to test", where="--test", fix="`zero-convert schemes --test ./mine.py`, or a name.")
    found = schemes.examine(name)
    code = FindingError.exit_code if any(check.status == "fail" for check in found) else 0
    if as_json:
        print_json({"scheme": name, "tests": found, "exit_code": code})
    else:
        display.contract(screen, name, found)
    raise typer.Exit(code)


def models(
    pattern: Annotated[str, typer.Argument(metavar="PATTERN", help="Part of a name, or a pattern like resnet*.")] = "",
    as_json: Json = False,
) -> None:
    """List every model name that can be typed, by source."""
    from zero_convert import sources

    from . import display

    screen = display.Screen()
    with stdout_kept_clean(), third_party_warnings(0):
        names, broken = sources.names(pattern), sources.broken()
    for name, error in broken.items():
        screen.tell(f"{name} is installed, and fails: {error}")
    if not any(names.values()):
        raise UsageError(
            "no model name matches", where="models", got=repr(pattern), fix="Without a pattern all are listed."
        )
    if as_json:
        print_json({"models": names, "exit_code": 0})
    else:
        display.models(screen, names)
