"""The corridor: load → trace → analyze → rewrite → analyze → initialize → validate; export → seal in `Result.save`.

Rooms never call each other; what one needs of another passes through here.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_map

from . import checks, exporters, receipt, rewrites, schemes, sources
from .atomic import atomic_write, check_target
from .digests import Written, leaf_digest, weights_digest
from .errors import (
    CheckError,
    CoverageError,
    LoadError,
    MalformedError,
    ModelError,
    TraceError,
    UntrustedError,
    UsageError,
)
from .exporters import safetensors
from .initialize import initialize, nan_names, ties
from .live import Subject, Traced
from .records import Assignment, Check, Edit, Option, Plan, Recipe, Structure
from .scheme import Scheme
from .sources.inputs import parse_input
from .sources.recognize import fingerprint
from .structure import SAFETENSORS_DTYPES, analyze
from .tracing import retrace, trace
from .tracing.shapes import propagate_shapes, runs

Progress = Callable[[str, str], None]
Inputs = Sequence[Any] | Mapping[str, Any]  # arguments of forward: by position, or by name
Outputs = tuple[tuple[tuple[int, ...], str], ...]  # shape and dtype of each tensor that a forward returns
DTYPES = ("float32", "float16", "bfloat16")
VALIDATE = ("quick", "full", "none")


@dataclass(frozen=True)
class Saved:
    """One written artifact: where it and its receipt are, sha256 (hex) and size (bytes) of the file, weights digest."""

    path: Path
    receipt_path: Path
    sha256: str
    size: int
    weights_digest: str


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


@dataclass
class Result:
    """A converted model.

    Attributes:
        module: the network, initialized; trainable, deep-copyable, compilable; its state dict is what `save` writes.
        plan: every edit and every tensor's rule; its joins are those of the model as given.
        checks: the measured answers; empty for `validate="none"`.
        recipe: what makes the bytes.
        structure: layers and joins of the converted network.
        fingerprint: SHA-256 of the source model's structure.
        device: where the checks ran, with a note if that was not what "auto" hoped for.
    """

    module: nn.Module
    plan: Plan
    checks: tuple[Check, ...]
    recipe: Recipe
    structure: Structure
    fingerprint: str
    device: str
    _digest: str = field(default="", repr=False)
    _start: _Start = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._start = _Start.of(self.module)

    @property
    def failed(self) -> tuple[Check, ...]:
        """The checks that failed."""
        return tuple(check for check in self.checks if check.status == "fail")

    @property
    def weights_digest(self) -> str:
        """The `zc1` digest of the state dict, 64 hex digits; the same in every file format."""
        if not self._digest:
            entries = self._start.entries(self.module)
            leaves = {e.name: leaf_digest(e.name, e.dtype, e.shape, e.data()) for e in entries}
            self._digest = weights_digest(leaves)
        return self._digest

    def save(
        self,
        path: str | PathLike[str],
        *more: str | PathLike[str],
        force: bool = False,
        format: str | None = None,
        progress: Progress | None = None,
    ) -> tuple[Saved, ...]:
        """What was written: the artifact at each path, whole or not at all, and its receipt beside it.

        The file holds the start that the recipe makes. A forward in training mode since then (batch statistics) does
        not change it; a module that was trained is refused.

        Args:
            path: where to; the suffix says the format (`.safetensors`) unless `format` does.
            force: existing files may be replaced.

        Raises:
            CheckError: a check failed; nothing is written.
            UsageError: a file exists and `force` is not given, no such format, or the module was trained.
            StorageError: the file system said no; old files are as they were.
        """
        paths = [path, *more]
        targets = []
        for target in paths:
            exporters.format_of(target, format)
            targets += [check_target(target, force), check_target(receipt.receipt_path(target), force)]
        if len(set(targets)) < len(targets):
            raise UsageError("an output is named twice, or is the receipt of another", got=", ".join(map(str, paths)))
        refuse_failed(self.failed)
        return tuple(self._save(target, force, format, progress) for target in paths)

    def _save(self, path: str | PathLike[str], force: bool, format: str | None, progress: Progress | None) -> Saved:
        _tell(progress, "export", str(path))
        with atomic_write(path, force) as stream:
            written = self.write(stream)
        _tell(progress, "seal", str(receipt.receipt_path(path)))
        sealed = receipt.make_receipt(self.recipe, self.fingerprint, self.plan.edits, written, self.run_record())
        beside = receipt.write_receipt(path, sealed, force)
        return Saved(Path(path), beside, written.sha256, written.size, written.weights_digest)

    def write(self, stream: Any) -> Written:
        """The digests of the safetensors file that was written to the binary stream."""
        written = safetensors.write(stream, self._start.entries(self.module), receipt.metadata(self.recipe))
        self._digest = written.weights_digest
        return written

    def run_record(self) -> dict[str, Any]:
        """How the artifact was made: versions, device, checks. Not part of its identity."""
        return {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "platform": platform.platform(terse=True),
            "device": self.device,
            "checks": [
                {"name": c.name, "status": c.status, "summary": c.summary, "numbers": dict(c.numbers)}
                for c in self.checks
            ],
        }


def refuse_failed(failed: Sequence[Check]) -> None:
    """Raises CheckError if any check failed."""
    if failed:
        raise CheckError(
            f"{len(failed)} check{'s' if len(failed) > 1 else ''} failed, nothing was written",
            where=", ".join(check.name for check in failed),
            got=failed[0].summary,
            expected=failed[0].threshold,
            fix=failed[0].remedy,
        )


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
    progress: Progress | None = None,
) -> Result:
    """The model rewritten for the scheme, every parameter filled by a closed formula, and checked.

    Args:
        model: an nn.Module (never changed: a copy is converted) or a MODEL string such as "resnet50".
        example_inputs: positional arguments of `forward`, or a dict of its arguments by name; None takes the source's
            convention.
        scheme: a name from `zero-convert schemes`.
        options: the scheme's options, {"mixing": "permute"}; the rest at their defaults.
        model_args: keyword arguments for the factory behind a MODEL string.
        dtype: of all floating tensors: "float32", "float16" or "bfloat16".
        device: where the checks run: "auto", "cpu", "cuda", "cuda:N" or "mps".
        validate: "quick", "full" or "none".
        leftovers: what a trainable tensor without a rule gets: "error", "zeros" or "keep".
        progress: called with (step, detail) when a step begins.

    Failed checks do not raise here: see `Result.failed`; `Result.save` refuses then.

    Raises:
        UsageError, LoadError, TraceError, CoverageError, DeviceError: as their names say, with what to do about it.
    """
    _one_of("dtype", dtype, DTYPES)
    _one_of("validate", validate, VALIDATE)
    where, note = checks.resolve(device)
    made = _prepare(model, example_inputs, scheme, options, model_args, leftovers, progress)
    _tell(progress, "initialize", made.scheme.name)
    assignments = made.fill(write=True)
    made.traced.root.train(made.training)
    if nan := nan_names(made.traced.root):
        raise CoverageError("values are left that no rule wrote", where=", ".join(nan[:6]), got="NaN")
    found: tuple[Check, ...] = ()
    if validate != "none":
        _tell(progress, "validate", where)
        subject = Subject(
            made.traced, made.structure, made.scheme, made.options, assignments, made.inputs, made.outputs
        )
        found = checks.run(subject, level=validate, device=where, progress=progress)
    made.traced.root.to(getattr(torch, dtype))
    return Result(
        module=made.traced.root,
        plan=made.plan(assignments),
        checks=found,
        recipe=made.recipe(dtype),
        structure=made.structure,
        fingerprint=made.fingerprint,
        device=f"{where} ({note})" if note else where,
    )


def plan(
    model: str | nn.Module,
    example_inputs: Inputs | None = None,
    *,
    scheme: str = "zero-2021",
    options: Mapping[str, Option] | None = None,
    model_args: Mapping[str, Any] | None = None,
    leftovers: str = "error",
    progress: Progress | None = None,
) -> Plan:
    """Every edit and every tensor's rule, without writing a value. Arguments and errors as for `convert`."""
    made = _prepare(model, example_inputs, scheme, options, model_args, leftovers, progress)
    return made.plan(made.fill(write=False))


