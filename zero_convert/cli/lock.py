"""The verbs about `zero.lock`: `lock` writes it, `check` makes its conversions again and writes nothing."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ..errors import UsageError
from .options import (
    OUTPUT,
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
    Opset,
    Quiet,
    SchemeName,
    Settings,
    Validate,
    Verbose,
    model_args_of,
    option,
    print_json,
    stdout_kept_clean,
    third_party_warnings,
)

if TYPE_CHECKING:
    from zero_convert.replay import Answer

    from .display import Screen

LOCK = "zero.lock"
_LOCK = "Lock"

Trust = Annotated[
    bool, option("--trust", panel=_LOCK, help="Run the code of factories that the lock names.", metavar="")
]


def check(
    lock_file: Annotated[Path, typer.Argument(metavar="zero.lock", help="The lock.", show_default=False)] = Path(LOCK),
    format_: Annotated[
        Literal["text", "json", "github", "junit", "sarif"],
        option("--format", panel=OUTPUT, help="What stdout holds."),
    ] = "text",
    trust: Trust = False,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = 0,
) -> None:
    """Make every conversion of a lock again and compare; nothing is written.

    The first tensor, edit or recipe field that moved is named; the exit code is the highest of the entries'.
    """
    from zero_convert import replay
    from zero_convert.artifacts.lock import SIZE_LIMIT, line_numbers, parse_lock, spell
    from zero_convert.formats.strict_json import read_limited

    from . import check_formats, display
    from .display import lock as display_lock

    name = "json" if as_json else format_
    screen = display.Screen(quiet or name in ("json", "junit", "sarif"), verbose)
    data = read_limited(lock_file, SIZE_LIMIT, "lock")
    lock = parse_lock(data, str(lock_file))
    answers: list[Answer] = []
    for index, entry in enumerate(lock.entries):
        with screen.progress(keep=False) as progress, stdout_kept_clean(), third_party_warnings(verbose):
            answers.append(replay.check(index, entry, lock_file.parent, trust=trust, progress=progress))
        if name in ("text", "github"):  # in the log of a workflow both have their readers
            display_lock.answer(screen, answers[-1], "DRIFT", to_stdout=name == "text")
    lines = line_numbers(lock) if spell(lock).encode("ascii") == data else {}
    findings = check_formats.Findings(lock_file.as_posix(), tuple(answers), lines)
    if name == "text":
        display_lock.counts(screen, answers, str(lock_file), "`zero-convert lock --update` records what they are now.")
    else:
        print(check_formats.render(name, findings))
    raise typer.Exit(findings.exit_code)


def lock(
    model: Annotated[
        str | None, typer.Argument(metavar="MODEL", help="As for convert; none with --update.", show_default=False)
    ] = None,
    out: Annotated[
        list[str] | None,
        option("--out", "-o", panel=OUTPUT, metavar="FILE", help="File to write and record; repeatable."),
    ] = None,
    format_: Format = None,
    force: Force = False,
    opset: Opset = None,
    external_data: ExternalData = False,
    fold: Fold = False,
    lock_file: Annotated[Path, option("--lock", panel=_LOCK, metavar="FILE", help="The lock to write.")] = Path(LOCK),
    update: Annotated[
        bool,
        option("--update", panel=_LOCK, help="Make every entry again; write what moved, and the lock.", metavar=""),
    ] = False,
    trust: Trust = False,
    scheme: SchemeName = "zero-2021",
    settings: Settings = None,
    model_args: ModelArgs = None,
    arch: Arch = None,
    inputs: Inputs = None,
    dtype: Dtype = "float32",
    leftovers: Leftovers = "error",
    validate: Validate = "quick",
    device: Device = "auto",
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = 0,
) -> None:
    """Convert MODEL, write it and record what it is in a lock; the only command that writes a lock.

    Paths in a lock are relative to its folder. A file that it knows already gets a new entry.
    """
    from . import display

    screen = display.Screen(quiet or as_json, verbose)
    if update:
        _refuse_with_update(
            {
                "MODEL": model,
                "--out": out,
                "--format": format_,
                "--opset": opset,
                "--external-data": external_data,
                "--fold": fold,
                "--arch": arch,
            }
        )
        _update(screen, lock_file, trust, validate, device, as_json)
        return
    if model is None or not out:
        raise UsageError(
            "nothing to lock",
            got="no MODEL" if model is None else "no --out",
            expected="MODEL --out FILE, or --update",
        )
    from zero_convert import replay
    from zero_convert.artifacts.lock import read_lock, record
    from zero_convert.formats.atomic import check_target
    from zero_convert.formats.naming import format_of

    from .. import exporters, readers, schemes
    from .display import lock as display_lock

    file = model if readers.names_file(model) else ""
    if file and arch is None:
        raise UsageError(
            "a lock records a file together with the architecture of its tensors",
            where=file,
            expected="--arch MODEL",
            fix="A network inside of a file cannot be locked: its structure is in code that only torch could run.",
        )
    if arch is not None and not file:
        raise UsageError("arch is for files", got=repr(model), expected="FILE.pt, FILE.safetensors, …")
    if "-" in out:
        raise UsageError("a lock records files, and stdout is none", where="--out -")
    folder = lock_file.parent
    targets = exporters.check_outputs(out, format_, force, external_data=external_data)
    exporters.check_options({format_of(output, format_) for output in out}, opset, external_data, fold)
    if check_target(lock_file, force=True) in targets:
        raise UsageError("an output is the lock itself", where="--out", got=str(lock_file))
    for output in out:
        replay.path_in(folder, output)
    if os.path.lexists(lock_file):
        read_lock(lock_file)  # what is wrong with it is said before the work
    arguments = {
        "scheme": scheme,
        "options": schemes.parse_options(schemes.get(scheme), settings or []),
        "model_args": model_args_of(model_args),
        "dtype": dtype,
        "leftovers": leftovers,
        "validate": validate,
        "device": device,
    }
    asked = replay.Request(arch or model, tuple(inputs or ()), arguments, file)
    request = replay.request_in(folder, asked)
    with screen.progress() as progress, stdout_kept_clean(), third_party_warnings(verbose):
        origin = replay.origin_of(request, folder)
        result = replay.converted(request, folder, progress)
    if not as_json and (verbose or not result.failed):
        display.summary(screen, result)
    with screen.progress(keep=False) as progress, third_party_warnings(verbose):
        saved = result.save(
            *out,
            force=force,
            format=format_,
            opset=opset,
            external_data=external_data,
            fold=fold,
            progress=progress,
        )
        recorded = record(lock_file, *replay.entries_of(request, result, saved, folder, origin))
    if as_json:
        print_json(
            {
                "lock": str(lock_file),
                "entries": len(recorded.entries),
                "outputs": [one.facts() for one in saved],
                "exit_code": 0,
            }
        )
    else:
        display.saved(screen, saved, result.weights_digest)
        display_lock.recorded(screen, lock_file, recorded)


def _refuse_with_update(options: Mapping[str, object]) -> None:
    given = [name for name, value in options.items() if value]
    if given:
        raise UsageError(
            "--update takes everything from the lock", got=", ".join(given), fix="Leave them out, or --update."
        )


def _update(screen: Screen, lock_file: Path, trust: bool, validate: str, device: str, as_json: bool) -> None:
    from zero_convert import replay
    from zero_convert.artifacts.lock import read_lock

    from . import check_formats
    from .display import lock as display_lock

    lock = read_lock(lock_file)
    answers: list[Answer] = []
    for index, entry in enumerate(lock.entries):
        with screen.progress(keep=False) as progress, stdout_kept_clean(), third_party_warnings(screen.verbose):
            answers.append(
                replay.update(index, entry, lock_file, trust=trust, validate=validate, device=device, progress=progress)
            )
        if not as_json:
            display_lock.answer(screen, answers[-1], "UPDATED")
    if as_json:
        text = check_formats.render("json", check_formats.Findings(lock_file.as_posix(), tuple(answers), {}))
        print_json({**json.loads(text), "exit_code": 0})
    else:
        display_lock.counts(screen, answers, str(lock_file))
