"""What a plan holds, counted and worded once for the screen, the report and JSON."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import prod

from zero_convert.records import Assignment, Edit, Join, Option, Plan


def values(assignments: Iterable[Assignment]) -> int:
    """Number of values of the tensors."""
    return sum(prod(assignment.tensor.shape) for assignment in assignments)


def option_list(options: Mapping[str, Option]) -> str:
    """ "mixing=permute, norm=keep"."""
    return ", ".join(f"{key}={value}" for key, value in options.items())


def edits_by_reason(edits: Iterable[Edit]) -> dict[tuple[str, bool, str], list[Edit]]:
    """(rewrite in words, applied, why not) → its edits, in the order of the first of each."""
    groups: dict[tuple[str, bool, str], list[Edit]] = {}
    for edit in edits:
        key = (edit.rewrite.replace("_", " "), edit.applied, "" if edit.applied else edit.reason)
        groups.setdefault(key, []).append(edit)
    return groups


def site(edit: Edit) -> str:
    """Where it was made."""
    return "everywhere" if edit.target == "*" else edit.target


def residual_joins(joins: Iterable[Join]) -> tuple[Join, ...]:
    """Those that add what a branch computes to its shortcut."""
    return tuple(join for join in joins if join.residual)


def by_rule(assignments: Sequence[Assignment]) -> dict[str, list[Assignment]]:
    """The tensors of each rule; rules that differ in sizes only are one."""
    groups: dict[str, list[Assignment]] = {}
    for assignment in assignments:
        groups.setdefault(assignment.kind, []).append(assignment)
    return groups


def rewritten_joins(plan: Plan) -> tuple[Join, ...]:
    """The residual joins that an applied edit touched: at the addition, on the branch, or on the shortcut."""
    touched = {edit.target for edit in plan.edits if edit.applied}

    def names(join: Join) -> Iterator[str]:
        """As edits spell them: of the whole model, or inside a region that holds the layer."""
        layers = (*join.branch, *join.shortcut_layers)
        yield from (join.node, *layers)
        for layer in layers:
            parts = layer.split(".")
            for index in range(1, len(parts) + 1):
                region, inner = ".".join(parts[:index]), ".".join(parts[index:])
                yield from (f"{region}: {join.node}", f"{region}: {inner}")

    return tuple(join for join in residual_joins(plan.joins) if not touched.isdisjoint(names(join)))
