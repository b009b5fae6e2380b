"""An option of a conversion is declared once: command line, keywords, recipe, lock and repeated command follow."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any

import pytest
import typer
from click.testing import CliRunner

import zero_convert as zc
from zero_convert import cli, conversion, options, pipeline, records
from zero_convert.artifacts import receipt
from zero_convert.artifacts.comparing import compare
from zero_convert.artifacts.lock import read_lock
from zero_convert.cli.options import FORMER, Messages, Without, spread
from zero_convert.errors import MalformedError, UsageError
from zero_convert.formulas import Constant, Formula
from zero_convert.initialization import resolve
from zero_convert.options import MODEL, FileOptions, Flag, Options, RecipeOptions, carried, flags, keys
from zero_convert.records import Layer, Recipe, Tensor
from zero_convert.report import facts

NET = "from torch import nn\n\ndef net():\n    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))\n"


@pytest.fixture
def net(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(NET, "utf-8")
    return "net.py:net"


# -- one more option ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Flavoured:
    """A field that decides bytes."""

    flavour: Annotated[str, Flag("--flavour", MODEL, "Of the weights.", choices=("plain", "sour"), before="dtype")] = (
        "plain"
    )
    peeled: Annotated[bool, Flag("--peeled", MODEL, "Without their skin.")] = False


@dataclass(frozen=True, kw_only=True)
class MoreOptions(Flavoured, Options):
    """Those of a conversion, and it."""

    seeds: Annotated[int, Flag("--seeds", MODEL, "No part of a recipe.", "N")] = 3


@dataclass(frozen=True, kw_only=True)
class MoreRecipe(Flavoured, Recipe):
    """A recipe with it."""


@pytest.fixture
def more(monkeypatch: pytest.MonkeyPatch) -> None:
    """The package as it is when `Options` and `Recipe` have the fields."""
    monkeypatch.setattr(records, "Recipe", MoreRecipe)
    monkeypatch.setattr(conversion, "Recipe", MoreRecipe)


def ask(net: str, asked: MoreOptions) -> zc.Result:
    """`pipeline.convert` takes the options that it knows by keyword; here they are a record already."""
    return pipeline.convert.__wrapped__(net, asked)  # type: ignore[attr-defined,no-any-return]


def test_a_new_field_is_an_option_of_the_command_line() -> None:
    seen: list[MoreOptions] = []

    def command(model: str, *, asked: Annotated[MoreOptions, Without("trust")], messages: Messages) -> None:
        seen.append(asked)

    app = typer.Typer()
    app.command()(spread(command))
    program = typer.main.get_command(app)
    words = [
        "m",
        "--flavour",
        "sour",
        "--peeled",
        "--seeds",
        "5",
        "--set",
        "a=b=c",
        "--model-arg",
        "n=[1]",
        "--input",
        "2x3",
    ]
    assert CliRunner().invoke(program, words).exit_code == 0
    (asked,) = seen
    assert (asked.flavour, asked.peeled, asked.seeds, asked.inputs) == ("sour", True, 5, ("2x3",))
    assert (asked.options, asked.model_args) == ({"a": "b=c"}, {"n": [1]})
    assert CliRunner().invoke(program, ["m", "--flavour", "sweet"]).exit_code == 2
    assert CliRunner().invoke(program, ["m", "--trust"]).exit_code == 2
    text = CliRunner().invoke(program, ["--help"], terminal_width=200).output
    assert "plain|sour" in text and text.index("--input") < text.index("--flavour") < text.index("--dtype")


def test_a_new_field_is_in_the_recipe_and_makes_the_conversion_again(net: str, more: None) -> None:
    result = ask(net, MoreOptions(flavour="sour", seeds=9, validate="none"))
    recipe = result.recipe
    assert isinstance(recipe, MoreRecipe)
    assert recipe.flavour == "sour" and "seeds" not in keys(MoreRecipe)
    (saved,) = result.save("a.safetensors")
    spelled = json.loads(saved.receipt_path.read_text())["identity"]["recipe"]
    assert spelled["flavour"] == "sour" and "peeled" not in spelled  # at its default
    read = receipt.recipe_from_json({**spelled, "peeled": True})
    assert isinstance(read, MoreRecipe) and (read.flavour, read.peeled) == ("sour", True)
    for wrong in ({"flavour": "sweet"}, {"peeled": 1}, {"seeds": 3}):
        with pytest.raises(MalformedError):
            receipt.recipe_from_json({**spelled, **wrong})
    again = carried(MoreOptions, read, validate="full")
    assert (again.flavour, again.peeled, again.seeds, again.validate) == ("sour", True, 3, "full")


def test_a_rule_of_a_tensor_reads_a_new_field(net: str, more: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def sour(context: resolve.Context, layer: Layer, tensor: Tensor, formula: Formula | None) -> Formula | None:
        return Constant(tensor.shape, 3.0) if context.asked.flavour == "sour" else None  # type: ignore[attr-defined]

    monkeypatch.setattr(resolve, "RULES", (*resolve.RULES, ("sour", sour)))
    for flavour, rules in (("plain", {"scheme"}), ("sour", {"sour"})):
        plan = ask(net, MoreOptions(flavour=flavour, validate="none")).plan
        assert {assignment.decided_by for assignment in plan.assignments} == rules


def test_a_new_field_is_in_the_repeated_command_and_named_where_it_moved(net: str, more: None) -> None:
    recipe = replace(ask(net, MoreOptions(validate="none")).recipe, flavour="sour", peeled=True)  # type: ignore[call-arg]
    words = facts.command(recipe, ["a.safetensors"])
    assert words == "zero-convert net.py:net --scheme zero-2021 --flavour sour --peeled --out a.safetensors".replace(
        "--scheme zero-2021", "--scheme zero-2021 --set norm=keep --set mixing=none"
    )
    assert "flavour='sour', peeled=True" in facts.python(recipe)


# -- those that there are ----------------------------------------------------------------------------------------------


def test_the_keywords_of_python_are_the_fields_of_the_record() -> None:
    for function in (zc.convert, zc.plan):
        parameters = inspect.signature(function).parameters
        assert list(parameters) == ["model", *(p for p in inspect.signature(Options).parameters)]
        assert [p.name for p in parameters.values() if p.kind is not p.KEYWORD_ONLY] == ["model", "example_inputs"]
        assert parameters["options"].default == {} and parameters["dtype"].default == "float32"
        assert parameters["dtype"].annotation is str  # what a flag adds is for command lines
    text = inspect.getdoc(zc.convert) or ""
    assert all(f"\n    {spec.name}: " in text for spec in fields(Options)) and "OPTIONS" not in text


def test_every_field_is_documented() -> None:
    for record in (Options, RecipeOptions):
        text = inspect.getdoc(record) or ""
        own = [name for name in record.__annotations__ if f"    {name}: " not in text]
        assert own == []


def test_a_value_that_is_no_choice_is_refused_wherever_it_comes_from(net: str) -> None:
    for name in ("dtype", "uncovered", "validate"):
        with pytest.raises(UsageError, match=f"{name} has no such value; got 'some'; expected one of"):
            zc.plan(net, **{name: "some"})
        assert cli.main([net, f"--{name}", "some", "--dry-run"]) == 2


def test_the_former_name_of_an_option_still_means_it(net: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert FORMER == {"leftovers": "uncovered"}
    words = [net, "--validate", "none", "-q", "--out"]
    assert cli.main([*words, "a.safetensors", "--leftovers", "zeros"]) == 0
    assert cli.main(["--leftovers=zeros", *words, "b.safetensors"]) == 0
    recipe = json.loads(Path("a.safetensors.receipt.json").read_text())["identity"]["recipe"]
    assert recipe["leftovers"] == "zeros" and "uncovered" not in recipe  # the format is older than the name
    assert Path("a.safetensors").read_bytes() == Path("b.safetensors").read_bytes()
    capsys.readouterr()
    assert cli.main([*words, "c.safetensors", "--uncovered", "zeros", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)["recipe"]
    assert printed["leftovers"] == "zeros" and "uncovered" not in printed
    assert cli.main(["convert", "--help"]) == 0
    assert "leftovers" not in capsys.readouterr().out


def test_inputs_may_be_texts_in_python_as_well(net: str) -> None:
    import torch

    given = zc.convert(net, inputs=("3x4",), validate="none")
    assert given.inputs[0].shape == (3, 4)
    first = zc.convert(net, (torch.ones(2, 4),), inputs=("3x4",), validate="none")
    assert first.inputs[0].shape == (2, 4)
    with pytest.raises(UsageError, match="3y4"):
        zc.plan(net, inputs=("3y4",))


def test_a_lock_holds_the_options_of_a_recipe_and_update_takes_them_from_it(net: str) -> None:
    words = [
        "--scheme",
        "zero-2022",
        "--dtype",
        "bfloat16",
        "--uncovered",
        "zeros",
        "--input",
        "2x4",
        "--validate",
        "none",
    ]
    assert cli.main(["lock", net, *words, "--out", "a.safetensors", "-q"]) == 0
    (entry,) = read_lock("zero.lock").entries
    recipe = entry.identity.recipe
    assert (recipe.scheme, recipe.dtype, recipe.uncovered, entry.inputs) == ("zero-2022", "bfloat16", "zeros", ("2x4",))
    before = Path("a.safetensors").read_bytes()
    Path("a.safetensors").unlink()
    assert cli.main(["lock", "--update", "--trust", "--validate", "none", "-q"]) == 0
    assert Path("a.safetensors").read_bytes() == before
    assert compare(entry.identity, read_lock("zero.lock").entries[0].identity) == []


def test_the_order_of_the_help_is_that_of_the_fields_but_where_one_says_before_what_it_stands() -> None:
    for record in (Options, FileOptions):
        order, moved = list(flags(record)), {name: flag.before for name, flag in flags(record).items() if flag.before}
        fixed = [name for name in order if name not in moved]
        assert fixed == [spec.name for spec in fields(record) if spec.name in fixed]
        for name, before in moved.items():
            assert set(order[order.index(name) : order.index(before)]) <= moved.keys()
    order = list(flags(Options))
    assert order[order.index("model_args") :][:4] == ["model_args", "arch", "trust", "inputs"]
    assert keys(Recipe)["uncovered"] == "leftovers" and options.keys(Recipe)["dtype"] == "dtype"


def widths(function: Callable[..., Any]) -> int:
    return len(inspect.signature(function).parameters)


def test_the_signatures_that_were_widest_have_at_most_six_parameters() -> None:
    from zero_convert.cli import convert, lock

    wide = [convert.convert, lock.lock, pipeline.convert.__wrapped__, pipeline.plan.__wrapped__, conversion.prepare]  # type: ignore[attr-defined]
    assert max(map(widths, wide)) <= 6
