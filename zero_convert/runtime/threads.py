"""How many threads torch may use where more would only synchronize."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch


@functools.cache
def _setters() -> tuple[Callable[[int], Any], Callable[[int], Any]] | None:
    """The functions of OpenMP and MKL that set the number for the calling thread; None where torch has no OpenMP.

    `torch.set_num_threads` calls them too. But it also keeps the number for every thread that starts later.
    """
    try:
        library = ctypes.CDLL(torch._C.__file__)
        openmp = library.omp_set_num_threads
    except (AttributeError, OSError):
        return None
    mkl = getattr(library, "MKL_Set_Num_Threads_Local", None)  # returns what it was; 0 stands for OpenMP's number
    return openmp, mkl or (lambda count: 0)


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Operations of the calling thread use so many threads; those of other threads, new ones too, what they did.

    Nothing changes on systems where torch does not compute with OpenMP.
    """
    before, setters = torch.get_num_threads(), _setters()
    if setters is None:
        yield
        return
    openmp, mkl = setters
    openmp(count)
    own = mkl(count)
    try:
        yield
    finally:
        mkl(own)
        openmp(before)


@contextmanager
def one_thread() -> Iterator[None]:
    """A block, or a decorated function, with one thread.

    For fills and sums over many tensors: they are bound by memory, so a second thread gains nothing, and on a busy
    machine every tensor waits for it.
    """
    with threads(1):
        yield
