"""Asks `doctor/child.py` one question, in a process with a time limit. Whatever happens there, an answer comes back."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from zero_convert.runtime.native_errors import gist
from zero_convert.runtime.signals import undone_by

SLOW = "no answer"
PROGRAM = Path(__file__).with_name("child.py")
_children: list[subprocess.Popen[bytes]] = []
_starting = threading.RLock()  # held while one starts, so that it is either known or not there; the handler may hold it
_over = threading.Event()


@dataclass(frozen=True)
class Answer:
    """What came back.

    Attributes:
        facts: what the question's function returned.
        problem: what went wrong, in one line; "" if nothing did.
        text: all that was said on the way, the libraries' own words.
    """

    facts: Mapping[str, Any] = field(default_factory=dict)
    problem: str = ""
    text: str = ""


def ask(question: str, argument: str = "", *, limit: float, program: Path = PROGRAM) -> Answer:
    """The answer to one question.

    Args:
        question: a name of `child.QUESTIONS`.
        argument: what it is about.
        limit: seconds until the process is ended.
        program: what is run instead of `doctor/child.py`.
    """
    command = [sys.executable, "-P", str(program), question, argument]  # -P: no module of ours takes a library's name
    with undone_by(_end_all):
        try:
            with _starting:
                if _over.is_set():
                    return Answer(problem="interrupted")
                child = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
                )
                _children.append(child)
        except OSError as error:
            return Answer(problem=f"no process could be started: {error}")
        with child:
            try:
                said, complained = child.communicate(timeout=limit)
            except subprocess.TimeoutExpired as error:
                child.kill()
                return Answer(problem=f"{SLOW} within {limit:g} seconds", text=_text(error.stderr))
            finally:
                _children.remove(child)
    return _read(child.returncode, said, _text(complained))


def _end_all() -> None:
    """Ends all children and lets none begin: this process is asked to end."""
    with _starting:
        _over.set()
        for child in list(_children):
            child.kill()


def _read(code: int, said: bytes, text: str) -> Answer:
    """What a child that has ended has answered."""
    if code:
        return Answer(problem=_ended(code), text=text)
    try:
        facts = json.loads(said)
    except ValueError:
        return Answer(problem="the process ended without an answer", text=text)
    problem = str(facts.get("error", ""))
    wrong = facts.get("wrong") or []
    if not problem and wrong:
        problem = f"computed wrongly: {', '.join(wrong)}"
    return Answer(facts, gist(problem), f"{text}\n{problem}")


def _ended(code: int) -> str:
    if code < 0:
        try:
            return f"the library crashed the process ({signal.Signals(-code).name})"
        except ValueError:
            return f"the library crashed the process (signal {-code})"
    return f"the library ended the process (code {code:#x})" if os.name == "nt" else f"the process ended with {code}"


def _text(data: bytes | None) -> str:
    return (data or b"").decode("utf-8", "replace")
