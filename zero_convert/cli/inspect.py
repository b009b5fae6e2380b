"""The command `inspect`: what is in a model or a file. It knows no format, and imports torch for models only."""

from __future__ import annotations

from typing import Annotated

import typer

from ..errors import UsageError
from ..options import ModelArgs, ShapeTexts
from .options import MESSAGES, Messages, option, plain, print_json, working

FILE = "Files"


def inspect(
    ctx: typer.Context,
    target: Annotated[str, typer.Argument(metavar="MODEL|FILE", help="A model, or a file of any known format.")],
    digest: Annotated[
        bool | None,
        option("--digest/--no-digest", panel=FILE, help="The weights digest; of small files by default.", metavar=""),
    ] = None,
    values: Annotated[
        bool | None,
        option("--values/--no-values", panel=FILE, help="What each tensor is; of small files by default.", metavar=""),
    ] = None,
    max_bytes: Annotated[
        str, option("--max-bytes", panel=FILE, metavar="SIZE", help="Memory for what is not tensor data: 512M.")
    ] = "128M",
    max_tensors: Annotated[
        int, option("--max-tensors", panel=FILE, metavar="N", help="Tensors that a file may hold.", min=1)
    ] = 100_000,
    markdown: Annotated[
        bool, option("--markdown", panel=MESSAGES, help="Markdown on stdout, for a pull request.", metavar="")
    ] = False,
    *,
    model_args: ModelArgs,
    inputs: ShapeTexts,
    messages: Messages,
) -> None:
    """Show what is in a model or file; it runs no code from a file."""
    from zero_convert import readers
    from zero_convert.model_ref import ModelRef

    from . import display

    screen, as_json = messages.screen(silent=markdown), messages.as_json
    if as_json and markdown:
        raise UsageError("one output at a time", where="--json --markdown", expected="one of them")
    is_file = ModelRef.parse(target).kind == "file"
    _fitting(ctx, is_file, target)
    if is_file:
        from zero_convert import inspection

        from .display import file as display_file

        limits = readers.Limits(_bytes(max_bytes), max_tensors)
        contents = readers.read(target, limits)
        with screen.progress(keep=False) as progress:
            found = inspection.survey(contents, digest=digest, values=values, limits=limits, progress=progress)
        facts = inspection.facts(found)
        if as_json:
            print_json({**facts, "exit_code": 0})
        elif markdown:
            print(display_file.markdown(facts))
        else:
            display_file.file_contents(screen, facts)
        return
    with working(screen) as progress:
        from .. import pipeline
        from ..sources.inputs import parse_inputs

        examples = parse_inputs(inputs) if inputs else None
        model = pipeline.inspect_model(target, model_args, examples, progress=progress)
    if as_json:
        print_json({**plain(model), "exit_code": 0})
    else:
        display.inspection(screen, model)


def _fitting(ctx: typer.Context, is_file: bool, target: str) -> None:
    """Raises UsageError for an option that means nothing for a file, or for a model."""
    others = ("model_args", "inputs") if is_file else ("digest", "values", "max_bytes", "max_tensors", "markdown")
    for option_ in ctx.command.params:
        source = ctx.get_parameter_source(option_.name or "")
        if option_.name in others and source is not None and source.name == "COMMANDLINE":
            kind, got = ("a model", "a file") if is_file else ("a file", "a model's name")
            raise UsageError(f"{option_.opts[0]} is for {kind}", where=option_.opts[0], got=f"{got}, {target!r}")


def _bytes(text: str) -> int:
    """The number of bytes that "512M" is: K, M and G are powers of 1024."""
    number, unit = text.strip().upper().removesuffix("B").removesuffix("I"), 1
    if number[-1:] in ("K", "M", "G"):
        number, unit = number[:-1], 1024 ** (1 + "KMG".index(number[-1]))
    if not (number.isascii() and number.isdigit() and int(number[:12]) > 0 and len(number) < 12):
        raise UsageError("the size is no number of bytes", where="--max-bytes", got=repr(text), expected="512M")
    return int(number) * unit
