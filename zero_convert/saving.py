"""From a converted model to its files, all of them or none. Export → seal.

An artifact is a tuple of files: the file itself, and those beside it that hold its tensors. All of them are written,
read back and only then named, the receipt last.
"""

from __future__ import annotations

import contextlib
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn

from .artifacts import receipt
from .artifacts.receipt import Identity, Receipt, spell_receipt
from .errors import UsageError
from .exporters import onnx, safetensors
from .exporters.entries import entries_of
from .formats.atomic import Output, alone, commit_all, staged
from .formats.digests import Artifact, FileDigest, Written, leaf_digest, weights_digest
from .formats.naming import FOLDED_KEY, ROLES, format_of, receipt_path
from .graph.state import extra_state, stored_tensors
from .graph.ties import ties
from .options import FileOptions
from .records import Check, Edit, Recipe
from .runtime.eager import eager
from .runtime.progress import Progress, tell
from .sources.building.settings import Setting, exporting

Run = Callable[[str], Mapping[str, Any]]  # the run record of a format
FOLDS = {"fold_norm": "norms", "fold_transform": "transforms"}


@dataclass(frozen=True)
class Saved(Artifact):
    """One written artifact.

    Attributes:
        path: of the artifact itself.
        receipt_path: of its receipt.
        files: digests of the artifact itself, then of the files beside it that hold its tensors.
        weights_digest: `zc1` over its tensors.
        note: what the reader should know of it.
        folded_from: where it was folded for inference, the conversion's weights digest; `weights_digest` is then that
            of its own tensors.
        opset: version of the operators, of an ONNX file; else 0.
    """

    path: Path
    receipt_path: Path
    files: tuple[FileDigest, ...]
    weights_digest: str
    note: str = ""
    folded_from: str = ""
    opset: int = 0

    @property
    def paths(self) -> tuple[Path, ...]:
        """Where the `files` are, in their order."""
        return tuple(Path(file.path(self.path)) for file in self.files)

    def facts(self) -> dict[str, Any]:
        """What `--json` prints of it."""
        beside: dict[str, Any] = dict.fromkeys(ROLES)
        for path, file in zip(self.paths[1:], self.files[1:], strict=True):
            beside[file.role] = {"path": path, "sha256": file.sha256, "size": file.size}
        return {
            "path": self.path,
            "receipt_path": self.receipt_path,
            "sha256": self.sha256,
            "size": self.size,
            "weights_digest": self.weights_digest,
            **beside,
            "note": self.note,
            "folded_from": self.folded_from,
            "opset": self.opset,
        }


# What is ready to be written → files to be written with it, path and bytes; they are made within the block.
Beside = Callable[[tuple[Saved, ...]], contextlib.AbstractContextManager[Sequence[tuple[Path, bytes]]]]


@dataclass(frozen=True)
class _Form:
    """What a file is made of.

    Attributes:
        graph: of an ONNX file.
        folds: the edits that folding made of it, if it made any.
        note, folded_from: as of `Saved`.
    """

    format: str
    entries: list[safetensors.Entry]
    metadata: dict[str, str]
    graph: onnx.Graph | None = None
    folds: tuple[Edit, ...] = ()
    note: str = ""
    folded_from: str = ""


