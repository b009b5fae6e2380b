"""Is there room for another tensor? A model that does not fit is refused before the system ends the process.

Linux only, where the system says how much can be had without swapping; elsewhere nothing is refused.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

from zero_convert.errors import LoadError

LARGE = 64 << 20  # bytes; smaller tensors are not asked about
RESERVE = 16  # this part of the memory stays free: 1/16

_MEMINFO = Path("/proc/meminfo")
_GROUP = Path("/sys/fs/cgroup")


def require(size: int, what: str = "another tensor") -> None:
    """Raises LoadError if `what`, of `size` bytes, would leave less than a sixteenth of the memory free."""
    if size < LARGE:
        return
    free, total = _memory()
    if free is not None and total is not None and free - size < total // RESERVE:
        raise LoadError(
            "the model does not fit into memory",
            got=f"{free / 1e9:.1f} GB free of {total / 1e9:.1f} GB, and {what} of {size / 1e9:.1f} GB",
            fix="Make it smaller (--model-arg num_hidden_layers=4, for instance), or use a machine with more memory.",
        )


def _memory() -> tuple[int | None, int | None]:
    """(free, total) bytes, by the machine or by the group of processes this one belongs to, whichever is less."""
    known = [pair for pair in (_machine(), _group()) if pair is not None]
    return min(known) if known else (None, None)


def _machine() -> tuple[int, int] | None:
    with contextlib.suppress(OSError, ValueError, KeyError):
        rows = (line.split() for line in _MEMINFO.read_text().splitlines())
        sizes = {row[0]: int(row[1]) * 1024 for row in rows}
        return sizes["MemAvailable:"], sizes["MemTotal:"]
    return None


def _group() -> tuple[int, int] | None:
    with contextlib.suppress(OSError, ValueError, KeyError):
        total = int((_GROUP / "memory.max").read_text())  # "max" where there is no limit
        stat = dict(line.split() for line in (_GROUP / "memory.stat").read_text().splitlines())
        cached = int(stat["inactive_file"]) + int(stat["active_file"])  # given up when memory is asked for
        return total - int((_GROUP / "memory.current").read_text()) + cached, total
    return None
