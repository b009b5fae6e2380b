"""The verb `verify`: artifacts against receipts, a lock, or a manifest of model signing. It imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import FindingError, UsageError, ZeroConvertError
from ..options import OUTPUT, Force
from .options import Messages, error_facts, option, print_json

if TYPE_CHECKING:
    from ..artifacts.verify import Verification
    from .display import Screen

_AGAINST = "Compared with, instead of receipts"


def verify(
    files: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="FILE|FOLDER",
            help="Artifacts, or folders: then every artifact with a receipt in it.",
            show_default=False,
        ),
    ] = None,
    lock_file: Annotated[
        Path | None,
        option("--lock", panel=_AGAINST, metavar="FILE", help="A lock; without FILE|FOLDER all its files."),
    ] = None,
    oms: Annotated[
        Path | None,
        option(
            "--oms",
            panel=_AGAINST,
            metavar="FILE",
            help="A statement or bundle of OpenSSF model signing: its manifest, not its signature.",
        ),
    ] = None,
    statement: Annotated[
        Path | None,
        option(
            "--statement",
            panel=OUTPUT,
            metavar="FILE",
            help="If all is sound, write the in-toto statement of FILE|FOLDER, to be signed.",
        ),
    ] = None,
    force: Force = False,
    *,
    messages: Messages,
) -> None:
    """Rehash artifacts and compare them with their receipts, which lie beside them.

    All are looked at, whatever is wrong with one; the exit code is the highest of theirs.
    """
    from zero_convert.artifacts import verify as verifying

    from . import display

    screen, as_json, paths = messages.screen(), messages.as_json, files or []
    _check(paths, lock_file, oms, statement, force)
    if oms:
        _verify_manifest(screen, paths[0], oms, as_json)
        _write_statement(screen, paths[0], statement, force)
        return
    rows: list[dict[str, Any]] = []
    worst: ZeroConvertError | None = None
    code = 0
    for file, answer in verifying.verify_all(paths, lock_file):
        if isinstance(answer, ZeroConvertError):
            worst = answer if answer.exit_code > code else worst
            row: dict[str, Any] = {"sound": False, **error_facts(answer)}
        else:
            if statement and len(answer.receipt.written.files) > 1 and not paths[0].is_dir():
                raise UsageError(
                    "a statement of one file would not cover the file of its tensors",
                    where="--statement",
                    got=str(paths[0]),
                    expected="the folder that both are in",
                )
            row = _row(answer)
        rows.append({"file": str(file), **row})
        code = max(code, row["exit_code"])
        if not as_json:
            display.verification(screen, file, answer)
    if not code:
        _write_statement(screen, paths[0] if paths else Path(), statement, force)
    if as_json:
        print_json({"files": rows} | (error_facts(worst) if worst else {}) | {"exit_code": code})
    raise typer.Exit(code)


def _check(paths: list[Path], lock_file: Path | None, oms: Path | None, statement: Path | None, force: bool) -> None:
    """Everything that can be said against the arguments before any file is read."""
    if not paths and lock_file is None:
        raise UsageError("nothing to verify", expected="FILE or FOLDER, or --lock FILE")
    if (oms or statement) and len(paths) != 1:
        where = "--oms" if oms else "--statement"
        raise UsageError("a manifest is of one file or folder", where=where, got=f"{len(paths)} of them")
    if oms and lock_file:
        raise UsageError("one thing at a time to compare with", got="--oms and --lock")
    if statement:
        from zero_convert.formats.atomic import check_target

        check_target(statement, force)


def _row(answer: Verification) -> dict[str, Any]:
    """What `--json` has of one artifact that could be read."""
    written, folded_from = answer.receipt.written, answer.receipt.folded_from
    row = {"sound": not answer.findings, "sha256": written.sha256, "weights_digest": written.weights_digest}
    identity = answer.receipt.identity
    if identity.architecture_digest:
        row |= {"start_digest": identity.start_digest, "architecture_digest": identity.architecture_digest}
    row |= {"folded_from": folded_from} if folded_from else {}
    return row | {"findings": answer.findings, "exit_code": FindingError.exit_code if answer.findings else 0}


def _verify_manifest(screen: Screen, path: Path, oms: Path, as_json: bool) -> None:
    """Raises typer.Exit if the files are not those of the statement."""
    from zero_convert.artifacts.model_signing import compare_manifests, make_manifest, read_manifest

    from .display import lock as display_lock

    expected = read_manifest(oms)
    found = compare_manifests(make_manifest(path, (oms,), expected.ignored), expected)
    code = FindingError.exit_code if found else 0
    if as_json:
        print_json({"file": str(path), "root": expected.root, "findings": found, "exit_code": code})
    else:
        display_lock.manifest(screen, path, expected, found)
    if code:
        raise typer.Exit(code)


def _write_statement(screen: Screen, path: Path, statement: Path | None, force: bool) -> None:
    if statement is None:
        return
    from zero_convert.artifacts.model_signing import make_manifest, write_statement

    made = make_manifest(path, (statement,))
    write_statement(statement, made, force)
    screen.tell(f"wrote {statement}, the statement of {len(made.resources)} files with the root {made.root}")
