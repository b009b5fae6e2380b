"""The verb `convert`: from the options to the written files, and what is said of them."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
import typer.core

from ..errors import FindingError, UsageError, closest
from ..formats.naming import format_of
from ..options import OUTPUT, RUN, FileOptions, Flag, Options, carried
from . import report as report_page
from .options import (
    Messages,
    ModelName,
    check_outputs,
    completed,
    error_facts,
    print_json,
    stdout_kept_clean,
    third_party_warnings,
    working,
)

if TYPE_CHECKING:
    from ..pipeline import Result, Saved
    from ..records import Plan
    from .display import Screen


@dataclass(frozen=True, kw_only=True)
class Output(FileOptions):
    """What becomes of the conversion."""

    out: Annotated[
        tuple[str, ...], Flag("--out -o", OUTPUT, "File to write; repeatable; - is stdout.", "FILE", before="format")
    ] = ()
    dry_run: Annotated[bool, Flag("--dry-run", OUTPUT, "Print every edit and every tensor's rule; write nothing.")] = (
        False
    )
    report: Annotated[str | None, Flag("--report", OUTPUT, "A page on the conversion, with figures.", "FILE.html")] = (
        None
    )
    plots: Annotated[str | None, Flag("--plots", OUTPUT, "The figures of the page, as PNG.", "DIR")] = None


def convert(
    model: ModelName,
    output: Output,
    options: Options,
    *,
    keep_failed: Annotated[
        bool, Flag("--keep-failed", RUN, "Write the file though a check fails; still exit code 1.")
    ] = False,
    messages: Messages,
) -> None:
    """Convert MODEL and write it. The word `convert` may be left out."""
    from . import display

    if not output.dry_run:
        _check_outputs(model, output, messages)
    report_page.check(output.report, output.plots, output.out, force=output.force, dry_run=output.dry_run)
    options, screen, verbose = completed(options), messages.screen(), messages.verbose
    if output.dry_run:
        _plan(screen, model, options, messages)
        return
    with working(screen) as progress:
        from .. import pipeline

        options = replace(options, formats=_formats(output), progress=progress)
        result = pipeline.convert(model, **vars(options))
    if not messages.as_json and (verbose or keep_failed or not result.failed):
        display.summary(screen, result)
    try:
        pages = report_page.Pages(result, output.report, output.plots, output.force)
        saved = _save(screen, result, output, keep_failed, pages)
    except FindingError as error:
        if messages.as_json:
            print_json({**_facts(result), **error_facts(error)})
            raise typer.Exit(error.exit_code) from error
        error.fix = f"{error.fix} -v shows all checks.".strip() if not verbose else error.fix
        raise
    if messages.as_json:
        code = FindingError.exit_code if result.failed else 0
        print_json(
            {**_facts(result), "outputs": [one.facts() for one in saved], "report": pages.written, "exit_code": code}
        )
    else:
        report_page.tell(screen, pages.written)
        display.saved(screen, saved, result)
    if result.failed:
        raise typer.Exit(FindingError.exit_code)


def _plan(screen: Screen, model: str, options: Options, messages: Messages) -> None:
    from . import display

    with working(screen) as progress:
        from .. import pipeline

        plan = pipeline.plan(model, **vars(replace(options, progress=progress)))
    if messages.as_json:
        print_json({"model": model, "plan": plan, "exit_code": 0})
    else:
        display.plan(screen, plan, model, options.dtype)


def _formats(output: Output) -> tuple[str, ...]:
    """The formats of the outputs; none where ONNX files are not the usual ones, of which parity speaks."""
    name = output.format or ("safetensors" if output.out == ("-",) else None)
    usual = not output.fold and output.opset is None
    return tuple(format_of(path, name) for path in output.out) if usual else ()


def _check_outputs(model: str, output: Output, messages: Messages) -> None:
    """Everything that can be said against the outputs before any work is done."""
    from .. import exporters

    if not output.out:
        _refuse_without_output(model)
    if "-" not in output.out:
        check_outputs(output.out, output)
        return
    if len(output.out) > 1:
        raise UsageError("stdout takes one output only", where="--out -", got=", ".join(output.out))
    if messages.as_json:
        raise UsageError("stdout cannot take a file and a JSON object", where="--out -", got="--json")
    if sys.stdout.isatty():
        raise UsageError("a terminal cannot show a model", where="--out -", fix="Send stdout to a file or a pipe.")
    formats = {format_of("-", output.format or "safetensors")}
    if output.external_data:
        raise UsageError("stdout takes one file only", where="--out -", got="--external-data")
    exporters.check_options(formats, output.opset, output.external_data, output.fold)


def _refuse_without_output(word: str) -> NoReturn:
    """Raises UsageError: no output is named, or the word is neither a command nor a model's name."""
    if word.replace("_", "").isalnum():  # a path, a factory or source:name is no mistyped command
        from .. import sources

        with stdout_kept_clean(), third_party_warnings(0):
            names = dict.fromkeys(name for found in sources.names().values() for name in found)
        if word not in names:
            from . import app

            commands = list(typer.main.get_command(app).commands)  # type: ignore[attr-defined]
            otherwise = "`zero-convert models` lists every name."
            raise UsageError(
                "no such command, and no model has this name",
                got=repr(word),
                expected=f"a model, or one of {', '.join(commands)}",
                fix=closest(word, [*commands, *names], otherwise, most=3, comma=" or "),
            )
    raise UsageError("no output is named", expected="--out FILE", fix="Or look at the plan with --dry-run.")


def _save(
    screen: Screen, result: Result, output: Output, keep_failed: bool, pages: report_page.Pages
) -> tuple[Saved, ...]:
    from .. import pipeline

    if output.out != ("-",):
        with working(screen, keep=False) as progress:
            how = vars(carried(FileOptions, output))
            return result.save(*output.out, keep_failed=keep_failed, beside=pages.beside, progress=progress, **how)
    if not keep_failed:
        pipeline.refuse_failed(result.failed)
    with third_party_warnings(screen.verbose):
        result.write(sys.stdout.buffer, output.format or "safetensors", output.opset, fold=output.fold)
        sys.stdout.buffer.flush()
        pages.alone()
    return ()


def _facts(result: Result) -> dict[str, Any]:
    """What a conversion found, without the plan's line for every tensor."""
    from zero_convert.initialization import plan_summary

    plan: Plan = result.plan
    rules = {
        rule: {"tensors": len(group), "values": plan_summary.values(group)}
        for rule, group in plan_summary.by_rule(plan.assignments).items()
    }
    return {
        "recipe": result.recipe,
        "rung": plan.capture,
        "rungs_failed": plan.capture_attempts,
        "captured": plan.captured,
        "joins": {
            "found": len(plan_summary.residual_joins(plan.joins)),
            "rewritten": len(plan_summary.rewritten_joins(plan)),
        },
        "edits": plan.edits,
        "rules": rules,
        "notes": plan.notes,
        "device": result.device,
        "checks": result.checks,
        "start_digest": result.start_digest,
        "architecture_digest": result.architecture_digest,
        "weights_digest": result.weights_digest,
        "original_class": result.original_class,
    }
