"""A request to end, seen from inside: what is undone, in which order, and what is left alone."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from zero_convert.runtime.signals import ending, undone_by

PROGRAM = """
import os, signal
from zero_convert.runtime.signals import ending, undone_by

def fails():
    raise OSError("no")

with ending(lambda: print("reported", flush=True)):
    with undone_by(lambda: print("over")):
        pass
    with undone_by(lambda: print("first")), undone_by(fails), undone_by(lambda: print("second")):
        {what}
        for _ in range(1000):
            pass
        print("went on")
"""


# A runner in the background is started with them ignored, and hands that on.
USUAL = """
import signal
for name in ("SIGINT", "SIGTERM", "SIGHUP"):
    signal.signal(getattr(signal, name), signal.SIG_DFL)
"""


def run(what: str, before: str = "") -> tuple[int, list[str]]:
    done = subprocess.run(
        [sys.executable, "-c", USUAL + before + PROGRAM.format(what=what)], capture_output=True, text=True
    )
    return done.returncode, done.stdout.split("\n")[:-1]


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_what_was_begun_is_undone_newest_first(name: str) -> None:
    assert run(f"os.kill(os.getpid(), signal.{name})") == (130, ["second", "first", "reported"])


def test_what_somebody_ignores_stays_ignored() -> None:
    ignored = "signal.signal(signal.SIGHUP, signal.SIG_IGN)"
    assert run("os.kill(os.getpid(), signal.SIGHUP)", ignored) == (0, ["went on"])


def test_another_thread_goes_on_without_signals() -> None:
    thread = """
import threading
def inside():
    with ending(print):
        print("inside")
t = threading.Thread(target=inside); t.start(); t.join()
""".replace("\n", "\n        ")
    assert run(thread) == (0, ["inside", "went on"])


def test_signals_are_given_back() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with ending(print):
        assert signal.getsignal(signal.SIGTERM) not in before
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_an_action_is_forgotten_after_a_failure() -> None:
    from zero_convert.runtime import signals

    with pytest.raises(ValueError, match="broke"), undone_by(print):
        raise ValueError("broke")
    assert signals._actions == []
