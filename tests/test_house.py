"""The house keeps its rules: which room may import which, how many modules lie loose, how long files and functions are.

Every contract of import-linter is shown to fail once, on a copy of the package with one import that it forbids.
"""

from __future__ import annotations

import ast
import importlib.util
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "zero_convert"
CONTRACTS = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["importlinter"]["contracts"]
LINES, FUNCTION, LOOSE = 400, 80, 14

# contract → a module of the copy and the import added to it that breaks this contract
BREACHES = {
    "floors": ("formats/digests.py", "import zero_convert.cli"),
    "circles": ("runtime/threads.py", "import zero_convert.records"),
    "no-torch": ("formulas/roots.py", "import torch"),
    "terminal": ("graph/copies.py", "import typer"),
    "page": ("checks/finite.py", "import matplotlib"),
    "onnx": ("structure/joins.py", "import onnx"),
    "onnxruntime": ("tracing/nodes.py", "import onnxruntime"),
    "models": ("structure/roles.py", "import timm"),
    "leaves": ("schemes/rezero.py", "import zero_convert.schemes.fixup"),
    "private": ("cli/diff.py", "import zero_convert.rewrites._norms"),
}

needs_linter = pytest.mark.skipif(importlib.util.find_spec("importlinter") is None, reason="no import-linter")


def broken(folder: Path) -> set[str]:
    """The contracts that the copy of the package in the folder breaks, by name."""
    command = (
        "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True, no_logo=True))"
    )
    environment = {**os.environ, "PYTHONPATH": str(folder), "COLUMNS": "300", "NO_COLOR": "1"}
    run = subprocess.run(
        [sys.executable, "-c", command], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    lines = run.stdout.splitlines()
    names = {contract["name"]: contract["id"] for contract in CONTRACTS}
    answers = {name: line for line in lines for name in names if line.startswith(name)}
    assert set(answers) == set(names), run.stdout + run.stderr
    return {names[name] for name, line in answers.items() if " KEPT" not in line}


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    shutil.copytree(PACKAGE, tmp_path / "zero_convert", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


@needs_linter
def test_the_package_keeps_every_contract(copy: Path) -> None:
    assert broken(copy) == set()


@needs_linter
def test_every_contract_finds_an_import_that_it_forbids(copy: Path) -> None:
    assert set(BREACHES) == {contract["id"] for contract in CONTRACTS}
    for place, line in BREACHES.values():
        path = copy / "zero_convert" / place
        path.write_text(f"{path.read_text('utf-8')}\n\ndef _breach() -> None:\n    {line}\n", "utf-8")
    assert broken(copy) == set(BREACHES)


def sources() -> Iterator[tuple[str, str]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        yield path.relative_to(PACKAGE).as_posix(), path.read_text("utf-8")


def test_few_modules_lie_outside_of_a_room() -> None:
    assert len(list(PACKAGE.glob("*.py"))) <= LOOSE


def test_no_file_and_no_function_is_too_long_to_read() -> None:
    long = [name for name, text in sources() if text.count("\n") > LINES]
    for name, text in sources():
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef) and (node.end_lineno or 0) - node.lineno >= FUNCTION:
                long.append(f"{name}: {node.name}")
    assert long == []
