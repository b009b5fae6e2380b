"""What `verify` costs against hashing the file once.

    python -m benchmarks.verify [--megabytes 100] [--repeats 7] [--cpu]

Makes an artifact of that size in each layout, then measures, in fresh processes and in turn:

    sha256sum   of the file (and of its data file)
    start-up    `zero-convert verify` of an artifact of a few bytes
    verify      `zero-convert verify` of the artifact: SHA-256 of the file, leaf of every tensor, header and receipt

The limit of the issue is verify ≤ 1.5 × (sha256sum + start-up). Prints a table in Markdown; the best of the repeats of
each counts. On a machine that is busy with other work `--cpu` measures processor time instead, in which `verify`, that
hashes twice side by side, looks worse than it is.
"""

from __future__ import annotations

import argparse
import contextlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.lock import processor_time
from tests.sealed import receipt_of, write_receipt
from zero_convert.artifacts.receipt import metadata, recipe_metadata
from zero_convert.exporters import onnx, safetensors
from zero_convert.records import Recipe

LIMIT = 1.5
COUNT = 160  # tensors, as in a ResNet-50
RECIPE = Recipe(model="benchmarks:made", scheme="zero-2021", ties={}, source="benchmarks.Made")


def entries(size: int) -> list[safetensors.Entry]:
    """Tensors of `size` bytes together."""
    each = max(1, size // COUNT // 4)
    values = np.arange(each, dtype="<f4")
    return [
        safetensors.Entry(f"layer{i}.weight", "F32", (each,), lambda i=i: values + np.float32(i)) for i in range(COUNT)
    ]


def plain(folder: Path, size: int) -> list[Path]:
    path = folder / "made.safetensors"
    with path.open("wb") as stream:
        written = safetensors.write(stream, entries(size), metadata(RECIPE))
    write_receipt(path, receipt_of(written, RECIPE))
    return [path]


def model(folder: Path, size: int, external_data: bool = False) -> list[Path]:
    path = folder / "made.onnx"
    about = recipe_metadata(RECIPE)
    taken = entries(size)
    places = [path, onnx.checked_data_path(path)] if onnx.wants_data_file(taken, external_data) else [path]
    with contextlib.ExitStack() as stack:
        streams = [stack.enter_context(place.open("wb")) for place in places]
        data = (streams[1], places[1].name) if len(places) > 1 else ()
        written = onnx.write(streams[0], onnx.Graph(b"", b"", 20), taken, about, *data)
    write_receipt(path, receipt_of(written, RECIPE, file_format="onnx"))
    return places


LAYOUTS: dict[str, Callable[[Path, int], list[Path]]] = {
    "safetensors": plain,
    "ONNX": model,
    "ONNX with data file": lambda folder, size: model(folder, size, True),
}


def seconds(command: list[str], clock: Callable[[], float]) -> float:
    start = clock()
    subprocess.run(command, check=True, capture_output=True)
    return clock() - start


def main() -> int:
    """0 if the limit is kept in every layout."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--megabytes", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--cpu", action="store_true", help="processor time")
    asked = parser.parse_args()
    clock = processor_time if asked.cpu else time.perf_counter
    verify = [sys.executable, "-m", "zero_convert", "verify"]
    worst = 0.0
    print("| layout | bytes | sha256sum | start-up | verify | ratio | limit |\n|---|---|---|---|---|---|---|")
    for name, make in LAYOUTS.items():
        with tempfile.TemporaryDirectory() as top:
            for part in ("large", "small"):
                (Path(top) / part).mkdir()
            files = make(Path(top) / "large", asked.megabytes * 1_000_000)
            small = make(Path(top) / "small", 0)[0]
            jobs = {"sum": ["sha256sum", *map(str, files)], "start": [*verify, str(small)]}
            jobs["verify"] = [*verify, str(files[0])]
            best = dict.fromkeys(jobs, float("inf"))
            for _ in range(asked.repeats):
                for job, command in jobs.items():
                    best[job] = min(best[job], seconds(command, clock))
            ratio = best["verify"] / (best["sum"] + best["start"])
            worst = max(worst, ratio)
            size = sum(path.stat().st_size for path in files)
            cells = [name, f"{size:,}", *(f"{best[job]:.2f} s" for job in jobs), f"{ratio:.2f}", str(LIMIT)]
            print(f"| {' | '.join(cells)} |", flush=True)
    return 0 if worst <= LIMIT else 1


if __name__ == "__main__":
    sys.exit(main())
