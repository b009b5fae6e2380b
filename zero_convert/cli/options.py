"""What the commands share: options made from records, clean streams, JSON. No command is here, and nothing heavy."""

from __future__ import annotations

import contextlib
import functools
import inspect
import json
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_origin, get_type_hints

import typer

from ..errors import ZeroConvertError
from ..formats.naming import format_of
from ..options import FileOptions, Flag, Options, RecipeOptions, flag_of, flags, keys

if TYPE_CHECKING:
    from .display import Screen

MESSAGES = "Messages"
# Names that options had, without their dashes, and have now.
FORMER = {flag.former[2:]: flag.name[2:] for flag in flags(Options).values() if flag.former}

ModelName = Annotated[
    str,
    typer.Argument(metavar="MODEL", help="resnet50, torchvision:NAME, package.module:factory or path/file.py:factory."),
]
Json = Annotated[bool, Flag("--json", MESSAGES, "One JSON object on stdout and nothing else there.")]


@dataclass(frozen=True, kw_only=True)
class Messages:
    """What a command prints."""

    as_json: Json = False
    quiet: Annotated[bool, Flag("--quiet -q", MESSAGES, "Say nothing but errors.")] = False
    verbose: Annotated[int, Flag("--verbose -v", MESSAGES, "Say more; -vv shows tracebacks.", "", count=True)] = 0

    def screen(self, *, silent: bool = False) -> Screen:
        """Where messages for people go: nowhere with --quiet and --json, or where it is to be silent."""
        from .display import Screen

        return Screen(self.quiet or self.as_json or silent, self.verbose)


# ---------------------------------------------------------------------------------------------------------------------
# options


class Without:
    """Stands in the `Annotated` type of a record whose fields of these names are no options of the command."""

    def __init__(self, *names: str) -> None:
        self.names = names


def option(*names: str, panel: str, help: str, **settings: Any) -> Any:
    return typer.Option(*names, help=help, rich_help_panel=panel, **settings)


def spread(command: Callable[..., None]) -> Callable[..., None]:
    """The command as Typer takes it: a parameter that is a record stands for the options of its fields.

    What Typer read becomes the records again. Errors are those of reading KEY=VALUE, and of the records.
    """
    parts: dict[str, tuple[Any, list[inspect.Parameter]]] = {}  # parameter → its record, and the options
    hints = get_type_hints(command, include_extras=True)
    for name, parameter in inspect.signature(command).parameters.items():
        kind, *notes = get_args(hints[name]) if get_origin(hints[name]) is Annotated else (hints[name],)
        if is_dataclass(kind):
            types, defaults = get_type_hints(kind, include_extras=True), {f.name: f.default for f in fields(kind)}
            left_out = [each for note in notes if isinstance(note, Without) for each in note.names]
            own = [_keyword(each, defaults[each], types[each]) for each in flags(kind) if each not in left_out]  # type: ignore[arg-type]
            parts[name] = kind, own
        else:
            parts[name] = None, [_keyword(name, parameter.default, hints[name])]

    @functools.wraps(command)
    def run(**given: Any) -> None:
        arguments = {}
        for name, (kind, own) in parts.items():
            values = {option.name: _value(option, given[option.name]) for option in own}
            arguments[name] = values[name] if kind is None else kind(**values)
        command(**arguments)

    offered = [_offered(option) for _, own in parts.values() for option in own]
    run.__signature__ = inspect.Signature(offered)  # type: ignore[attr-defined]
    run.__annotations__ = {option.name: option.annotation for option in offered}
    return run


def _keyword(name: str, default: Any, hint: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=hint)


def _offered(option: inspect.Parameter) -> inspect.Parameter:
    """The parameter for Typer; one without a flag stays as it is."""
    flag = flag_of(option.annotation)
    if flag is None:
        return option
    kind, default = get_args(option.annotation)[0], option.default
    settings: dict[str, Any] = {"metavar": flag.metavar, "min": flag.least, "count": flag.count}
    if get_origin(kind) in (tuple, Mapping):
        kind, default = list[str] | None, None
    elif flag.choices:
        kind = Literal.__getitem__(flag.choices)
    elif kind is bool or flag.count:
        settings |= {"metavar": "", "show_default": kind is bool}
    how = typer.Option(*flag.names.split(), help=flag.help, rich_help_panel=flag.panel, **settings)
    return _keyword(option.name, default, Annotated[kind, how])


def _value(option: inspect.Parameter, value: Any) -> Any:
    """What Typer read of an option, as its record holds it."""
    kind = get_origin((get_args(option.annotation) or [None])[0])
    if kind is tuple:
        return tuple(value or ())
    if kind is not Mapping:
        return value
    if not value:
        return {}  # without the rooms that could read more: what starts quickly stays quick
    from .. import schemes, sources

    return {"options": schemes.read_pairs, "model_args": sources.parse_model_args}[option.name](value)


def completed(options: Options) -> Options:
    """The options with all those of the scheme. Raises UsageError for one that it does not have."""
    from .. import schemes

    return replace(options, options=schemes.complete_options(schemes.get(options.scheme), options.options))


def check_outputs(outputs: tuple[str, ...], files: FileOptions) -> list[Path]:
    """The files that would be written, after everything that can be said against them before any work is done."""
    from .. import exporters

    targets = exporters.check_outputs(outputs, files.format, files.force, external_data=files.external_data)
    formats = {format_of(output, files.format) for output in outputs}
    exporters.check_options(formats, files.opset, files.external_data, files.fold)
    return targets


# ---------------------------------------------------------------------------------------------------------------------
# streams


@contextlib.contextmanager
def stdout_kept_clean() -> Iterator[None]:
    """What a model's own code or a library prints goes to stderr, so that stdout holds results and nothing else."""
    sys.stdout.flush()
    try:
        kept = os.dup(1)
    except OSError:  # the process was started without stdout
        yield
        return
    os.dup2(2, 1)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


@contextlib.contextmanager
def third_party_warnings(verbose: int) -> Iterator[None]:
    """Python warnings of the libraries underneath are shown with -v, or as the user asked Python to."""
    with warnings.catch_warnings():
        if not verbose and not sys.warnoptions:
            warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def working(screen: Screen, *, keep: bool = True) -> Iterator[Callable[[str, str], None]]:
    """While it lasts, a model's code and libraries may print; gives what is called with (step, detail)."""
    with screen.progress(keep=keep) as progress, stdout_kept_clean(), third_party_warnings(screen.verbose):
        yield progress


# ---------------------------------------------------------------------------------------------------------------------
# JSON


def print_json(value: Mapping[str, Any]) -> None:
    print(json.dumps(plain(value), indent=2, allow_nan=False))


def plain(value: Any) -> Any:
    """Records, mappings and sequences as JSON has them; a number that JSON cannot hold is spelled as a string."""
    if is_dataclass(value) and not isinstance(value, type):
        renamed = keys(type(value)) if isinstance(value, RecipeOptions) else {}
        named = {field.name: field.metadata.get("json", renamed.get(field.name, field.name)) for field in fields(value)}
        return {key: plain(getattr(value, name)) for name, key in named.items() if key}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if isfinite(value) else repr(value)
    return str(value)


def error_facts(error: ZeroConvertError) -> dict[str, Any]:
    parts = {name: getattr(error, name) for name in ("what", "where", "got", "expected", "fix")}
    return {
        "error": {"type": type(error).__name__.lstrip("_"), "message": str(error), **parts},
        "exit_code": error.exit_code,
    }
