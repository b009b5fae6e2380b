"""On a terminal a failure is ten lines at most and a result stays one; in a pipe nothing is cut."""

from __future__ import annotations

import io
import re
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from zero_convert import pipeline
from zero_convert.cli import display
from zero_convert.cli.display import screen
from zero_convert.errors import CoverageError
from zero_convert.initialization import plan_summary
from zero_convert.records import Edit, Plan

LONG = CoverageError(
    "scheme zero-2021 has no rule for 100 tensors",
    where=", ".join(f"blocks.{index}.mystery (3×3×3, Mystery, read)" for index in range(100)),
    got="one word after another " * 200,
    expected="a rule for every trainable tensor " * 100,
    fix="Pass --uncovered zeros or --uncovered keep to say what they should be, or use another scheme.",
)


class Block(nn.Module):
    """A residual block in pre-activation order."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(n), nn.Conv2d(n, n, 3, padding=1, bias=False)
        self.bn2, self.conv2 = nn.BatchNorm2d(n), nn.Conv2d(n, n, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(torch.relu(self.bn2(self.conv1(torch.relu(self.bn1(x))))))


class Deciding(nn.Module):
    """Its own values decide at the root, around residual blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.blocks = nn.Conv2d(3, 8, 3, padding=1), nn.Sequential(Block(8), Block(8))
        self.last, self.head = Block(8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.stem(x))
        return self.head((self.last(x) if bool(x.detach().sum() > -1e9) else x).mean((2, 3)))


@pytest.fixture(scope="module")
def regions() -> Plan:
    """The plan of a model of which only parts may be rewritten."""
    return pipeline.plan(Deciding(), torch.ones(2, 3, 8, 8))


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """stderr and stdout of 80 columns."""
    stream = Terminal()
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(screen, "sys", SimpleNamespace(stderr=stream, stdout=stream))  # pytest has its own in sys
    return stream


def left_on(terminal: Terminal) -> str:
    """What stays after the spinner and its lines were taken away."""
    return terminal.getvalue().rpartition("\x1b[2K")[2]


def test_a_failure_is_ten_lines_on_a_terminal_the_failed_step_included(terminal: Terminal) -> None:
    def work() -> None:
        with display.Screen().progress() as progress:
            for step in ("load", "trace", "analyze", "initialize"):
                progress(step, "the model")
            raise LONG

    with pytest.raises(CoverageError):
        work()
    display.error(LONG)
    shown = left_on(terminal)
    assert len(shown.splitlines()) <= 10
    assert "initialize" in shown
    assert "trace" not in shown
    assert all(word in shown for word in ("no rule for 100 tensors", "blocks.0.mystery", "one word", "--uncovered"))
    assert "…" in shown


def test_with_v_and_in_a_pipe_nothing_of_a_message_is_cut(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    display.error(LONG, whole=True)
    assert terminal.getvalue().count("mystery") == 100
    pipe = io.StringIO()
    monkeypatch.setattr(screen, "sys", SimpleNamespace(stderr=pipe, stdout=pipe))
    display.error(LONG)
    assert pipe.getvalue().count("mystery") == 100
    assert len(pipe.getvalue().splitlines()) == 4


def test_finished_steps_stay_when_all_went_well(terminal: Terminal) -> None:
    with display.Screen().progress() as progress:
        progress("load", "the model")
        progress("trace", "Net")
    lines = [line for line in left_on(terminal).splitlines() if "✓" in line]
    assert ["load" in lines[0], "trace" in lines[1]] == [True, True]
    assert len(lines) == 2


def test_a_result_is_one_line_however_narrow_the_window(terminal: Terminal) -> None:
    line = display.checksum_line("0" * 64, "a folder/with a long name/and a file.safetensors")
    display.Screen().give(line)
    assert terminal.getvalue().rstrip("\n") == line


def test_names_with_a_line_end_or_a_backslash_are_escaped_as_coreutils_does() -> None:
    assert display.checksum_line("ab", "plain name") == "ab  plain name"
    assert display.checksum_line("ab", "a\nb\\c\r") == "\\ab  a\\nb\\\\c\\r"


def test_joins_rewritten_inside_a_region_are_counted(regions: Plan) -> None:
    assert regions.capture == "regions"
    assert [join.node for join in plan_summary.rewritten_joins(regions)] == ["add", "add_1", "add_2"]
    outside = tuple(edit for edit in regions.edits if not edit.target.startswith("last"))
    assert [join.node for join in plan_summary.rewritten_joins(replace(regions, edits=outside))] == ["add", "add_1"]
    declined = tuple(replace(edit, applied=False) for edit in regions.edits)
    assert plan_summary.rewritten_joins(replace(regions, edits=declined)) == ()
    inner = (Edit("inner_skips", "blocks: 1.conv2", "identity skip"), Edit("inner_skips", "*", "everything"))
    assert [join.node for join in plan_summary.rewritten_joins(replace(regions, edits=inner))] == ["add_1"]


def test_what_was_captured_and_why_the_rest_was_not_is_in_every_view(
    regions: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = pipeline.inspect_model(Deciding(), example_inputs=torch.ones(2, 3, 8, 8))
    assert 0 < regions.captured == seen.captured < 1
    result = SimpleNamespace(plan=regions, recipe=SimpleNamespace(model="net", source="", dtype="float32"), checks=())
    views = {
        "inspect": lambda screen: display.inspection(screen, seen),
        "dry run": lambda screen: display.plan(screen, regions, "net", "float32"),
        "convert": lambda screen: display.summary(screen, result),
    }
    for name, show in views.items():
        pipe = io.StringIO()
        monkeypatch.setattr(screen, "sys", SimpleNamespace(stderr=pipe, stdout=pipe))
        show(display.Screen())
        lines = [line.strip() for line in pipe.getvalue().splitlines()]
        assert "traced  regions, 93.4% of the parameters captured" in [re.sub(" {2,}", "  ", line) for line in lines]
        assert any(line.startswith("values: ValueNeeded") for line in lines)
        assert any(line.startswith("joins") and "3 identity" in line for line in lines)
        assert any("the model's own Python stays" in line for line in lines) == (name != "inspect")


def test_a_join_that_is_left_alone_is_told_with_its_reason(terminal: Terminal) -> None:
    class TwoBranches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(self.a(x)) + torch.relu(self.b(x))

    found = pipeline.inspect_model(TwoBranches(), example_inputs=torch.ones(2, 4))
    [join] = found.structure.joins
    assert join.reason
    display.inspection(display.Screen(), found)
    shown = " ".join(terminal.getvalue().split())
    assert f"{join.reason} ({join.node})" in re.sub(r"\x1b\[[0-9;]*m", "", shown)
