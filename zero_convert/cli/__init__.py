"""The command line: parses, asks the corridor, hands the answer to `display`, ends with a documented exit code.

It knows no mathematics, no graph and no file format. Everything heavy is imported inside the command that needs it,
so that `--help`, `schemes`, `verify` and `inspect FILE` start without torch.

People read stderr, programs read stdout: one `sha256  path` line for each file written (`sha256sum --check` takes
them), or one JSON object with `--json`.
"""

from __future__ import annotations

import difflib
import itertools
import os
import sys
import traceback
from collections.abc import Sequence
from math import prod
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
import typer.core

from ..errors import FindingError, StorageError, UsageError, ZeroConvertError
from ..interrupts import INTERRUPTED, ending
from . import diff as cli_diff
from . import doctor as cli_doctor
from . import inspect as cli_inspect
from . import lock as cli_lock
from . import report as cli_report
from . import validate as cli_validate
from . import verify as cli_verify
from .parts import (
    OUTPUT,
    RUN,
    Arch,
    Device,
    Dtype,
    ExternalData,
    Fold,
    Force,
    Format,
    Inputs,
    Json,
    Leftovers,
    ModelArgs,
    ModelName,
    Opset,
    Out,
    Plots,
    Quiet,
    Report,
    SchemeName,
    Settings,
    TrainSteps,
    TrustFile,
    Validate,
    Verbose,
    error_facts,
    examples,
    model_args_of,
    option,
    print_json,
    stdout_kept_clean,
    third_party_warnings,
)

if TYPE_CHECKING:
    from ..display import Screen
    from ..pipeline import Result, Saved
    from ..records import Plan

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
        close = difflib.get_close_matches(word, meant, n=1, cutoff=0.75)
        if close and not any(arg.startswith(("--out", "-o", "--dry-run", "--help", "-h")) for arg in args):
            raise UsageError(  # nobody asked for an output, so this is hardly a model
                "no such command",
                got=repr(word),
                expected=", ".join(self.commands),
                fix=f"Did you mean {meant[close[0]]!r}?",
            )
        return ["convert", *args]


