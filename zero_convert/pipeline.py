"""The corridor: load → trace → analyze → rewrite → analyze → initialize → validate; export → seal in `Result.save`.

Rooms never call each other; what one needs of another passes through here, or through `conversion.py`, the first half
of the way. `restore.py` goes back from a file to the module.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from . import checks
from .checks.subject import Subject
from .conversion import Inputs, cast, load_source, one_of, prepare
from .errors import CoverageError, UsageError
from .exporters.onnx import needs_data_file
from .initialization.constants import nan_names
from .records import Check, Option, Plan, Structure
from .restore import load as load
from .result import Progress, tell
from .result import Result as Result
from .result import Saved as Saved
from .result import refuse_failed as refuse_failed
from .runtime.signals import undone_by
from .sources.building.fingerprint import fingerprint
from .structure import analyze
from .tracing import trace
from .validation import Validation as Validation
from .validation import validate as validate

DTYPES = ("float32", "float16", "bfloat16")
VALIDATE = ("quick", "full", "none")


@dataclass(frozen=True)
class Inspection:
    """A model as given: its structure before any rewriting, and how it was captured."""

    name: str
    source: str
    structure: Structure
    rung: str
    rungs_failed: tuple[str, ...]
    parameters: int
    buffers: int
    fingerprint: str
    captured: float  # share of the parameters inside captured graphs


@torch.inference_mode(False)
def convert(
    model: str | nn.Module,
    example_inputs: Inputs | None = None,
    *,
    scheme: str = "zero-2021",
    options: Mapping[str, Option] | None = None,
    model_args: Mapping[str, Any] | None = None,
    dtype: str = "float32",
    device: str = "auto",
    validate: str = "quick",
    leftovers: str = "error",
    arch: str | None = None,
    trust: bool = False,
    train_steps: int | None = None,
    formats: Sequence[str] = (),
    progress: Progress | None = None,
) -> Result:
    """The model rewritten for the scheme, every parameter filled by a closed formula, and checked.

    Args:
        model: an nn.Module (never changed: a copy is converted) or a MODEL string such as "resnet50", or the path
            of a model file.
        example_inputs: positional arguments of `forward`, or a dict of its arguments by name; None takes the source's
            convention.
        scheme: a name from `zero-convert schemes`.
        options: the scheme's options, {"mixing": "permute"}; the rest at their defaults.
        model_args: keyword arguments for the factory behind a MODEL string.
        dtype: of all floating tensors: "float32", "float16" or "bfloat16".
        device: where the checks run: "auto", "cpu", "cuda", "cuda:N" or "mps".
        validate: "quick", "full" or "none".
        leftovers: what a trainable tensor without a rule gets: "error", "zeros" or "keep".
        arch: with a file as `model`: the MODEL string that its structure comes from. Its values then serve only for
            what the scheme leaves, and only with leftovers="keep".
        trust: a file without `arch` is loaded by torch, which runs code from it.
        train_steps: of the check `training`; by default 10 with "full", none with "quick".
        formats: that it will be saved in; with "full", "onnx" has ONNX Runtime compute the export too.
        progress: called with (step, detail) when a step begins.

    Failed checks do not raise here: see `Result.failed`; `Result.save` refuses then.

    Raises:
        UsageError, LoadError, TraceError, CoverageError, DeviceError: as their names say, with what to do about it.
    """
    one_of("dtype", dtype, DTYPES)
    one_of("validate", validate, VALIDATE)
    if train_steps and validate == "none":
        raise UsageError(
            "steps of training are a check, and no checks were asked for",
            where="--train-steps",
            got="--validate none",
            fix="Leave one of the two out.",
        )
    where, note = checks.resolve(device)
    made = prepare(
        model,
        example_inputs,
        scheme,
        options,
        model_args,
        leftovers,
        progress,
        arch=arch,
        trust=trust,
        compare=validate != "none",
    )
    tell(progress, "initialize", made.scheme.name)
    assignments = made.fill(write=True)
    made.traced.root.train(made.training)
    if nan := nan_names(made.traced.root):
        raise CoverageError("values are left that no rule wrote", where=", ".join(nan[:6]), got="NaN")
    found: tuple[Check, ...] = ()
    if validate != "none":
        tell(progress, "validate", where)
        subject = Subject(
            made.traced,
            made.structure,
            made.scheme,
            made.options,
            assignments,
            made.inputs,
            made.outputs,
            made.original,
        )
        found = checks.run(subject, level=validate, device=where, train_steps=train_steps, progress=progress)
    cast(made.traced.root, dtype)
    result = Result(
        module=made.release(),
        plan=made.plan(assignments),
        checks=found,
        recipe=made.recipe(dtype),
        structure=made.structure,
        fingerprint=made.fingerprint,
        device=f"{where} ({note})" if note else where,
        inputs=made.loaded.example_inputs or (),
        graph=made.traced.evaluate if made.traced.whole else None,
        original=made.original,
    )
    if validate == "full" and "onnx" in formats:
        tell(progress, "validate", f"parity on {where}")
        result.checks += (_parity(result, subject, device=where, strict=device.startswith("cuda")),)
    return result


def _parity(result: Result, subject: Subject, *, device: str, strict: bool) -> Check:
    """The answer of `parity` for the ONNX file that the result would be saved as; the file is gone afterwards."""
    if needs_data_file(result.entries()):
        question = "Do torch and ONNX Runtime return the same?"
        summary = "the model is beyond one file; `validate FILE` compares it once written"
        return Check("parity", "skip", question, summary)
    with tempfile.TemporaryDirectory() as folder, undone_by(lambda: shutil.rmtree(folder, ignore_errors=True)):
        path = Path(folder, "model.onnx")
        with path.open("wb") as stream:
            result.write(stream, "onnx")
        return checks.compare_export(subject, path, device=device, dtype=result.recipe.dtype, strict=strict)


@torch.inference_mode(False)
def plan(
    model: str | nn.Module,
    example_inputs: Inputs | None = None,
    *,
    scheme: str = "zero-2021",
    options: Mapping[str, Option] | None = None,
    model_args: Mapping[str, Any] | None = None,
    leftovers: str = "error",
    arch: str | None = None,
    trust: bool = False,
    progress: Progress | None = None,
) -> Plan:
    """Every edit and every tensor's rule, without writing a value. Arguments and errors as for `convert`."""
    made = prepare(model, example_inputs, scheme, options, model_args, leftovers, progress, arch=arch, trust=trust)
    return made.plan(made.fill(write=False))


@torch.inference_mode(False)
def inspect_model(
    model: str | nn.Module,
    model_args: Mapping[str, Any] | None = None,
    example_inputs: Inputs | None = None,
    progress: Progress | None = None,
) -> Inspection:
    """The structure of a model as given: layers with roles, residual joins, gates. Errors as for `convert`."""
    loaded = load_source(model, model_args, example_inputs, progress)
    tell(progress, "trace", loaded.source)
    traced = trace(loaded.module, loaded.example_inputs or ())
    tell(progress, "analyze", "")
    return Inspection(
        name=loaded.name,
        source=loaded.source,
        structure=analyze(traced),
        rung=traced.rung,
        rungs_failed=traced.failed,
        parameters=sum(p.numel() for p in loaded.module.parameters()),
        buffers=sum(b.numel() for b in loaded.module.buffers()),
        fingerprint=fingerprint(loaded.module),
        captured=traced.captured,
    )
