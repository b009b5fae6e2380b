"""Eighteen networks on every device at hand: parity, placement, whole numbers, digests, time.

    python -m benchmarks.gpu [--device webgpu --device cuda] [--out FILE] [NAME …]

Each network is converted under two schemes and exported. Every float initializer is replaced by seeded numbers, so that
nothing is 0 and no two channels are alike, and ONNX Runtime computes two samples on its CPU and on the device, nothing
optimized: `parity` is the largest difference over the largest value. `exact` is the largest difference of layers of 0
and ±1 on integers (the check `exact_parts`, quick), `digest` whether the weights digest of the network asked on the
device is that of a conversion on the CPU. The page is written anew after each row. A device that is not there has one
row, "not run", with the reason. Ends with 1 if a row is beyond its limit and names no node, with 5 without a device.
"""

from __future__ import annotations

import argparse
import io
import platform
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch

import zero_convert as zc
from benchmarks.runtimes.networks import NETWORKS, SCHEMES, inputs, make_live, reference
from tests.tiny_transformers import TINY
from zero_convert import checks
from zero_convert.checks.harness import onnxruntime as sessions
from zero_convert.checks.harness.bench import CheckContext
from zero_convert.checks.harness.isolation import pinned
from zero_convert.checks.harness.session import SessionContext
from zero_convert.checks.parity import first_beyond
from zero_convert.conversion import prepare
from zero_convert.errors import DeviceError, ZeroConvertError
from zero_convert.exporters import safetensors
from zero_convert.exporters.entries import entries_of
from zero_convert.exporters.onnx.written import with_all_values
from zero_convert.options import Options

LIMIT = 1e-4
SIDE = 32  # of images
VISION = ("densenet121", "mnasnet0_5", "mobilenet_v3_small", "regnet_y_400mf", "shufflenet_v2_x0_5", "squeezenet1_1")
TEXT = ("bart", "convnextv2", "deit", "distilbert", "gpt2", "llama")  # tiny ones
ALL: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    **NETWORKS,
    "vit_tiny": (NETWORKS["vit_tiny"][0], {"img_size": SIDE}),
    **{name: (f"torchvision:{name}", {}) for name in VISION},
    **{name: (f"transformers:{name}", TINY[name]) for name in TEXT},
}
COLUMNS = (
    "network",
    "scheme",
    "device",
    "parity",
    "exact",
    "on the device",
    "on the CPU",
    "floats there",
    "digest",
    "s",
)


@dataclass(frozen=True)
class Row:
    """One line of the table, and whether it is within the limits or has its reason."""

    cells: tuple[str, ...]
    well: bool


def row(name: str, scheme: str, device: str, folder: Path) -> Row:
    """A network under a scheme on a device."""
    source, arguments = ALL[name]
    image = (torch.zeros(1, 3, SIDE, SIDE),) if source.startswith(("torchvision", "timm")) else None
    given: dict[str, Any] = {"scheme": scheme, "model_args": dict(arguments), "validate": "none"}
    path = folder / "live.onnx"
    try:
        result = zc.convert(source, image, **given)
        result.save(path, force=True)
        model = onnx.load(path)
        make_live(model)
        onnx.save(model, path)
        fed = inputs(model, whole=False)
        begin = time.perf_counter()
        made = sessions.run(path, list(fed.values()), device, strict=False)
        seconds = time.perf_counter() - begin
        exact, digest = exactness(source, Options(image, **given), device)
    except ZeroConvertError as error:
        return Row((name, scheme, device, f"{error.what}: {error.got}", *[""] * 6), False)
    right = reference(path, fed)
    parity = max(float(np.abs(made.outputs[key] - value).max() / np.abs(value).max()) for key, value in right.items()
                 if value.dtype.kind == "f")  # fmt: skip
    there = made.placement.get(sessions.provider_of(device), 0)
    fallen = sessions.told(made.fallen) if made.fallen else "none"
    same = digest == result.weights_digest
    reason = first_node(path, fed, device) if parity > LIMIT else ""
    cells = (
        f"{parity:.1e}{f', first beyond the limit at {reason}' if reason else ''}",
        exact,
        str(there),
        str(made.placement.get(sessions.CPU, 0)),
        fallen,
    )
    well = (parity <= LIMIT or bool(reason)) and exact in ("0", "none to ask") and same
    return Row((name, scheme, device, *cells, "equal" if same else "ANOTHER", f"{seconds:.1f}"), well)