def inspect_model(
    model: str | nn.Module,
    model_args: Mapping[str, Any] | None = None,
    example_inputs: Inputs | None = None,
    progress: Progress | None = None,
) -> Inspection:
    """The structure of a model as given: layers with roles, residual joins, gates. Errors as for `convert`."""
    loaded = _load(model, model_args, example_inputs, progress)
    _tell(progress, "trace", loaded.source)
    traced = trace(loaded.module, loaded.example_inputs or ())
    _tell(progress, "analyze", "")
    return Inspection(
        name=loaded.name,
        source=loaded.source,
        structure=analyze(traced),
        rung=traced.rung,
        rungs_failed=traced.failed,
        parameters=sum(p.numel() for p in loaded.module.parameters()),
        buffers=sum(b.numel() for b in loaded.module.buffers()),
        fingerprint=fingerprint(loaded.module),
    )


def load(
    path: str | PathLike[str],
    model: str | nn.Module | None = None,
    example_inputs: Inputs | None = None,
    *,
    trust: bool = False,
) -> nn.Module:
    """The rewritten network that an artifact holds, with its weights, in training mode, on the CPU.

    The file alone is enough where its model came from an installed model library. It never makes us run other code:
    for a model from a user's own factory, say which one, or `trust=True` to run the one that the file names.

    Args:
        path: a file that `Result.save` wrote.
        model: the module or MODEL string to rebuild the network from, where the file cannot say.
        example_inputs: as for `convert`.
        trust: run the factory that the file names.

    Raises:
        MalformedError: no file of ours, or its tensors do not fit the network.
        UntrustedError: it names a factory outside the model libraries.
        LoadError: it names no model; and the errors of `convert`.
    """
    where = str(path)
    header = safetensors.read_header(path)
    recipe = receipt.recipe_from_metadata(header.metadata, where)
    if recipe is None:
        raise MalformedError("the file has no recipe", where=where, expected="a file that zero-convert wrote")
    arguments = None
    if model is None:
        model, arguments = _named_model(recipe, where, trust), recipe.model_args
    if example_inputs is None and recipe.inputs:
        example_inputs = _spelled_inputs(recipe.inputs)
    folders = [str(Path(path).parent)]
    made = _prepare(model, example_inputs, recipe.scheme, recipe.options, arguments, "keep", None, folders)
    module = made.traced.root
    module.to(getattr(torch, recipe.dtype))
    _fill_from(module, path, recipe, where)
    if nan := nan_names(module):
        raise MalformedError("values are left that the file does not hold", where=", ".join(nan[:6]), got="NaN")
    return module.train()


