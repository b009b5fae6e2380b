"""What people see: calm text on stderr while it works, results on stdout. Knows records, no torch, and decides nothing.

On a terminal Rich colours it and folds it to the window; in a pipe the same lines come plain and are never folded.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from rich.columns import Columns
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from ..errors import ZeroConvertError
from ..escaping import escaped, escaped_lines
from ..interrupts import undone_by
from ..records import Assignment, Check, Edit, Option, Plan, Structure
from ..tallies import by_rule as by_rule
from ..tallies import rewritten_joins as rewritten_joins

if TYPE_CHECKING:
    from ..pipeline import Inspection, Result, Saved
    from ..scheme import Scheme
    from ..verifying import Verification

Progress = Callable[[str, str], None]

_MARKS = {"pass": ("✓", "green"), "warn": ("!", "yellow"), "fail": ("✗", "red"), "skip": ("–", "dim")}
_NOTES = 6  # of a plan, where nobody asked for all
_UNFOLDED = 10_000  # columns of a stream that is no terminal


class Screen:
    """The two streams of one command, and how much to say on the first of them.

    Args:
        quiet: nothing on stderr but errors.
        verbose: 0, or the number of -v.
    """

    def __init__(self, quiet: bool = False, verbose: int = 0) -> None:
        self.quiet, self.verbose = quiet, verbose
        self._err, self._out = _console(stderr=True), _console(stderr=False)

    def tell(self, *lines: RenderableType) -> None:
        """To the reader, on stderr."""
        if not self.quiet:
            _print(self._err, lines)

    def give(self, *lines: RenderableType) -> None:
        """The result, on stdout."""
        _print(self._out, lines)

    @property
    def width(self) -> int:
        """Columns of stdout's window, or many."""
        return self._out.width

    @property
    def interactive(self) -> bool:
        """A person looks at stdout."""
        return self._out.is_terminal

    @contextlib.contextmanager
    def progress(self, keep: bool = True) -> Iterator[Progress]:
        """A function to call with (step, detail) as each step starts.

        A terminal shows the finished steps with their times and the running one with a spinner; with `keep` they stay,
        unless a step fails: then only that one does. A pipe shows the finished ones, and only with -v.
        """
        running: tuple[str, str, float] | None = None
        finished: list[Text] = []

        def finish(mark: str, style: str) -> None:
            if running is not None:
                step, detail, start = running
                line = Text.assemble((f"{mark} ", style), (f"{step:<12}", "bold"), f"{detail}  " if detail else "")
                finished.append(line.append(f"{time.monotonic() - start:.1f} s", "dim"))
                if self.verbose and not live:
                    self.tell(finished[-1])

        def start(step: str, detail: str) -> None:
            nonlocal running
            if running is None or running[0] != step:  # else the same step goes on
                finish("✓", "green")
                running = (step, detail, time.monotonic())
            if live is not None:
                spinner.update(text=Text.assemble((f"{step:<12}", "bold"), detail))
                live.update(Group(*(finished if keep else ()), spinner))

        spinner = Spinner("dots", style="green")
        shown = self._err.is_terminal and not self.quiet
        live = Live(spinner, console=self._err, transient=True, refresh_per_second=12.5) if shown else None

        def fail() -> None:
            finish("✗", "red")
            if live is not None:
                live.stop()
                self.tell(*(finished if self.verbose else finished[-1:]))

        try:
            with undone_by(fail), live or contextlib.nullcontext():
                yield start
        except BaseException:
            fail()
            raise
        finish("✓", "green")
        if live is not None and (keep or self.verbose):
            self.tell(*finished, *([""] if keep and finished else []))


def error(failure: ZeroConvertError, whole: bool = False) -> None:
    """One message: what and where; got; expected; what to do. A terminal shows the whole or the first of each."""
    console = _console(stderr=True)
    _print(console, _message(failure, 0 if whole or not console.is_terminal else console.width))


