"""A converted model: its module, its plan, its checks; and how it becomes files. Export → seal.

Knows nothing of sources, tracing or rewriting.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import nn

from . import exporters, receipt
from .atomic import alone, check_target, staged
from .digests import Written, leaf_digest, weights_digest
from .errors import CheckError, UsageError
from .exporters import safetensors
from .initialize import ties
from .records import Check, Plan, Recipe, Structure
from .structure import SAFETENSORS_DTYPES

Progress = Callable[[str, str], None]


def tell(progress: Progress | None, step: str, detail: str) -> None:
    """Says that a step begins, to whoever listens."""
    if progress is not None:
        progress(step, detail)


@dataclass(frozen=True)
class Saved:
    """One written artifact: where it and its receipt are, sha256 (hex) and size (bytes) of the file, weights digest."""

    path: Path
    receipt_path: Path
    sha256: str
    size: int
    weights_digest: str


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
        beside = receipt.receipt_path(path)
        with staged(path, force) as artifact, staged(beside, force) as seal:
            tell(progress, "export", str(path))
            written = self.write(artifact)
            artifact.promise(written.size, written.sha256)
            artifact.settle()
            tell(progress, "seal", str(beside))
            sealed = receipt.make_receipt(self.recipe, self.fingerprint, self.plan.edits, written, self.run_record())
            seal.write_all(receipt.spell_receipt(sealed))
            with alone(Path(path).parent):  # of two runs at once the receipt that stays is that of the file that stays
                artifact.commit()
                seal.commit()
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