# ---------------------------------------------------------------------------------------------------------------------


@dataclass
class _Made:
    """Everything up to the moment the values are written."""

    loaded: sources.Loaded
    scheme: Scheme
    options: Mapping[str, Option]
    traced: Traced
    joins: Structure
    structure: Structure
    edits: tuple[Edit, ...]
    inputs: tuple[Any, ...]
    outputs: Mapping[str, Outputs]
    fingerprint: str
    training: bool
    leftovers: str
    needed: tuple[str, ...]

    def fill(self, *, write: bool) -> tuple[Assignment, ...]:
        return initialize(
            self.traced,
            self.structure,
            self.scheme,
            self.options,
            leftovers=self.leftovers,
            constructed=self.loaded.poisoned,
            drawn=self.loaded.drawn,
            write=write,
        )

    def plan(self, assignments: tuple[Assignment, ...]) -> Plan:
        return Plan(
            scheme=self.scheme.name,
            options=dict(self.options),
            rung=self.traced.rung,
            rungs_failed=self.traced.failed,
            joins=self.joins.joins,
            edits=self.edits,
            assignments=assignments,
            notes=(*self.loaded.notes, *self.joins.notes),
        )

    def recipe(self, dtype: str) -> Recipe:
        stored = ties(self.traced.root.state_dict(keep_vars=True))
        return Recipe(
            model=self.loaded.name,
            model_args=dict(self.loaded.model_args),
            scheme=self.scheme.name,
            options=dict(self.options),
            dtype=dtype,
            ties={name: first for name, first in stored.items() if name != first},
            source=self.loaded.source,
            leftovers=self.leftovers,
            inputs=self.needed,
        )