def _message(failure: ZeroConvertError, width: int = 0) -> list[RenderableType]:
    """The lines of a message; for a window of some width with what is too long cut."""
    where = _cut(escaped(failure.where), 2 * width - len(failure.what) - 12, width)
    headline = f"{escaped_lines(failure.what)} ({where})" if where else escaped_lines(failure.what)
    lines: list[RenderableType] = [Text.assemble(("error: ", "bold red"), headline)]
    facts = facts_table()
    for label, text, count in (("got", failure.got, 3), ("expected", failure.expected, 2)):
        if text:
            facts.add_row(Text(label, "dim"), Text(_cut(escaped_lines(text), count * (width - 24), width)))
    if facts.row_count:
        lines.append(Padding(facts, (0, 0, 0, 2)))
    if failure.fix:
        lines.append(Padding(Text(escaped_lines(failure.fix)), (0, 0, 0, 2)))
    return lines


# ---------------------------------------------------------------------------------------------------------------------
# convert


def summary(screen: Screen, result: Result) -> None:
    """After the work: joins found and rewritten, tensors per rule, what was declined, checks with their numbers."""
    plan = result.plan
    screen.tell(Text(_headline(result.recipe.model or result.recipe.source, plan, result.recipe.dtype), "bold"), "")
    facts = facts_table()
    _add_capture(facts, plan)
    _add_joins(facts, plan)
    _add_edits(facts, plan.edits)
    _add_notes(facts, plan.notes, screen.verbose > 0)
    facts.add_row(Text("values", "dim"), _rules(plan.assignments))
    if result.checks:
        facts.add_row(Text("device", "dim"), Text(result.device))
        facts.add_row(Text("checks", "dim"), checks_table(result.checks))
    screen.tell(Padding(facts, (0, 0, 0, 2)))
    declined = [edit for edit in plan.edits if not edit.applied]
    if declined and screen.verbose:
        screen.tell("", _edits(declined))
    screen.tell("")


def saved(screen: Screen, files: Sequence[Saved], digest: str) -> None:
    """`sha256  path` for each file, as `sha256sum --check` reads it, and the weights digest as its comment.

    Without files the bytes went to stdout, and the digest is told to the reader.
    """
    for file in files:
        beside = f", {file.data.path}, {size(file.data.size)}," if file.data else ""
        screen.tell(
            Text.assemble(
                ("wrote ", "green"),
                f"{file.path}, {size(file.size)}{beside or ','} and {file.receipt_path}",
                (f"; {file.note}" if file.note else "", "dim"),
            )
        )
    for file in files:
        screen.give(checksum_line(file.sha256, str(file.path)))
        if file.data:
            screen.give(checksum_line(file.data.sha256, str(file.data.path)))
    (screen.give if files else screen.tell)(f"# weights zc1 {digest}")
    for file in files:
        if file.folded_from:
            screen.give(f"# folded, the weights digest does not apply: {checksum_line('', str(file.path)).strip()}")


def checksum_line(sha256: str, path: str) -> str:
    """`sha256  path`; a name with a backslash or a line's end is escaped as coreutils does, which reads it back."""
    escaped = path.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r")
    return f"{'' if escaped == path else chr(92)}{sha256}  {escaped}"


def plan(screen: Screen, plan: Plan, model: str, dtype: str) -> None:
    """Every edit and every tensor's rule; a layer's tensors with the same rule share a line."""
    screen.give(Text(_headline(model, plan, dtype), "bold"), "")
    facts = facts_table()
    _add_capture(facts, plan)
    _add_joins(facts, plan)
    screen.give(Padding(facts, (0, 0, 0, 2)), "")
    screen.give(Text(f"Edits ({len(plan.edits)})", "bold"), _edits(plan.edits), "")
    table = table_of("layer", "role", "tensors", "rule")
    for layer, rule, group in _by_layer(plan.assignments):
        tensors = ", ".join(f"{each.tensor.local} {_times(each.tensor.shape)}".rstrip() for each in group)
        table.add_row(layer, group[0].role if layer else "", tensors, rule)
    screen.give(Text(f"Tensors ({len(plan.assignments)})", "bold"), table)
    for text in plan.notes:
        screen.give(Text(f"note: {text}", "dim"))


