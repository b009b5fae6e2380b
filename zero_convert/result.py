"""What came out of a conversion: its module, its plan, its checks, and the way to its files.

Knows nothing of sources, tracing or rewriting.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from os import PathLike
from typing import Any

import torch
from torch import Tensor, fx, nn

from zero_convert.runtime.patches import one_at_a_time

from . import exporters
from .errors import CheckError
from .exporters.safetensors import Entry
from .formats.digests import Written
from .formats.identity import start_digest
from .graph.module_tree import Tree
from .graph.state import hidden_buffers, stored_tensors
from .graph.traced import Original
from .initialization.scheme import AsConstructed
from .options import FileOptions
from .records import Check, Edit, OriginalClass, Plan, Recipe, Structure
from .runtime.progress import Progress
from .saving import Beside, Saved, Writer, run_record
from .sources.building.settings import Setting


@dataclass
class Result:
    """A converted model.

    Attributes:
        network: its layers, initialized, as the checks and the exporters know them; `module` has the same ones.
        plan: every edit and every tensor's rule; its joins are those of the model as given.
        checks: the measured answers; empty for `validate="none"`.
        recipe: what makes the bytes.
        structure: layers and joins of the converted network.
        fingerprint: SHA-256 of the source model's structure.
        device: where the checks ran, with a note if that was not what "auto" hoped for.
        inputs: example inputs of the forward, by position or by name; an export to ONNX follows them.
        graph: of the forward in evaluation mode, where one stands for it.
        original: graph and structure of the network before the rewrites, for reports; None for `validate="none"`.
        architecture_digest: `za1` of the network, 64 hex digits: what it computes with its weights, whatever they are.
        original_class: whether the file also loads into the class that was converted, and what it is there.
        settings: values of the module that an export has otherwise.
        constructed: the values that no formula gives, by name: those kept as constructed, and buffers that no state
            dict has.
        dtypes: of the stored tensors.
    """

    network: nn.Module = field(repr=False)
    plan: Plan
    checks: tuple[Check, ...]
    recipe: Recipe
    structure: Structure
    fingerprint: str
    device: str
    inputs: tuple[Any, ...] | Mapping[str, Any] = field(default=(), repr=False)
    graph: fx.Graph | None = field(default=None, repr=False)
    original: Original | None = field(default=None, repr=False)
    architecture_digest: str = ""
    original_class: OriginalClass | None = None
    settings: tuple[Setting, ...] = field(default=(), repr=False)
    make_tree: Callable[[], Tree] | None = field(default=None, repr=False)
    constructed: Mapping[str, Tensor] = field(init=False, repr=False)
    dtypes: Mapping[str, torch.dtype] = field(init=False, repr=False)
    _writer: Writer = field(init=False, repr=False)

    def __post_init__(self) -> None:
        state = stored_tensors(self.network)
        kept = [a.tensor.name for a in self.plan.assignments if isinstance(a.formula, AsConstructed)]
        self.constructed = {n: state[n].detach().clone() for n in kept} | hidden_buffers(self.network)
        self.dtypes = {name: value.dtype for name, value in state.items()}
        network = self.plan.edits, self.inputs, self.graph, self.architecture_digest
        self._writer = Writer(self.network, self.recipe, self.fingerprint, *network, settings=self.settings)

    @property
    def module(self) -> nn.Module:
        """The network for its user: trainable, deep-copyable, compilable; its state dict is what `save` writes.

        It has the module tree of the one that was converted. Made when it is first asked for.
        """
        return self.tree.module

    @cached_property
    @one_at_a_time()
    @torch.inference_mode(False)
    def tree(self) -> Tree:
        """The module, and what became of the parts of the one that was converted."""
        return Tree(self.network) if self.make_tree is None else self.make_tree()

    @property
    def failed(self) -> tuple[Check, ...]:
        """The checks that failed."""
        return tuple(check for check in self.checks if check.status == "fail")

    @property
    def weights_digest(self) -> str:
        """The `zc1` digest of the state dict, 64 hex digits; the same in every file format."""
        return self._writer.weights_digest

    @property
    def start_digest(self) -> str:
        """The `zs1` digest of architecture and weights, 64 hex digits; the same in every file format."""
        return start_digest(self.architecture_digest, self.weights_digest)

    @property
    def folds(self) -> tuple[Edit, ...]:
        """What became of each norm and transform, once a file has been folded; the same every time."""
        return self._writer.folds

    @one_at_a_time()
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
            opset: version of the ONNX operators; by default 20, or the first that takes the types of the weights.
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
        options = FileOptions(force=force, format=format, opset=opset, external_data=external_data, fold=fold)
        return self._writer.save(paths, options, self.run_record, beside, progress)

    @one_at_a_time()
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
        return self._writer.write(stream, FileOptions(format=format, opset=opset, fold=fold), data, location)

    def entries(self) -> list[Entry]:
        """The stored tensors as the exporters take them. Errors as for `save`."""
        return self._writer.entries()

    def run_record(self, format: str = "safetensors") -> dict[str, Any]:
        """How an artifact is made: versions, device, checks. Not part of its identity."""
        return run_record(self.device, self.checks, format)


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
