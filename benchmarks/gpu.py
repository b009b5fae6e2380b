"""What a GPU makes of it, measured: parity of four ways, and digests against the CPU's goldens.

    python -m benchmarks.gpu [--device cuda] [--out benchmarks/results/gpu.md]

Each network is converted with its checks on the device, exported to ONNX, and computed by torch and ONNX Runtime on the
CPU and on the device. The table names the device and the versions. Ends with 1 if a digest is not the golden one or a
check fails, and with 5, without writing anything, where there is no such device. Where ONNX Runtime does not compute on
the device, its column says why.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnxruntime
import torch

import zero_convert as zc
from tests.goldens import CASES, FILE
from zero_convert import checks
from zero_convert.errors import DeviceError

MODELS = ("resnet18", "resnet50", "mobilenet_v2", "vit_b_16")
SCHEMES = ("zero-2021", "zero-2022")


def head(device: str) -> str:
    """The device and the versions, one paragraph."""
    facts = [torch.cuda.get_device_name(device), f"torch {torch.__version__}", f"CUDA {torch.version.cuda}"]
    facts += [f"cuDNN {torch.backends.cudnn.version()}", f"onnxruntime {onnxruntime.__version__}"]
    return ", ".join([*facts, f"Python {platform.python_version()}", platform.platform(terse=True)])


def parity_rows(name: str, numbers: Mapping[str, Any]) -> list[str]:
    """One line of the table for each output and way."""
    rows = [
        f"| {name} | {way} | {output} | {e['max']:.1e} | {e['mean']:.1e} | {e['median']:.1e} | {e['tolerance']:.1e} | "
        f"{numbers['first_node'].get(way) or '–'} |"
        for way, each in numbers["ways"].items()
        for output, e in zip(numbers["outputs"], each, strict=False)
    ]
    return rows + [f"| {name} | {way} | {why} | | | | | |" for way, why in numbers["left_out"].items()]


def measured(device: str, folder: Path) -> tuple[list[str], list[str], bool]:
    """Lines of parity, lines of digests, and whether all is well."""
    parity, digests, well = [], [], True
    for model in MODELS:
        for scheme in SCHEMES:
            path = folder / "model.onnx"
            zc.convert(model, scheme=scheme, validate="none").save(path, force=True)
            answer = zc.validate(path, device=device, level="quick")
            well &= not answer.failed
            (check,) = (check for check in answer.checks if check.name == "parity")
            parity += parity_rows(f"{model} {scheme}", check.numbers)
            print(parity[-1], file=sys.stderr, flush=True)
    goldens = json.loads(FILE.read_text("utf-8"))
    for case in CASES:
        result = zc.convert(case.model, scheme=case.scheme, options=dict(case.options), dtype=case.dtype, device=device)
        same = result.weights_digest == goldens[case.key]["weights_digest"]
        failed = ", ".join(check.name for check in result.failed)
        well &= same and not failed
        digests.append(f"| {case.key} | {'equal' if same else 'ANOTHER'} | {failed or 'none fails'} |")
    return parity, digests, well


def page(about: str, parity: Sequence[str], digests: Sequence[str]) -> str:
    return "\n".join(
        [
            "# On a GPU\n",
            f"`python -m benchmarks.gpu`: {about}. TF32, algorithm search and graph optimizations are off.\n",
            "Differences from torch on the CPU, evaluation mode; `tolerance` is the smallest t with",
            "|a − b| ≤ t + t·|b| everywhere.\n",
            "| model | way | output | max | mean | median | tolerance | first node beyond 1e-4 |",
            "|---|---|---|---:|---:|---:|---:|---|",
            *parity,
            "\nWeights digests of conversions checked on the device, against the goldens made on a CPU:\n",
            "| conversion | digest | checks |",
            "|---|---|---|",
            *digests,
            "",
        ]
    )


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "gpu.md")
    given = parser.parse_args(argv)
    try:
        device, _ = checks.resolve(given.device)
    except DeviceError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    with tempfile.TemporaryDirectory() as folder:
        parity, digests, well = measured(device, Path(folder))
    given.out.write_text(page(head(device), parity, digests), "utf-8")
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
