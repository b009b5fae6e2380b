"""The command line: parses, asks the corridor, hands the answer to `display`, ends with a documented exit code.

It knows no mathematics, no graph and no file format. Everything heavy is imported inside the command that needs it,
so that `--help`, `schemes`, `verify` and `inspect FILE` start without torch.

People read stderr, programs read stdout: one `sha256  path` line for each file written (`sha256sum --check` takes
them), or one JSON object with `--json`.
"""

from __future__ import annotations

import itertools
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated, Any, NoReturn

import typer
import typer.core

from zero_convert.runtime.signals import INTERRUPTED, ending

from ..errors import StorageError, UsageError, ZeroConvertError, closest
from . import convert, diff, doctor, inspect, listing, lock, validate, verify
from .options import FORMER, error_facts, print_json, spread

INTERNAL = 70  # with INTERRUPTED the exit codes that belong to no class of errors.py


class _Commands(typer.core.TyperGroup):
    """The group of commands, where the word `convert` may be left out."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.rich_markup_mode = None  # the first page comes plain: Rich would take most of its time

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, self.complete(args))

    def complete(self, args: list[str]) -> list[str]:
        """The arguments with the command's word in front, whether it came first, after options, or not at all.

        The first argument that is neither an option nor an option's value decides.
        """
        options = {name: option for option in self.commands["convert"].params for name in option.opts}
        index = 0
        while index < len(args) and args[index].startswith("-") and args[index] != "--":
            option = options.get(args[index])
            is_switch = option is None or getattr(option, "is_flag", False) or getattr(option, "count", False)
            index += 1 if is_switch else 2
        if index >= len(args):
            return args if not args or {"--help", "-h", "--version"}.intersection(args) else ["convert", *args]
        word = args[index]
        if word in self.commands:
            return [word, *args[:index], *args[index + 1 :]]
        meant = {**{name: name for name in self.commands}, "version": "--version", "help": "--help"}
        fix = closest(word, meant, cutoff=0.75, spell=lambda name: repr(meant[name]))
        if fix and not any(arg.startswith(("--out", "-o", "--dry-run", "--help", "-h")) for arg in args):
            # nobody asked for an output, so this is hardly a model
            raise UsageError("no such command", got=repr(word), expected=", ".join(self.commands), fix=fix)
        return ["convert", *args]


app = typer.Typer(
    cls=_Commands,
    options_metavar="",
    subcommand_metavar="MODEL --out FILE | COMMAND [ARGS]...",
    add_completion=False,
    rich_markup_mode="rich",
    context_settings={
        "help_option_names": ["-h", "--help"],
        "token_normalize_func": lambda word: FORMER.get(word, word),
    },
    epilog="\b\nExit codes: 0 done, 1 a finding, 2 usage, 3 model, 4 refused, 5 device,\n"
    "70 internal error, 74 input/output, 130 interrupted.",
)


@app.callback(invoke_without_command=True)
def _start(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and stop.", is_eager=True, metavar="")
    ] = False,
) -> None:
    """Turn any PyTorch model into a deterministic start: no random number, the same bytes on every machine.

    Example: zero-convert resnet50 --out zero_r50.safetensors
    """
    if version:
        from .. import __version__

        print(f"zero-convert {__version__}")
    elif context.invoked_subcommand is None:
        print(context.get_help(), file=sys.stderr)
        raise typer.Exit(UsageError.exit_code)


for _command in (
    convert.convert,
    inspect.inspect,
    lock.check,
    lock.lock,
    diff.diff,
    doctor.doctor,
    verify.verify,
    validate.validate,
    listing.schemes,
    listing.models,
):
    app.command()(spread(_command))


def program() -> NoReturn:
    """The process `zero-convert`: exits with the code of its command line, or with 130 once it is asked to end."""
    # Torch's second thread would spin while it waits for the first: on a busy machine four times the time for nothing.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    with ending(lambda: _report(_Interrupted("interrupted"), sys.argv[1:])):
        sys.exit(main())


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code of one command line; every failure ends here, as one message.

    Args:
        argv: the arguments, by default the process's own.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    for name in ("stdout", "stderr"):  # a closed stream is None; what nobody reads goes nowhere
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # "✓" or a file's name on a stream without Unicode
    try:
        with typer.main.get_command(app).make_context("zero-convert", arguments) as context:
            context.command.invoke(context)
        sys.stdout.flush()
    except typer.Exit as end:
        return end.exit_code
    except (KeyboardInterrupt, typer.Abort):
        return _report(_Interrupted("interrupted"), arguments)
    except (Exception, SystemExit) as error:
        if not _pipe_broken(error):
            return _report(error, arguments)
        _drop_stdout()
        return StorageError.exit_code
    return 0


def _pipe_broken(error: BaseException) -> bool:
    """Whether the reader of a pipe has seen enough; Rich, which writes the help pages, makes a SystemExit of it."""
    return isinstance(error, BrokenPipeError) or (
        isinstance(error, SystemExit) and isinstance(error.__context__, BrokenPipeError)
    )


class _Interrupted(ZeroConvertError):
    """Somebody pressed Ctrl-C."""

    exit_code = INTERRUPTED


class _InternalError(ZeroConvertError):
    """Something that should not happen: a defect of ours."""

    exit_code = INTERNAL


def _report(error: BaseException, arguments: Sequence[str]) -> int:
    """The exit code of an error, after its one message."""
    failure = _in_our_words(error)
    if _verbosity(arguments) > 1:
        traceback.print_exception(error)
    if {"--json", "--format=json"}.intersection(arguments) or ("--format", "json") in itertools.pairwise(arguments):
        try:
            print_json(error_facts(failure))
            sys.stdout.flush()
        except OSError as lost:  # nobody could read it: a full disk, a pipe without reader
            _drop_stdout()
            failure = _in_our_words(lost)
        else:
            return failure.exit_code
    from . import display

    display.error(failure, whole=_verbosity(arguments) > 0)
    return failure.exit_code


def _drop_stdout() -> None:
    """What is still to be written to stdout goes nowhere, without a complaint at the end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _in_our_words(error: BaseException) -> ZeroConvertError:
    if isinstance(error, ZeroConvertError):
        return error
    if hasattr(error, "format_message"):  # what Typer raises for arguments it cannot parse; the class moved over time
        context = getattr(error, "ctx", None)
        command = context.command_path if context else "zero-convert"
        return UsageError(str(error.format_message()).rstrip("."), fix=f"`{command} --help` explains the options.")
    if isinstance(error, OSError):
        return StorageError("the system refused", where=str(error.filename or ""), got=error.strerror or repr(error))
    return _InternalError(
        "internal error",
        got=f"{type(error).__name__}: {error}",
        fix="This is a defect of zero-convert: please report it with the output of the same command and -vv.",
    )


def _verbosity(arguments: Sequence[str]) -> int:
    """The number of -v, known even where the arguments do not parse."""
    short = (arg for arg in arguments if arg.startswith("-") and not arg.startswith("--"))
    return sum(arg.count("v") for arg in short if set(arg[1:]) <= set("qv")) + list(arguments).count("--verbose")
