"""The corridor: load → trace → analyze → rewrite → analyze → initialize → validate; export → seal in `Result.save`.

Rooms never call each other; what one needs of another passes through here, or through `conversion.py`, the first half
of the way. `restore.py` goes back from a file to the module.
"""

from __future__ import annotations

import functools
import inspect
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar, get_type_hints

import torch
from torch import nn

from zero_convert.runtime.patches import one_at_a_time

from . import checks
from .checks.subject import Subject
from .conversion import load_source, prepare
from .errors import CoverageError, UsageError
from .exporters.onnx import needs_data_file
from .graph.architecture.original_class import original_class
from .initialization.constants import nan_names
from .model_ref import ModelRef
from .options import Inputs, Options, RecipeOptions
from .records import Check, Plan, Structure
from .restore import load as load
from .result import Result as Result
from .result import refuse_failed as refuse_failed
from .runtime.progress import Progress, tell
from .runtime.signals import undone_by
from .saving import Saved as Saved
from .sources.building.fingerprint import fingerprint
from .sources.building.settings import exporting
from .structure import analyze
from .tracing import trace
from .validation import Validation as Validation
from .validation import validate as validate

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True)
class Inspection:
    """A model as given: its structure before any rewriting, and how it was captured."""

    name: str
    source: str
    structure: Structure
    capture: str = field(metadata={"json": "rung"})
    capture_attempts: tuple[str, ...] = field(metadata={"json": "rungs_failed"})
    parameters: int
    buffers: int
    fingerprint: str
    captured: float  # share of the parameters inside captured graphs


def _by_keywords(
    options: Callable[P, Options],
) -> Callable[[Callable[[str | nn.Module, Options], T]], Callable[Concatenate[str | nn.Module, P], T]]:
    """Gives a function of a model and its options the fields of the record as arguments, in its help as well."""

    def decorate(function: Callable[[str | nn.Module, Options], T]) -> Callable[Concatenate[str | nn.Module, P], T]:
        @functools.wraps(function)
        def by_keywords(model: str | nn.Module, *args: P.args, **kwargs: P.kwargs) -> T:
            return function(model, options(*args, **kwargs))

        documented = ((inspect.getdoc(base) or "").partition("Attributes:\n")[2] for base in (Options, RecipeOptions))
        documentation = "\n".join(text.partition("\n\n")[0] for text in documented)
        by_keywords.__doc__ = inspect.cleandoc(function.__doc__ or "").replace("    OPTIONS", documentation)
        own, hints = inspect.signature(function), get_type_hints(Options)
        empty: dict[str, Any] = {spec.name: {} for spec in fields(Options) if spec.default_factory is not MISSING}
        arguments = [
            argument.replace(annotation=hints[name], default=empty.get(name, argument.default))
            for name, argument in inspect.signature(options).parameters.items()
        ]
        signature = own.replace(parameters=[own.parameters["model"], *arguments])
        by_keywords.__signature__ = signature  # type: ignore[attr-defined]
        return by_keywords  # type: ignore[return-value]  # `model` may be given by its name as well

    return decorate


@_by_keywords(Options)
@one_at_a_time()
@checks.held()
@torch.inference_mode(False)
def convert(model: str | nn.Module, options: Options) -> Result:
    """The model rewritten for the scheme, every parameter filled by a closed formula, and checked.

    Args:
        model: an nn.Module (never changed: a copy is converted) or a MODEL string such as "resnet50", or the path
            of a model file.
        OPTIONS

    Failed checks do not raise here: see `Result.failed`; `Result.save` refuses then.

    Raises:
        UsageError, LoadError, TraceError, CoverageError, DeviceError: as their names say, with what to do about it.
    """
    if options.train_steps and options.validate == "none":
        raise UsageError(
            "steps of training are a check, and no checks were asked for",
            where="--train-steps",
            got="--validate none",
            fix="Leave one of the two out.",
        )
    where, note = checks.resolve(options.device)
    progress = options.progress
    conversion = prepare(model, options, compare=options.validate != "none")
    tell(progress, "initialize", conversion.scheme.name)
    assignments = conversion.fill(write=True)
    if nan := nan_names(conversion.traced.root):
        raise CoverageError("values are left that no rule wrote", where=", ".join(nan[:6]), got="NaN")
    answers: tuple[Check, ...] = ()
    subject = conversion.subject(assignments)
    if options.validate != "none":
        tell(progress, "validate", where)
        answers = checks.run(
            subject,
            level=options.validate,
            device=where,
            strict=checks.is_strict(options.device),
            train_steps=options.train_steps,
            progress=progress,
        )
    result = Result(
        network=conversion.release(),
        plan=conversion.plan(assignments),
        checks=answers,
        recipe=conversion.recipe(),
        structure=conversion.structure,
        fingerprint=conversion.fingerprint,
        device=f"{where} ({note})" if note else where,
        inputs=conversion.loaded.example_inputs or (),
        graph=conversion.traced.evaluate if conversion.traced.whole else None,
        original=conversion.original,
        architecture_digest=conversion.architecture_digest,
        original_class=original_class(conversion.described, conversion.description),
        make_tree=lambda: conversion.tree,
        settings=conversion.loaded.settings,
    )
    if options.validate == "full" and "onnx" in options.formats:
        tell(progress, "validate", f"parity on {where}")
        strict = checks.is_strict(options.device)
        with exporting(result.settings):
            result.checks += (_parity(result, subject, device=where, strict=strict),)
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


@_by_keywords(Options)
@one_at_a_time()
@torch.inference_mode(False)
def plan(model: str | nn.Module, options: Options) -> Plan:
    """Every edit and every tensor's rule, without writing a value. Arguments and errors as for `convert`.

    What is asked of the checks and of the files changes nothing here.
    """
    conversion = prepare(model, options)
    return conversion.plan(conversion.fill(write=False))


@one_at_a_time()
@torch.inference_mode(False)
def inspect_model(
    model: str | nn.Module,
    model_args: Mapping[str, Any] | None = None,
    example_inputs: Inputs | None = None,
    progress: Progress | None = None,
) -> Inspection:
    """The structure of a model as given: layers with roles, residual joins, gates. Errors as for `convert`."""
    source = ModelRef.named(model) if isinstance(model, str) else model
    loaded = load_source(source, model_args, example_inputs, progress)
    tell(progress, "trace", loaded.source)
    traced = trace(loaded.module, loaded.example_inputs or ())
    tell(progress, "analyze", "")
    return Inspection(
        name=loaded.name,
        source=loaded.source,
        structure=analyze(traced),
        capture=traced.capture,
        capture_attempts=traced.failed,
        parameters=sum(p.numel() for p in loaded.module.parameters()),
        buffers=sum(b.numel() for b in loaded.module.buffers()),
        fingerprint=fingerprint(loaded.module),
        captured=traced.captured,
    )
