"""Counting what a plan holds, for whoever shows it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from zero_convert.records import Assignment, Join, Plan


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

    return tuple(join for join in plan.joins if join.residual and not touched.isdisjoint(names(join)))
