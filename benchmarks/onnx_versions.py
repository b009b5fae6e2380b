"""Do two environments write the same ONNX bytes? Measured, not promised: torch and onnxscript choose the nodes.

    python -m benchmarks.onnx_versions 2.11.0 path/to/python    versions of torch, or interpreters that have one

As `benchmarks.versions`, for ONNX files. Prints one Markdown table; ends with 1 if a weights digest differs.
"""

from __future__ import annotations

import io
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.versions import ROOT, environment

SMALL = ("tiny_resnet", "PreActivationResNet", "BottleneckNet", "NormFreeNet")
LARGE = ("resnet18", "mobilenet_v2", "convnext_tiny", "regnet_y_400mf", "efficientnet_b0", "vit_b_16")
CASES = [*((f"tests.nets:{name}", "1x3x32x32") for name in SMALL), *((name, "") for name in LARGE)]
SCHEMES = ("zero-2021", "zero-2022")
LIBRARIES = ("torch", "torchvision", "onnx", "onnx_ir", "onnxscript")


def here() -> dict[str, Any]:
    """Versions and digests of this interpreter."""
    from importlib.metadata import version

    import zero_convert as zc
    from zero_convert.sources.inputs import parse_input

    found = {}
    for model, shape in CASES:
        for scheme in SCHEMES:
            result = zc.convert(model, (parse_input(shape),) if shape else None, scheme=scheme, validate="none")
            written = result.write(io.BytesIO(), "onnx")
            found[f"{model} {scheme}"] = {"sha256": written.sha256, "weights": written.weights_digest}
    versions = ", ".join(f"{name} {version(name)}" for name in LIBRARIES)
    return {"versions": f"{versions}, Python {platform.python_version()}", "digests": found}


def ask(python: Path) -> dict[str, Any]:
    """What `here` answers under that interpreter."""
    command = [str(python), "-m", "benchmarks.onnx_versions", "--here"]
    surroundings = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, check=True, cwd=ROOT, env=surroundings, stdout=subprocess.PIPE, encoding="utf-8")
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def main(arguments: list[str]) -> int:
    if arguments == ["--here"]:
        printed, sys.stdout = sys.stdout, sys.stderr
        print(json.dumps(here()), file=printed)
        return 0
    if len(arguments) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    answers = []
    for each in arguments:
        if Path(each).is_file():
            answers.append(ask(Path(each)))
            continue
        with tempfile.TemporaryDirectory() as folder:
            answers.append(ask(environment(each, Path(folder))))
    one, other = answers
    print(f"A: {one['versions']}\n\nB: {other['versions']}\n")
    print("| conversion | A | B | file | weights |\n|---|---|---|---|---|")
    counts = {"sha256": 0, "weights": 0}
    for key, first in one["digests"].items():
        second = other["digests"][key]
        for name in counts:
            counts[name] += first[name] == second[name]
        same = ["same" if first[name] == second[name] else "**differ**" for name in counts]
        print(f"| {key} | `{first['sha256'][:16]}…` | `{second['sha256'][:16]}…` | {' | '.join(same)} |")
    total = len(one["digests"])
    print(f"\n{counts['sha256']} of {total} files have the same bytes, {counts['weights']} the same weights.")
    return int(counts["weights"] < total)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