def _headline(model: str, plan: Plan, dtype: str) -> str:
    return f"{model} → {plan.scheme} ({_options(plan.options)}), {dtype}"


def _options(options: Mapping[str, Option]) -> str:
    return ", ".join(f"{key}={value}" for key, value in options.items()) or "no options"


def _add_capture(facts: Table, found: Plan | Inspection) -> None:
    facts.add_row(Text("traced", "dim"), Text(f"{found.rung}, {found.captured:.1%} of the parameters captured"))
    for line in found.rungs_failed:
        facts.add_row("", Text(line, "dim"))


def _add_notes(facts: Table, notes: Sequence[str], whole: bool) -> None:
    shown = notes if whole else notes[:_NOTES]
    for index, text in enumerate(shown):
        facts.add_row(Text("" if index else "notes", "dim"), Text(text))
    if len(shown) < len(notes):
        facts.add_row("", Text(f"and {len(notes) - len(shown)} more; -v lists them", "dim"))


def _first(names: Sequence[str]) -> str:
    return names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else "")


def _add_joins(facts: Table, plan: Plan) -> None:
    residual = [join for join in plan.joins if join.residual]
    kinds = _counted(join.shortcut for join in residual)
    rewritten = rewritten_joins(plan)
    facts.add_row(
        Text("joins", "dim"),
        Text(f"{len(residual)} found, {len(rewritten)} rewritten" + (f": {kinds}" if kinds else "")),
    )


def _add_edits(facts: Table, edits: Sequence[Edit]) -> None:
    applied = Counter(edit.rewrite.replace("_", " ") for edit in edits if edit.applied)
    if applied:
        counts = ", ".join(f"{rewrite} {count}" for rewrite, count in applied.items())
        facts.add_row(Text("edits", "dim"), Text(counts))
    reasons: dict[tuple[str, str], list[Edit]] = {}
    for edit in edits:
        if not edit.applied:
            reasons.setdefault((edit.rewrite.replace("_", " "), edit.reason), []).append(edit)
    for index, ((rewrite, reason), group) in enumerate(reasons.items()):
        at = [edit.target for edit in group]
        facts.add_row(Text("" if index else "declined", "dim"), Text(f"{rewrite}: {reason} ({_first(at)})"))


def _rules(assignments: Sequence[Assignment]) -> Table:
    table = Table.grid(padding=(0, 2))
    for justify in ("left", "right", "right"):
        table.add_column(justify=justify)
    for rule, group in by_rule(assignments).items():
        count, values = len(group), sum(prod(each.tensor.shape) for each in group)
        table.add_row(Text(rule), f"{count:,} tensor{'s' if count > 1 else ' '}", f"{values:,} values")
    return table


def _edits(edits: Sequence[Edit]) -> RenderableType:
    table = Table.grid(padding=(0, 2))
    rewrite = ""
    for edit in edits:
        mark, style = ("✓", "green") if edit.applied else ("–", "yellow")
        action = Text(edit.action)
        if edit.reason:
            action.append(f"; {edit.reason}", "dim")
        name = "" if edit.rewrite == rewrite else edit.rewrite.replace("_", " ")
        target = "everywhere" if edit.target == "*" else edit.target
        table.add_row(Text(name, "dim"), Text.assemble((mark, style), f" {target}"), action)
        rewrite = edit.rewrite
    return Padding(table, (0, 0, 0, 2))


