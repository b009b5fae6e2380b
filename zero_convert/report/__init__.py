"""The report on one conversion: a page of HTML that needs nothing else, and its figures as PNG.

    from zero_convert import report

    result = zc.convert("resnet50")
    report.save(result, "report.html", plots="figures", saved=result.save("r50.safetensors"))

    facts.py    what is said, in words and tables      drawing.py   matplotlib, its settings, SVG and PNG
    blocks.py   the distinct kinds of residual block   charts.py    the figures
    layout.py   where their boxes go                   weights.py   which weights are shown
    page.html   the page (jinja2, everything from a model is escaped)

Reads a result and measures nothing: the curves are the numbers of the check `signal`. The same result gives the same
bytes where matplotlib and jinja2 are the same. Both come with the extra `report`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from importlib.metadata import version
from importlib.util import find_spec
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zero_convert.errors import StorageError, UsageError
from zero_convert.formats.atomic import check_target, commit_all, staged
from zero_convert.initialization import plan_summary
from zero_convert.nn.tree import ConvertedModule
from zero_convert.runtime.signals import undone_by

from . import blocks, charts, drawing, facts, weights

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from zero_convert.result import Result
    from zero_convert.saving import Saved

KINDS = 8  # of blocks that are drawn
_CURVES = (
    ("activation", "signal", "root mean square", True),
    ("gradient", "gradient", "root mean square", True),
    ("distinct", "distinct channels", "distinct channels, %", False),
    ("low_variance", "nearly constant channels", "variance below 1e-6, %", False),
)


def require() -> None:
    """Raises UsageError, with the command that installs them, unless the libraries of a report are there."""
    lacking = [name for name in ("jinja2", "matplotlib") if find_spec(name) is None]
    if lacking:
        raise UsageError(
            "a report needs libraries that are not installed",
            where="--report",
            got=f"no {' and no '.join(lacking)}",
            fix="pip install 'zero-convert[report]'",
        )


def check_outputs(report: str | PathLike[str] | None, plots: str | PathLike[str] | None, force: bool) -> None:
    """Everything that can be said against the outputs before any work is done.

    Raises:
        UsageError: a library is missing, or a file is there and `force` is not given.
        StorageError: a folder is missing or not writable.
    """
    if report is not None or plots is not None:
        require()
    if report is not None:
        check_target(report, force)
    if plots is not None and Path(plots).exists() and not Path(plots).is_dir():
        raise StorageError("the plots need a folder", where=str(plots), got="a file", expected="a folder's name")


def save(
    result: Result,
    report: str | PathLike[str] | None = None,
    *,
    plots: str | PathLike[str] | None = None,
    saved: Sequence[Saved] = (),
    force: bool = False,
) -> tuple[Path, ...]:
    """What was written: the page, and one PNG for each figure; all of them, or after a failure none.

    Args:
        result: of `convert`.
        report: where the page goes.
        plots: the folder where the PNGs go; made if it is not there.
        saved: the files of the result, from `Result.save`, to be named with their hashes.
        force: existing files may be replaced.

    Raises:
        UsageError, StorageError: as `check_outputs`, and for any error while writing.
    """
    check_outputs(report, plots, force)
    with ExitStack() as stack:
        outputs = stack.enter_context(made(result, report, plots=plots, saved=saved))
        ready = [stack.enter_context(staged(path, force)) for path, _ in outputs]
        for output, (_, data) in zip(ready, outputs, strict=True):
            output.write_all(data)
        commit_all(ready)
    return tuple(path for path, _ in outputs)


@contextmanager
def made(
    result: Result,
    report: str | PathLike[str] | None = None,
    *,
    plots: str | PathLike[str] | None = None,
    saved: Sequence[Saved] = (),
) -> Iterator[list[tuple[Path, bytes]]]:
    """The page and the figures, path and bytes, for whoever writes them within the block.

    The folder of the plots is there inside, and goes again if the block fails and nobody else needs it. Arguments as
    `save`.
    """
    outputs: list[tuple[Path, bytes]] = []
    with drawing.settings():
        figures = _figures(result)
        if report is not None:
            outputs.append((Path(report), _html(result, saved, figures).encode("utf-8")))
        if plots is not None:
            outputs += [(Path(plots, f"{name}.png"), drawing.png(figure)) for name, (figure, _) in figures.items()]
    with _folder(Path(plots)) if plots is not None else nullcontext():
        yield outputs


@contextmanager
def _folder(folder: Path) -> Iterator[None]:
    """Makes the folder, with those it lies in; they go again if the block fails, unless something is in them.

    Raises:
        StorageError: it cannot be made.
    """
    new = [each for each in (folder, *folder.parents) if not each.exists()]

    def remove() -> None:
        for each in new:
            with suppress(OSError):
                each.rmdir()

    with undone_by(remove):
        try:
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise StorageError("no folder for the plots", where=str(folder), got=error.strerror or "") from error
            yield
        except BaseException:
            remove()
            raise


def html(result: Result, saved: Sequence[Saved] = ()) -> str:
    """The page. Errors as `require`."""
    require()
    with drawing.settings():
        return _html(result, saved, _figures(result))


Figures = dict[str, tuple["Figure", str]]  # name → figure, and what a reader hears who does not see it


def _figures(result: Result) -> Figures:
    found: Figures = {}
    columns = facts.depth_columns(result.checks)
    for quantity, name, label, logarithmic in _CURVES if columns else ():
        curves = facts.curves(columns, quantity)
        if any(curves.values()):
            title = f"{name} by depth, {' and '.join(curves)}"
            found[f"depth-{quantity.replace('_', '-')}"] = charts.curve(curves, label, logarithmic=logarithmic), title
    for index, kind in enumerate(_kinds(result)[:KINDS], 1):
        for when, block in (("before", kind.before), ("after", kind.after)):
            if block is not None:
                title = f"block {index} {when}: {', '.join(box.label for box in block)}"
                found[f"block-{index}-{when}"] = charts.block(block), title
    for index, shown in enumerate(_weights(result), 1):
        title = f"heat map of {shown.name}, {shown.rule}"
        found[f"weight-{index}"] = charts.heat(shown.values), title
    return found


def _kinds(result: Result) -> tuple[blocks.Kind, ...]:
    before = after = None
    if result.original is not None:
        given = result.original
        before = blocks.Scene(given.traced.root, given.traced.train, given.structure)
    graph = None
    if isinstance(result.network, ConvertedModule):
        graph = result.network.train_graph
    elif result.original is not None and not any(edit.applied for edit in result.plan.edits):
        graph = result.original.traced.train  # the module is as it was given
    if graph is not None:
        after = blocks.Scene(result.network, graph, result.structure, result.plan.assignments)
    return blocks.kinds(before, after, result.plan.joins)


def _weights(result: Result) -> tuple[weights.Shown, ...]:
    return weights.chosen(result.network, result.plan.assignments)


def _html(result: Result, saved: Sequence[Saved], figures: Figures) -> str:
    import jinja2
    from markupsafe import Markup

    drawn = {name: Markup(drawing.svg(figure, name, title)) for name, (figure, title) in figures.items()}
    kinds = _kinds(result)
    columns = facts.depth_columns(result.checks)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    told: dict[str, Any] = {
        "title": facts.title(result.recipe),
        "sentence": facts.sentence(result),
        "verdict": facts.verdict(result.checks),
        "warnings": [check for check in result.checks if check.status in ("fail", "warn")],
        "plan": result.plan,
        "kinds": [
            {"kind": kind, "before": drawn.get(f"block-{i}-before"), "after": drawn.get(f"block-{i}-after")}
            for i, kind in enumerate(kinds[:KINDS], 1)
        ],
        "kinds_left": len(kinds) - KINDS,
        "kept": result.original is not None,
        "edits": plan_summary.edits_by_reason(result.plan.edits),
        "curves": [
            {"title": title, "svg": drawn[name]}
            for quantity, title, _, _ in _CURVES
            if (name := f"depth-{quantity.replace('_', '-')}") in drawn
        ],
        "along": facts.along(columns),
        "compared": "original" in columns,
        "weights": [
            {"shown": shown, "svg": drawn[f"weight-{index}"]} for index, shown in enumerate(_weights(result), 1)
        ],
        "rules": plan_summary.by_rule(result.plan.assignments),
        "plan_summary": plan_summary,
        "checks": result.checks,
        "devices": len({check.device for check in result.checks}),
        "device": result.device,
        "recipe": facts.recipe_text(result.recipe),
        "start": result.start_digest,
        "digest": result.weights_digest,
        "fingerprint": result.fingerprint,
        "files": facts.files(saved),
        "command": facts.command(result.recipe, [one.path.name for one in saved]),
        "python": facts.python(result.recipe),
        "sources": result.recipe.files,
        "structure": result.recipe.model or "the file itself",
        "run": {key: value for key, value in result.run_record().items() if key not in ("checks", "device")},
        "made_with": {name: version(name) for name in ("jinja2", "matplotlib")},
    }
    return environment.get_template("page.html").render(told) + "\n"
