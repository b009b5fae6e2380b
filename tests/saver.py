"""A process that has converted already and runs command lines in children, which tests can end at any moment.

    python -m tests.saver

Each line of stdin is {"arguments": […], "stop": bool}: a child runs `zero-convert ARGUMENTS`, stopped before it starts
if `stop`. The answer is its process id. {"wait": PID} is answered with its wait status.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import tempfile
import threading
import warnings
from pathlib import Path

from tests.test_cli import MODELS
from zero_convert import cli

QUICK = ("--input", "2x3x8x8", "--device", "cpu", "--validate", "none", "-q")


def _own_locks() -> None:
    """tqdm, which torch asks, holds a lock that forked processes share: one that is killed with it would stop all."""
    with contextlib.suppress(ImportError):
        from tqdm import tqdm

        tqdm.set_lock(threading.RLock())


def _child(arguments: list[str], stop: bool) -> int:
    with warnings.catch_warnings():  # Python 3.12 warns of threads, and nothing of this process waits for one
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child:
        return child
    code = 70
    try:
        _own_locks()
        nowhere = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(nowhere, stream)
        if stop:
            os.kill(os.getpid(), signal.SIGSTOP)
        sys.argv[1:] = arguments
        cli.program()
    except SystemExit as end:
        code = int(str(end.code))
    finally:
        os._exit(code)


def main() -> None:
    """Serve stdin until it ends."""
    # A runner in the background is started with them ignored; an exception could end what is before the command line.
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_DFL)
    with tempfile.TemporaryDirectory() as folder:  # everything that is imported late is imported before the first fork
        net = Path(folder) / "net.py"
        net.write_text(MODELS)
        assert cli.main([f"{net}:Net", "--out", f"{folder}/a.safetensors", *QUICK]) == 0
        assert (
            cli.main([f"{net}:Net", "--out", f"{folder}/a.safetensors", "--scheme", "zero-2022", "--force", *QUICK])
            == 0
        )
        print(json.dumps({"net": f"{net}:Net"}), file=sys.stderr, flush=True)
        for line in sys.stdin:
            order = json.loads(line)
            answer = os.waitpid(order["wait"], 0)[1] if "wait" in order else _child(order["arguments"], order["stop"])
            print(answer, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
