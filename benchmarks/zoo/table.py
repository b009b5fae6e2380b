"""Rows to totals, JSON and Markdown. Reads rows only: nothing is measured here."""

from __future__ import annotations

import json
import platform
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

Row = dict[str, Any]
LIBRARIES = ("torch", "torchvision", "timm", "transformers", "safetensors", "numpy")
GOOD = ("ok", "declined", "skipped")  # converted, or the scheme has said why it does not promise anything
STEPS = ("initialized", "validated", "exported", "loaded")
LONG = 200  # characters of a cause in the Markdown table


def header() -> dict[str, str]:
    """Date and versions."""
    found = {"date": f"{datetime.now(UTC):%Y-%m-%d}", "python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found | {"machine": platform.machine(), "system": platform.system()}


def read_rows(path: Path) -> list[Row]:
    """The last row of each (model, scheme), in the order of the first; a line that was cut off is dropped."""
    rows: dict[tuple[str, str], Row] = {}
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                continue
            rows[row["model"], row["scheme"]] = row
    return list(rows.values())


def totals(rows: Sequence[Row]) -> Row:
    """What a group of rows sums up to."""
    tried = [row for row in rows if row["status"] != "skipped"]
    both = [row for row in tried if row.get("joins") and row.get("counted") is not None]
    shares = [row["captured"] for row in tried if row.get("captured") is not None]
    declined: Counter[str] = Counter()
    for row in tried:
        declined.update(row.get("declined", {}))
    return {
        "rows": len(tried),
        "skipped": len(rows) - len(tried),
        "ok": sum(row["status"] == "ok" for row in tried),
        "declined_by_scheme": sum(row["status"] == "declined" for row in tried),
        "failed": sum(row["status"] not in GOOD for row in tried),
        "captured": round(statistics.fmean(shares), 4) if shares else None,
        "joins_seen": sum(row["joins"]["seen"] for row in both),
        "joins_counted": sum(row["counted"] for row in both),
        "joins_found": sum(min(row["joins"]["seen"], row["counted"]) for row in both),
        "joins_differ": sum(row["joins"]["seen"] != row["counted"] for row in both),
        "rewritten": sum(row.get("rewritten", 0) for row in tried),
        "declined": dict(declined.most_common(6)),
        **{step: sum(bool(row.get(step)) for row in tried) for step in STEPS},
        "seconds": round(sum(row.get("seconds", 0.0) for row in tried), 1),
        "processor_seconds": round(sum(row.get("processor_seconds", 0.0) for row in tried), 1),
        "peak_mib": max((row.get("peak_mib", 0) for row in tried), default=0),
    }


def grouped(rows: Sequence[Row], *keys: str) -> dict[tuple[str, ...], list[Row]]:
    found: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        found.setdefault(tuple(row[key] for key in keys), []).append(row)
    return dict(sorted(found.items()))


def as_json(rows: Sequence[Row]) -> str:
    """Header, totals per zoo and per family, and every row."""
    content = {
        "measured": header(),
        "zoos": {" ".join(key): totals(group) for key, group in grouped(rows, "zoo", "scheme").items()},
        "families": {" ".join(key): totals(group) for key, group in grouped(rows, "zoo", "family", "scheme").items()},
        "rows": sorted(rows, key=lambda row: (row["zoo"], row["family"], row["model"], row["scheme"])),
    }
    return json.dumps(content, indent=1) + "\n"


def as_markdown(rows: Sequence[Row], *, every_row: bool) -> str:
    """Totals on top, failures and declines with their causes, families, and where asked for every row."""
    lines = [
        "# What of the model zoos converts",
        "",
        "Made by `python -m benchmarks.zoo`. " + " · ".join(f"{key} {value}" for key, value in header().items()),
        "",
        "*Counted* is the number of residual joins in a real forward (`benchmarks/zoo/joins.py`); *found* takes for",
        "each model the smaller of seen and counted. *Captured* is the mean share of parameters in a captured graph.",
        "",
        "## Totals",
        "",
        *_table(("zoo", "scheme"), grouped(rows, "zoo", "scheme")),
        "",
        "## Failures",
        "",
        *_causes(rows, lambda status: status not in GOOD),
        "",
        "## Declined by the scheme",
        "",
        *_causes(rows, lambda status: status == "declined"),
        "",
        "## Joins that differ",
        "",
        *_differences(rows),
        "",
        "## Families",
        "",
        *_table(("zoo", "family", "scheme"), grouped(rows, "zoo", "family", "scheme")),
    ]
    if every_row:
        lines += ["", "## Models", "", *_models(rows)]
    return "\n".join(lines) + "\n"


def _table(names: tuple[str, ...], groups: dict[tuple[str, ...], list[Row]]) -> list[str]:
    joins = ("seen", "counted", "found", "rewritten")
    titles = ("models", "ok", "declined", *STEPS, "captured", *joins, "processor s", "peak MiB")
    lines = [_line((*names, *titles)), _line(["---"] * len(names) + ["---:"] * len(titles))]
    for key, group in groups.items():
        t = totals(group)
        captured = "" if t["captured"] is None else f"{t['captured']:.1%}"
        found = f"{t['joins_found'] / t['joins_counted']:.1%}" if t["joins_counted"] else ""
        steps = [t[step] for step in STEPS]
        numbers = (
            t["rows"],
            t["ok"],
            t["declined_by_scheme"],
            *steps,
            captured,
            t["joins_seen"],
            t["joins_counted"],
            found,
            t["rewritten"],
        )
        lines.append(_line((*key, *numbers, f"{t['processor_seconds']:.0f}", t["peak_mib"])))
    return lines


def _causes(rows: Iterable[Row], asked: Callable[[str], bool]) -> list[str]:
    """A line for each row whose status is asked for."""
    failed = [row for row in rows if asked(row["status"])]
    if not failed:
        return ["None."]
    lines = [_line(("model", "scheme", "step", "cause")), _line(["---"] * 4)]
    for row in sorted(failed, key=lambda row: (row["zoo"], row["family"], row["model"], row["scheme"])):
        lines.append(_line((row["model"], row["scheme"], row.get("stage", ""), _cause(row)[:LONG])))
    return lines


def _cause(row: Row) -> str:
    """Of a decline only where and why: the scheme stands in the row."""
    cause: str = row.get("cause", "")
    return cause.partition("declines this network ")[2] if row["status"] == "declined" else cause


def _differences(rows: Iterable[Row]) -> list[str]:
    found: dict[tuple[str, int, int], None] = {}
    for row in rows:
        if row.get("joins") and row.get("counted") is not None and row["joins"]["seen"] != row["counted"]:
            found[row["model"], row["joins"]["seen"], row["counted"]] = None
    if not found:
        return ["None."]
    return [_line(("model", "seen", "counted")), _line(["---", "---:", "---:"]), *map(_line, sorted(found))]


def _models(rows: Iterable[Row]) -> list[str]:
    titles = ("model", "scheme", "parameters", "rung", "captured", "seen", "counted", "rewritten", "declined")
    lines = [_line((*titles, "reached", "processor s", "peak MiB")), _line(["---"] * (len(titles) + 3))]
    for row in sorted(rows, key=lambda row: (row["zoo"], row["family"], row["model"], row["scheme"])):
        reached = next((step for step in reversed(STEPS) if row.get(step)), row["status"])
        captured = "" if row.get("captured") is None else f"{row['captured']:.1%}"
        joins = row.get("joins") or {}
        cells = (
            row.get("parameters", ""),
            row.get("rung", ""),
            captured,
            joins.get("seen", ""),
            row.get("counted", ""),
        )
        more = (row.get("rewritten", ""), "; ".join(f"{n} × {why}" for why, n in row.get("declined", {}).items()))
        end = (reached, row.get("processor_seconds", ""), row.get("peak_mib", ""))
        lines.append(_line((row["model"], row["scheme"], *cells, *more, *end)))
    return lines


def _line(cells: Iterable[Any]) -> str:
    return "| " + " | ".join(str(cell).replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"
