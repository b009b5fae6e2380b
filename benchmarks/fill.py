"""How fast a Hadamard weight is filled: our formula, the published dense formula, and the floor, in one run.

    python -m benchmarks.fill            11008×4096; the dense formula takes minutes and about 4 GB
    python -m benchmarks.fill --small    2752×1024; seconds

Prints one Markdown table. The dense formula is `eye(m, 2^k) @ H/2^(k/2) @ eye(2^k, n)` in float32 with numpy's matrix
product on all cores; its result must equal ours bit for bit. The floor is a memset of the same array. The array is
touched before; ours and the floor are the best of five, on one core.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from zero_convert.formulas import Hadamard

Weight = npt.NDArray[np.float32]


def dense(m: int, n: int) -> Weight:
    """The weight as the publication prints it.  # (m, n)"""
    k = (m - 1).bit_length()
    matrix = np.ones((1, 1), dtype=np.float32)
    for _ in range(k):
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    matrix /= np.float32(2 ** (k / 2))
    first: Weight = np.eye(m, 2**k, dtype=np.float32) @ matrix
    return first @ np.eye(2**k, n, dtype=np.float32)


def seconds(action: Callable[[], object], repeats: int) -> float:
    """The shortest of some runs."""
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        action()
        best = min(best, time.perf_counter() - start)
    return best


LIMIT = 200  # times as fast as the dense formula


def main() -> None:
    parser = argparse.ArgumentParser(description="Time the filling of a Hadamard weight.")
    parser.add_argument("--small", action="store_true", help="2752×1024 instead of 11008×4096")
    m, n = (2752, 1024) if parser.parse_args().small else (11008, 4096)

    out: Weight = np.ones((m, n), dtype=np.float32)
    floor = seconds(lambda: out.fill(0), 5)
    spanning = seconds(lambda: Hadamard(m, n, columns="spanning").fill(out), 5)
    exact = seconds(lambda: Hadamard(m, n, order="exact").fill(out), 5)
    ours = seconds(lambda: Hadamard(m, n).fill(out), 5)

    start = time.perf_counter()
    published = dense(m, n)
    dense_time = time.perf_counter() - start
    if published.tobytes() != out.tobytes():
        raise SystemExit("the dense formula gives other bits than ours")

    print(f"Filling {m}×{n} float32 ({out.nbytes / 2**20:.0f} MiB), {os.cpu_count()} cores, numpy {np.__version__}\n")
    print("| what | seconds | relative to ours |")
    print("|---|---:|---:|")
    for what, took in [
        ("published dense formula", dense_time),
        ("ours, `order=exact`", exact),
        ("ours, `columns=spanning`", spanning),
        ("ours", ours),
        ("floor: memset", floor),
    ]:
        print(f"| {what} | {took:.4f} | {took / ours:.2f} |")
    print(f"\nOurs is {dense_time / ours:.0f} times as fast as the dense formula, with the same bits.")
    if dense_time < LIMIT * ours:
        raise SystemExit(f"the limit is {LIMIT} times")


if __name__ == "__main__":
    main()
