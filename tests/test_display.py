"""On a terminal a failure is ten lines at most and a result stays one; in a pipe nothing is cut."""

from __future__ import annotations

import io
from types import SimpleNamespace

import pytest

from zero_convert import display
from zero_convert.errors import CoverageError

LONG = CoverageError(
    "scheme zero-2021 has no rule for 100 tensors",
    where=", ".join(f"blocks.{index}.mystery (3×3×3, Mystery, read)" for index in range(100)),
    got="one word after another " * 200,
    expected="a rule for every trainable tensor " * 100,
    fix="Pass --leftovers zeros or --leftovers keep to say what they should be, or use another scheme.",
)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """stderr and stdout of 80 columns."""
    stream = Terminal()
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(display, "sys", SimpleNamespace(stderr=stream, stdout=stream))  # pytest has its own in sys
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
    assert all(word in shown for word in ("no rule for 100 tensors", "blocks.0.mystery", "one word", "--leftovers"))
    assert "…" in shown


def test_with_v_and_in_a_pipe_nothing_of_a_message_is_cut(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    display.error(LONG, whole=True)
    assert terminal.getvalue().count("mystery") == 100
    pipe = io.StringIO()
    monkeypatch.setattr(display, "sys", SimpleNamespace(stderr=pipe, stdout=pipe))
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
