"""Schemes from outside: in a file and from a package, run only where that was asked for, and held to the contract."""

from __future__ import annotations

import importlib.metadata
import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import zero_convert as zc
from zero_convert import cli, schemes
from zero_convert.artifacts.lock import read_lock
from zero_convert.errors import LoadError, MalformedError, UntrustedError, UsageError
from zero_convert.formulas import Kernel
from zero_convert.schemes import _conformance

from .nets import mlp, tiny_resnet
from .odd_nets import ramp

PAGE = (Path(__file__).parents[1] / "docs" / "write-a-scheme.md").read_text("utf-8")
NET = "from torch import nn\n\ndef net():\n    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))\n"


def block(mark: str) -> str:
    """The code block of the page that follows a mark."""
    found = re.search(rf"<!-- {re.escape(mark)} -->\n```\w+\n(.*?)```", PAGE, re.DOTALL)
    assert found is not None
    return found[1]


EXAMPLE = block("mine.py")
RAN = "\nwith open('ran', 'a') as file:\n    file.write('x')\n"


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The example's file, in the current folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(NET, "utf-8")
    path = tmp_path / "mine.py"
    path.write_text(EXAMPLE, "utf-8")
    return path


def run(*words: str) -> int:
    return cli.main(list(words))


# -- the page ----------------------------------------------------------------------------------------------------------


