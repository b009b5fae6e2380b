"""What the checks add to a conversion: `--validate quick` next to `--validate none`.

    python -m benchmarks.validate [--rounds 5] [--scheme zero-2021 …] [MODEL]

Whole processes, as typed, in turns, with two threads; told are the wall time and the processor time (user and system,
of all threads) of each, and the differences within the rounds. Half of the processor time is what two cores without
other work could need at least. Prints one Markdown table; ends with 1 if the median difference of the wall time is
above 6 s.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

LIMIT = 6.0  # seconds that `quick` may add to ResNet-50 on two cores
LEVELS = ("none", "quick")


def seconds(model: str, scheme: str, level: str) -> tuple[float, float]:
    """Wall and processor time of one conversion."""
    with tempfile.TemporaryDirectory() as folder:
        out = str(Path(folder, "a.safetensors"))
        command = [sys.executable, "-m", "zero_convert", model, "--scheme", scheme, "--validate", level, "--out", out]
        before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        environment = {**os.environ, "OMP_NUM_THREADS": "2"}
        subprocess.run([*command, "--device", "cpu", "--quiet"], check=True, env=environment, capture_output=True)
        wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> int:
    parser = argparse.ArgumentParser(description="Time the checks of a conversion.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--scheme", action="append", default=[])
    parser.add_argument("model", nargs="?", default="resnet50")
    given = parser.parse_args()
    load = f"load {os.getloadavg()[0]:.1f}"
    rows, over = [], False
    for scheme in given.scheme or ["zero-2021", "zero-2022"]:
        rounds = [[seconds(given.model, scheme, level) for level in LEVELS] for _ in range(given.rounds)]
        added = {}
        for index, clock in enumerate(("wall", "processor")):
            none, quick = ([one[level][index] for one in rounds] for level in range(2))
            differences = [b - a for a, b in zip(none, quick, strict=True)]
            added[clock] = statistics.median(differences)
            spread = f"{min(differences):.1f} | {added[clock]:.1f}"
            rows.append(f"| `{scheme}` | {clock} | {min(none):.1f} | {min(quick):.1f} | {spread} |")
            print(rows[-1], file=sys.stderr, flush=True)
        over |= added["wall"] > LIMIT
    print(
        f"`{given.model}`, seconds, {given.rounds} rounds, {os.cpu_count()} cores, {load} → {os.getloadavg()[0]:.1f}\n"
    )
    print("| scheme | time | none, least | quick, least | difference, least | difference, median |")
    print("|---|---|---:|---:|---:|---:|")
    print("\n".join(rows))
    print(f"\nLimit: {LIMIT:g} s of wall time at the median. {'It is not kept.' if over else 'It is kept.'}")
    return int(over)


if __name__ == "__main__":
    sys.exit(main())
