"""The verb `validate`: the checks of a conversion, asked of an artifact that was written earlier."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..errors import FindingError
from ..options import MODEL, RUN, Device, Flag, ShapeTexts, TrainSteps
from .options import Messages, print_json, working


def validate(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A file that zero-convert wrote.", show_default=False)],
    level: Annotated[str, Flag("--validate", RUN, "How much to check.", choices=("quick", "full"))] = "quick",
    device: Device = "auto",
    train_steps: TrainSteps = None,
    arch: Annotated[str | None, Flag("--arch", MODEL, "The model, where the file does not name it.", "MODEL")] = None,
    scheme: Annotated[str | None, Flag("--scheme", MODEL, "The scheme's file, where it was one.", "FILE.py")] = None,
    inputs: ShapeTexts = (),
    trust: Annotated[bool, Flag("--trust", MODEL, "Run the factory and the scheme that the file names.")] = False,
    *,
    messages: Messages,
) -> None:
    """Run the checks on FILE: its network is built again from its recipe, with the file's tensors.

    An ONNX file also runs in ONNX Runtime. The file is only read; a failed check ends with exit code 1.
    """
    from .display import validate as display_validate

    screen = messages.screen()
    with working(screen) as progress:
        from zero_convert import validation
        from zero_convert.sources.inputs import parse_inputs

        answer = validation.validate(
            file,
            arch,
            parse_inputs(inputs) if inputs else None,
            level=level,
            device=device,
            scheme=scheme,
            trust=trust,
            train_steps=train_steps,
            progress=progress,
        )
    code = FindingError.exit_code if answer.failed else 0
    if messages.as_json:
        facts = {"file": str(file), "recipe": answer.recipe, "device": answer.device, "checks": answer.checks}
        print_json({**facts, "exit_code": code})
    else:
        display_validate.validation(screen, answer)
    raise typer.Exit(code)
