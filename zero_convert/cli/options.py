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
from dataclasses import MISSING, dataclass, fields, is_dataclass, replace
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_origin, get_type_hints

import typer

from ..errors import ZeroConvertError
from ..options import FileOptions, Flag, Options, RecipeOptions, flag_of, flags, keys

if TYPE_CHECKING:
    from .display import Screen

MESSAGES = "Messages"
# Names that options had, without their dashes, and have now.
FORMER = {flag.former[2:]: flag.names[0][2:] for flag in flags(Options).values() if flag.former}

ModelName = Annotated[
    str,
    typer.Argument(metavar="MODEL", help="resnet50, torchvision:NAME, package.module:factory or path/file.py:factory."),
]
Json = Annotated[bool, Flag("--json", panel=MESSAGES, help="One JSON object on stdout and nothing else there.")]


@dataclass(frozen=True, kw_only=True)
class Messages:
    """What a command prints."""

    as_json: Json = False
    quiet: Annotated[bool, Flag("--quiet", "-q", panel=MESSAGES, help="Say nothing but errors.")] = False
    verbose: Annotated[
        int,
        Flag(
            "--verbose",
            "-v",
            panel=MESSAGES,
            help="Say more; -vv shows tracebacks.",
            count=True,
            show_default=False,
            metavar="",
        ),
    ] = 0

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
    parameters: list[inspect.Parameter] = []
    readers: dict[str, Callable[[dict[str, Any]], Any]] = {}
    hints = get_type_hints(command, include_extras=True)
    for name, parameter in inspect.signature(command).parameters.items():
        kind: Any
        kind, *notes = get_args(hints[name]) if get_origin(hints[name]) is Annotated else (hints[name],)
        if isinstance(kind, type) and is_dataclass(kind):
            left_out = [each for note in notes if isinstance(note, Without) for each in note.names]
            own, types = fields(kind), get_type_hints(kind, include_extras=True)
            defaults = {f.name: None if f.default is MISSING else f.default for f in own}
            names = [each for each in flags(kind) if each not in left_out]
            parameters += [_parameter(each, types[each], defaults[each]) for each in names]
            readers[name] = functools.partial(_record, kind, names)
        else:
            parameters.append(_parameter(name, hints[name], parameter.default))
            readers[name] = functools.partial(_value, name, kind)

    @functools.wraps(command)
    def run(**given: Any) -> None:
        command(**{name: read(given) for name, read in readers.items()})

    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def _parameter(name: str, hint: Any, default: Any) -> inspect.Parameter:
    """A parameter of a function for Typer; one without a flag stays as it is."""
    if (flag := flag_of(hint)) is not None:
        kind: Any = get_args(hint)[0]
        settings = {"metavar": ""} if kind is bool else {}
        if _is_list(kind):
            kind, default = list[str] | None, None
        elif flag.choices:
            choice: Any = Literal
            kind = choice[flag.choices]
        hint = Annotated[kind, option(*flag.names, panel=flag.panel, help=flag.help, **settings, **flag.settings)]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=hint)


def _is_list(kind: Any) -> bool:
    """Whether an option of this type may be repeated."""
    return get_origin(kind) in (tuple, Mapping)


def _record(kind: type, names: list[str], given: dict[str, Any]) -> Any:
    types = get_type_hints(kind)
    return kind(**{name: _value(name, types[name], given) for name in names})


def _value(name: str, kind: Any, given: dict[str, Any]) -> Any:
    """What the texts of an option mean."""
    if get_origin(kind) is tuple:
        return tuple(given[name] or ())
    if get_origin(kind) is not Mapping:
        return given[name]
    from .. import schemes, sources

    return {"options": schemes.read_pairs, "model_args": sources.parse_model_args}[name](given[name] or [])


def completed(options: Options) -> Options:
    """The options with all those of the scheme. Raises UsageError for one that it does not have."""
    from .. import schemes

    return replace(options, options=schemes.complete_options(schemes.get(options.scheme), options.options))


def check_outputs(outputs: tuple[str, ...], files: FileOptions) -> list[Path]:
    """The files that would be written, after everything that can be said against them before any work is done."""
    from .. import exporters

    targets = exporters.check_outputs(outputs, files.format, files.force, external_data=files.external_data)
    formats = {exporters.format_of(output, files.format) for output in outputs}
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
        return {renamed.get(f.name, f.name): plain(getattr(value, f.name)) for f in fields(value)}
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