def _prepare(
    model: str | nn.Module,
    example_inputs: Inputs | None,
    scheme_name: str,
    options: Mapping[str, Option] | None,
    model_args: Mapping[str, Any] | None,
    leftovers: str,
    progress: Progress | None,
    folders: Sequence[str] = (),
) -> _Made:
    _one_of("leftovers", leftovers, receipt.LEFTOVERS)
    scheme = schemes.get(scheme_name)
    chosen = schemes.complete_options(scheme, options or {})
    loaded = _load(model, model_args, example_inputs, progress, folders)
    loaded = _single_precision(loaded)
    mark, training = fingerprint(loaded.module), loaded.module.training
    _tell(progress, "trace", loaded.source)
    given = loaded.example_inputs or ()
    inputs = tuple(given.values()) if isinstance(given, Mapping) else tuple(given)
    needed = _needed_inputs(loaded) if example_inputs is not None else ()
    traced = trace(loaded.module, given)
    outputs = {mode: _outputs(graph) for mode, graph in (("train", traced.train), ("evaluate", traced.evaluate))}
    _tell(progress, "analyze", f"{len(list(traced.train.nodes))} nodes")
    before = analyze(traced)
    _tell(progress, "rewrite", f"{sum(join.residual for join in before.joins)} residual joins")
    traced, edits = rewrites.apply(traced, scheme.rewrites(chosen), chosen)
    if edits and traced.whole:
        _same_outputs(traced, inputs, outputs, scheme, loaded.source)
    elif edits:
        traced = retrace(traced, traced.root, inputs)
    after = analyze(traced) if edits else before
    return _Made(
        loaded, scheme, chosen, traced, before, after, edits, inputs, outputs, mark, training, leftovers, needed
    )


def _single_precision(loaded: sources.Loaded) -> sources.Loaded:
    """The model in float32, in which it is rewritten and checked; what is written has the dtype that was asked for."""
    inputs = loaded.example_inputs
    if all(t.dtype is torch.float32 for t in loaded.module.state_dict().values() if t.is_floating_point()):
        return loaded
    loaded.module.float()
    inputs = tree_map(lambda x: x.float() if isinstance(x, torch.Tensor) and x.is_floating_point() else x, inputs)
    return replace(loaded, example_inputs=inputs)


def _needed_inputs(loaded: sources.Loaded) -> tuple[str, ...]:
    """The given example inputs as the recipe spells them, where the source's own would not do to trace the model."""
    usual, given = sources.conventional_inputs(loaded), loaded.example_inputs or ()
    named = given if isinstance(given, Mapping) else dict.fromkeys(range(0))
    values = tuple(named.values()) if named else tuple(given)
    if usual is None or not all(isinstance(x, torch.Tensor) for x in values):
        return ()
    if len(usual) == len(values) and isinstance(usual, Mapping) == bool(named) and runs(loaded.module, usual):
        return ()
    prefixes = [f"{name}=" for name in named] or [""] * len(values)
    return tuple(
        f"{prefix}{'x'.join(map(str, x.shape))}:{str(x.dtype).removeprefix('torch.')}"
        for prefix, x in zip(prefixes, values, strict=True)
    )


def _same_outputs(
    traced: Traced, inputs: Sequence[Any], outputs: Mapping[str, Outputs], scheme: Scheme, source: str
) -> None:
    """Raises ModelError if the rewritten network does not run, or returns other shapes than the original."""
    modes = {m: m.training for m in traced.root.modules()}
    traced.root.eval()
    for mode, graph in (("train", traced.train), ("evaluate", traced.evaluate)):
        try:
            propagate_shapes(traced.root, graph, inputs)
            made = _outputs(graph)
        except TraceError as error:
            made, cause = (), error.got
        else:
            cause = str(made)
        if made != outputs[mode]:
            raise ModelError(
                f"the rewrites of {scheme.name} do not fit this model",
                where=f"{source}, {mode} mode",
                got=cause,
                expected=f"the original's outputs {outputs[mode]}",
                fix="--scheme zero-2022 leaves the architecture as it is. Please report the model.",
            )
    for m, training in modes.items():
        m.training = training


def _load(
    model: str | nn.Module,
    model_args: Mapping[str, Any] | None,
    example_inputs: Inputs | None,
    progress: Progress | None,
    folders: Sequence[str] = (),
) -> sources.Loaded:
    _tell(progress, "load", model if isinstance(model, str) else type(model).__qualname__)
    if isinstance(example_inputs, torch.Tensor):
        example_inputs = (example_inputs,)
    if isinstance(model, str):
        loaded = sources.load(model, model_args or {}, inputs=example_inputs, folders=folders)
    else:
        loaded = sources.adopt(model, example_inputs)
    if loaded.example_inputs is None:
        raise UsageError(
            "example inputs cannot be guessed for this model",
            where=loaded.source,
            fix="Give them: --input 1x3x224x224, or example_inputs= in Python.",
        )
    return loaded


