"""What a plan takes: memory of the process beyond its imports at the peak, and seconds; no value is made.

    python -m benchmarks.plan_memory [MODEL …]

Linux: proportional memory (Pss), looked at every 20 ms. Prints one Markdown table.
"""

from __future__ import annotations

import math
import sys
import threading
import time

import torch
import transformers  # noqa: F401  # imports are not what is measured

import zero_convert as zc
from zero_convert import pipeline  # noqa: F401

MODELS = ("transformers:gpt2", "transformers:llama")


def pss() -> float:
    """MB of this process, what it shares counted in part."""
    with open("/proc/self/smaps_rollup", encoding="ascii") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("Pss:")) * 1024 / 1e6


def main() -> None:
    print(f"zero-2022, torch {torch.__version__}\n")
    print("| model | values | float32, GB | peak, MB | seconds |\n|---|---:|---:|---:|---:|")
    zc.plan("resnet18", scheme="zero-2022")  # what is loaded late is loaded then
    for model in sys.argv[1:] or MODELS:
        before, peaks, done = pss(), [0.0], threading.Event()

        def watch(peaks: list[float] = peaks, done: threading.Event = done) -> None:
            while not done.wait(0.02):
                peaks.append(pss())

        watcher = threading.Thread(target=watch)
        watcher.start()
        start = time.perf_counter()
        plan = zc.plan(model, scheme="zero-2022")
        took = time.perf_counter() - start
        done.set()
        watcher.join()
        values = sum(math.prod(a.tensor.shape) for a in plan.assignments)
        print(
            f"| `{model}` | {values:,} | {values * 4 / 1e9:.1f} | {max(peaks) - before:.0f} | {took:.0f} |", flush=True
        )


if __name__ == "__main__":
    main()
