"""Run the checks on an artifact written earlier: its network built again from its recipe, with the file's own tensors.

The file's code is none: a recipe names a model and a scheme, and what is outside of the model libraries runs only with
`trust`. Of an ONNX file the tensors are checked in torch, and its graph in ONNX Runtime. First of all its tensors are
compared with the weights digest that it records: so a file that was changed is not taken for another network's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from zero_convert.runtime.patches import one_at_a_time

from . import checks, readers
from .artifacts import receipt
from .conversion import Conversion
from .errors import MalformedError, UsageError
from .exporters.onnx.written import initializers, input_sizes
from .formats import naming
from .graph.state import EXTRA, digest, extra_state, put_extra, stored_tensors
from .graph.ties import ties
from .initialization.constants import nan_names
from .inspection import survey
from .options import Inputs, one_of
from .records import Check, Recipe
from .restore import ANOTHER_NETWORK, Named, rebuilt, recorded_architecture, refuse_misfit
from .runtime.progress import Progress, tell

LEVELS = ("quick", "full")
QUESTION = "Are the file's tensors those that its recipe makes?"
SHOWN = 4


@dataclass(frozen=True)
class Validation:
    """The answers for one artifact.

    Attributes:
        device: where the checks ran, with a note if that was not what "auto" hoped for.
    """

    path: Path
    recipe: Recipe
    checks: tuple[Check, ...]
    device: str

    @property
    def failed(self) -> tuple[Check, ...]:
        """The checks that failed."""
        return tuple(check for check in self.checks if check.status == "fail")


@one_at_a_time()
@checks.held()
@torch.inference_mode(False)
def validate(
    path: str | PathLike[str],
    model: str | nn.Module | None = None,
    example_inputs: Inputs | None = None,
    *,
    level: str = "quick",
    device: str = "auto",
    scheme: str | None = None,
    trust: bool = False,
    train_steps: int | None = None,
    progress: Progress | None = None,
) -> Validation:
    """The checks' answers for a safetensors or ONNX file that zero-convert wrote. The file is only read.

    Args:
        model: the module or MODEL string to build the network from, where the file cannot say.
        level: "quick" or "full".
        device: "auto", "cpu", "cuda", "cuda:N", "mps" or "webgpu".
        train_steps: of the check `training`; None leaves them to the level.

    The others as for `load`.

    Raises:
        MalformedError: no file of ours, or its tensors do not fit the network.
        UntrustedError: it names a factory outside the model libraries, or a scheme's file.
        DeviceError: a named device is not there or does not compute; or its memory is too small.
        The errors of `convert`.
    """
    one_of("validate", level, LEVELS)
    _refuse_incomplete(path)
    tell(progress, "read", str(path))
    digests = Digests.of(path)
    where, note = checks.resolve(device)
    kind = naming.format_in(path)
    named = Named(model, example_inputs, scheme, trust)
    conversion, recipe = rebuilt(path, named, compare=True, progress=progress)
    sized = _sized(path, conversion.loaded.example_inputs) if kind == "onnx" and example_inputs is None else None
    if sized is not None:
        named = replace(named, example_inputs=sized)
        conversion, recipe = rebuilt(path, named, compare=True, progress=progress)
    tell(progress, "initialize", conversion.scheme.name)
    subject = conversion.subject(conversion.fill(write=True))
    root = conversion.traced.root
    tell(progress, "read", str(path))
    tensors = _read(path, kind)
    if kind == "safetensors":
        texts = receipt.extra_state_from_metadata(naming.load(kind).read_metadata(path), recipe, str(path))
        put_extra(root, texts, recipe.extra_state, str(path), trust)
    values = _compared(root, tensors, recipe, str(path), digests)
    if kind == "onnx" and recipe.extra_state:
        values = _with_extra(values, root, recipe)
    tell(progress, "validate", where)
    strict = checks.is_strict(device)
    answers = checks.run(subject, level=level, device=where, strict=strict, train_steps=train_steps, progress=progress)
    found = (values, _architecture(conversion, path), *answers)
    if kind == "onnx":
        tell(progress, "validate", f"parity on {where}")
        found = (*found, checks.compare_export(subject, path, device=where, dtype=recipe.dtype, strict=strict))
    return Validation(Path(path), recipe, found, f"{where} ({note})" if note else where)


def _refuse_incomplete(path: str | PathLike[str]) -> None:
    """Raises UsageError for a file that its recipe alone does not make."""
    metadata = naming.load(naming.format_in(path)).read_metadata(path)
    recipe = receipt.recipe_from_metadata(metadata, str(path))
    if naming.FOLDED_KEY in metadata:
        raise UsageError(
            "a folded file has other tensors than the network of its recipe",
            where=str(path),
            fix="`zero-convert verify` compares it with its receipt; validate the file that was not folded.",
        )
    if recipe is not None and recipe.files:
        raise UsageError(
            "the file holds values of another file, which its recipe names by SHA-256 only",
            where=str(path),
            got=", ".join(recipe.files),
            fix="`zero-convert verify` compares it with its receipt; the conversion itself ran the checks.",
        )


def _sized(path: str | PathLike[str], usual: Inputs | None) -> Inputs | None:
    """The usual inputs in the sizes that are fixed in an ONNX file; None where they have these, or are no match."""
    named: dict[Any, Any] = dict(usual) if isinstance(usual, Mapping) else dict(enumerate(usual or ()))
    tensors = {name: x for name, x in named.items() if isinstance(x, Tensor)}
    sizes = input_sizes(path)
    if len(sizes) != len(tensors) or any(len(own) != x.ndim for own, x in zip(sizes, tensors.values(), strict=True)):
        return None
    changed = False
    for (name, x), wanted in zip(tensors.items(), sizes, strict=True):
        shape = [usual_size if own is None else own for own, usual_size in zip(wanted, x.shape, strict=True)]
        if tuple(shape) != tuple(x.shape) and x.numel():
            named[name] = x.flatten()[torch.arange(prod(shape)) % x.numel()].reshape(shape)
            changed = True
    if not changed:
        return None
    return named if isinstance(usual, Mapping) else tuple(named.values())


@dataclass(frozen=True)
class Digests:
    """The weights digest that a file records, and that of its tensors; both "" where it records none."""

    recorded: str
    found: str

    @classmethod
    def of(cls, path: str | PathLike[str]) -> Digests:
        """Those of a file, whose tensors are read. Errors as for the readers."""
        contents = readers.read(path)
        recorded = contents.metadata.get(naming.DIGEST_KEY, "")
        if not recorded:
            return cls("", "")
        found = survey(contents, digest=True, values=False)
        return cls(recorded, f"zc1:{found.digest}" if found.digest else f"none ({found.undigested})")

    @property
    def changed(self) -> bool:
        """Whether the tensors are others than those that the digest was recorded of."""
        return self.recorded != self.found


def _refuse_other_tensors(
    expected: Mapping[str, Tensor], tensors: Mapping[str, Tensor], recipe: Recipe, where: str, digests: Digests
) -> None:
    """Raises MalformedError as `refuse_misfit`; a file that its digest shows to be changed is told to be one."""
    try:
        refuse_misfit(expected, tensors, recipe, where)
    except MalformedError as error:
        if not digests.changed:
            raise
        raise MalformedError(
            "the file's tensors were changed after it was written, and do not fit the network of its recipe",
            where=where,
            got=f"weights digest {digests.found}; {error.got}",
            expected=f"{digests.recorded}, which the file records",
            fix="Optimizers rename, merge and fold tensors: validate the file as zero-convert wrote it.",
        ) from error


def _architecture(conversion: Conversion, path: str | PathLike[str]) -> Check:
    """Whether the network that the recipe builds is the one whose digest the file records."""
    known, own = recorded_architecture(path), conversion.architecture_digest
    question = "Is the network that its recipe builds the one that the file records?"
    numbers = {"recorded": known, "rebuilt": own}
    if not known:
        return Check("architecture", "skip", question, "the file records no architecture digest", numbers)
    if known == own:
        return Check("architecture", "pass", question, f"za1 {own[:16]}…", numbers, "equal digests")
    summary = f"za1 {own[:16]}…, and the file records {known[:16]}…"
    return Check("architecture", "fail", question, summary, numbers, "equal digests", ANOTHER_NETWORK)


def _compared(root: nn.Module, tensors: Mapping[str, Tensor], recipe: Recipe, where: str, digests: Digests) -> Check:
    """Whether the file's tensors are the module's; afterwards the module holds the file's."""
    state = stored_tensors(root)
    stored = dict.fromkeys(ties(state).values())
    # In float32 the module is as it is written: one that insists on other precisions keeps them (`conversion.cast`).
    dtype = None if recipe.dtype == "float32" else getattr(torch, recipe.dtype)
    casts = {name for name in stored if state[name].is_floating_point() and name.rpartition(".")[2] != EXTRA}
    expected = {name: state[name].detach().to(dtype if name in casts else None) for name in stored}
    _refuse_other_tensors(expected, tensors, recipe, where, digests)
    different = {name: count for name in stored if (count := _unequal(tensors[name], expected[name]))}
    with torch.no_grad():
        for name in stored:
            state[name].copy_(tensors[name])
    nan = nan_names(root)
    summary = f"{len(stored)} tensors equal bit for bit"
    if different:
        first = ", ".join(f"{name} ({count} values)" for name, count in list(different.items())[:SHOWN])
        summary = f"{len(different)} of {len(stored)} tensors differ: {first}"
    remedy = "The file is damaged, was trained, or the model library has changed; `check` says which."
    if digests.recorded and digests.changed:
        summary = f"the weights digest is {digests.found}, and the file records {digests.recorded}; {summary}"
        remedy = "The file was changed after it was written: it is damaged, was trained, or went through an optimizer."
    elif digests.recorded:
        remedy = "The weights digest is the recorded one, so the model library has changed since; `check` says how."
    return Check(
        "values",
        "fail" if different else "pass" if stored else "skip",
        QUESTION,
        summary,
        {"tensors": len(stored), "different": different, "nan": nan},
        "equal bits",
        remedy if different else "",
    )


def _with_extra(values: Check, root: nn.Module, recipe: Recipe) -> Check:
    """The answer with what became of extra state, which ONNX files name by digest and do not hold."""
    own = {name: digest(text) for name, text in extra_state(root).items()}
    wrong = [name for name, recorded in recipe.extra_state.items() if own.get(name) != recorded]
    if wrong:
        summary = f"the extra state of the network that was rebuilt is not the recorded one: {', '.join(wrong[:SHOWN])}"
        return replace(values, status="fail", summary=f"{values.summary}; {summary}", remedy=ANOTHER_NETWORK)
    return replace(values, summary=f"{values.summary}; extra state, which the file does not hold, has its digest")


def _unequal(a: Tensor, b: Tensor) -> int:
    """How many values have other bits."""
    if not a.numel():
        return 0
    rows = [t.contiguous().reshape(-1, 1).view(torch.uint8) for t in (a, b)]
    return int((rows[0] != rows[1]).any(1).sum())


def _read(path: str | PathLike[str], kind: str) -> dict[str, Tensor]:
    if kind == "onnx":
        return initializers(path)
    from safetensors.torch import load_file

    return load_file(path)