def _by_layer(assignments: Sequence[Assignment]) -> Iterator[tuple[str, str, list[Assignment]]]:
    """(layer, rule, tensors) in order; the layer is named in the first of its lines only."""
    for layer, group in groupby(assignments, key=lambda assignment: assignment.layer):
        rules: dict[str, list[Assignment]] = {}
        for assignment in group:
            rules.setdefault(assignment.rule, []).append(assignment)
        for index, (rule, same) in enumerate(rules.items()):
            yield "" if index else layer or "(the model itself)", rule, same


def checks_table(checks: Sequence[Check]) -> Table:
    """One line for each check: how it ended, what it found, what to do."""
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    for check in checks:
        mark, style = _MARKS[check.status]
        answer = Text(check.summary)
        if check.status == "fail" and check.threshold:
            answer.append(f"; required: {check.threshold}")
        if check.remedy and check.status in ("warn", "fail"):
            answer.append(f"\n→ {check.remedy}", style)
        table.add_row(Text.assemble((mark, style), f" {check.name.replace('_', ' ')}"), answer)
    return table


# ---------------------------------------------------------------------------------------------------------------------
# the other commands


def inspection(screen: Screen, found: Inspection) -> None:
    """What is in a model: how it was captured, its joins, its layers."""
    structure: Structure = found.structure
    screen.give(Text(f"{found.name}, {found.source}", "bold"), "")
    facts = facts_table()
    _add_capture(facts, found)
    residual = [join for join in structure.joins if join.residual]
    kinds = _counted(join.shortcut for join in residual)
    counts = f"{found.parameters:,} parameters, {found.buffers:,} values in buffers"
    facts.add_row(Text("values", "dim"), Text(counts))
    facts.add_row(Text("layers", "dim"), Text(_counted(layer.kind for layer in structure.layers)))
    facts.add_row(Text("roles", "dim"), Text(_counted(layer.role for layer in structure.layers)))
    joins = f"{len(residual)} residual{f' ({kinds})' if kinds else ''}, {len(structure.gates)} gates"
    facts.add_row(Text("joins", "dim"), Text(joins))
    declined: dict[str, list[str]] = {}
    for join in structure.joins:
        if join.reason:
            about = "kept as it is" if join.residual else "no residual join"
            declined.setdefault(f"{about}: {join.reason}", []).append(join.node)
    for index, (reason, at) in enumerate(declined.items()):
        facts.add_row(Text("" if index else "declined", "dim"), Text(f"{reason} ({_first(at)})"))
    _add_notes(facts, structure.notes, screen.verbose > 0)
    screen.give(Padding(facts, (0, 0, 0, 2)))
    if structure.joins:
        table = table_of("join", "shortcut", "order", "channels", "stride", "branch")
        for join in structure.joins:
            shortcut = join.shortcut if join.residual else "none"
            channels = f"{join.in_channels} → {join.out_channels}"
            table.add_row(join.node, shortcut, join.order, channels, str(join.stride), ", ".join(join.branch))
        screen.give("", table)
    if screen.verbose:
        table = table_of("layer", "kind", "role", "class", "tensors")
        for layer in structure.layers:
            tensors = ", ".join(f"{tensor.local} {_times(tensor.shape)}".rstrip() for tensor in layer.tensors)
            table.add_row(layer.name or "(the model itself)", layer.kind, layer.role, layer.cls, tensors)
        screen.give("", table)


def verification(screen: Screen, path: Path, answer: Verification | ZeroConvertError) -> None:
    """`FILE: OK`, or `FILE: DIFFERS` and what differs, or `FILE: NOT VERIFIED` and what stands against it."""
    if isinstance(answer, ZeroConvertError):
        screen.give(Text.assemble(f"{path}: ", ("NOT VERIFIED", "bold red")))
        _print(_console(stderr=True), _message(answer))
        return
    sound = not answer.findings
    screen.give(Text.assemble(f"{path}: ", ("OK", "green") if sound else ("DIFFERS", "bold red")))
    if folded := answer.receipt.folded_from:
        screen.tell(Text(f"  folded for inference: the weights digest zc1 {folded} does not apply to it", "dim"))
    shown = answer.findings if screen.verbose else answer.findings[:10]
    for finding in shown:
        screen.tell(Text(f"  {finding}"))
    if len(shown) < len(answer.findings):
        screen.tell(Text(f"  and {len(answer.findings) - len(shown):,} more; -v lists them", "dim"))


