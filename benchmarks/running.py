"""How fast a converted network runs next to the original, where nothing was rewritten.

    python -m benchmarks.running [--rounds 7] [MODEL …]

Under `zero-2022` the architecture stays, so a captured network must not run slower, whichever way it was traced. Both
networks run their example inputs in evaluation mode in this process, in turns, on one thread; the medians of processor
time count. Prints one Markdown table; ends with 1 if a limit is passed.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from zero_convert import convert, sources

LIMIT = 1.05  # of the ratio to the original
MODELS = (
    "torchvision:resnet50",
    "torchvision:vit_b_16",
    "timm:convit_tiny",
    "transformers:distilbert",
    "torchvision:ssdlite320_mobilenet_v3_large",
)


def seconds(module: nn.Module, inputs: Any) -> float:
    start = time.process_time()
    module(**inputs) if isinstance(inputs, Mapping) else module(*inputs)
    return time.process_time() - start


def main() -> int:
    parser = argparse.ArgumentParser(description="Time converted networks.")
    parser.add_argument("--rounds", type=int, default=7, help="runs of each network that count")
    parser.add_argument("models", nargs="*", metavar="MODEL", default=MODELS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    print(f"zero-2022, evaluation mode, one thread, processor time, median of {given.rounds} runs in turns\n")
    print("| model | capture | original, ms | converted, ms | ÷ original |")
    print("|---|---|---:|---:|---:|")
    over = []
    for model in given.models:
        result = convert(model, scheme="zero-2022", validate="none", device="cpu")
        inputs = sources.load(model, {}).example_inputs
        original = sources.load(model, {}).module
        original.load_state_dict(copy.deepcopy(result.module.state_dict()))  # the same values: the same work
        pair = (original.eval(), result.module.eval())
        with torch.no_grad():
            rounds = [[seconds(module, copy.deepcopy(inputs)) for module in pair] for _ in range(given.rounds + 1)]
        first, second = (statistics.median(column) for column in zip(*rounds[1:], strict=True))
        ratio = second / first
        print(
            f"| `{model}` | {result.plan.capture} | {first * 1e3:.1f} | {second * 1e3:.1f} | {ratio:.3f} |", flush=True
        )
        over += [model] if ratio > LIMIT else []
    print(f"\nLimit: {LIMIT:g} × the original. {'Passed: ' + ', '.join(over) if over else 'It is kept.'}")
    return int(bool(over))


if __name__ == "__main__":
    sys.exit(main())
