"""Each task in a process of its own, with a limit of memory and of time, some at a time.

A task that crashes, runs out of memory or takes too long costs its own rows and nothing else. Knows nothing of models:
`run` gets a function and its arguments. Processes are forked from a server that has done the slow imports.
"""

from __future__ import annotations

import multiprocessing as mp
import os
import resource
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing import connection
from pathlib import Path
from typing import Any

Row = dict[str, Any]
Work = Callable[[Any, Callable[[Row], None], Callable[[str], None]], None]


@dataclass
class _Running:
    task: Any
    process: Any
    pipe: connection.Connection
    deadline: float
    began: float = field(default_factory=time.monotonic)
    stage: str = "start"
    rows: list[Row] = field(default_factory=list)
    whole: bool = False


@dataclass(frozen=True)
class Ended:
    """How a task's process ended: `cause` is "" where it did everything, and one line otherwise."""

    task: Any
    rows: list[Row]
    cause: str
    stage: str
    seconds: float


def run(
    work: Work,
    tasks: Sequence[Any],
    *,
    jobs: int,
    memory: float,
    seconds: float,
    preload: Sequence[str] = (),
    on_row: Callable[[Row], None] = lambda row: None,
) -> Iterator[Ended]:
    """How each task ended, as they end.

    Args:
        work: `work(task, send, stage)`, importable; calls `send(row)` for each result and `stage(name)` on its way.
        jobs: processes at a time.
        memory: GiB of address space that a process may take beyond what it starts with.
        seconds: that may pass between two results of a task.
        preload: modules that the server imports before it forks.
        on_row: called in this process as soon as a row arrives.
    """
    context = mp.get_context("forkserver")
    context.set_forkserver_preload(list(preload))
    waiting, running = list(tasks)[::-1], list[_Running]()
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                running.append(_start(context, work, waiting.pop(), memory, seconds))
            left = min(r.deadline for r in running) - time.monotonic()
            connection.wait([r.pipe for r in running], timeout=max(0.0, min(left, 5.0)))
            for one in list(running):
                ended = _look_after(one, seconds, on_row)
                if ended is not None:
                    running.remove(one)
                    yield ended
    finally:
        for one in running:
            _stop(one)


def _start(context: Any, work: Work, task: Any, memory: float, seconds: float) -> _Running:
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(work, task, theirs, memory), daemon=True)
    process.start()
    theirs.close()
    return _Running(task, process, ours, time.monotonic() + seconds)


def _child(work: Work, task: Any, pipe: connection.Connection, memory: float) -> None:
    os.setpgid(0, 0)
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    if memory:
        limit = _address_space() + int(memory * 2**30)
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    work(task, lambda row: pipe.send(("row", row)), lambda name: pipe.send(("stage", name)))
    pipe.send(("done", None))


def _address_space() -> int:
    """Bytes of address space this process has now; 0 where the system does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except OSError:
        return 0
    return pages * resource.getpagesize()


def _look_after(one: _Running, seconds: float, on_row: Callable[[Row], None]) -> Ended | None:
    try:
        while one.pipe.poll():
            kind, value = one.pipe.recv()
            if kind == "row":
                one.rows.append(value)
                on_row(value)
                one.deadline = time.monotonic() + seconds
            elif kind == "stage":
                one.stage = value
            else:
                one.whole = True
    except (EOFError, OSError):
        one.process.join(10)
        return _end(one, "" if one.whole else _death(one.process.exitcode))
    if time.monotonic() > one.deadline:
        return _end(one, f"Timeout: nothing came within {seconds:g} s")
    return None


def _death(code: int | None) -> str:
    if code is not None and code < 0:
        name = signal.Signals(-code).name if -code in set(signal.Signals) else str(-code)
        return f"Killed: {name}" + (" (out of memory?)" if name == "SIGKILL" else "")
    return f"Exited: with code {code}, without a result"


def _end(one: _Running, cause: str) -> Ended:
    _stop(one)
    return Ended(one.task, one.rows, cause, one.stage, time.monotonic() - one.began)


def _stop(one: _Running) -> None:
    one.process.kill()
    one.process.join(10)
    one.pipe.close()
