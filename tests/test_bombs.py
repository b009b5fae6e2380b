"""Files that claim much are refused at once and cost little: less than 2 seconds of work and 256 MiB each."""

from __future__ import annotations

import json
import os
import resource
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.bombs import bombs
from zero_convert import inspection, readers
from zero_convert.errors import RefusedError, StorageError

SECONDS, MEMORY = 2.0, 256 << 20


def outcome(path: Path) -> str:
    try:
        inspection.facts(inspection.survey(readers.read(path), digest=True, values=True))
    except RefusedError as error:
        return f"refused: {type(error).__name__}"
    except StorageError:
        return "a file is missing"
    except BaseException as error:
        return f"{type(error).__name__}: {error}"
    return "accepted"


def measured(path: Path) -> tuple[str, float, int]:
    """What reading the file ends in, seconds of work, and bytes of memory above the start, in a process of its own."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        start = resource.getrusage(resource.RUSAGE_SELF)
        before = start.ru_maxrss
        ended = outcome(path)
        used = resource.getrusage(resource.RUSAGE_SELF)
        seconds = used.ru_utime + used.ru_stime - start.ru_utime - start.ru_stime
        os.write(writer, json.dumps([ended[:300], seconds, (used.ru_maxrss - before) << 10]).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as stream:
        answer = json.loads(stream.read() or b'["killed", 0, 0]')
    os.waitpid(child, 0)
    return answer[0], answer[1], answer[2]


def exploded(tmp_path: Path, every: int) -> Counter[str]:
    """What became of every n-th bomb."""
    import numpy  # noqa: F401  before the processes part

    wrong = []
    ends: Counter[str] = Counter()
    for path in bombs(tmp_path, every):
        ended, seconds, memory = measured(path)
        ends[ended.partition(":")[0]] += 1
        if not ended.startswith(("refused", "a file is missing")) or seconds >= SECONDS or memory >= MEMORY:
            wrong.append(f"{path.name}: {ended}, {seconds:.1f} s, {memory >> 20} MiB")
        path.unlink()
    assert wrong == []
    return ends


linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="measures memory as Linux counts it")


@linux
def test_some_bombs_are_refused_in_two_seconds_and_256_mib(tmp_path: Path) -> None:
    assert exploded(tmp_path, 30)["refused"] >= 3


@linux
@pytest.mark.slow
def test_all_bombs_are_refused_in_two_seconds_and_256_mib(tmp_path: Path) -> None:
    assert exploded(tmp_path, 1)["refused"] >= 60
