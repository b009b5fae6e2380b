"""The command line; `python -m benchmarks.runtimes --help`."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch

from .child import RUNTIMES
from .networks import NETWORKS, SCHEMES, case
from .table import LIMIT, Outcome, outcome, table


def main() -> int:
    parser = argparse.ArgumentParser(description="Other runtimes on the ONNX files of six networks, live weights.")
    parser.add_argument("--python", default=sys.executable, help="of the environment that has the runtimes")
    parser.add_argument("--node-modules", default="", help="folder with onnxruntime-web")
    parser.add_argument("--only", nargs="+", choices=list(RUNTIMES), default=list(RUNTIMES), metavar="RUNTIME")
    parser.add_argument("--out", type=Path, help="file for the table; otherwise it is printed")
    parser.add_argument("networks", nargs="*", metavar="NETWORK", help=", ".join(NETWORKS))
    given = parser.parse_args()
    networks = given.networks or list(NETWORKS)
    if strange := sorted(set(networks) - set(NETWORKS)):
        parser.error(f"no such network: {', '.join(strange)}")
    outcomes, text = list[Outcome](), ""
    for network in networks:
        for scheme in SCHEMES:
            with tempfile.TemporaryDirectory() as folder:
                made = case(network, scheme, Path(folder).resolve())
                environment = {"NODE_MODULES": given.node_modules}
                outcomes += [outcome(name, made, given.python, environment) for name in given.only]
            text = introduction() + "\n".join(table(outcomes, networks)) + "\n"
            if given.out is not None:
                given.out.write_text(text, encoding="utf-8")  # as far as it is
    if given.out is None:
        print(text, end="")
    return int(any(not each.right and not each.missing for each in outcomes))


def introduction() -> str:
    versions = [f"{module.__name__} {module.__version__}" for module in (torch, onnx, onnxruntime, np)]
    return f"""# Other runtimes on the ONNX files

`python -m benchmarks.runtimes`, on the CPU. Each file has live weights: the graph as it was exported, every float
initializer replaced by seeded numbers. The numbers are the largest difference from ONNX Runtime without graph
optimization, relative to the largest value of the output, the worst of all outputs and of two sets of two samples.
A runtime is right up to {LIMIT:g}. OpenVINO runs with `INFERENCE_PRECISION_HINT=f32`.

Files and reference: {", ".join(versions)}.

"""


if __name__ == "__main__":
    sys.exit(main())
