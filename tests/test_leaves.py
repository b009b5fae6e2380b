"""Checks, rewrites and schemes: a file's name is no data, and no such file imports another."""

from __future__ import annotations

import ast
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

import zero_convert as zc
from zero_convert import checks, rewrites, schemes
from zero_convert.schemes._user_schemes import known_rewrites

from . import nets

ROOMS = (checks, rewrites, schemes)
README = Path(__file__).parents[1] / "README.md"


def leaves(room: ModuleType) -> dict[str, Path]:
    """Name of the module → file, of the files that each hold one check, rewrite or scheme."""
    return {path.stem: path for path in sorted(Path(room.__path__[0]).glob("[!_]*.py")) if path.stem != "subject"}


@pytest.fixture
def renamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every file of the three rooms has another name, in the opposite order."""
    before = dict(sys.modules)
    for room in ROOMS:
        folder = tmp_path / room.__name__
        shutil.copytree(room.__path__[0], folder, ignore=shutil.ignore_patterns("__pycache__"))
        for number, name in enumerate(reversed(leaves(room))):
            (folder / f"{name}.py").rename(folder / f"leaf_{number:02}.py")
        monkeypatch.setattr(room, "__path__", [str(folder)])
    schemes._schemes.cache_clear()
    yield
    for name in sys.modules.keys() - before.keys():
        if name.startswith("zero_convert."):  # what they import of torch registers itself once in a process
            del sys.modules[name]
    schemes._schemes.cache_clear()


def test_a_file_with_another_name_publishes_the_same_names(renamed: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def published() -> tuple[object, ...]:
        result = zc.convert(nets.tiny_resnet(), torch.zeros(1, 3, 32, 32))
        return result.recipe, result.plan.edits, [check.name for check in result.checks]

    names = list(schemes.names())
    monkeypatch.setattr(checks, "FILES", renamed_checks := checks._files())
    monkeypatch.setattr(rewrites, "FILES", renamed_rewrites := rewrites._files())
    assert all("leaf_" in file.__name__ for file in (*renamed_checks.values(), *renamed_rewrites.values()))
    assert "leaf_" in schemes.get("zero").fill.__module__
    after = published()
    monkeypatch.undo()
    schemes._schemes.cache_clear()
    assert "leaf_" not in schemes.get("zero").fill.__module__
    assert names == list(schemes.names())
    assert list(renamed_checks) == list(checks.FILES) and set(renamed_rewrites) == set(rewrites.FILES)
    assert after == published()


def imported(path: Path, room: str) -> set[str]:
    """Names of the modules of its own room that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            whole = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            package = ["zero_convert", room][: 3 - node.level] if node.level else []
            module = ".".join([*package, *([node.module] if node.module else [])])
            whole = [module, *(f"{module}.{alias.name}" for alias in node.names)]
        else:
            continue
        found |= {name.split(".")[2] for name in whole if name.startswith(f"zero_convert.{room}.")}
    return found


@pytest.mark.parametrize("room", ROOMS, ids=lambda room: room.__name__)
def test_no_leaf_imports_another(room: ModuleType) -> None:
    name = room.__name__.rpartition(".")[2]
    assert {
        path.name: both for path in leaves(room).values() if (both := imported(path, name) & leaves(room).keys())
    } == {}


def test_an_import_of_another_leaf_would_be_seen(tmp_path: Path) -> None:
    ways = ("from .b import x", "from . import b", "from ..checks.b import x", "import zero_convert.checks.b",
            "from zero_convert.checks import b", "def f():\n    from zero_convert.checks.b import x")  # fmt: skip
    for way in ways:
        (tmp_path / "a.py").write_text(way, "utf-8")
        assert "b" in imported(tmp_path / "a.py", "checks"), way
    (tmp_path / "a.py").write_text("from .harness.b import x\nfrom ..b import x\nimport b", "utf-8")
    assert imported(tmp_path / "a.py", "checks") == {"harness"}


def test_every_file_declares_a_name_of_its_own() -> None:
    for room, names in ((checks, checks.FILES), (rewrites, rewrites.FILES), (schemes, schemes.names())):
        assert len(names) == len(leaves(room))
    assert known_rewrites() == tuple(sorted(rewrites.FILES))


def test_every_check_declares_where_it_is_asked() -> None:
    for name, file in checks.FILES.items():
        assert name == file.NAME and file.QUESTION.endswith("?") and file.__doc__
        assert file.LEVELS and set(file.LEVELS) <= {"quick", "full"}
        assert set(file.NEEDS) <= {"scheme", "steps", "onnx", "train"}
    order = list(checks.FILES)
    assert all(order.index(file.AFTER) < order.index(name) for name, file in checks.FILES.items() if file.AFTER)


def test_every_check_of_the_readmes_table_is_asked_of_every_conversion() -> None:
    table = README.read_text("utf-8").partition("| check | |")[2].partition("\n\n")[0]
    rows = [row.split("|")[1] for row in table.splitlines()[2:]]
    named = [name for row in rows for name in re.findall(r"`(\w+)`", row) if name != "full"]
    assert len(named) == len(set(named)) > 10 and set(named) <= checks.FILES.keys() - set(checks.SCHEME_CHECKS)
