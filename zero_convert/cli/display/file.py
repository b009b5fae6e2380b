"""What `inspect FILE` shows: a table that fits the window, or Markdown. Whatever a file says is escaped before.

Knows records and decides nothing. A terminal sees the first tensors of many; a pipe, Markdown and -v all of them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from zero_convert.readers import IMPORTS

from . import Screen, facts_table, size
from .escaping import escaped

_ROWS = 40  # of tensors on a terminal
_GLOBALS = 12
_REST = 42  # columns that a name leaves to type, shape and values, which fold first
_ALL = 0.9  # share of the tensors above which nothing needs to be said of the others


def file_contents(screen: Screen, found: Mapping[str, Any]) -> None:
    """The facts of `inspection.facts` for people."""
    screen.give(Text(f"{escaped(found['file'])}, {size(found['size'])}", "bold"), "")
    facts = facts_table()
    for label, text, style in _facts(found, screen.verbose > 0):
        facts.add_row(Text(label, "dim"), Text(escaped(text), style))
    screen.give(Padding(facts, (0, 0, 0, 2)), "")
    tensors: Sequence[Mapping[str, Any]] = found["tensors"]
    if not tensors:
        return
    weights, shown = found["weights"], tensors
    inside = f"{weights['at']}.{weights['prefix']}" if weights["at"] else ""
    if screen.interactive and not screen.verbose:
        if weights["at"] and found["sections"]:  # not those of optimizers
            shown = [tensor for tensor in tensors if tensor["name"].startswith(f"{weights['at']}.")]
        shown = shown[:_ROWS] if len(shown) > _ROWS + 5 else shown
    screen.give(_table(shown, screen.width, inside))
    if len(shown) < len(tensors):
        of = f" of {_listed(list(found['sections']), 4, False)}" if len(shown) < _ROWS and found["sections"] else ""
        screen.give(Text(escaped(f"and {len(tensors) - len(shown):,} more{of}; -v lists them"), "dim"))


def markdown(found: Mapping[str, Any]) -> str:
    """The same as GitHub's Markdown."""
    lines = [f"# {_code(found['file'])}", "", "| | |", "|---|---|"]
    lines += [f"| {label} | {_code(text)} |" for label, text, _ in _facts(found, True)]
    lines += ["", "| tensor | type | shape | bytes | values |", "|---|---|---|---:|---|"]
    for tensor in found["tensors"]:
        cells = (tensor["name"], tensor["dtype"], _shape(tensor), f"{tensor['bytes']:,}", _what(tensor))
        lines.append("| " + " | ".join(_code(cell) if index != 3 else cell for index, cell in enumerate(cells)) + " |")
    return "\n".join(lines)


def _code(text: object) -> str:
    """The text as it is, in a code span that it cannot leave."""
    plain = escaped(text)
    if not plain:
        return ""
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", plain)), default=0))
    space = " " if "`" in plain else ""
    return f"{fence}{space}{plain}{space}{fence}".replace("|", "\\|")


def _facts(found: Mapping[str, Any], whole: bool) -> Iterator[tuple[str, str, str]]:
    """(label, text, style) of each line."""
    totals, weights = found["totals"], found["weights"]
    yield "format", found["format"] + (f", {found['producer']}" if found["producer"] else ""), ""
    if found.get("module"):
        yield "class", found["module"], ""
    yield from _trust(found, whole)
    ties = f", {totals['ties']:,} of them tied" if totals["ties"] else ""
    spelled = f"{totals['tensors']:,}{ties}; {totals['values']:,} values, {size(totals['bytes'])}"
    yield "tensors", spelled, ""
    if totals["parameters"] is not None:
        yield "", f"{totals['parameters']:,} values in parameters, {totals['buffers']:,} in buffers", ""
    kinds = Counter(tensor["dtype"] for tensor in found["tensors"])
    yield "types", ", ".join(f"{count:,} {dtype}" for dtype, count in kinds.most_common()), ""
    if weights["at"] or weights["prefix"] or found["sections"]:
        at = f" under {weights['at']}" if weights["at"] else ""
        prefix = f", each behind {weights['prefix']}" if weights["prefix"] else ""
        yield "model", f"{weights['tensors']:,} tensors{at}{prefix}; {weights['values']:,} values", ""
    if found["tensors"]:
        yield "likely", *_likely(found["architecture"], whole)
    for index, (name, count) in enumerate(found["sections"].items()):
        yield "besides" if index == 0 else "", f"{name}: {count:,} tensors", ""
    yield from _digest(found)
    others = {label: count for label, count in found["coverage"]["left_out"].items() if label not in found["sections"]}
    for index, (label, count) in enumerate(others.items()):
        yield "left out" if index == 0 else "", f"{label}: {size(count)}", ""
    held = Counter(tensor["file"] for tensor in found["tensors"] if tensor["file"])
    if held:
        files = [f"{count:,} tensor{'s' * (count > 1)} in {name}" for name, count in sorted(held.items())]
        yield "data", _listed(files, 8, whole), ""
    if "opsets" in found:
        opsets = ", ".join(f"{domain or 'ai.onnx'} {version}" for domain, version in found["opsets"].items())
        yield "opset", f"{opsets} (IR version {found['ir_version']})", ""
        for label in ("inputs", "outputs"):
            yield label, ", ".join(f"{name} {spelled}" for name, spelled in found[label].items()), ""
        yield "nodes", _listed([f"{count} {kind}" for kind, count in found["operators"].items()], 30, whole), ""
    yield from _recipe(found)
    kept = {key: value for key, value in found["metadata"].items() if not key.startswith("zero_convert")}
    for index, (key, value) in enumerate(list(kept.items())[: None if whole else 12]):
        yield "metadata" if index == 0 else "", f"{key} = {value if len(value) < 200 else value[:200] + ' …'}", ""
    if len(kept) > 12 and not whole:
        yield "", f"and {len(kept) - 12} more; -v lists them", "dim"
    for index, note in enumerate(found["notes"]):
        yield "notes" if index == 0 else "", note, "yellow"


