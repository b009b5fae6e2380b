"""A converted model: its module, its plan, its checks; and how it becomes files. Export → seal.

Knows nothing of sources, tracing or rewriting.
"""

from __future__ import annotations

import contextlib
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn

from . import exporters
from .artifacts import receipt
from .errors import CheckError, UsageError
from .exporters import onnx, safetensors
from .exporters.onnx import DataFile
from .formats.atomic import Output, alone, commit_all, staged
from .formats.digests import Written, leaf_digest, weights_digest
from .graph.ties import ties
from .graph.traced import Original
from .records import Check, Edit, Plan, Recipe, Structure
from .runtime.eager import eager
from .structure import SAFETENSORS_DTYPES

Progress = Callable[[str, str], None]


def tell(progress: Progress | None, step: str, detail: str) -> None:
    """Says that a step begins, to whoever listens."""
    if progress is not None:
        progress(step, detail)


@dataclass(frozen=True)
class Saved:
    """One written artifact: where it and its receipt are, sha256 (hex) and size (bytes) of the file, weights digest.

    Attributes:
        data: path, sha256 and size of the file beside it that holds the tensors, where there is one.
        note: what the reader should know of it.
        folded_from: where it was folded for inference, the conversion's weights digest; `weights_digest` is then that
            of its own tensors.
        opset: version of the operators, of an ONNX file; else 0.
    """

    path: Path
    receipt_path: Path
    sha256: str
    size: int
    weights_digest: str
    data: DataFile | None = None
    note: str = ""
    folded_from: str = ""
    opset: int = 0


# What is ready to be written → files to be written with it, path and bytes; they are made within the block.
Beside = Callable[[tuple[Saved, ...]], contextlib.AbstractContextManager[Sequence[tuple[Path, bytes]]]]
FOLDS = {"fold_norm": "norms", "fold_transform": "transforms"}