def first_node(path: Path, fed: Mapping[str, Any], device: str) -> str:
    """The first node whose value is beyond the limit on the device, and its operator."""
    content, values = with_all_values(path)
    named = {node or value: value for node, value in values}
    here, there = (sessions.run(content, list(fed.values()), each, strict=False).outputs for each in ("cpu", device))
    reference, mine = ({node: made[value] for node, value in named.items()} for made in (here, there))
    return first_beyond(reference, mine, LIMIT)


def exactness(source: str, options: Options, device: str) -> tuple[str, str]:
    """The largest difference on integers, and the weights digest of the network that was asked."""
    conversion = prepare(source, options)
    subject = conversion.subject(conversion.fill(write=True))
    own = checks.torch_device(device)
    with pinned(own, subject.traced):
        context = CheckContext(subject, "quick", own)
        if own != device:
            context = SessionContext(context, device, False)
        answer = checks.answer("exact_parts", context)
    told = "none to ask"
    if answer is not None:
        told = f"{max([*answer.numbers['different'].values(), *answer.numbers['excused'].values()], default=0):.2g}"
        told += f" ({sessions.told(context.fallen)})" if isinstance(context, SessionContext) and context.fallen else ""
    stream = io.BytesIO()
    return told, safetensors.write(stream, entries_of(subject.traced.root)).weights_digest


def about(device: str, note: str) -> str:
    """The device and the versions, one line."""
    facts = [note]
    if device.startswith("cuda"):
        facts = [
            torch.cuda.get_device_name(device),
            f"CUDA {torch.version.cuda}, onnxruntime {onnxruntime.__version__}",
        ]
    facts += [f"torch {torch.__version__}", f"Python {platform.python_version()}", platform.system()]
    return f"* `{device}`: {', '.join(facts)} {platform.machine()}"


def page(abouts: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """The table with what it was measured on."""
    head = [
        "# Networks on devices\n",
        "`python -m benchmarks.gpu`: live weights (seeded numbers in place of every float initializer), two samples,",
        f"images of {SIDE} pixels, tiny configurations of transformers; ONNX Runtime on the device against its CPU,",
        "nothing optimized. `parity`: largest difference over the largest value. `exact`: of layers of 0 and ±1 on",
        "integers. `s`: session and first run, compilation of shaders included.\n",
        *abouts,
        "",
        f"| {' | '.join(COLUMNS)} |",
        "|---|---|---|---:|---:|---:|---:|---|---|---:|",
    ]
    return "\n".join([*head, *(f"| {' | '.join(cells)} |" for cells in lines), ""])


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", action="append", help="webgpu and cuda by default; repeatable")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "gpu.md")
    parser.add_argument("names", nargs="*", default=list(ALL))
    given = parser.parse_args(argv)
    abouts, lines, well, there = list[str](), list[Sequence[str]](), True, []
    for asked in given.device or ("webgpu", "cuda"):
        try:
            device, note = checks.resolve(asked)
        except DeviceError as error:
            print(error, file=sys.stderr)
            lines.append(("all", "", asked, f"not run: {error.got}", *[""] * 6))
            continue
        there.append(device)
        abouts.append(about(device, note))
    if not there:
        return DeviceError.exit_code
    with checks.held(), tempfile.TemporaryDirectory() as folder:
        for device in there:
            for name in given.names:
                for scheme in SCHEMES:
                    one = row(name, scheme, device, Path(folder))
                    lines.insert(len(lines) - lines_not_run(lines), one.cells)
                    well &= one.well
                    print(" | ".join(one.cells), file=sys.stderr, flush=True)
                    given.out.write_text(page(abouts, lines), "utf-8")
    return 0 if well else 1


def lines_not_run(lines: Sequence[Sequence[str]]) -> int:
    """How many lines, which stay last, tell of a device that is not at hand."""
    return sum(cells[0] == "all" for cells in lines)


if __name__ == "__main__":
    sys.exit(main())
