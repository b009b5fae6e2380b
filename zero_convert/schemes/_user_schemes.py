"""A scheme from outside: a file of Python that was named by its path, or an entry point of an installed package.

Both hold one `SCHEME`. Naming one runs its code; whether that was asked for is the caller's question. What its
functions raise is told as the scheme's failure, with the line. No torch here.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib.util
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from zero_convert.errors import UsageError
from zero_convert.initialization.scheme import Scheme
from zero_convert.model_ref import SchemeRef
from zero_convert.records import Option, Structure
from zero_convert.runtime.messages import printed_to
from zero_convert.runtime.user_code import failing_as, importable, offered, run_file

GROUP = "zero_convert.schemes"  # of entry points: name = package.module, or package.module:SCHEME
_PREFIX = "zero_convert_scheme_"  # sys.modules names of the files we run
_PURE = ("rewrites", "fill", "zero_branch", "checks", "declines")

_run: dict[tuple[Path, str], Scheme] = {}  # a file of one content is executed once


@dataclasses.dataclass(frozen=True, slots=True)
class Found:
    """A scheme, and how a recipe names it.

    Attributes:
        name: the scheme's name; of a file, the file's name without folders.
        source: `fingerprint` of the file that it is from; "" for one of this package.
    """

    scheme: Scheme
    name: str
    source: str = ""


def fingerprint(path: Path) -> str:
    """SHA-256 (hex) of a file's text, whatever ends its lines."""
    return hashlib.sha256(path.read_bytes().replace(b"\r\n", b"\n")).hexdigest()


def from_file(name: str, folders: Sequence[str] = ()) -> Found:
    """The scheme in a file of Python; this runs the file.

    Args:
        folders: where to look for it besides the current folder.

    Raises:
        UsageError: no such file, or it holds no scheme.
        LoadError: it failed.
    """
    own = SchemeRef(name).canonical
    places = (Path(name), *(Path(folder) / own for folder in folders))
    path = next((each.resolve() for each in places if each.is_file()), None)
    if path is None:
        raise UsageError("no such file", where=name, fix="Give the path to the file that holds the scheme.")
    mark = fingerprint(path)
    if (path, mark) not in _run:
        running = failing_as("scheme", f"{path.name}, running its file")
        with running, importable(path.parent), printed_to(sys.stderr):
            held = getattr(run_file(path, _PREFIX), "SCHEME", None)
        _run[path, mark] = _guarded(_checked(held, path.name))
    return Found(_run[path, mark], own, mark)


def installed() -> dict[str, importlib.metadata.EntryPoint]:
    """Name → entry point of the schemes that installed packages offer, sorted. Runs none of them."""
    return offered(GROUP)


def from_package(point: importlib.metadata.EntryPoint) -> Found:
    """The scheme of an entry point; this imports its package.

    Raises:
        UsageError: it holds no scheme.
        LoadError: it failed.
    """
    with failing_as("scheme", f"{point.value}, importing it"), printed_to(sys.stderr):
        held = point.load()
    spec = importlib.util.find_spec(point.module)
    mark = fingerprint(Path(spec.origin)) if spec is not None and spec.origin else ""
    return Found(_guarded(_checked(getattr(held, "SCHEME", held), point.value)), point.name, mark)


@functools.cache
def known_rewrites() -> tuple[str, ...]:
    """Names of the rewrites that a scheme may ask for: the `NAME` in each file of that room, read without torch."""
    texts = [file.read_text("utf-8") for file in Path(__file__).parents[1].glob("rewrites/[!_]*.py")]
    return tuple(sorted(name for text in texts for name in re.findall(r'^NAME = "(\w+)"$', text, re.M)))


def _checked(held: object, where: str) -> Scheme:
    if not isinstance(held, Scheme):
        raise UsageError(
            "this holds no scheme",
            where=where,
            got="no SCHEME" if held is None else f"an object of type {type(held).__qualname__}",
            expected="SCHEME = Scheme(name=…, title=…, doc=__doc__, options=(…), rewrites=…, fill=…)",
            fix="docs/write-a-scheme.md has one to start from.",
        )
    return held


def _guarded(scheme: Scheme) -> Scheme:
    """The scheme whose failures are told as its own."""
    told: dict[str, Any] = {name: _told_by(scheme.name, name, getattr(scheme, name)) for name in _PURE}

    def rewrites(options: Mapping[str, Option]) -> tuple[str, ...]:
        asked: tuple[str, ...] = tuple(told["rewrites"](options))
        if unknown := [name for name in asked if name not in known_rewrites()]:
            expected = ", ".join(known_rewrites())
            raise UsageError(
                "the scheme asks for a rewrite that there is not", where=scheme.name, got=unknown[0], expected=expected
            )
        return asked

    return dataclasses.replace(scheme, **{**told, "rewrites": rewrites})


def _told_by(scheme: str, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def outer(*args: Any) -> Any:
        about = getattr(args[0], "name", "") if args and not isinstance(args[0], Structure) else ""
        with failing_as("scheme", f"{scheme}, its {name}{f' of {about}' if about else ''}"):
            return function(*args)

    return outer
