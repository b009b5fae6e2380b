"""Do two environments give the same bytes? On demand: a fresh one takes minutes and about 6 GB.

    python -m benchmarks.versions safetensors 2.11.0 2.15.0       versions of torch, each installed into an environment
    python -m benchmarks.versions onnx 2.11.0 path/to/python      or an interpreter that has one
    python -m benchmarks.versions onnx PYTHON PYTHON resnet18     only conversions whose name holds one of these words

`safetensors` makes every conversion of `tests/goldens.py` with each, and other bytes are a defect. `onnx` makes those
of `ONNX`; there the exporter's versions choose the nodes: other bytes are told, and only other weights or another
start are a defect.
Prints one Markdown table; ends with 1 at a defect. torchvision comes in the version that its own requirements tie to
that torch.
"""

from __future__ import annotations

import io
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
SMALL = ("tiny_resnet", "PreActivationResNet", "BottleneckNet", "NormFreeNet")
LARGE = ("resnet18", "mobilenet_v2", "convnext_tiny", "regnet_y_400mf", "efficientnet_b0", "vit_b_16")
ONNX = [*((f"tests.nets:{name}", "1x3x32x32") for name in SMALL), *((name, "") for name in LARGE)]
SCHEMES = ("zero-2021", "zero-2022")
LIBRARIES = {
    "safetensors": ("torch", "torchvision", "safetensors"),
    "onnx": ("torch", "torchvision", "safetensors", "onnx", "onnx_ir", "onnxscript"),
}
COUNTED = ("sha256", "weights_digest", "start_digest")

Digests = dict[str, dict[str, str]]


def asked(key: str, words: Sequence[str]) -> bool:
    """Whether a conversion is wanted: it holds one of the words, or there are none."""
    return not words or any(word in key for word in words)


def safetensors(words: Sequence[str]) -> Digests:
    """Conversion → its digests, for the conversions that have golden ones."""
    from tests.goldens import CASES, digests

    return {case.key: digests(case) for case in CASES if asked(case.key, words)}


def onnx(words: Sequence[str]) -> Digests:
    """The same for ONNX files."""
    import zero_convert as zc
    from tests.goldens import identity
    from zero_convert.sources.inputs import parse_input

    found = {}
    for model, shape in ONNX:
        for scheme in (each for each in SCHEMES if asked(f"{model} {each}", words)):
            result = zc.convert(model, (parse_input(shape),) if shape else None, scheme=scheme, validate="none")
            written = result.write(io.BytesIO(), "onnx")
            found[f"{model} {scheme}"] = {"sha256": written.sha256, **identity(result)}
    return found


KINDS = {"safetensors": safetensors, "onnx": onnx}


def here(kind: str, words: Sequence[str]) -> dict[str, Any]:
    """Versions and digests of this interpreter."""
    versions = ", ".join(f"{name} {version(name)}" for name in LIBRARIES[kind])
    return {"versions": f"{versions}, Python {platform.python_version()}", "digests": KINDS[kind](words)}


def environment(version: str, folder: Path) -> Path:
    """The interpreter of a new virtual environment in `folder` with that torch and everything that we need."""
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    python = folder / "bin" / "python"
    wanted = [str(ROOT), f"torch=={version}", "torchvision"]
    subprocess.run([str(python), "-m", "pip", "install", "--quiet", *wanted], check=True, stdout=sys.stderr)
    return python


def ask(python: Path, kind: str, words: Sequence[str]) -> dict[str, Any]:
    """What `here` answers under that interpreter."""
    command = [str(python), "-m", "benchmarks.versions", "--here", kind, *words]
    surroundings = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, check=True, cwd=ROOT, env=surroundings, stdout=subprocess.PIPE, encoding="utf-8")
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def table(one: dict[str, Any], other: dict[str, Any]) -> tuple[str, dict[str, int]]:
    """The Markdown table, and how many conversions have the same file and the same weights."""
    first, second = one["digests"], other["digests"]
    counts = {name: sum(first[key][name] == second[key][name] for key in first) for name in COUNTED}
    lines = [f"A: {one['versions']}", "", f"B: {other['versions']}", ""]
    lines += ["| conversion | sha256 with A | sha256 with B | file | weights | start |", "|---|---|---|---|---|---|"]
    for key in first:
        same = ["same" if first[key][name] == second[key][name] else "**differ**" for name in COUNTED]
        lines.append(
            f"| {key} | `{first[key]['sha256'][:16]}…` | `{second[key]['sha256'][:16]}…` | {' | '.join(same)} |"
        )
    files, weights, starts = counts.values()
    lines += [
        "",
        f"{files} of {len(first)} files have the same bytes, {weights} the same weights, {starts} are the same start.",
    ]
    return "\n".join(lines), counts


def main(arguments: list[str]) -> int:
    if arguments[:1] == ["--here"] and arguments[1] in KINDS:
        printed, sys.stdout = sys.stdout, sys.stderr
        print(json.dumps(here(arguments[1], arguments[2:])), file=printed)
        return 0
    if len(arguments) < 3 or arguments[0] not in KINDS:
        print(__doc__, file=sys.stderr)
        return 2
    kind, words, answers = arguments[0], arguments[3:], []
    for each in arguments[1:3]:
        if Path(each).is_file():
            answers.append(ask(Path(each), kind, words))
            continue
        with tempfile.TemporaryDirectory() as folder:
            answers.append(ask(environment(each, Path(folder)), kind, words))
    text, counts = table(*answers)
    print(text)
    promised = [counts[name] for name in COUNTED if kind == "safetensors" or name != "sha256"]
    return int(min(promised) < len(answers[0]["digests"]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
