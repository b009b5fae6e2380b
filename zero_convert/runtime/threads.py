"""How many threads torch may use where more would only wait for each other."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread inside the block or the decorated function, as many as before after it.

    For fills and sums over many tensors: they are bound by memory, so a second thread gains nothing, and on a busy
    machine every tensor waits for it.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
