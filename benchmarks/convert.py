"""How long the main job takes next to what one would write without us, in one run.

    python -m benchmarks.convert [--rounds 5]

Each command is a process of its own, started in turns, so that the machine's other work meets all of them alike; the
medians count. `dense` and `floor` are the scripts of `plain.py`. Only ours forces its file to the disk. Prints one
Markdown table; ends with 1 if a limit of the ratios of elapsed time is passed.
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

LIMITS = {"dense": 0.75, "floor": 1.25}
SCHEMES = ("zero-2021", "zero-2022")
TITLES = {
    **{scheme: f"`zero-convert resnet50 --scheme {scheme} --validate none`" for scheme in SCHEMES},
    "dense": "plain script, published dense formula, `save_file`",
    "floor": "floor: imports, `resnet50()`, `save_file`",
}


def command(name: str, path: str) -> list[str]:
    """The command line behind one row, writing to `path`."""
    if name in SCHEMES:
        ours = ["-m", "zero_convert", "resnet50", "--scheme", name, "--validate", "none", "--force", "--out", path]
        return [sys.executable, *ours]
    return [sys.executable, "-m", "benchmarks.plain", name, path]


def once(line: list[str], folder: str) -> tuple[float, float]:
    """Elapsed seconds and processor seconds of one run of a command that writes into a folder, which is emptied."""
    # An installed package has its bytecode; without this, only ours would be compiled at every start.
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    subprocess.run(line, check=True, env=environment, **quiet)
    elapsed, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    for path in Path(folder).iterdir():
        path.unlink()
    return elapsed, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def measure(rounds: int) -> dict[str, tuple[float, float]]:
    """Medians of elapsed and processor seconds for each row; the first round, which fills the caches, is left out."""
    runs: dict[str, list[tuple[float, float]]] = {name: [] for name in TITLES}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(rounds + 1):
            for name, taken in runs.items():
                taken.append(once(command(name, str(Path(folder, "a.safetensors"))), folder))
    return {
        name: (statistics.median(e for e, _ in taken[1:]), statistics.median(p for _, p in taken[1:]))
        for name, taken in runs.items()
    }


def main() -> int:
    parser = argparse.ArgumentParser(description="Time the main job.")
    parser.add_argument("--rounds", type=int, default=5, help="runs of each command that count")
    rounds = parser.parse_args().rounds
    found = measure(rounds)
    versions = f"{os.cpu_count()} cores, median of {rounds} runs in turns"
    print(f"ResNet-50 to a safetensors file, {versions}\n")
    print("| command | s | processor s | ÷ dense | ÷ floor | processor ÷ floor |")
    print("|---|---:|---:|---:|---:|---:|")
    over = []
    for name, title in TITLES.items():
        elapsed, busy = found[name]
        ratios = {other: elapsed / found[other][0] for other in LIMITS}
        print(
            f"| {title} | {elapsed:.2f} | {busy:.2f} | {ratios['dense']:.2f} | {ratios['floor']:.2f} "
            f"| {busy / found['floor'][1]:.2f} |"
        )
        over += [f"{name} ÷ {other}" for other, limit in LIMITS.items() if name in SCHEMES and ratios[other] > limit]
    limits = ", ".join(f"{limit:g} × {name}" for name, limit in LIMITS.items())
    print(f"\nLimits for ours: {limits}. {'Passed: ' + ', '.join(over) if over else 'All are kept.'}")
    return int(bool(over))


if __name__ == "__main__":
    sys.exit(main())
