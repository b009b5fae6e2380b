"""How long the conversion of large models takes next to building and saving them, in one run.

    python -m benchmarks.large [--rounds 3] [MODEL …]

The floor of each model is a process that imports its library, constructs it and calls `save_file`; ours is
`zero-convert MODEL --validate none` under both schemes. All are started in turns; the medians of elapsed time count.
Prints one Markdown table; ends with 1 if a limit is passed.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

from .convert import SCHEMES, once

LIMIT = 1.5  # of the ratio to the floor, for models of about 100 million parameters
MODELS = (
    "timm:swinv2_base_window8_256",
    "transformers:bert",
    "torchvision:vit_b_16",
    "torchvision:regnet_y_16gf",
    "torchvision:convnext_base",
)


def floor(model: str, path: str) -> None:
    """Builds the model as one would without us, and writes it; a tensor with two names is written once."""
    from safetensors.torch import save_model

    origin, _, name = model.partition(":")
    if origin == "torchvision":
        import torchvision

        module = torchvision.models.get_model(name)
    elif origin == "timm":
        import timm

        module = timm.create_model(name)
    else:
        import transformers

        module = transformers.AutoModel.from_config(transformers.AutoConfig.for_model(name))
    save_model(module, path)


def commands(model: str, path: str) -> dict[str, list[str]]:
    """What is timed for one model: scheme or "floor" → command line."""
    ours = [sys.executable, "-m", "zero_convert", model, "--validate", "none", "--force", "--out", path]
    plain = [sys.executable, "-m", "benchmarks.large", "--floor", path, model]
    return {**{scheme: [*ours, "--scheme", scheme] for scheme in SCHEMES}, "floor": plain}


def main() -> int:
    parser = argparse.ArgumentParser(description="Time the conversion of large models.")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each command that count")
    parser.add_argument("--floor", metavar="FILE", help="only build and save the one MODEL")
    parser.add_argument("models", nargs="*", metavar="MODEL", default=MODELS)
    given = parser.parse_args()
    if given.floor:
        floor(given.models[0], given.floor)
        return 0
    print(f"Median of {given.rounds} runs in turns\n")
    print(f"| model | floor, s | {' | '.join(f'{scheme}, s | ÷ floor' for scheme in SCHEMES)} |")
    print(f"|---|---:|{'---:|---:|' * len(SCHEMES)}")
    over = []
    for model in given.models:
        with tempfile.TemporaryDirectory() as folder:
            timed = commands(model, str(Path(folder, "a.safetensors")))
            rounds = [{name: once(line, folder)[0] for name, line in timed.items()} for _ in range(given.rounds + 1)]
        medians = {name: statistics.median(taken[name] for taken in rounds[1:]) for name in timed}
        ratios = {scheme: medians[scheme] / medians["floor"] for scheme in SCHEMES}
        cells = (f"{medians[scheme]:.2f} | {ratios[scheme]:.2f}" for scheme in SCHEMES)
        print(f"| `{model}` | {medians['floor']:.2f} | {' | '.join(cells)} |", flush=True)
        over += [f"{model} {scheme}" for scheme in SCHEMES if ratios[scheme] > LIMIT]
    print(f"\nLimit: {LIMIT:g} × floor. {'Passed: ' + ', '.join(over) if over else 'It is kept.'}")
    return int(bool(over))


if __name__ == "__main__":
    sys.exit(main())
