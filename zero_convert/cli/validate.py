"""The verb `validate`: the checks of a conversion, asked of an artifact that was written earlier."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from ..errors import FindingError
from .options import (
    MODEL,
    RUN,
    Device,
    Inputs,
    Json,
    Quiet,
    TrainSteps,
    Verbose,
    examples,
    option,
    print_json,
    stdout_kept_clean,
    third_party_warnings,
)


def validate(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A file that zero-convert wrote.", show_default=False)],
    level: Annotated[Literal["quick", "full"], option("--validate", panel=RUN, help="How much to check.")] = "quick",
    device: Device = "auto",
    train_steps: TrainSteps = None,
    arch: Annotated[
        str | None,
        option("--arch", panel=MODEL, metavar="MODEL", help="The model, where the file does not name it."),
    ] = None,
    scheme: Annotated[
        str | None,
        option("--scheme", panel=MODEL, metavar="FILE.py", help="The scheme's file, where it was one."),
    ] = None,
    inputs: Inputs = None,
    trust: Annotated[
        bool, option("--trust", panel=MODEL, help="Run the factory and the scheme that the file names.", metavar="")
    ] = False,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = 0,
) -> None:
    """Run the checks on FILE: its network is built again from its recipe, with the file's tensors.

    An ONNX file also runs in ONNX Runtime. The file is only read; a failed check ends with exit code 1.
    """
    from . import display
    from .display import validate as display_validate

    screen = display.Screen(quiet or as_json, verbose)
    with screen.progress() as progress, stdout_kept_clean(), third_party_warnings(verbose):
        from zero_convert import validation

        answer = validation.validate(
            file,
            arch,
            examples(inputs),
            level=level,
            device=device,
            scheme=scheme,
            trust=trust,
            train_steps=train_steps,
            progress=progress,
        )
    code = FindingError.exit_code if answer.failed else 0
    if as_json:
        facts = {"file": str(file), "recipe": answer.recipe, "device": answer.device, "checks": answer.checks}
        print_json({**facts, "exit_code": code})
    else:
        display_validate.validation(screen, answer)
    raise typer.Exit(code)