app = typer.Typer(
    cls=_Commands,
    options_metavar="",
    subcommand_metavar="MODEL --out FILE | COMMAND [ARGS]...",
    add_completion=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
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
        from importlib.metadata import version as installed

        print(f"zero-convert {installed('zero-convert')}")
    elif context.invoked_subcommand is None:
        print(context.get_help(), file=sys.stderr)
        raise typer.Exit(UsageError.exit_code)


@app.command()
def convert(
    model: ModelName,
    out: Out = None,
    format_: Format = None,
    force: Force = False,
    opset: Opset = None,
    external_data: ExternalData = False,
    fold: Fold = False,
    dry_run: Annotated[
        bool,
        option("--dry-run", panel=OUTPUT, help="Print every edit and every tensor's rule; write nothing.", metavar=""),
    ] = False,
    report: Report = None,
    plots: Plots = None,
    scheme: SchemeName = "zero-2021",
    settings: Settings = None,
    model_args: ModelArgs = None,
    arch: Arch = None,
    trust: TrustFile = False,
    inputs: Inputs = None,
    dtype: Dtype = "float32",
    leftovers: Leftovers = "error",
    validate: Validate = "quick",
    device: Device = "auto",
    train_steps: TrainSteps = None,
    keep_failed: Annotated[
        bool,
        option("--keep-failed", panel=RUN, help="Write the file though a check fails; still exit code 1.", metavar=""),
    ] = False,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = 0,
) -> None:
    """Convert MODEL and write it. The word `convert` may be left out."""
    from .. import display, exporters, schemes

    outputs = out or []
    if not outputs and not dry_run:
        _refuse_without_output(model)
    if not dry_run:
        _check_outputs(outputs, format_, force, as_json, opset, external_data, fold)
    cli_report.check(report, plots, outputs, force=force, dry_run=dry_run)
    options = schemes.parse_options(schemes.get(scheme), settings or [])
    screen = display.Screen(quiet or as_json, verbose)
    with screen.progress() as progress, stdout_kept_clean(), third_party_warnings(verbose):
        from .. import pipeline

        question: dict[str, Any] = {
            "example_inputs": examples(inputs),
            "scheme": scheme,
            "options": options,
            "model_args": model_args_of(model_args),
            "leftovers": leftovers,
            "arch": arch,
            "trust": trust,
            "progress": progress,
        }
        if dry_run:
            plan = pipeline.plan(model, **question)
        else:
            formats = [
                exporters.format_of(each, format_ or ("safetensors" if each == "-" else None)) for each in outputs
            ]
            formats = [] if fold or opset is not None else formats  # parity speaks of the usual ONNX file
            checked: dict[str, Any] = {
                "device": device,
                "validate": validate,
                "train_steps": train_steps,
                "formats": formats,
            }
            result = pipeline.convert(model, **question, dtype=dtype, **checked)
    if dry_run:
        if as_json:
            print_json({"model": model, "plan": plan, "exit_code": 0})
        else:
            display.plan(screen, plan, model, dtype)
        return
    if not as_json and (verbose or keep_failed or not result.failed):
        display.summary(screen, result)
    try:
        with screen.progress(keep=False) as progress, third_party_warnings(verbose):
            pages = cli_report.Pages(result, report, plots, force)
            saved = _save(result, outputs, format_, force, opset, external_data, fold, keep_failed, pages, progress)
    except FindingError as error:
        if as_json:
            print_json({**_facts(result), **error_facts(error)})
            raise typer.Exit(error.exit_code) from error
        error.fix = f"{error.fix} -v shows all checks.".strip() if not verbose else error.fix
        raise
    if as_json:
        code = FindingError.exit_code if result.failed else 0
        print_json({**_facts(result), "outputs": saved, "report": pages.written, "exit_code": code})
    else:
        cli_report.tell(screen, pages.written)
        display.saved(screen, saved, result.weights_digest)
    if result.failed:
        raise typer.Exit(FindingError.exit_code)


app.command()(cli_inspect.inspect)
app.command()(cli_lock.check)
app.command()(cli_lock.lock)
app.command()(cli_diff.diff)
app.command()(cli_doctor.doctor)
app.command()(cli_verify.verify)
app.command()(cli_validate.validate)


@app.command("schemes")
def list_schemes(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="Show this scheme's mathematics: a name, or a file.py.")
    ] = None,
    test: Annotated[
        bool, typer.Option("--test", help="Put the scheme NAME through what every scheme is held to.", metavar="")
    ] = False,
    as_json: Json = False,
) -> None:
    """List the schemes; with NAME its mathematics, source and options. A scheme in a file is run."""
    from .. import display, schemes

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
    from .. import contract, display

    if name is None:
        raise UsageError("no scheme to test", where="--test", fix="`zero-convert schemes --test ./mine.py`, or a name.")
    found = contract.examine(name)
    code = FindingError.exit_code if any(check.status == "fail" for check in found) else 0
    if as_json:
        print_json({"scheme": name, "tests": found, "exit_code": code})
    else:
        display.contract(screen, name, found)
    raise typer.Exit(code)


@app.command("models")
def list_models(
    pattern: Annotated[str, typer.Argument(metavar="PATTERN", help="Part of a name, or a pattern like resnet*.")] = "",
    as_json: Json = False,
) -> None:
    """List every model name that can be typed, by source."""
    from .. import display, sources

    screen = display.Screen()
    with stdout_kept_clean(), third_party_warnings(0):
        names = sources.names(pattern)
    if not any(names.values()):
        raise UsageError(
            "no model name matches", where="models", got=repr(pattern), fix="Without a pattern all are listed."
        )
    if as_json:
        print_json({"models": names, "exit_code": 0})
    else:
        display.models(screen, names)


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
    from .. import display

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