def schemes(screen: Screen, known: Sequence[Scheme]) -> None:
    """Name, aliases, options and source of each scheme."""
    table = table_of("scheme", "also", "options", "source")
    for scheme in known:
        options = "\n".join(f"{option.name}={'|'.join(option.spellings)}" for option in scheme.options)
        table.add_row(scheme.name, ", ".join(scheme.aliases), options, scheme.title)
    screen.give(table)


def scheme(screen: Screen, one: Scheme) -> None:
    """The mathematics, source and options of one scheme."""
    names = ", ".join((one.name, *one.aliases))
    screen.give(Text(names, "bold"), "", Text(one.doc.strip()), "")
    table = table_of("--set", "values", "default", "what it does")
    for option in one.options:
        table.add_row(option.name, " | ".join(option.spellings), str(option.default), option.help)
    screen.give(table)


def contract(screen: Screen, name: str, found: Sequence[Check]) -> None:
    """What a scheme was asked, and what of it does not hold."""
    marks = {"pass": ("✓", "green"), "fail": ("✗", "red")}
    for check in found:
        screen.give(
            Text.assemble(marks[check.status], f" {check.name:<12}", f"{check.question}  ", (check.summary, "dim"))
        )
    failed = sum(check.status == "fail" for check in found)
    screen.give("", Text(f"{name}: {f'{failed} of {len(found)} fail' if failed else 'all hold'}", "bold"))


def models(screen: Screen, names: Mapping[str, Sequence[str]]) -> None:
    """Every name that can be typed, in columns for a person and one a line in a pipe."""
    for source, found in names.items():
        if not screen.interactive:
            screen.give(*(f"{source}:{name}" for name in found))
        elif found:
            screen.give(
                Text(f"{source} ({len(found)})", "bold"), Columns([Text(name) for name in found], padding=(0, 2)), ""
            )


# ---------------------------------------------------------------------------------------------------------------------
# spelling


def size(count: int) -> str:
    """ "102.5 MB", in powers of 1000."""
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return f"{count} bytes"


def _cut(text: str, length: int, width: int) -> str:
    """At most `length` characters of the text, if there is a width; some are always left."""
    length = max(40, length)
    return text if not width or len(text) <= length else f"{text[: length - 2].rstrip(' ,;(')} …"


def _times(shape: Sequence[int]) -> str:
    return "×".join(map(str, shape))


def _counted(words: Iterable[str]) -> str:
    """ "12 identity, 4 projection", the most frequent first."""
    return ", ".join(f"{count} {word}" for word, count in Counter(words).most_common())


def facts_table() -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column()
    return table


def table_of(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for index, column in enumerate(columns):
        table.add_column(column, no_wrap=index == 0, overflow="fold")
    return table


def _console(stderr: bool) -> Console:
    stream = sys.stderr if stderr else sys.stdout
    return Console(
        file=stream, width=None if stream.isatty() else _UNFOLDED, highlight=False, markup=False, emoji=False
    )


def _print(console: Console, lines: Iterable[RenderableType]) -> None:
    for line in lines:
        if console.is_terminal:
            console.print(line, soft_wrap=isinstance(line, str))  # a result stays one line, however narrow the window
            continue
        with console.capture() as captured:
            console.print(line)
        # Tables fill their last column with blanks, which no pipe wants.
        console.file.write("\n".join(text.rstrip() for text in captured.get().split("\n")))
    console.file.flush()