@dataclass(frozen=True)
class _Exported:
    """A network as ONNX takes it: graph, why its batch size is fixed, tensors, and what was folded."""

    graph: onnx.Graph
    fixed: str
    entries: list[safetensors.Entry]
    folds: tuple[Edit, ...] | None = None

    @property
    def folded(self) -> bool:
        return any(edit.applied for edit in self.folds or ())

    @property
    def note(self) -> str:
        """What the reader should know of the file."""
        parts = ["evaluation mode"] + ([f"batch size fixed: {self.fixed}"] if self.fixed else [])
        if self.graph.raised:
            parts.append(f"opset {self.graph.opset} for {self.graph.raised}")
        if any(entry.dtype == "BF16" for entry in self.entries):
            parts.append("ONNX Runtime's CPU provider has no arithmetic in bfloat16")
        if self.folds is not None:
            kinds = {kind: [e.applied for e in self.folds if e.rewrite == kind] for kind in FOLDS}
            said = [f"{sum(found)} of {len(found)} {FOLDS[kind]}" for kind, found in kinds.items() if found]
            parts.append(f"folded {', '.join(said)}" if self.folded else "nothing could be folded")
        return "; ".join(parts)


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
        inputs: example inputs of the forward, by position or by name; an export to ONNX follows them.
        graph: of the forward in evaluation mode, where one stands for it.
        original: graph and structure of the network before the rewrites, for reports; None for `validate="none"`.
        folds: what became of each norm and transform, once a file has been folded; the same every time.
    """

    module: nn.Module
    plan: Plan
    checks: tuple[Check, ...]
    recipe: Recipe
    structure: Structure
    fingerprint: str
    device: str
    inputs: tuple[Any, ...] | Mapping[str, Any] = field(default=(), repr=False)
    graph: fx.Graph | None = field(default=None, repr=False)
    original: Original | None = field(default=None, repr=False)
    folds: tuple[Edit, ...] = field(default=(), init=False, repr=False)
    _digest: str = field(default="", repr=False)
    _start: _Start = field(init=False, repr=False)
    _graphs: dict[int | None, tuple[onnx.Graph, str]] = field(default_factory=dict, init=False, repr=False)

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
        opset: int | None = None,
        external_data: bool = False,
        fold: bool = False,
        keep_failed: bool = False,
        beside: Beside | None = None,
        progress: Progress | None = None,
    ) -> tuple[Saved, ...]:
        """What was written: the artifact at each path and its receipt beside it; all of them, or after a failure none.

        The file holds the start that the recipe makes. A forward in training mode since then (batch statistics) does
        not change it; a module that was trained is refused.

        Args:
            path: where to; the suffix says the format (`.safetensors`, `.onnx`) unless `format` does.
            force: existing files may be replaced.
            opset: version of the ONNX operators, 20 by default.
            external_data: ONNX files have their tensors in a file beside them, which those beyond 1.8 GB have anyway.
            fold: in ONNX files norms and frozen transforms become part of the layers beside them, for inference. The
                weights digest does not apply to such a file, which says so.
            keep_failed: write it even though a check failed; the receipt says which.
            beside: makes more files, path and bytes, of what is ready to be written; they are written with it.

        Raises:
            CheckError: a check failed; nothing is written.
            UsageError: a file exists and `force` is not given, no such format, two files of one name, or the module was
                trained.
            ModelError: torch cannot export the model to ONNX.
            StorageError: the file system said no; old files are as they were.
        """
        paths = [path, *more]
        exporters.check_outputs(paths, format, force, external_data=external_data)
        if not keep_failed:
            refuse_failed(self.failed)
        entries, exported = self._start.entries(self.module), None
        if any(exporters.format_of(target, format) == "onnx" for target in paths):
            tell(progress, "export", "ONNX graph, evaluation mode" + (", folded" if fold else ""))
            exported = self._exported(opset, fold)
        with contextlib.ExitStack() as stack:
            ready: list[Output] = []
            saved = tuple(
                self._stage(stack, ready, target, entries, force, format, exported, external_data, progress)
                for target in paths
            )
            for target, data in stack.enter_context(beside(saved)) if beside is not None else ():
                ready.append(stack.enter_context(staged(target, force)))
                ready[-1].write_all(data)
            _refuse_twice(ready)
            with alone(*(output.target.parent for output in ready)):  # of two runs at once the files of one stay
                commit_all(ready)
        return saved

    def _stage(
        self,
        stack: contextlib.ExitStack,
        ready: list[Output],
        path: str | PathLike[str],
        entries: list[safetensors.Entry],
        force: bool,
        format: str | None,
        exported: _Exported | None,
        external_data: bool,
        progress: Progress | None,
    ) -> Saved:
        """What the files at the path will be; they are added to those that are ready, in the order of their commit."""
        tell(progress, "export", str(path))
        beside, kind = receipt.receipt_path(path), exporters.format_of(path, format)
        form, data_path = exported if kind == "onnx" else None, None
        if form is not None and onnx.wants_data_file(form.entries, external_data):
            data_path = onnx.checked_data_path(path)
        artifact, seal = (stack.enter_context(staged(each, force)) for each in (path, beside))
        data = None if data_path is None else stack.enter_context(staged(data_path, force))
        if form is not None:
            location = "" if data_path is None else data_path.name
            written = onnx.write(artifact, form.graph, form.entries, self._about(form), data, location)
        else:
            written = safetensors.write(artifact, entries, receipt.metadata(self.recipe))
        onnx.settle(artifact, data, written)
        tell(progress, "seal", str(beside))
        seal.write_all(receipt.spell_receipt(self._receipt(written, kind, form)))
        ready += [artifact, seal] if data is None else [data, artifact, seal]
        folded_from = self.weights_digest if form is not None and form.folded else ""
        if not folded_from:
            self._digest = written.weights_digest
        own, blob = written.weights_digest, written.data
        with_data = None if data_path is None or blob is None else DataFile(data_path, blob.sha256, blob.size)
        note, version = ("", 0) if form is None else (form.note, form.graph.opset)
        return Saved(Path(path), beside, written.sha256, written.size, own, with_data, note, folded_from, version)

    def _about(self, exported: _Exported) -> dict[str, str]:
        """The metadata of an ONNX file."""
        about = receipt.recipe_metadata(self.recipe)
        return about | ({receipt.FOLDED_KEY: f"zc1:{self.weights_digest}"} if exported.folded else {})

    def _receipt(self, written: Written, kind: str, exported: _Exported | None) -> dict[str, Any]:
        return receipt.make_receipt(
            self.recipe,
            self.fingerprint,
            (*self.plan.edits, *((exported.folds or ()) if exported and exported.folded else ())),
            written,
            self.run_record(kind),
            file_format=kind,
            folded_from=self.weights_digest if exported and exported.folded else "",
        )

    def write(
        self,
        stream: Any,
        format: str = "safetensors",
        opset: int | None = None,
        *,
        fold: bool = False,
        data: Any = None,
        location: str = "",
    ) -> Written:
        """The digests of the file that was written to the binary stream. Errors as for `save`.

        Args:
            opset, fold: as for `save`.
            data: a second binary stream, for the tensors of an ONNX model, which calls it `location`.
        """
        if format == "onnx":
            exported = self._exported(opset, fold)
            if data is None and onnx.needs_data_file(exported.entries):
                raise UsageError(
                    "the model is too large for one ONNX file", expected="an output with a name", fix="--out FILE"
                )
            written = onnx.write(
                stream, exported.graph, exported.entries, self._about(exported), data, location=location
            )
            if exported.folded:
                return written
        else:
            written = safetensors.write(stream, self._start.entries(self.module), receipt.metadata(self.recipe))
        self._digest = written.weights_digest
        return written

    def entries(self) -> list[safetensors.Entry]:
        """The stored tensors as the exporters take them. Errors as for `save`."""
        return self._start.entries(self.module)

    @eager()
    def _exported(self, opset: int | None, fold: bool) -> _Exported:
        """The network for ONNX; with `fold` another one than `module`."""
        from .exporters.onnx.graph import folded, graph

        if opset is not None:
            onnx.checked_opset(opset)
        entries = self._start.entries(self.module)
        own, folds = folded(self.module, self.graph, self._start.buffers) if fold else (self.module, None)
        self.folds = self.folds if folds is None else folds
        stored = ties(own.state_dict(keep_vars=True))
        if any(edit.applied for edit in folds or ()):
            return _Exported(*graph(own, self.inputs, stored, opset), _entries(own, {}), folds)
        if opset not in self._graphs:
            self._graphs[opset] = made = graph(self.module, self.inputs, stored, opset)
            self._graphs.setdefault(made[0].opset, made)
        return _Exported(*self._graphs[opset], entries, folds)

    def run_record(self, format: str = "safetensors") -> dict[str, Any]:
        """How the artifact was made: versions, device, checks. Not part of its identity."""
        makers = ("onnx", "onnx_ir", "onnxscript") if format == "onnx" else ()
        return {
            "python": platform.python_version(),
            "torch": torch.__version__,
            **{name: version(name) for name in makers},
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
        return _entries(module, self.buffers)


def _entries(module: nn.Module, instead: Mapping[str, torch.Tensor]) -> list[safetensors.Entry]:
    """The tensors of a state dict, ties resolved; some of them with other values."""
    state = module.state_dict(keep_vars=True)
    stored = {name: instead.get(name, state[name]) for name in dict.fromkeys(ties(state).values())}
    return [
        safetensors.Entry(name, SAFETENSORS_DTYPES[value.dtype], tuple(value.shape), partial(_bytes, value))
        for name, value in stored.items()
    ]


def _bytes(tensor: torch.Tensor) -> Any:
    plain = tensor.detach().cpu().contiguous()
    return plain.reshape(-1).view(torch.uint8).numpy() if plain.dtype is not torch.bool else plain.numpy()


def _refuse_twice(outputs: Sequence[Output]) -> None:
    """Raises UsageError where two outputs would be one file."""
    seen: set[Path] = set()
    for output in outputs:
        if output.target in seen:
            raise UsageError("two outputs are one file", where=str(output.target), fix="Give each a name of its own.")
        seen.add(output.target)