def _spelled_inputs(texts: Sequence[str]) -> Inputs:
    """The example inputs that a recipe spells: positional, or `name=shape`."""
    if all("=" in text for text in texts):
        return {name: parse_input(shape) for name, _, shape in (text.partition("=") for text in texts)}
    return tuple(parse_input(text) for text in texts)


def _named_model(recipe: Recipe, where: str, trust: bool) -> str:
    if not recipe.model:
        raise LoadError(
            "the file does not say how its model is built: it was converted from a live module",
            where=where,
            got=f"a {recipe.source}",
            fix="Pass the module, or a MODEL string, as `model=`.",
        )
    if recipe.model.partition(":")[0] not in sources.ORIGINS and not trust:
        raise UntrustedError(
            "the file names a factory outside the model libraries, and running it means running its code",
            where=where,
            got=repr(recipe.model),
            fix="Pass the module or factory as `model=`, or `trust=True` if you know that file and that code.",
        )
    return recipe.model


def _fill_from(module: nn.Module, path: str | PathLike[str], recipe: Recipe, where: str) -> None:
    from safetensors.torch import load_file

    tensors = load_file(path)
    state = module.state_dict(keep_vars=True)
    stored = set(ties(state).values())
    strange = sorted(stored ^ set(tensors))
    strange += sorted(
        name
        for name in stored & set(tensors)
        if (state[name].shape, state[name].dtype) != (tensors[name].shape, tensors[name].dtype)
    )
    if strange:
        raise MalformedError(
            f"the file does not fit the network that its recipe builds: {len(strange)} tensors differ",
            where=where,
            got=", ".join(strange[:6]),
            expected=f"the tensors of {recipe.model or recipe.source} under {recipe.scheme}",
            fix="The model library may have changed since; pass the model it was made from as `model=`.",
        )
    with torch.no_grad():
        for name in sorted(stored):
            state[name].copy_(tensors[name])


@dataclass(frozen=True)
class _Start:
    """What tells the converted module from the same module after a step of training.

    Attributes:
        buffers: copies of the stored buffers.
        versions: how often each stored parameter had been written to.
    """

    buffers: Mapping[str, torch.Tensor]
    versions: Mapping[str, int]

    @classmethod
    def of(cls, module: nn.Module) -> _Start:
        state = module.state_dict(keep_vars=True)
        parameters = {name: value._version for name, value in state.items() if isinstance(value, nn.Parameter)}
        return cls({name: value.clone() for name, value in state.items() if name not in parameters}, parameters)

    def entries(self, module: nn.Module) -> list[safetensors.Entry]:
        """The tensors of the state dict, ties resolved, as the exporter takes them.

        Raises:
            UsageError: a parameter was written to.
        """
        state = module.state_dict(keep_vars=True)
        moved = [name for name, version in self.versions.items() if state[name]._version != version]
        if moved:
            raise UsageError(
                "the module was changed after its conversion, and the recipe would not make these values again",
                where=", ".join(moved[:6]),
                fix="Save before training, or write trained weights with a tool of your own.",
            )
        stored = {name: self.buffers.get(name, state[name]) for name in dict.fromkeys(ties(state).values())}
        return [
            safetensors.Entry(name, SAFETENSORS_DTYPES[value.dtype], tuple(value.shape), partial(_bytes, value))
            for name, value in stored.items()
        ]


def _bytes(tensor: torch.Tensor) -> Any:
    plain = tensor.detach().cpu().contiguous()
    return plain.reshape(-1).view(torch.uint8).numpy() if plain.dtype is not torch.bool else plain.numpy()


def _outputs(graph: torch.fx.Graph) -> Outputs:
    outputs: Outputs = next(node.meta["outputs"] for node in graph.nodes if node.op == "output")
    return outputs


def _one_of(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise UsageError(f"{name} has no such value", got=repr(value), expected="one of " + ", ".join(choices))


def _tell(progress: Progress | None, step: str, detail: str) -> None:
    if progress is not None:
        progress(step, detail)
