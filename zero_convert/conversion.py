"""Load → trace → analyze → rewrite → analyze: everything up to the moment the values are written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_map

from . import readers, rewrites, schemes, sources
from .artifacts import receipt
from .errors import DeclinedError, ModelError, TraceError, UsageError
from .graph.copies import copy_of
from .graph.original import keep
from .graph.ties import ties
from .graph.traced import Original, Traced
from .initialization.constants import unverified_buffers
from .initialization.fill import initialize
from .initialization.scheme import Scheme
from .records import Assignment, Edit, Option, Plan, Recipe, Structure
from .result import Progress, tell
from .runtime.threads import one_thread
from .sources.building import detectors
from .sources.building.fingerprint import fingerprint
from .sources.file_values import FileValues
from .sources.model_file import File, opened
from .sources.programs import torchscript
from .structure import analyze
from .tracing import record, retrace, trace
from .tracing.shapes import propagate_shapes, runs

SHOWN = 6  # parts and decisions named in a note
Inputs = Sequence[Any] | Mapping[str, Any]  # arguments of forward: by position, or by name
Outputs = tuple[tuple[tuple[int, ...], str], ...]  # shape and dtype of each tensor that a forward returns


@dataclass
class Made:
    """Everything up to the moment the values are written."""

    loaded: sources.Loaded
    found: schemes.Found
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
    notes: tuple[str, ...]  # what the reader of the plan should know about the capture
    captured: float  # of the model as given
    file: File | None = None
    file_values: Mapping[str, FileValues] = field(default_factory=dict)
    kept: bool = False  # whether values of the file are in the module
    original: Original | None = None  # where it was asked for

    @property
    def scheme(self) -> Scheme:
        return self.found.scheme

    def fill(self, *, write: bool) -> tuple[Assignment, ...]:
        assignments = initialize(
            self.traced,
            self.structure,
            self.scheme,
            self.options,
            leftovers=self.leftovers,
            constructed=self.loaded.poisoned,
            drawn=self.loaded.drawn,
            file_values=self.file_values,
            write=write,
        )
        self.kept = any(isinstance(a.formula, FileValues) for a in assignments)
        return assignments

    def release(self) -> nn.Module:
        """The rewritten module for the user; what was reduced while it was looked at is as it was made."""
        detectors.restore(self.loaded.reduced)
        return self.traced.root

    def plan(self, assignments: tuple[Assignment, ...]) -> Plan:
        return Plan(
            scheme=self.scheme.name,
            options=dict(self.options),
            rung=self.traced.rung,
            rungs_failed=self.traced.failed,
            joins=self.joins.joins,
            edits=self.edits,
            assignments=assignments,
            notes=(*self.loaded.notes, *self.notes, *self.joins.notes, *self._unverified_buffers(assignments)),
            captured=self.captured,
        )

    def _unverified_buffers(self, assignments: tuple[Assignment, ...]) -> tuple[str, ...]:
        """A note on values of a given module that nobody here can tell from drawn ones."""
        names = [] if self.loaded.poisoned else unverified_buffers(self.traced.root, assignments)
        if not names:
            return ()
        which = ", ".join(names[:SHOWN]) + (" …" if len(names) > SHOWN else "")
        return (
            f"buffers that keep the values of the given module: {which}; if its constructor drew them, the digest "
            "follows the draw (a factory would show it)",
        )

    def recipe(self, dtype: str) -> Recipe:
        stored = ties(self.traced.root.state_dict(keep_vars=True))
        return Recipe(
            model=self.loaded.name,
            model_args=dict(self.loaded.model_args),
            scheme=self.found.name,
            options=dict(self.options),
            dtype=dtype,
            ties={name: first for name, first in stored.items() if name != first},
            source=self.loaded.source,
            leftovers=self.leftovers,
            inputs=self.needed,
            scheme_source=self.found.source,
            files=self.file.digests if self.file and (self.kept or not self.loaded.name) else (),
        )


@one_thread()  # nothing here computes much, and a second thread would be waited for
def prepare(
    model: str | nn.Module,
    example_inputs: Inputs | None,
    scheme_name: str,
    options: Mapping[str, Option] | None,
    model_args: Mapping[str, Any] | None,
    leftovers: str,
    progress: Progress | None,
    folders: Sequence[str] = (),
    *,
    arch: str | None = None,
    trust: bool = False,
    compare: bool = False,
) -> Made:
    """Args: `compare`: keep the network as it was given beside the rewritten one."""
    one_of("leftovers", leftovers, receipt.LEFTOVERS)
    found = schemes.find(scheme_name, folders)
    scheme = found.scheme
    chosen = schemes.complete_options(scheme, options or {})
    file = opened_file(model, arch, trust)
    if file and example_inputs is None:
        example_inputs = file.inputs
    loaded = load_source(file.model if file else model, model_args, example_inputs, progress, folders)
    file_values: Mapping[str, FileValues] = {}
    if file:
        tell(progress, "compare", "names and shapes of the file")
        file_values, said = file.fit(loaded.module)
        loaded = replace(loaded, notes=(*said, *loaded.notes))
    loaded = _single_precision(loaded)
    mark, training = fingerprint(loaded.module), loaded.module.training
    tell(progress, "trace", loaded.source)
    given = loaded.example_inputs or ()
    inputs = tuple(given.values()) if isinstance(given, Mapping) else tuple(given)
    traced = trace(loaded.module, given)
    needed = _needed_inputs(loaded, traced.rung) if example_inputs is not None else ()
    outputs = {mode: _outputs(graph) for mode, graph in (("train", traced.train), ("evaluate", traced.evaluate))}
    tell(progress, "analyze", f"{len(list(traced.train.nodes))} nodes")
    if traced.whole and traced.opaque:
        traced = replace(traced, inside=_inside(traced, given))
    before = analyze(traced)
    kept = keep(traced) if compare else None
    notes, captured = _capture_notes(traced), traced.captured
    tell(progress, "rewrite", f"{sum(join.residual for join in before.joins)} residual joins")
    traced, edits = rewrites.apply(traced, scheme.rewrites(chosen), chosen)
    if edits and traced.whole:
        _same_outputs(traced, inputs, outputs, scheme, loaded.source)
    elif edits:
        traced = retrace(traced, traced.root, inputs)
    after = analyze(traced) if edits else before
    _accepted(scheme, chosen, after, loaded.source)
    return Made(
        loaded,
        found,
        chosen,
        traced,
        before,
        after,
        edits,
        inputs,
        outputs,
        mark,
        training,
        leftovers,
        needed,
        notes,
        captured,
        file,
        file_values if leftovers == "keep" else {},
        original=None if kept is None else Original(kept, before),
    )


def opened_file(model: str | nn.Module, arch: str | None, trust: bool) -> File | None:
    """The file that `model` names, or None where it names or is a model."""
    if isinstance(model, str) and readers.names_file(model):
        return opened(model, arch, trust)
    if arch is not None or trust:
        option = "arch" if arch is not None else "trust"
        raise UsageError(f"{option} is for files", got=repr(model)[:80], expected="FILE.pt, FILE.safetensors, …")
    return None


def _accepted(scheme: Scheme, options: Mapping[str, Option], structure: Structure, source: str) -> None:
    """Raises DeclinedError with the reason if the scheme declines the network."""
    decline = scheme.declines(structure, options)
    if decline is not None:
        raise DeclinedError(
            f"{scheme.name} declines this network",
            where=f"{source}: {decline.where}" if decline.where else source,
            got=decline.reason,
            fix=decline.fix,
        )


def _inside(traced: Traced, given: Inputs) -> dict[str, str]:
    """Roles of the layers inside parts that were kept whole, as a recording of the whole forward shows them."""
    graph = record(traced.root, given)
    if graph is None:
        return {}
    layers = analyze(replace(traced, opaque=()), graph).layers
    return {layer.name: layer.role for layer in layers if layer.geometry is not None}


def _capture_notes(traced: Traced) -> tuple[str, ...]:
    notes = []
    if not traced.whole:
        parts = ", ".join(region.path for region in traced.regions[:SHOWN]) or "none"
        notes.append(f"the model's own Python stays; parts that may be rewritten: {parts}")
    return (*notes, *(f"control flow {decision}" for decision in traced.decisions[:SHOWN]))


def cast(module: nn.Module, dtype: str) -> None:
    """Floating tensors of the module get the dtype; complex and whole ones stay.

    A module that is not in float32 by now insists on its precisions (`_single_precision`), and only another one that
    was asked for overrules it.
    """
    if dtype == "float32":
        return
    {"float16": nn.Module.half, "bfloat16": nn.Module.bfloat16}[dtype](module)


def _single_precision(loaded: sources.Loaded) -> sources.Loaded:
    """The model in float32, in which it is rewritten and checked; what is written has the dtype that was asked for.

    One whose forward insists on other precisions, so that it does not run in float32, stays as it is.
    """
    inputs = loaded.example_inputs
    found = {t.dtype for t in loaded.module.state_dict().values() if t.is_floating_point()}
    if found <= {torch.float32}:
        return loaded
    if _insists(loaded.module, inputs):
        return loaded
    loaded.module.float()
    return replace(loaded, example_inputs=_float(inputs))


def _float(inputs: Inputs | None) -> Any:
    return tree_map(lambda x: x.float() if isinstance(x, torch.Tensor) and x.is_floating_point() else x, inputs)


def _insists(module: nn.Module, given: Inputs | None) -> bool:
    """Whether the module runs as it is, and not in float32, whatever precision its inputs have."""

    def runs(module: nn.Module, inputs: Any) -> bool:
        try:
            with torch.no_grad():
                call = copy_of(module).eval()
                call(**inputs) if isinstance(inputs, Mapping) else call(*(inputs or ()))
        except Exception:  # whatever a forward raises
            return False
        return True

    if not runs(module, given):
        return False
    single = copy_of(module).float()
    return not runs(single, given) and not runs(single, _float(given))


def _needed_inputs(loaded: sources.Loaded, rung: str) -> tuple[str, ...]:
    """The given example inputs as the recipe spells them, where the source's own would not do to trace the model.

    On the rung `fx` those do that run: its graph takes no way that sizes decide. On the others the graph is what these
    inputs make of the forward, so they have to be of the same sizes.
    """
    usual, given = sources.conventional_inputs(loaded), loaded.example_inputs or ()
    named = given if isinstance(given, Mapping) else dict.fromkeys(range(0))
    values = tuple(named.values()) if named else tuple(given)
    if not loaded.name or not all(isinstance(x, torch.Tensor) for x in values):
        return ()
    if (
        usual is not None
        and len(usual) == len(values)
        and isinstance(usual, Mapping) == bool(named)
        and (rung == "fx" or _sizes(usual) == _sizes(given))
        and runs(loaded.module, usual)
    ):
        return ()
    prefixes = [f"{name}=" for name in named] or [""] * len(values)
    return tuple(
        f"{prefix}{'x'.join(map(str, x.shape))}:{str(x.dtype).removeprefix('torch.')}"
        for prefix, x in zip(prefixes, values, strict=True)
    )


def _sizes(inputs: Inputs) -> list[tuple[Any, ...] | None]:
    values = inputs.values() if isinstance(inputs, Mapping) else inputs
    return [tuple(x.shape) if isinstance(x, torch.Tensor) else None for x in values]


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


def load_source(
    model: str | nn.Module,
    model_args: Mapping[str, Any] | None,
    example_inputs: Inputs | None,
    progress: Progress | None,
    folders: Sequence[str] = (),
) -> sources.Loaded:
    tell(progress, "load", model if isinstance(model, str) else type(model).__qualname__)
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
    if (network := torchscript.lifted(loaded.module, loaded.example_inputs)) is not loaded.module:
        loaded = replace(loaded, module=network, source=sources.factory.source_of(network))
    reduced = detectors.reduce(loaded.module)
    return replace(loaded, reduced=reduced, notes=(*loaded.notes, *detectors.told(reduced)))


def _outputs(graph: torch.fx.Graph) -> Outputs:
    outputs: Outputs = next(node.meta["outputs"] for node in graph.nodes if node.op == "output")
    return outputs


def one_of(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise UsageError(f"{name} has no such value", got=repr(value), expected="one of " + ", ".join(choices))