@dataclass
class Writer:
    """Writes one converted model.

    Attributes:
        edits, inputs, graph: of the conversion.
        architecture: digest of the network, hex; "" where none is known.
        settings: of the module; an export has some of them otherwise.
        folds: what became of each norm and transform, once a file has been folded; the same every time.
    """

    module: nn.Module
    recipe: Recipe
    fingerprint: str
    edits: tuple[Edit, ...]
    inputs: tuple[Any, ...] | Mapping[str, Any]
    graph: fx.Graph | None
    architecture: str = ""
    settings: tuple[Setting, ...] = ()
    folds: tuple[Edit, ...] = ()
    _digest: str = ""
    _graphs: dict[int | None, tuple[onnx.Graph, str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._start = _Start.of(self.module)

    @property
    def weights_digest(self) -> str:
        """The `zc1` digest of the state dict, 64 hex digits."""
        if not self._digest:
            leaves = {e.name: leaf_digest(e.name, e.dtype, e.shape, e.data()) for e in self.entries()}
            self._digest = weights_digest(leaves)
        return self._digest

    def entries(self) -> list[safetensors.Entry]:
        """The stored tensors as the exporters take them; raises UsageError if the module was trained."""
        return self._start.entries(self.module)

    def save(
        self,
        paths: Sequence[str | PathLike[str]],
        options: FileOptions,
        run: Run,
        beside: Beside | None,
        progress: Progress | None,
    ) -> tuple[Saved, ...]:
        """What was written. Arguments and errors as for `Result.save`; `run` gives the run record of a format."""
        formats = [format_of(path, options.format) for path in paths]
        if "onnx" in formats:
            tell(progress, "export", "ONNX graph, evaluation mode" + (", folded" if options.fold else ""))
        with exporting(self.settings):
            forms = {format: self._form(format, options) for format in formats}
        with contextlib.ExitStack() as stack:
            ready: list[Output] = []
            saved = []
            for path, form in zip(paths, map(forms.__getitem__, formats), strict=True):
                tell(progress, "export", str(path))
                outputs, written = self._staged(stack, path, form, options)
                seal, digest = receipt_path(path), written.weights_digest
                tell(progress, "seal", str(seal))
                architecture = "" if form.folded_from else self.architecture
                edits = self.edits + form.folds
                identity = Identity(self.recipe, self.fingerprint, edits, written.tensors, digest, architecture)
                record = Receipt(identity, written.files, form.format, run(form.format), form.folded_from)
                outputs[-1].write_all(spell_receipt(record))
                ready += outputs
                opset = 0 if form.graph is None else form.graph.opset
                saved.append(Saved(Path(path), seal, written.files, digest, form.note, form.folded_from, opset))
            for target, data in stack.enter_context(beside(tuple(saved))) if beside is not None else ():
                ready.append(stack.enter_context(staged(target, options.force)))
                ready[-1].write_all(data)
            _refuse_twice(ready)
            with alone(*(output.target.parent for output in ready)):  # of two runs at once the files of one stay
                commit_all(ready)
        return tuple(saved)

    def write(self, stream: Any, options: FileOptions, data: Any = None, location: str = "") -> Written:
        """The digests of the file that was written. Arguments and errors as for `Result.write`."""
        with exporting(self.settings):
            form = self._form(options.format or "safetensors", options)
        if form.graph is not None and data is None and onnx.needs_data_file(form.entries):
            raise UsageError(
                "the model is too large for one ONNX file", expected="an output with a name", fix="--out FILE"
            )
        return self._written(form, [stream, *([] if data is None else [data])], location)

    def _staged(
        self, stack: contextlib.ExitStack, path: str | PathLike[str], form: _Form, options: FileOptions
    ) -> tuple[list[Output], Written]:
        """The verified outputs of an artifact in the order of their commit, an empty one for its receipt; digests."""
        places = [Path(path)]
        if form.graph is not None and onnx.wants_data_file(form.entries, options.external_data):
            places.append(onnx.checked_data_path(path))
        outputs = [stack.enter_context(staged(place, options.force)) for place in places]
        seal = stack.enter_context(staged(receipt_path(path), options.force))
        written = self._written(form, outputs, places[-1].name)
        for output, file in zip(outputs, written.files, strict=True):
            output.expect(file.size, file.sha256)
            output.flush_and_verify()
        return [*reversed(outputs), seal], written

    def _written(self, form: _Form, streams: Sequence[Any], location: str) -> Written:
        """Writes the artifact to the first stream, and what it has beside it, at `location`, to the second."""
        if form.graph is None:
            written = safetensors.write(streams[0], form.entries, form.metadata)
        else:
            data = {"data": streams[1], "location": location} if len(streams) > 1 else {}
            written = onnx.write(streams[0], form.graph, form.entries, form.metadata, **data)
        if not form.folded_from:
            self._digest = written.weights_digest
        return written

    @eager()
    def _form(self, format: str, options: FileOptions) -> _Form:
        """What a file of the format is made of; with `fold` the network for ONNX is another one than `module`."""
        stored = self.entries()
        if format != "onnx":
            about = receipt.metadata(self.recipe, self._start.extra, self.architecture)
            return _Form(format, stored, about)
        from .exporters.onnx.graph import folded, graph

        opset = options.opset
        onnx.checked_opset(opset)
        own, folds = folded(self.module, self.graph, self._start.buffers) if options.fold else (self.module, None)
        self.folds = self.folds if folds is None else folds
        names = ties(stored_tensors(own))
        if any(edit.applied for edit in folds or ()):
            about = {**receipt.recipe_metadata(self.recipe), FOLDED_KEY: f"zc1:{self.weights_digest}"}
            network, fixed = graph(own, self.inputs, names, opset)
            other, note = entries_of(own), _note(network, stored, fixed, folds)
            return _Form(format, other, about, network, folds or (), note, self.weights_digest)
        if opset not in self._graphs:
            self._graphs[opset] = made = graph(self.module, self.inputs, names, opset)
            self._graphs.setdefault(made[0].opset, made)
        network, fixed = self._graphs[opset]
        about = receipt.recipe_metadata(self.recipe, self.architecture)
        return _Form(format, stored, about, network, note=_note(network, stored, fixed, folds))


def _note(network: onnx.Graph, stored: Sequence[safetensors.Entry], fixed: str, folds: Sequence[Edit] | None) -> str:
    """What the reader of an ONNX file should know: what is fixed, what it needs to run, and what was folded."""
    parts = ["evaluation mode"] + ([f"batch size fixed: {fixed}"] if fixed else [])
    if network.raised:
        parts.append(f"opset {network.opset} for {network.raised}")
    if any(entry.dtype == "BF16" for entry in stored):
        parts.append("ONNX Runtime's CPU provider has no arithmetic in bfloat16")
    if folds is not None:
        kinds = {kind: [e.applied for e in folds if e.rewrite == kind] for kind in FOLDS}
        counts = [f"{sum(applied)} of {len(applied)} {FOLDS[kind]}" for kind, applied in kinds.items() if applied]
        folded = any(edit.applied for edit in folds)
        parts.append(f"folded {', '.join(counts)}" if folded else "nothing could be folded")
    return "; ".join(parts)


def run_record(device: str, checks: Sequence[Check], format: str) -> dict[str, Any]:
    """How an artifact was made: versions, device, checks. Not part of its identity."""
    makers = ("onnx", "onnx_ir", "onnxscript") if format == "onnx" else ()
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        **{name: version(name) for name in makers},
        "platform": platform.platform(terse=True),
        "device": device,
        "checks": [
            {
                **{name: getattr(c, name) for name in ("name", "status", "summary", "device")},
                "numbers": dict(c.numbers),
                "seen": dict(c.seen),
            }
            for c in checks
        ],
    }


@dataclass(frozen=True)
class _Start:
    """Detects that the module was trained after its conversion.

    Attributes:
        buffers: copies of the stored buffers.
        versions: how often each stored parameter had been written to.
        extra: name → text of the extra state that is no tensor.
    """

    buffers: Mapping[str, torch.Tensor]
    versions: Mapping[str, int]
    extra: Mapping[str, str]

    @classmethod
    def of(cls, module: nn.Module) -> _Start:
        state = stored_tensors(module)
        parameters = {name: value._version for name, value in state.items() if isinstance(value, nn.Parameter)}
        buffers = {name: value.clone() for name, value in state.items() if name not in parameters}
        return cls(buffers, parameters, extra_state(module))

    def entries(self, module: nn.Module) -> list[safetensors.Entry]:
        """The tensors of the state dict, ties resolved, as the exporter takes them.

        Raises:
            UsageError: a parameter was written to.
        """
        state = stored_tensors(module)
        moved = [name for name, version in self.versions.items() if state[name]._version != version]
        if moved:
            raise UsageError(
                "the module was changed after its conversion, and the recipe would not make these values again",
                where=", ".join(moved[:6]),
                fix="Save before training. Trained weights: torch.save(module.state_dict(), FILE), or "
                "safetensors.torch.save_model(module, FILE); to read them, net = zc.load(START), the file of the start "
                "(or zc.convert with the same arguments and .module), then net.load_state_dict(torch.load(FILE)), or "
                "safetensors.torch.load_model(net, FILE).",
            )
        return entries_of(module, self.buffers)


def _refuse_twice(outputs: Sequence[Output]) -> None:
    """Raises UsageError where two outputs would be one file."""
    seen: set[Path] = set()
    for output in outputs:
        if output.target in seen:
            raise UsageError("two outputs are one file", where=str(output.target), fix="Give each a name of its own.")
        seen.add(output.target)