def _likely(found: Mapping[str, Any] | None, whole: bool) -> tuple[str, str]:
    """Which architecture it is, and how sure that is; with a style."""
    if found is None:
        return "no architecture of torchvision, timm or transformers", "dim"
    models = _listed(found["models"], 3, whole)
    classes = f" ({found['classes']:,})" if found["classes"] is not None else ""
    how = {
        "exact": f"{models}: all names and shapes",
        "classes": f"{models}, with another number of classes{classes}: all other names and shapes",
        "headless": f"{models}, without its head",
        "part": f"{models}: about {found['share']:.0%} of the names and shapes",
        "family": f"as {models}, of other sizes: the names only",
    }[found["match"]]
    if found["match"] in ("exact", "classes", "headless") and found["share"] < _ALL:
        how += "; besides there are others in the file"
    before = f", behind {found['prefix']}" if found["prefix"] else ""
    return f"{how}{before}{'' if found['installed'] else ' (not installed)'}", ""


def _trust(found: Mapping[str, Any], whole: bool) -> Iterator[tuple[str, str, str]]:
    if not found["trust"]:
        yield "trust", "not needed: loading it runs no code from it", "green"
        return
    yield "trust", "needed", "bold red"
    kinds = [reason for reason in found["trust"] if not reason.startswith(IMPORTS)]
    names = [reason.removeprefix(IMPORTS) for reason in found["trust"] if reason.startswith(IMPORTS)]
    for reason in kinds if whole else kinds[:_GLOBALS]:
        yield "", reason, "red"
    for index, name in enumerate(names if whole else names[:_GLOBALS]):
        yield "", f"{IMPORTS if index == 0 else '· '}{name}", "red"
    for rest in (len(kinds) - _GLOBALS, len(names) - _GLOBALS):
        if rest > 0 and not whole:
            yield "", f"and {rest:,} more; -v lists them", "dim"


def _digest(found: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    digest = found["weights_digest"]
    if found["start_digest"]:
        yield "start", f"zs1 {found['start_digest']}", ""
    if digest:
        yield "weights", f"zc1 {digest}", ""
        if found["folded_from"]:
            yield "", f"folded for inference: the conversion's {found['folded_from']} does not apply", "yellow"
        if found["recorded_digest"] not in (None, f"zc1:{digest}"):
            yield "", f"the file records {found['recorded_digest']}: its tensors were changed", "red"
    elif found["undigested"]:
        yield "weights", f"no digest: {found['undigested']}", ""
    else:
        yield "weights", "not read, because there are many: --digest and --values read them", "dim"


def _recipe(found: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    recipe = found["recipe"]
    if recipe is None:
        yield "recipe", "none: not written by zero-convert", ""
        return
    for key, value in recipe.items():
        spelled = ", ".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, Mapping) else str(value)
        if spelled:
            yield key, spelled, ""


def _listed(items: Sequence[str], most: int, whole: bool) -> str:
    shown = items if whole else items[:most]
    return ", ".join(shown) + (f" and {len(items) - len(shown):,} more" if len(shown) < len(items) else "")


def _table(tensors: Sequence[Mapping[str, Any]], width: int, inside: str) -> Table:
    """One row a tensor; a narrow window has no bytes and extremes, and not what the model's names begin with."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    wide = width >= 100
    what = _what if wide else _brief
    names = [escaped(_inside(tensor["name"], inside, wide)) for tensor in tensors]
    table.add_column("tensor", overflow="fold", min_width=max(12, min(max(map(len, names)), width - _REST)))
    table.add_column("type", no_wrap=True)
    table.add_column("shape", overflow="fold")
    if wide:
        table.add_column("bytes", justify="right", no_wrap=True)
    if any(what(tensor) for tensor in tensors):
        table.add_column("values", overflow="fold")
    for name, tensor in zip(names, tensors, strict=True):
        cells = [tensor["dtype"], _shape(tensor)]
        cells += [f"{tensor['bytes']:,}"] if wide else []
        said = what(tensor)
        said = said.replace(inside, "…") if inside and not wide else said
        cells += [said] if len(table.columns) > len(cells) + 1 else []
        table.add_row(Text(name), *(Text(escaped(cell)) for cell in cells))
    return table


def _inside(name: str, inside: str, wide: bool) -> str:
    return f"…{name.removeprefix(inside)}" if inside and not wide and name.startswith(inside) else name


def _shape(tensor: Mapping[str, Any]) -> str:
    return "×".join(map(str, tensor["shape"])) or "scalar"


def _brief(tensor: Mapping[str, Any]) -> str:
    values = tensor["values"]
    if tensor["tie"] or tensor["shares"] or values is None or values.kind != "other" or values.mean is None:
        return _what(tensor)
    return f"{values.mean:.2g} ± {values.std:.2g}" + str(values)[str(values).find(";") :] * (";" in str(values))


def _what(tensor: Mapping[str, Any]) -> str:
    if tensor["tie"]:
        return f"tied to {tensor['tie']}"
    shares = f"shares bytes with {tensor['shares']}" if tensor["shares"] else ""
    return "; ".join(filter(None, (str(tensor["values"] or ""), shares)))
