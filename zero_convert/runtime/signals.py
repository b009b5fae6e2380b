"""A request to end (Ctrl-C, SIGTERM, SIGHUP) ends the process where it is, with everything begun undone.

An exception would have to travel through whatever runs just then. Where that is C++ that calls Python (torch's
dispatcher, autograd, destructors) it can be dropped in silence, or abort the process; so nothing is raised: the
handler undoes what was registered, newest first, and leaves.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from types import FrameType

INTERRUPTED = 130  # the exit code, as shells give it to a command that Ctrl-C ended
_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")
_actions: list[Callable[[], object]] = []


@contextlib.contextmanager
def undone_by(action: Callable[[], object]) -> Iterator[None]:
    """Have `action` called if the process is asked to end inside the block; it may be called at any moment of it."""
    _actions.append(action)
    try:
        yield
    finally:
        _actions.remove(action)


@contextlib.contextmanager
def ending(report: Callable[[], object]) -> Iterator[None]:
    """Inside the block a request to end undoes what is registered, calls `report`, and exits with 130.

    Signals that somebody ignores or handles already are left alone, and so is everything in a thread that is not the
    main one, where Python has no signals.
    """

    def leave(number: int, frame: FrameType | None) -> None:
        for other in changed:
            signal.signal(other, signal.SIG_IGN)
        for action in (*reversed(_actions), report):
            with contextlib.suppress(BaseException):
                action()
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(BaseException):
                stream.flush()
        os._exit(INTERRUPTED)

    changed = {}
    with contextlib.suppress(ValueError):
        for name in _SIGNALS:
            number = getattr(signal, name, None)
            if number is not None and (present := signal.getsignal(number)) in (
                signal.SIG_DFL,
                signal.default_int_handler,
            ):
                signal.signal(number, leave)
                changed[number] = present
    try:
        yield
    finally:
        for number, present in changed.items():
            signal.signal(number, present)