def test_the_commands_of_the_page_work(mine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    commands = [line.partition("#")[0] for line in block("commands").splitlines()]
    assert len(commands) == 4
    for command in commands:
        words = shlex.split(command.replace("resnet18", "net.py:net"))
        assert words[0] == "zero-convert"
        assert run(*words[1:]) == 0
    out = capsys.readouterr().out
    assert "Signs: identities" in out and "all hold" in out and "start.safetensors" in out
    recipe = json.loads(Path("start.safetensors.receipt.json").read_text("utf-8"))["identity"]["recipe"]
    assert (recipe["scheme"], recipe["options"]) == ("mine.py", {"size": "large", "seed": 7})
    assert re.fullmatch("[0-9a-f]{64}", recipe["scheme_source"])


def test_the_example_does_what_it_says(mine: Path) -> None:
    result = zc.convert(tiny_resnet(), (ramp(2, 3, 8, 8),), scheme="./mine.py", options={"seed": 3})
    assert result.failed == ()
    state = result.module.state_dict()
    assert state["linear.weight"].count_nonzero() == 0
    assert set(state["blocks.0.conv2.weight"].unique().tolist()) == {
        torch.tensor(s * 0.001 / 8).item() for s in (-1, 1)
    }
    assert torch.equal(state["conv1.weight"][:, :, 1, 1], torch.eye(8, 3))


# -- in a file ---------------------------------------------------------------------------------------------------------


def test_the_recipe_names_the_file_without_folders_and_its_content(mine: Path) -> None:
    found = schemes.find("./mine.py")
    assert (found.name, found.scheme.name) == ("mine.py", "mine")
    mine.write_bytes(EXAMPLE.replace("\n", "\r\n").encode("utf-8"))
    assert schemes.find("mine.py").source == found.source  # the same text with other ends of lines
    mine.write_text(EXAMPLE + "\n# another\n", "utf-8")
    assert schemes.find(str(mine)).source != found.source
    assert schemes.find("mine.py").name == "mine.py"


def test_a_file_of_one_content_runs_once(mine: Path) -> None:
    mine.write_text(EXAMPLE + RAN, "utf-8")
    for _ in range(3):
        zc.plan(mlp(), (ramp(2, 20),), scheme="./mine.py")
    assert Path("ran").read_text() == "x"


@pytest.mark.parametrize(
    ("text", "error", "words"),
    [
        ("1 / 0\n", LoadError, r"mine\.py, running its file.*ZeroDivisionError.*at mine\.py:1"),
        ("def broken(:\n", LoadError, r"SyntaxError.*at mine\.py:1"),
        ("x = 1\n", UsageError, "holds no scheme.*no SCHEME"),
        ("SCHEME = 1\n", UsageError, "an object of type int"),
        (
            EXAMPLE.replace("g = layer.geometry", "g = layer.size"),
            LoadError,
            r"its fill of 0.*AttributeError.*mine\.py:",
        ),
        (EXAMPLE.replace('("out_of_place",)', '("nothing_such",)'), UsageError, "nothing_such"),
    ],
)
def test_what_is_wrong_with_a_file_is_said_with_its_place(mine: Path, text: str, error: type, words: str) -> None:
    mine.write_text(text, "utf-8")
    with pytest.raises(error, match=words):
        zc.convert("net.py:net", scheme="./mine.py")


def test_a_missing_file_and_wrong_options_are_usage_errors(mine: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        schemes.find("other.py")
    with pytest.raises(UsageError, match="Did you mean large"):
        zc.convert("net.py:net", scheme="./mine.py", options={"size": "larg"})


# -- trust -------------------------------------------------------------------------------------------------------------


def test_an_artifact_runs_no_scheme_unless_trusted(mine: Path) -> None:
    zc.convert(mlp(), (ramp(2, 20),), scheme="./mine.py").save("a.safetensors")
    mine.write_text(EXAMPLE + RAN, "utf-8")
    with pytest.raises(UntrustedError, match=r"'mine.py'"):
        zc.load("a.safetensors", mlp(), (ramp(2, 20),))
    assert not Path("ran").exists()
    for more in ({"trust": True}, {"scheme": "./mine.py"}):
        loaded = zc.load("a.safetensors", mlp(), (ramp(2, 20),), **more)
        assert loaded(ramp(2, 20)).shape == (2, 5)


def test_a_lock_holds_the_path_and_check_needs_trust(mine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("rules").mkdir()
    mine = mine.rename("rules/mine.py")
    assert run("lock", "net.py:net", "--scheme", "rules/mine.py", "--set", "seed=5", "--out", "a.safetensors") == 0
    entry = read_lock("zero.lock").entries[0]
    assert (entry.scheme, entry.identity.recipe.scheme) == ("rules/mine.py", "mine.py")
    capsys.readouterr()
    assert run("check") == 4
    assert "--trust" in capsys.readouterr().err
    assert run("check", "--trust") == 0
    mine.write_text(EXAMPLE.replace("0.001", "0.002") + "\n", "utf-8")
    assert run("check", "--trust") == 1
    assert "scheme_source" in capsys.readouterr().err
    assert run("lock", "--update", "--trust") == 0
    assert read_lock("zero.lock").entries[0].scheme == "rules/mine.py"
    assert run("check", "--trust") == 0


@pytest.mark.parametrize("path", ["/etc/mine.py", "C:/mine.py", "rules/other.py", "zero-2022"])
def test_a_lock_whose_scheme_is_not_its_recipes_is_refused(mine: Path, path: str) -> None:
    assert run("lock", "net.py:net", "--scheme", "mine.py", "--out", "a.safetensors", "-q") == 0
    text = Path("zero.lock").read_text("utf-8")
    recipe, mark, rest = text.rpartition('"scheme": "mine.py"')
    assert '"scheme": "mine.py"' in recipe
    Path("zero.lock").write_text(f"{recipe}{mark.replace('mine.py', path)}{rest}", "utf-8")
    with pytest.raises(MalformedError, match="not that of its recipe"):
        read_lock("zero.lock")


def test_a_trusted_model_is_no_trusted_scheme(mine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # The scheme's file alone needs trust: the model is a library's.
    assert run("lock", "squeezenet1_0", "--scheme", "mine.py", "--out", "a.safetensors", "--validate", "none") == 0
    capsys.readouterr()
    assert run("check") == 4
    assert "scheme in a file of Python" in capsys.readouterr().err


# -- in a package ------------------------------------------------------------------------------------------------------


@pytest.fixture
def package(mine: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Offers schemes as an installed package would."""
    found: list[importlib.metadata.EntryPoint] = []
    monkeypatch.syspath_prepend(str(mine.parent))
    monkeypatch.setattr(
        importlib.metadata, "entry_points", lambda *, group: [p for p in found if p.group == group]
    )  # fmt: skip

    def offer(name: str, value: str) -> None:
        found.append(importlib.metadata.EntryPoint(name, value, "zero_convert.schemes"))

    return offer


def test_a_package_offers_schemes_by_name(
    mine: Path, package: Callable[[str, str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    mine.rename(mine.with_name("their_rules.py"))
    package("theirs", "their_rules")
    package("theirs-too", "their_rules:SCHEME")
    package("fixup", "their_rules")  # ours stays ours
    package("broken", "no_such_module")
    assert schemes.get("fixup").title.startswith("Fixup")
    result = zc.convert(mlp(), (ramp(2, 20),), scheme="theirs")
    assert result.recipe.scheme == "theirs" and len(result.recipe.scheme_source) == 64
    assert schemes.find("theirs-too").source == result.recipe.scheme_source
    assert run("schemes") == 0
    shown = capsys.readouterr()
    assert shown.out.count("Signs: identities") == 2
    assert "broken is installed, and fails" in shown.err and "ModuleNotFoundError" in shown.err
    with pytest.raises(UsageError, match=r"Did you mean theirs"):
        schemes.get("their")


# -- the contract ------------------------------------------------------------------------------------------------------


def findings(name: str, *only: str) -> dict[str, str]:
    return {check.name: check.summary for check in schemes.examine(name, only) if check.status == "fail"}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n == "fixup" else pytest.mark.slow) for n in schemes.names()]
)
def test_our_own_schemes_keep_the_contract(name: str) -> None:
    assert findings(name) == {}


BREACHES = {
    "text": ("Mathematics. W", "W", "Mathematics"),
    "options": ('"small", "how large', '"medium", "how large', "size=medium is read as None"),
    "facts": ("from zero_convert.formulas", "import random\nfrom zero_convert.formulas", "imports random"),
    "covered": (
        "for t in layer.tensors\n    }",
        'for t in layer.tensors if t.local != "bias"\n    }',
        "no rule for bias",
    ),
    "shapes": ("Constant(tensor.shape, 0.0)", "Constant(tensor.shape[::-1], 0.0)", "expected"),
}


@pytest.mark.parametrize("name", BREACHES)
def test_each_breach_of_the_contract_is_found(mine: Path, name: str) -> None:
    before, after, words = BREACHES[name]
    assert before in EXAMPLE
    mine.write_text(EXAMPLE.replace(before, after), "utf-8")
    assert words in findings("./mine.py", name)[name]


OWN = """
from dataclasses import dataclass, field
from zero_convert.formulas import Formula
COUNT = [0]


@dataclass(frozen=True, slots=True)
class Own(Formula):
    shape: tuple = field()

    @property
    def rule(self):
        return "own"

    def write(self, out, corner):
        COUNT[0] += 1
        out[...] = BODY
"""


def test_a_matrix_of_your_own_is_its_value_at_a_row_and_a_column() -> None:
    names: dict[str, Any] = {"__name__": __name__}
    exec(block("matrix"), names)
    own = names["Checkerboard"](3, 2)
    assert own.entries(range(3), np.array([1, 0])).tolist() == [[1, 0], [0, 1], [1, 0]]
    assert Kernel(own, (3,), groups=2).window(2, 4).tolist() == [[[0, 0, 0], [0, 1, 0]], [[0, 0, 0], [0, 1, 0]]]
    assert own.rule == "checkerboard 3×2"


@pytest.mark.parametrize(
    ("body", "name"),
    [("out.shape[0]", "windows"), ("COUNT[0]", "pure"), ("hash('a') % 99", "repeatable"), ("float('nan')", "shapes")],
)
def test_a_formula_that_is_none_is_found(mine: Path, body: str, name: str) -> None:
    text = EXAMPLE.replace("return Constant(tensor.shape, 0.0)", "return Own(tensor.shape)")
    mine.write_text(text.replace("NEUTRAL = {", OWN.replace("BODY", body) + "\nNEUTRAL = {", 1), "utf-8")
    assert name in findings("./mine.py", name)


def test_a_scheme_that_changes_its_options_is_found(mine: Path) -> None:
    mine.write_text(
        EXAMPLE.replace("    g = layer.geometry", "    options['size'] = 'large'\n    g = layer.geometry"), "utf-8"
    )
    assert "does not support item assignment" in findings("./mine.py", "pure")["pure"]


def test_the_command_says_what_fails_and_ends_with_1(
    mine: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(_conformance, "QUESTIONS", {n: _conformance.QUESTIONS[n] for n in ("text", "options")})
    mine.write_text(EXAMPLE.replace("Mathematics. W", "W"), "utf-8")
    assert run("schemes", "--test", "./mine.py") == 1
    assert "1 of 2 fail" in capsys.readouterr().out
    assert run("schemes", "--test", "./mine.py", "--json") == 1
    answer = json.loads(capsys.readouterr().out)
    assert [t["name"] for t in answer["tests"] if t["status"] == "fail"] == ["text"]
    assert run("schemes", "--test") == 2
