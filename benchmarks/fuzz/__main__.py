"""`python -m benchmarks.fuzz --minutes 5` goes on where it is told; `--counts` runs the numbers that are promised."""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
import time
from pathlib import Path

from .corpus import FORMATS
from .run import run

COUNTS = {"safetensors": 100_000, "pt": 10_000, "onnx": 5_000, "archive": 5_000}


def main() -> int:
    """1 if any case went wrong."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, help="how long, shared between the formats")
    parser.add_argument("--counts", action="store_true", help="the promised number of cases of each format")
    parser.add_argument("--format", choices=FORMATS, action="append", help="only this one; repeatable")
    parser.add_argument("--start", type=int, default=0, help="number of the first case")
    options = parser.parse_args()
    if options.counts == (options.minutes is not None):
        parser.error("either --minutes or --counts")
    failed = False
    formats = options.format or FORMATS
    with tempfile.TemporaryDirectory() as folder:
        for kind in formats:
            start, until = options.start, float("inf")
            numbers = itertools.count(start) if options.minutes else range(start, start + COUNTS[kind])
            if options.minutes:
                until = time.monotonic() + 60 * options.minutes / len(formats)
            report = run(kind, numbers, Path(folder), until)
            print(f"{kind:<12} {report}", flush=True)
            for line in report.wrong[:20]:
                print(f"  {line}")
            failed |= bool(report.wrong)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
