"""What `check` costs against the conversions themselves.

    python -m benchmarks.lock [--entries 10] [--repeats 3] [--cpu] [MODEL …]

Makes a lock whose entries are the models in turn under both schemes, then measures, in fresh processes and in turn:

    floor   one process that imports the pipeline, converts every entry and hashes what it would write
    check   `zero-convert check` of the lock

The limit of the issue is check ≤ 1.2 × floor. Prints a table in Markdown; the best of the repeats of each counts. On a
machine that is busy with other work `--cpu` measures processor time instead.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import cycle, islice
from pathlib import Path

from zero_convert.artifacts.lock import Lock, read_lock, write_lock

LIMIT = 1.2
MODELS = ("resnet18", "squeezenet1_1", "mobilenet_v2", "mnasnet0_5", "shufflenet_v2_x0_5")

FLOOR = """
import json, sys
from zero_convert import convert
class Nowhere:
    def write(self, data):
        return memoryview(data).nbytes
for model, scheme in json.loads(sys.argv[1]):
    convert(model, scheme=scheme, validate="none").write(Nowhere())
"""


def _seconds(command: list[str], folder: str, clock: Callable[[], float] = time.perf_counter) -> float:
    start = clock()
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return clock() - start


def processor_time() -> float:
    """Seconds that the children of this process have computed."""
    spent = os.times()
    return spent.children_user + spent.children_system


def main() -> int:
    """0 if the limit is kept."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("models", nargs="*", default=MODELS)
    parser.add_argument("--entries", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--cpu", action="store_true", help="processor time")
    asked = parser.parse_args()
    clock = processor_time if asked.cpu else time.perf_counter
    pairs = [(model, scheme) for scheme in ("zero-2021", "zero-2022") for model in asked.models]
    entries = list(islice(cycle(pairs), asked.entries))
    command = [sys.executable, "-m", "zero_convert"]
    with tempfile.TemporaryDirectory() as folder:
        locks = []
        for index, (model, scheme) in enumerate(entries):
            options = ["--scheme", scheme, "--validate", "none", "-q", "--out", f"{index}.safetensors"]
            _seconds([*command, "lock", model, *options, "--lock", f"{index}.lock"], folder)
            locks += read_lock(Path(folder) / f"{index}.lock").entries
            (Path(folder) / f"{index}.safetensors").unlink()
        write_lock(Path(folder) / "zero.lock", Lock(tuple(sorted(locks, key=lambda entry: entry.name))))
        best = {"floor": float("inf"), "check": float("inf")}
        for _ in range(asked.repeats):
            floor = [sys.executable, "-c", FLOOR, json.dumps(entries)]
            best["floor"] = min(best["floor"], _seconds(floor, folder, clock))
            best["check"] = min(best["check"], _seconds([*command, "check"], folder, clock))
    ratio = best["check"] / best["floor"]
    print("| entries | models | conversions and one import | check | ratio | limit |\n|---|---|---|---|---|---|")
    names = ", ".join(dict.fromkeys(model for model, _ in entries))
    print(f"| {len(entries)} | {names} | {best['floor']:.2f} s | {best['check']:.2f} s | {ratio:.3f} | {LIMIT} |")
    return 0 if ratio <= LIMIT else 1


if __name__ == "__main__":
    sys.exit(main())
