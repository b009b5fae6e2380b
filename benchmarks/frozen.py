"""What becomes of the tensors that a constructor made and nothing trains, in tiny models of transformers.

    python -m benchmarks.frozen [--out FILE] [TYPE …]

Each tiny configuration (`tests/tiny_transformers.py`) is converted under both ZerO schemes. Listed are all tensors of
its state dict that are frozen or buffers, those of equal names but for numbers in one row, with the values that the
constructor gave (random ones are NaN there) and what they are afterwards: kept bit for bit, or the rule that wrote
them. Ends with 1 where a frozen parameter with values of its constructor was overwritten, or a drawn one was kept.
"""

from __future__ import annotations

import argparse
import re
import sys
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor

import zero_convert as zc
from tests.tiny_transformers import TINY
from zero_convert import sources
from zero_convert.graph.state import stored_tensors

SCHEMES = ("zero-2021", "zero-2022")


@dataclass
class Row:
    """Tensors of one model with equal names but for numbers."""

    kind: str  # "frozen" or "buffer"
    made: str
    count: int = 0
    became: dict[str, dict[str, None]] = field(default_factory=dict)


def described(value: Tensor) -> str:
    """What a constructor gave."""
    numbers = value.detach().float() if value.is_floating_point() or not value.is_complex() else value.detach().abs()
    if bool(numbers.isnan().any()):
        return "drawn"
    few = numbers.unique()
    if len(few) == 1:
        return f"{few.item():g}"
    return (
        f"0 … {value.numel() - 1}" if torch.equal(numbers.flatten(), torch.arange(value.numel()).float()) else "values"
    )


def rows(name: str) -> dict[str, Row]:
    """Pattern of names → what became of the tensors."""
    given = stored_tensors(sources.load(f"transformers:{name}", TINY[name]).module)
    found: dict[str, Row] = {}
    for scheme in SCHEMES:
        result = zc.convert(f"transformers:{name}", model_args=TINY[name], scheme=scheme, validate="none")
        state = stored_tensors(result.module)
        for a in result.plan.assignments:
            if a.tensor.trainable or a.tensor.name not in given:
                continue
            before, after = given[a.tensor.name], state[a.tensor.name]
            same = before.shape == after.shape and torch.equal(before, after)
            pattern = f"{re.sub(r'[0-9]+', 'N', a.tensor.name)}|{described(before)}"
            row = found.setdefault(pattern, Row("buffer" if a.tensor.buffer else "frozen", described(before)))
            row.count += scheme == SCHEMES[0]
            row.became.setdefault(scheme, {})["kept" if same else a.rule] = None
    return found


def is_defect(row: Row) -> bool:
    words = [word for became in row.became.values() for word in became]
    return row.kind == "frozen" and (row.made == "drawn") == ("kept" in words)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.frozen")
    parser.add_argument("--out", type=Path)
    parser.add_argument("types", nargs="*")
    options = parser.parse_args(arguments)
    names = options.types or sorted(TINY)
    libraries = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers"))
    lines = [
        "# Tensors that nothing trains, in tiny models of transformers",
        "",
        f"`python -m benchmarks.frozen`, {libraries}; {len(names)} types under {' and '.join(SCHEMES)}. Names with",
        "numbers stand for all of them. *Made*: what the constructor gave, 0 … n for an index.",
        "",
        "| type | tensor | number | kind | made | " + " | ".join(SCHEMES) + " |",
        "|---|---|---:|---|---|---|---|",
    ]
    defects, counts, without = 0, {"frozen": 0, "buffer": 0}, []
    for name in names:
        found = rows(name)
        without += [] if found else [name]
        for pattern, row in found.items():
            counts[row.kind] += row.count
            defects += is_defect(row)
            became = " | ".join(", ".join(row.became.get(scheme, {"no such tensor": None})) for scheme in SCHEMES)
            tensor = pattern.partition("|")[0]
            lines.append(f"| {name} | `{tensor}` | {row.count} | {row.kind} | {row.made} | {became} |")
        print(name, len(found), file=sys.stderr, flush=True)
    lines += ["", f"{counts['frozen']} frozen parameters and {counts['buffer']} buffers, {defects} rows with a defect."]
    lines += [f"Without any: {', '.join(without)}."] if without else []
    text = "\n".join(lines) + "\n"
    if options.out:
        options.out.write_text(text, encoding="utf-8")
    else:
        print(text, end="")
    return int(defects > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
