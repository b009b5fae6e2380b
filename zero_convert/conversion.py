"""Load → trace → analyze → rewrite → analyze: everything up to the moment the values are written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import nn

from . import rewrites, schemes, sources
from .checks.subject import Subject
from .errors import DeclinedError, ModelError, TraceError, UsageError
from .formats.identity import architecture_digest
from .graph.architecture import describe_network
from .graph.module_tree import Tree
from .graph.original import keep
from .graph.state import digest, extra_state, refuse_misnamed, settle, stored_tensors
from .graph.ties import ties
from .graph.traced import Original, Traced
from .initialization.constants import settle_frozen, unverified_buffers
from .initialization.fill import initialize
from .initialization.scheme import Scheme
from .model_ref import ModelRef
from .nn.state_guard import guard
from .options import Inputs, Options, carried
from .records import Assignment, Edit, Option, Plan, Recipe, Structure
from .runtime.progress import Progress, tell
from .runtime.threads import one_thread
from .sources.building import detectors, settings
from .sources.building.fingerprint import fingerprint
from .sources.building.precision import cast as cast
from .sources.building.precision import single_precision
from .sources.file_values import FileValues
from .sources.inputs import needed_inputs, parse_inputs
from .sources.model_file import File, opened
from .sources.programs import torchscript
from .structure import analyze
from .tracing import record, retrace, trace
from .tracing.outside import Facts, equal_outside, is_suspicious, refuse_outside
from .tracing.shapes import propagate_shapes
from .tree import share_tensors
from .tree import tree as module_tree

SHOWN = 6  # parts and decisions named in a note
Outputs = tuple[tuple[tuple[int, ...], str], ...]  # shape and dtype of each tensor that a forward returns


@dataclass
class Conversion:
    """One conversion under way; the steps of `prepare` are its methods, and set the fields behind the first ones.

    Attributes:
        asked: what the user asked for.
        options: of the scheme, all of them.
        loaded: the model, in float32 where its forward allows that.
        given: whether the example inputs are not the source's own.
        file: the model file, where one was given.
        file_values: its values, where they serve for what no rule covers.
        fingerprint, modes, captured: of the model as given; which parts train, the share of parameters in graphs.
        inputs: example inputs by position.
        traced: the network; after the rewrites the new one.
        outputs: mode → what the forward returned before the rewrites.
        described, description: of the network before the rewrites, and after them.
        needed: example inputs as the recipe spells them, where the source's own would not do.
        outside: notes on what the model holds outside of its state dict.
        joins, structure: what was found in the network before the rewrites, and after them.
        notes: what the reader of the plan should know about the capture.
        original: the network as given, where it was asked for.
        kept: whether values of the file are in the module.
    """

    asked: Options
    found: schemes.Found
    options: Mapping[str, Option]
    loaded: sources.Loaded
    given: bool
    file: File | None
    file_values: Mapping[str, FileValues]
    fingerprint: str = field(init=False)
    modes: Mapping[str, bool] = field(init=False, repr=False)
    inputs: tuple[Any, ...] = field(init=False)
    traced: Traced = field(init=False)
    outputs: Mapping[str, Outputs] = field(init=False)
    described: Mapping[str, Any] = field(init=False, repr=False)
    description: Mapping[str, Any] = field(init=False, repr=False)
    needed: tuple[str, ...] = field(init=False)
    outside: tuple[str, ...] = field(init=False)
    joins: Structure = field(init=False)
    notes: tuple[str, ...] = field(init=False)
    captured: float = field(init=False)
    edits: tuple[Edit, ...] = field(init=False)
    structure: Structure = field(init=False)
    original: Original | None = None
    kept: bool = False

    @property
    def scheme(self) -> Scheme:
        return self.found.scheme

    def trace(self) -> None:
        """The network is captured. Raises TraceError, and CoverageError for weights outside of the state dict."""
        loaded, given = self.loaded, self.loaded.example_inputs or ()
        self.fingerprint = fingerprint(loaded.module)
        self.modes = {path: part.training for path, part in loaded.module.named_modules()}
        tell(self.asked.progress, "trace", loaded.source)
        self.inputs = tuple(given.values()) if isinstance(given, Mapping) else tuple(given)
        self.traced, self.outside = _traced(loaded, given)
        traced = self.traced
        self.described = self.description = describe_network(traced)
        usual = sources.conventional_inputs(loaded) if self.given else None
        self.needed = needed_inputs(loaded, usual, traced.capture) if self.given else ()
        self.outputs = {"train": _outputs(traced.train), "evaluate": _outputs(traced.evaluate)}

    def analyze(self, *, compare: bool) -> None:
        """Its structure is found; with `compare` the network is kept as it is beside the one that is rewritten."""
        traced = self.traced
        tell(self.asked.progress, "analyze", f"{len(list(traced.train.nodes))} nodes")
        if traced.whole and traced.opaque:
            self.traced = traced = replace(traced, inside=_inside(traced, self.loaded.example_inputs or ()))
        self.joins = analyze(traced)
        kept = keep(traced) if compare else None
        self.original = None if kept is None else Original(kept, self.joins)
        self.notes, self.captured = (*self.outside, *_capture_notes(traced)), traced.captured

    def rewrite(self) -> None:
        """It becomes what the scheme wants. Raises DeclinedError, or ModelError where that does not fit it."""
        tell(self.asked.progress, "rewrite", f"{sum(join.residual for join in self.joins.joins)} residual joins")
        traced, self.edits = rewrites.apply(self.traced, self.scheme.rewrites(self.options), self.options)
        if self.edits and traced.whole:
            _same_outputs(traced, self.inputs, self.outputs, self.scheme, self.loaded.source)
        elif self.edits:
            traced = retrace(traced, traced.root, self.inputs)
        refuse_misnamed(traced.root)
        self.traced, self.structure = traced, analyze(traced) if self.edits else self.joins
        _accepted(self.scheme, self.options, self.structure, self.loaded.source)
        if self.edits:
            self.description = describe_network(traced)

    def fill(self, *, write: bool) -> tuple[Assignment, ...]:
        """The rule of each tensor; with `write` its values as well, and the modes that the module was in."""
        assignments = initialize(
            self.traced,
            self.structure,
            self.scheme,
            self.options,
            asked=self.asked,
            constructed=self.loaded.nan_filled,
            drawn=self.loaded.drawn,
            file_values=self.file_values,
            write=write,
        )
        self.kept = any(isinstance(a.formula, FileValues) for a in assignments)
        if write:
            self._restore_modes(self.traced.root)
        return assignments

    def _restore_modes(self, root: nn.Module) -> None:
        """The modes that the parts were in when the model was given."""
        for path, part in root.named_modules():
            like = next(path[:end] for end in range(len(path), -1, -1) if path[:end] in self.modes)
            part.training = self.modes[like]  # a new part has a name that begins with that of another: "bn2_out"

    @property
    def architecture_digest(self) -> str:
        """`za1` of the network, hex."""
        return architecture_digest(self.description)

    def subject(self, assignments: tuple[Assignment, ...]) -> Subject:
        """What the checks are asked of."""
        network = self.traced, self.structure, self.scheme, self.options
        return Subject(*network, assignments, self.inputs, self.outputs, self.original)

    def release(self) -> nn.Module:
        """The rewritten network, flat; what was reduced while it was looked at is as it was made."""
        settings.restore(self.loaded.settings)
        if self.asked.dtype != "float32":
            self.tree  # noqa: B018  made while the network still takes its example inputs
            cast(self.traced.root, self.asked.dtype)
            if self.tree.module is not self.traced.root:
                share_tensors(self.traced.root, self.tree.module)
        return self.traced.root

    @cached_property
    def tree(self) -> Tree:
        """The rewritten network for the user. Its state dicts carry the architecture digest."""
        with settings.plain(self.loaded.settings):
            tree = module_tree(self.traced, self.inputs)
        self._restore_modes(tree.module)
        guard(tree.module, self.architecture_digest)
        return tree

    def plan(self, assignments: tuple[Assignment, ...]) -> Plan:
        return Plan(
            scheme=self.scheme.name,
            options=dict(self.options),
            capture=self.traced.capture,
            capture_attempts=self.traced.failed,
            joins=self.joins.joins,
            edits=self.edits,
            assignments=assignments,
            notes=(*self.loaded.notes, *self.notes, *self.joins.notes, *self._unverified_buffers(assignments)),
            captured=self.captured,
        )

    def _unverified_buffers(self, assignments: tuple[Assignment, ...]) -> tuple[str, ...]:
        """A note on values of a given module that nobody here can tell from drawn ones."""
        names = [] if self.loaded.nan_filled else unverified_buffers(self.traced.root, assignments)
        if not names:
            return ()
        which = ", ".join(names[:SHOWN]) + (" …" if len(names) > SHOWN else "")
        return (
            f"buffers that keep the values of the given module: {which}; if its constructor drew them, the digest "
            "follows the draw (a factory would show it)",
        )

    def recipe(self) -> Recipe:
        """What makes the conversion again."""
        stored = ties(stored_tensors(self.traced.root))
        return carried(
            Recipe,
            self.asked,
            model=self.loaded.name,
            model_args=dict(self.loaded.model_args),
            scheme=self.found.name,
            options=dict(self.options),
            ties={name: first for name, first in stored.items() if name != first},
            source=self.loaded.source,
            inputs=self.needed,
            scheme_source=self.found.source,
            files=self.file.digests if self.file and (self.kept or not self.loaded.name) else (),
            extra_state={name: digest(text) for name, text in extra_state(self.traced.root).items()},
        )


@one_thread()  # nothing here computes much, and a second thread would be waited for
def prepare(
    model: str | ModelRef | nn.Module, options: Options, folders: Sequence[str] = (), *, compare: bool = False
) -> Conversion:
    """The conversion of a model, up to the moment the values are written. Errors as for `pipeline.convert`.

    Args:
        folders: where to look for files of Python besides the current folder.
        compare: keep the network as it was given beside the rewritten one.
    """
    conversion = _load(model, options, folders)
    conversion.trace()
    conversion.analyze(compare=compare)
    conversion.rewrite()
    return conversion


def _load(model: str | ModelRef | nn.Module, options: Options, folders: Sequence[str]) -> Conversion:
    found = schemes.find(options.scheme, folders)
    chosen = schemes.complete_options(found.scheme, options.options or {})
    source = ModelRef.parse(model) if isinstance(model, str) else model
    file, inputs = _opened_file(source, options), options.example_inputs
    if inputs is None:
        inputs = parse_inputs(options.inputs) if options.inputs else file.inputs if file else None
    if file:
        source = ModelRef.named(file.model) if isinstance(file.model, str) else file.model
    loaded = load_source(source, options.model_args, inputs, options.progress, folders)
    file_values: Mapping[str, FileValues] = {}
    if file:
        tell(options.progress, "compare", "names and shapes of the file")
        file_values, notes = file.fit(loaded.module)
        loaded = replace(loaded, notes=(*notes, *loaded.notes))
    file_values = file_values if options.uncovered == "keep" else {}
    settle_frozen(loaded.module, loaded.source, meant=loaded.marks_draws or options.uncovered == "keep")
    return Conversion(options, found, chosen, single_precision(loaded), inputs is not None, file, file_values)


def _traced(loaded: sources.Loaded, given: Inputs) -> tuple[Traced, tuple[str, ...]]:
    """The model's graphs, and notes on what it holds outside of its state dict.

    Raises:
        CoverageError: its forward reads weights there.
        TraceError: as `trace`.
    """
    suspicious = is_suspicious(loaded.module)
    constant: tuple[str, ...] = ()
    if suspicious and loaded.name and not loaded.nan_filled:  # a builder is known that draws what was drawn
        constant = equal_outside(loaded.module, sources.load(loaded.name, loaded.model_args).module)
    facts = Facts(loaded.marks_draws, loaded.drawn, constant)
    notes = refuse_outside(loaded.module, given, facts) if suspicious else ()
    try:
        traced = trace(loaded.module, given)
    except TraceError:
        if not suspicious:
            refuse_outside(loaded.module, given, facts)
        raise
    if not suspicious and (traced.opaque or not traced.whole):  # what is inside of these no graph shows
        notes = refuse_outside(loaded.module, given, facts)
    return traced, notes


def _opened_file(model: ModelRef | nn.Module, options: Options) -> File | None:
    """The file that `model` names, or None where it names or is a model."""
    if isinstance(model, ModelRef) and model.kind == "file":
        return opened(model.path, options.arch, options.trust)
    if options.arch is not None or options.trust:
        option = "arch" if options.arch is not None else "trust"
        got = str(model) if isinstance(model, ModelRef) else model
        raise UsageError(f"{option} is for files", got=repr(got)[:80], expected="FILE.pt, FILE.safetensors, …")
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
    parts = ", ".join(region.path for region in traced.regions[:SHOWN]) or "none"
    notes = () if traced.whole else (f"the model's own Python stays; parts that may be rewritten: {parts}",)
    return (*notes, *(f"control flow {decision}" for decision in traced.decisions[:SHOWN]))


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
    for m in modes:
        m.training = modes[m]


def load_source(
    model: ModelRef | nn.Module,
    model_args: Mapping[str, Any] | None,
    example_inputs: Inputs | None,
    progress: Progress | None,
    folders: Sequence[str] = (),
) -> sources.Loaded:
    tell(progress, "load", str(model) if isinstance(model, ModelRef) else type(model).__qualname__)
    if isinstance(example_inputs, torch.Tensor):
        example_inputs = (example_inputs,)
    if isinstance(model, ModelRef):
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
    notes = (*loaded.notes, *detectors.told(reduced), *settle(loaded.module))
    extra_state(loaded.module)  # what cannot be named is refused before the work
    return replace(loaded, settings=(*loaded.settings, *reduced), notes=notes)


def _outputs(graph: torch.fx.Graph) -> Outputs:
    outputs: Outputs = next(node.meta["outputs"] for node in graph.nodes if node.op == "output")
    return outputs
