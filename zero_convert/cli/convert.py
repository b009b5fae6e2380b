"""The verb `convert`: from the typed options to the written files, and what is said of them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
import typer.core

from ..errors import FindingError, UsageError, closest
from . import report as report_page
from .options import (
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
    from ..pipeline import Result, Saved
    from ..records import Plan


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
    from zero_convert import exporters, schemes

    from . import display

    outputs = out or []
    if not outputs and not dry_run:
        _refuse_without_output(model)
    if not dry_run:
        _check_outputs(outputs, format_, force, as_json, opset, external_data, fold)
    report_page.check(report, plots, outputs, force=force, dry_run=dry_run)
    options = schemes.parse_options(schemes.get(scheme), settings or [])
    screen = display.Screen(quiet or as_json, verbose)
    with screen.progress() as progress, stdout_kept_clean(), third_party_warnings(verbose):
        from zero_convert import pipeline

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
            pages = report_page.Pages(result, report, plots, force)
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
        report_page.tell(screen, pages.written)
        display.saved(screen, saved, result.weights_digest)
    if result.failed:
        raise typer.Exit(FindingError.exit_code)


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
    from zero_convert import exporters

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
        from zero_convert import sources

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
    result: Result,
    outputs: Sequence[str],
    name: str | None,
    force: bool,
    opset: int | None,
    external_data: bool,
    fold: bool,
    keep_failed: bool,
    pages: report_page.Pages,
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
        "rung": plan.rung,
        "rungs_failed": plan.rungs_failed,
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
        "weights_digest": result.weights_digest,
    }
