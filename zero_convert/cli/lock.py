"""The verbs about `zero.lock`: `lock` writes it, `check` makes its conversions again and writes nothing."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ..errors import UsageError
from ..options import OUTPUT, FileOptions, Flag, Options, carried, flags
from .options import Messages, Without, check_outputs, completed, option, print_json, working

if TYPE_CHECKING:
    from zero_convert.replay import Answer, Request

LOCK = "zero.lock"
_LOCK = "Lock"

Trust = Annotated[bool, Flag("--trust", _LOCK, "Run the code of factories that the lock names.")]


@dataclass(frozen=True, kw_only=True)
class Output(FileOptions):
    """What becomes of the conversion."""

    out: Annotated[
        tuple[str, ...], Flag("--out -o", OUTPUT, "File to write and record; repeatable.", "FILE", before="format")
    ] = ()
    lock_file: Annotated[Path, Flag("--lock", _LOCK, "The lock to write.", "FILE")] = Path(LOCK)
    update: Annotated[bool, Flag("--update", _LOCK, "Make every entry again; write what moved, and the lock.")] = False
    trust: Trust = False


def check(
    lock_file: Annotated[Path, typer.Argument(metavar="zero.lock", help="The lock.", show_default=False)] = Path(LOCK),
    format_: Annotated[
        Literal["text", "json", "github", "junit", "sarif"],
        option("--format", panel=OUTPUT, help="What stdout holds."),
    ] = "text",
    trust: Trust = False,
    *,
    messages: Messages,
) -> None:
    """Make every conversion of a lock again and compare; nothing is written.

    The first tensor, edit or recipe field that moved is named; the exit code is the highest of the entries'.
    """
    from zero_convert import replay
    from zero_convert.artifacts.lock import SIZE_LIMIT, line_numbers, parse_lock, spell
    from zero_convert.formats.strict_json import read_limited

    from . import check_formats
    from .display import lock as display_lock

    name = "json" if messages.as_json else format_
    screen = messages.screen(silent=name in ("json", "junit", "sarif"))
    data = read_limited(lock_file, SIZE_LIMIT, "lock")
    lock = parse_lock(data, str(lock_file))
    answers: list[Answer] = []
    for index, entry in enumerate(lock.entries):
        with working(screen, keep=False) as progress:
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
    *,
    output: Output,
    options: Annotated[Options, Without("trust", "train_steps")],
    messages: Messages,
) -> None:
    """Convert MODEL, write it and record what it is in a lock; the only command that writes a lock.

    Paths in a lock are relative to its folder. A file that it knows already gets a new entry.
    """
    if output.update:
        _refuse_with_update(model, output, options)
        _update(output, options, messages)
        return
    if model is None or not output.out:
        raise UsageError(
            "nothing to lock",
            got="no MODEL" if model is None else "no --out",
            expected="MODEL --out FILE, or --update",
        )
    from zero_convert import replay
    from zero_convert.artifacts.lock import record

    from . import display
    from .display import lock as display_lock

    screen, lock_file = messages.screen(), output.lock_file
    request = _request(model, output, options)
    with working(screen) as progress:
        origin = replay.origin_of(request, lock_file.parent)
        result = replay.converted(request, lock_file.parent, progress)
    if not messages.as_json and (messages.verbose or not result.failed):
        display.summary(screen, result)
    with working(screen, keep=False) as progress:
        saved = result.save(*output.out, progress=progress, **vars(carried(FileOptions, output)))
        recorded = record(lock_file, *replay.entries_of(request, result, saved, lock_file.parent, origin))
    if messages.as_json:
        print_json(
            {
                "lock": str(lock_file),
                "entries": len(recorded.entries),
                "outputs": [one.facts() for one in saved],
                "exit_code": 0,
            }
        )
    else:
        display.saved(screen, saved, result)
        display_lock.recorded(screen, lock_file, recorded)


def _request(model: str, output: Output, options: Options) -> Request:
    """The conversion to record, after all that can be said against it and its outputs before any work is done."""
    from zero_convert import replay
    from zero_convert.artifacts.lock import read_lock
    from zero_convert.formats.atomic import check_target
    from zero_convert.model_ref import ModelRef

    ref, arch, lock_file = ModelRef.parse(model), options.arch, output.lock_file
    if ref.kind == "file" and arch is None:
        raise UsageError(
            "a lock records a file together with the architecture of its tensors",
            where=model,
            expected="--arch MODEL",
            fix="A network inside of a file cannot be locked: its structure is in code that only torch could run.",
        )
    if arch is not None and ref.kind != "file":
        raise UsageError("arch is for files", got=repr(model), expected="FILE.pt, FILE.safetensors, …")
    if "-" in output.out:
        raise UsageError("a lock records files, and stdout is none", where="--out -")
    if check_target(lock_file, force=True) in check_outputs(output.out, output):
        raise UsageError("an output is the lock itself", where="--out", got=str(lock_file))
    for path in output.out:
        replay.path_in(lock_file.parent, path)
    if os.path.lexists(lock_file):
        read_lock(lock_file)  # what is wrong with it is said before the work
    named = ref if arch is None else ModelRef.named(arch)
    request = replay.Request(named, replace(completed(options), arch=None), ref.path if arch is not None else "")
    return request.relative_to(lock_file.parent)


def _refuse_with_update(model: str | None, output: Output, options: Options) -> None:
    own = ("force", "lock_file", "update", "trust")
    asked = {flag.name: getattr(output, name) for name, flag in flags(Output).items() if name not in own}
    given = [name for name, value in ({"MODEL": model} | asked | {"--arch": options.arch}).items() if value]
    if given:
        raise UsageError(
            "--update takes everything from the lock", got=", ".join(given), fix="Leave them out, or --update."
        )


def _update(output: Output, options: Options, messages: Messages) -> None:
    from zero_convert import replay
    from zero_convert.artifacts.lock import read_lock

    from . import check_formats
    from .display import lock as display_lock

    screen, lock_file = messages.screen(), output.lock_file
    answers: list[Answer] = []
    asked: dict[str, Any] = {"trust": output.trust, "validate": options.validate, "device": options.device}
    for index, entry in enumerate(read_lock(lock_file).entries):
        with working(screen, keep=False) as progress:
            answers.append(replay.update(index, entry, lock_file, progress=progress, **asked))
        if not messages.as_json:
            display_lock.answer(screen, answers[-1], "UPDATED")
    if messages.as_json:
        text = check_formats.render("json", check_formats.Findings(lock_file.as_posix(), tuple(answers), {}))
        print_json({**json.loads(text), "exit_code": 0})
    else:
        display_lock.counts(screen, answers, str(lock_file))
