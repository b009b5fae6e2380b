"""What a report says in words and tables, out of a result's records. Draws nothing and knows no HTML."""

from __future__ import annotations

import json
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from zero_convert.artifacts.receipt import recipe_json
from zero_convert.formats.naming import receipt_path
from zero_convert.initialization import plan_summary
from zero_convert.options import flags
from zero_convert.records import Check, Recipe

if TYPE_CHECKING:
    from zero_convert.result import Result
    from zero_convert.saving import Saved

_STREAM = 3  # joins, at least, that make a stream


def title(recipe: Recipe) -> str:
    return f"{recipe.model or recipe.source.rpartition('.')[2]} → {recipe.scheme}"


def sentence(result: Result) -> str:
    """What was done."""
    plan, recipe = result.plan, result.recipe
    joins, assignments = plan_summary.residual_joins(plan.joins), plan.assignments
    edits = sum(edit.applied for edit in plan.edits)
    rules = len(plan_summary.by_rule(assignments))
    options = plan_summary.option_list(recipe.options)
    name = recipe.model or f"A {recipe.source}"
    start = f"{name} became a deterministic start by the scheme {recipe.scheme}" + (f" ({options})" if options else "")
    rewritten = len(plan_summary.rewritten_joins(plan))
    told = f"{rewritten} of its {len(joins)} residual joins" if joins else "it has no residual join"
    changed = (
        f"{edits} edit{'s' if edits > 1 else ''} of the architecture" if edits else "the architecture stays as it is"
    )
    touched = f"{changed}, which touch {told}" if joins and edits else f"{changed}; {told}" if not joins else changed
    return (
        f"{start}: {touched}; {len(assignments):,} tensors with {plan_summary.values(assignments):,} values follow "
        f"{rules} rule{'s' if rules != 1 else ''}, and none of them comes from a random number."
    )


def verdict(checks: Sequence[Check]) -> str:
    """ "9 checks pass, 2 warn"."""
    if not checks:
        return "No check was asked for."
    words = {"fail": "fail", "warn": "warn", "pass": "pass", "skip": "do not apply"}
    counts = Counter(check.status for check in checks)
    return f"{len(checks)} checks: " + ", ".join(f"{counts[s]} {word}" for s, word in words.items() if counts[s]) + "."


def recipe_text(recipe: Recipe) -> str:
    """The recipe, readable."""
    return json.dumps(recipe_json(recipe), indent=2, sort_keys=True)


def command(recipe: Recipe, names: Sequence[str]) -> str:
    """The command line that makes the files again; "" for a live module, which has no name."""
    if not recipe.model:
        return ""
    words = ["zero-convert", recipe.model]
    for name, value in _asked(recipe).items():
        flag = flags(type(recipe))[name].name
        words += [flag] if value is True else [word for text in _texts(name, value) for word in (flag, text)]
    for name in names or ["model.safetensors"]:
        words += ["--out", name]
    return shlex.join(words)


def python(recipe: Recipe) -> str:
    """The same in Python."""
    arguments = [repr(recipe.model) if recipe.model else "module"]
    for name, value in _asked(recipe).items():
        if name == "inputs":
            arguments.append("example_inputs=inputs")
        elif name != "model_args" or recipe.model:
            arguments.append(f"{name}={dict(value) if isinstance(value, Mapping) else value!r}")
    given = f"inputs = …  # {', '.join(recipe.inputs)}\n" if recipe.inputs else ""
    call = f"result = zc.convert({', '.join(arguments)})"
    return f"import zero_convert as zc\n\n{given}{call}\nresult.weights_digest"


def files(saved: Sequence[Saved]) -> list[dict[str, Any]]:
    """Name, size, SHA-256 and receipt of each file; no folder, which says nothing of what it is."""
    return [
        {
            "name": path.name,
            "size": file.size,
            "sha256": file.sha256,
            "receipt": "" if file.role else receipt_path(path.name).name,
        }
        for one in saved
        for path, file in zip(one.paths, one.files, strict=True)
    ]


def depth_columns(checks: Sequence[Check]) -> Mapping[str, Mapping[str, Sequence[Any]]]:
    """ "converted" and "original" → the columns of the check `signal`; empty where it was not asked."""
    found = next((check.numbers for check in checks if check.name == "signal"), {})
    return {name: found[name] for name in ("original", "converted") if name in found}


def curves(columns: Mapping[str, Mapping[str, Sequence[Any]]], quantity: str) -> dict[str, list[tuple[float, float]]]:
    """One quantity along the residual stream, or along all weight layers where there are hardly any joins.

    A depth is the number of weight layers passed; the last point is what the head reads. `quantity` is "activation" or
    "gradient", or "distinct" or "low_variance" in percent of the channels.
    """
    stream = bool(columns) and all(list(c["kind"]).count("join") >= _STREAM for c in columns.values())
    found: dict[str, list[tuple[float, float]]] = {}
    for name, column in columns.items():
        points: list[tuple[float, float]] = []
        depth = 0
        for index, (kind, value) in enumerate(zip(column["kind"], column[quantity], strict=True)):
            last = index == len(column["kind"]) - 1
            if value is not None and ((kind == "join") == stream or last):
                share = quantity in ("distinct", "low_variance")
                if share and column["channels"][index] <= 0:  # not counted
                    depth += kind == "layer"
                    continue
                at = depth + 1 if last and stream else depth
                points.append((at, 100 * value / column["channels"][index] if share else float(value)))
            depth += kind == "layer"
        found[name] = points
    return found


def along(columns: Mapping[str, Mapping[str, Sequence[Any]]]) -> str:
    """What a point of the curves is."""
    stream = bool(columns) and all(list(c["kind"]).count("join") >= _STREAM for c in columns.values())
    return "the sum at a residual join, the last what the head reads" if stream else "what each weight layer reads"


def _asked(recipe: Recipe) -> dict[str, Any]:
    """The options of a recipe that are not at their defaults, and the scheme in any case."""
    found = {name: getattr(recipe, name) for name in flags(type(recipe))}
    usual = {spec.name: spec.default for spec in fields(recipe)}
    return {name: value for name, value in found.items() if name == "scheme" or (value and value != usual[name])}


def _texts(name: str, value: Any) -> list[str]:
    """The values of an option as the command line takes them; its flag stands before each."""
    if name == "options":
        return [f"{key}={str(one).lower() if isinstance(one, bool) else one}" for key, one in value.items()]
    if name == "model_args":
        return [f"{key}={one if isinstance(one, str) else repr(one)}" for key, one in value.items()]
    return list(value) if isinstance(value, tuple) else [str(value)]
