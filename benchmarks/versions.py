"""Do two installed versions of torch give the same bytes? On demand: a fresh environment takes minutes and about 6 GB.

    python -m benchmarks.versions 2.11.0 2.15.0            versions of torch, each installed into an environment
    python -m benchmarks.versions 2.11.0 path/to/python    or an interpreter that has one

Makes every conversion of `tests/goldens.py` with each and prints one Markdown table; ends with 1 if a digest differs.
torchvision comes in the version that its own requirements tie to that torch.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


def here() -> dict[str, Any]:
    """Versions and digests of this interpreter."""
    import torch
    import torchvision

    from tests.goldens import CASES, digests

    versions = f"torch {torch.__version__}, torchvision {torchvision.__version__}, Python {platform.python_version()}"
    return {"versions": versions, "digests": {case.key: digests(case) for case in CASES}}


def environment(version: str, folder: Path) -> Path:
    """The interpreter of a new virtual environment in `folder` with that torch and everything that we need."""
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    python = folder / "bin" / "python"
    wanted = [str(ROOT), f"torch=={version}", "torchvision"]
    subprocess.run([str(python), "-m", "pip", "install", "--quiet", *wanted], check=True, stdout=sys.stderr)
    return python


def ask(python: Path) -> dict[str, Any]:
    """What `here` answers under that interpreter."""
    command = [str(python), "-m", "benchmarks.versions", "--here"]
    surroundings = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, check=True, cwd=ROOT, env=surroundings, stdout=subprocess.PIPE, encoding="utf-8")
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def table(one: dict[str, Any], other: dict[str, Any]) -> tuple[str, list[str]]:
    """The Markdown table, and the conversions that differ."""
    first, second = one["digests"], other["digests"]
    differ = [key for key in first if first[key] != second[key]]
    lines = [f"A: {one['versions']}", "", f"B: {other['versions']}", ""]
    lines += ["| conversion | sha256 with A | sha256 with B | file | values |", "|---|---|---|---|---|"]
    for key in first:
        same = [
            "same" if first[key][name] == second[key][name] else "**differ**" for name in ("sha256", "weights_digest")
        ]
        lines.append(
            f"| {key} | `{first[key]['sha256'][:16]}…` | `{second[key]['sha256'][:16]}…` | {' | '.join(same)} |"
        )
    return "\n".join(
        [*lines, "", f"{len(first) - len(differ)} of {len(first)} conversions have the same bytes."]
    ), differ


def main(arguments: list[str]) -> int:
    if arguments == ["--here"]:
        printed, sys.stdout = sys.stdout, sys.stderr
        print(json.dumps(here()), file=printed)
        return 0
    if len(arguments) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    answers = []
    for each in arguments:
        if Path(each).is_file():
            answers.append(ask(Path(each)))
            continue
        with tempfile.TemporaryDirectory() as folder:
            answers.append(ask(environment(each, Path(folder))))
    text, differ = table(*answers)
    print(text)
    return int(bool(differ))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
