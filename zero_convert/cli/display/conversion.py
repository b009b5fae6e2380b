"""What a conversion says of itself: plan, checks, written files; and what `inspect MODEL` says of a network."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from rich.console import RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from zero_convert.initialization import plan_summary
from zero_convert.records import Assignment, Check, Edit, Plan, Structure

from .screen import Screen, checksum_line, counted, facts_table, rest, size, table_of, times

if TYPE_CHECKING:
    from zero_convert.pipeline import Inspection, Result, Saved


_MARKS = {"pass": ("✓", "green"), "warn": ("!", "yellow"), "fail": ("✗", "red"), "skip": ("–", "dim")}


_NOTES = 6  # of a plan, where nobody asked for all


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


def saved(screen: Screen, files: Sequence[Saved], result: Result) -> None:
    """`sha256  path` for each file, as `sha256sum --check` reads it, and the digests of start and weights as comments.

    Without files the bytes went to stdout, and the digests are told to the reader. Whether the file also loads into the
    class that was converted is told to the reader, too.
    """
    for file in files:
        sizes = (f"{path}, {size(each.size)}," for path, each in zip(file.paths, file.files, strict=True))
        screen.tell(
            Text.assemble(
                ("wrote ", "green"),
                f"{' '.join(sizes)} and {file.receipt_path}",
                (f"; {file.note}" if file.note else "", "dim"),
            )
        )
    if result.original_class is not None:
        screen.tell(Text(f"{'the file' if len(files) < 2 else 'each file'} {result.original_class.sentence}", "dim"))
    for file in files:
        for path, each in zip(file.paths, file.files, strict=True):
            screen.give(checksum_line(each.sha256, str(path)))
    say = screen.give if files else screen.tell
    say(f"# start zs1 {result.start_digest}")
    say(f"# weights zc1 {result.weights_digest}")
    for file in files:
        if file.folded_from:
            screen.give(f"# folded, the weights digest does not apply: {checksum_line('', str(file.path)).strip()}")


def plan(screen: Screen, plan: Plan, model: str, dtype: str) -> None:
    """Every edit and every tensor's rule; a layer's tensors with the same rule share a line.

    With -v also which rule of the resolution decided.
    """
    screen.give(Text(_headline(model, plan, dtype), "bold"), "")
    facts = facts_table()
    _add_capture(facts, plan)
    _add_joins(facts, plan)
    screen.give(Padding(facts, (0, 0, 0, 2)), "")
    screen.give(Text(f"Edits ({len(plan.edits)})", "bold"), _edits(plan.edits), "")
    table = table_of("layer", "role", "tensors", "rule", *(["decided by"] if screen.verbose else []))
    for layer, group in _by_layer(plan.assignments, screen.verbose > 0):
        tensors = ", ".join(f"{each.tensor.local} {times(each.tensor.shape)}".rstrip() for each in group)
        decided = [group[0].decided_by] if screen.verbose else []
        table.add_row(layer, group[0].role if layer else "", tensors, group[0].rule, *decided)
    screen.give(Text(f"Tensors ({len(plan.assignments)})", "bold"), table)
    for text in plan.notes:
        screen.give(Text(f"note: {text}", "dim"))


def _headline(model: str, plan: Plan, dtype: str) -> str:
    return f"{model} → {plan.scheme} ({plan_summary.option_list(plan.options) or 'no options'}), {dtype}"


def _add_capture(facts: Table, found: Plan | Inspection) -> None:
    facts.add_row(Text("traced", "dim"), Text(f"{found.capture}, {found.captured:.1%} of the parameters captured"))
    for line in found.capture_attempts:
        facts.add_row("", Text(line, "dim"))


def _add_notes(facts: Table, notes: Sequence[str], whole: bool) -> None:
    shown = notes if whole else notes[:_NOTES]
    for index, text in enumerate(shown):
        facts.add_row(Text("" if index else "notes", "dim"), Text(text))
    if len(shown) < len(notes):
        facts.add_row("", rest(len(notes) - len(shown)))


def _first(names: Sequence[str]) -> str:
    return names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else "")


def _add_joins(facts: Table, plan: Plan) -> None:
    residual, rewritten = plan_summary.residual_joins(plan.joins), plan_summary.rewritten_joins(plan)
    kinds = counted(join.shortcut for join in residual)
    text = f"{len(residual)} found, {len(rewritten)} rewritten" + (f": {kinds}" if kinds else "")
    facts.add_row(Text("joins", "dim"), Text(text))


def _add_edits(facts: Table, edits: Sequence[Edit]) -> None:
    groups = plan_summary.edits_by_reason(edits)
    if counts := ", ".join(f"{rewrite} {len(group)}" for (rewrite, applied, _), group in groups.items() if applied):
        facts.add_row(Text("edits", "dim"), Text(counts))
    declined = ((rewrite, reason, group) for (rewrite, applied, reason), group in groups.items() if not applied)
    for index, (rewrite, reason, group) in enumerate(declined):
        at = _first([edit.target for edit in group])
        facts.add_row(Text("" if index else "declined", "dim"), Text(f"{rewrite}: {reason} ({at})"))


def _rules(assignments: Sequence[Assignment]) -> Table:
    table = Table.grid(padding=(0, 2))
    for justify in ("left", "right", "right"):
        table.add_column(justify=justify)
    for rule, group in plan_summary.by_rule(assignments).items():
        count = f"{len(group):,} tensor{'s' if len(group) > 1 else ' '}"
        table.add_row(Text(rule), count, f"{plan_summary.values(group):,} values")
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
        table.add_row(Text(name, "dim"), Text.assemble((mark, style), f" {plan_summary.site(edit)}"), action)
        rewrite = edit.rewrite
    return Padding(table, (0, 0, 0, 2))


def _by_layer(assignments: Sequence[Assignment], decisions: bool) -> Iterator[tuple[str, list[Assignment]]]:
    """(layer, tensors with one rule) in order, and one decision; the first line of a layer alone names it."""
    for layer, group in groupby(assignments, key=lambda assignment: assignment.layer):
        lines: dict[tuple[str, str], list[Assignment]] = {}
        for assignment in group:
            lines.setdefault((assignment.rule, assignment.decided_by if decisions else ""), []).append(assignment)
        for index, same in enumerate(lines.values()):
            yield "" if index else layer or "(the model itself)", same


def checks_table(checks: Sequence[Check]) -> Table:
    """One line for each check: how it ended, what it found, where, if there are several devices, what to do."""
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    several = len({check.device for check in checks if check.device}) > 1
    for check in checks:
        mark, style = _MARKS[check.status]
        answer = Text(check.summary)
        if several:
            answer.append(f" ({check.device})" if check.device else "", "dim")
        if check.status == "fail" and check.threshold:
            answer.append(f"; required: {check.threshold}")
        if check.remedy and check.status in ("warn", "fail"):
            answer.append(f"\n→ {check.remedy}", style)
        table.add_row(Text.assemble((mark, style), f" {check.name.replace('_', ' ')}"), answer)
    return table


def inspection(screen: Screen, found: Inspection) -> None:
    """What is in a model: how it was captured, its joins, its layers."""
    structure: Structure = found.structure
    screen.give(Text(f"{found.name}, {found.source}", "bold"), "")
    facts = facts_table()
    _add_capture(facts, found)
    residual = plan_summary.residual_joins(structure.joins)
    kinds = counted(join.shortcut for join in residual)
    counts = f"{found.parameters:,} parameters, {found.buffers:,} values in buffers"
    facts.add_row(Text("values", "dim"), Text(counts))
    facts.add_row(Text("layers", "dim"), Text(counted(layer.kind for layer in structure.layers)))
    facts.add_row(Text("roles", "dim"), Text(counted(layer.role for layer in structure.layers)))
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
            tensors = ", ".join(f"{tensor.local} {times(tensor.shape)}".rstrip() for tensor in layer.tensors)
            table.add_row(layer.name or "(the model itself)", layer.kind, layer.role, layer.cls, tensors)
        screen.give("", table)