# ---------------------------------------------------------------------------------------------------------------------
# arguments


def _check_outputs(
    outputs: Sequence[str],
    name: str | None,
    force: bool,
    as_json: bool,
    opset: int | None,
    external_data: bool,
    fold: bool,
) -> None:
    """Everything that can be said against the outputs before any work is done."""
    from .. import exporters

    if "-" in outputs:
        if len(outputs) > 1:
            raise UsageError("stdout takes one output only", where="--out -", got=", ".join(outputs))
        if as_json:
            raise UsageError("stdout cannot take a file and a JSON object", where="--out -", got="--json")
        if sys.stdout.isatty():
            raise UsageError("a terminal cannot show a model", where="--out -", fix="Send stdout to a file or a pipe.")
        formats = {exporters.format_of("-", name or "safetensors")}
        if external_data:
            raise UsageError("stdout takes one file only", where="--out -", got="--external-data")
    else:
        exporters.check_outputs(outputs, name, force, external_data=external_data)
        formats = {exporters.format_of(output, name) for output in outputs}
    exporters.check_options(formats, opset, external_data, fold)


def _refuse_without_output(word: str) -> NoReturn:
    """Raises UsageError: no output is named, or the word is neither a command nor a model's name."""
    if word.replace("_", "").isalnum():  # a path, a factory or source:name is no mistyped command
        from .. import sources

        with stdout_kept_clean(), third_party_warnings(0):
            names = dict.fromkeys(name for found in sources.names().values() for name in found)
        if word not in names:
            commands = list(typer.main.get_command(app).commands)  # type: ignore[attr-defined]
            close = difflib.get_close_matches(word, [*commands, *names], n=3)
            raise UsageError(
                "no such command, and no model has this name",
                got=repr(word),
                expected=f"a model, or one of {', '.join(commands)}",
                fix=f"Did you mean {' or '.join(close)}?" if close else "`zero-convert models` lists every name.",
            )
    raise UsageError("no output is named", expected="--out FILE", fix="Or look at the plan with --dry-run.")


# ---------------------------------------------------------------------------------------------------------------------
# streams


def _save(
    result: Result,
    outputs: Sequence[str],
    name: str | None,
    force: bool,
    opset: int | None,
    external_data: bool,
    fold: bool,
    keep_failed: bool,
    pages: cli_report.Pages,
    progress: Any,
) -> tuple[Saved, ...]:
    if list(outputs) != ["-"]:
        with stdout_kept_clean():
            return result.save(
                *outputs,
                force=force,
                format=name,
                opset=opset,
                external_data=external_data,
                fold=fold,
                keep_failed=keep_failed,
                beside=pages.beside,
                progress=progress,
            )
    from ..pipeline import refuse_failed

    if not keep_failed:
        refuse_failed(result.failed)
    result.write(sys.stdout.buffer, name or "safetensors", opset, fold=fold)
    sys.stdout.buffer.flush()
    pages.alone()
    return ()


# ---------------------------------------------------------------------------------------------------------------------
# JSON


def _facts(result: Result) -> dict[str, Any]:
    """What a conversion found, without the plan's line for every tensor."""
    from .. import display

    plan: Plan = result.plan
    rules = {
        rule: {"tensors": len(group), "values": sum(prod(each.tensor.shape) for each in group)}
        for rule, group in display.by_rule(plan.assignments).items()
    }
    residual = [join for join in plan.joins if join.residual]
    return {
        "recipe": result.recipe,
        "rung": plan.rung,
        "rungs_failed": plan.rungs_failed,
        "captured": plan.captured,
        "joins": {"found": len(residual), "rewritten": len(display.rewritten_joins(plan))},
        "edits": plan.edits,
        "rules": rules,
        "notes": plan.notes,
        "device": result.device,
        "checks": result.checks,
        "weights_digest": result.weights_digest,
    }
