"""Tasks for the processes of the zoo benchmark, in a file that is imported fast."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from typing import Any


def behave(task: str, send: Callable[[dict[str, Any]], None], stage: Callable[[str], None]) -> None:
    """One task for each way to end."""
    stage("working")
    send({"task": task})
    if task == "raises":
        raise ValueError("an error that nobody catches")
    if task == "dies":
        os.kill(os.getpid(), signal.SIGSEGV)
    if task == "hangs":
        time.sleep(60)
    if task == "eats":
        try:
            bytearray(4 << 30)
        except MemoryError as error:
            send({"task": task, "error": type(error).__name__})
