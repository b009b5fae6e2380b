"""A model in a file: its structure comes from an architecture that is named, its values serve for constants only.

    FILE --arch MODEL   names and shapes are compared (`sources/matching.py`); our readers read it, no code of it is run
    FILE --trust        a whole network: torch runs what is in the file, because somebody said so

Nothing but the user's word leads from the first to the second.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from zero_convert import model_ref, readers
from zero_convert.artifacts.receipt import recipe_from_metadata
from zero_convert.errors import LoadError, UsageError
from zero_convert.formats.digests import brief, sha256_file
from zero_convert.formats.dtypes import of_torch
from zero_convert.graph.ties import ties
from zero_convert.inspection.likely_architecture import likely
from zero_convert.model_ref import ModelRef
from zero_convert.readers import IMPORTS, Contents, torch_export, torch_zip
from zero_convert.runtime.messages import without_warnings
from zero_convert.runtime.user_code import place, spell

from . import matching, programs
from .file_values import FileValues

_SHOWN = 4  # globals, models or names in a message


@dataclass(frozen=True)
class File:
    """A file that was given as MODEL.

    Attributes:
        model: what its structure comes from: a MODEL string, or the module that the file itself made.
        notes: what the reader of the plan should know of it.
        inputs: what its program was recorded with, where the file says it.
    """

    contents: Contents
    model: str | nn.Module
    notes: tuple[str, ...]
    inputs: Any = None

    @property
    def digests(self) -> tuple[str, ...]:
        """SHA-256 of the file, and of those it names, in their order."""
        beside = dict.fromkeys(t.storage.path for t in self.contents.tensors if t.storage is not None)
        return tuple(map(sha256_file, dict.fromkeys((self.contents.path, *beside))))

    def fit(self, module: nn.Module) -> tuple[Mapping[str, FileValues], tuple[str, ...]]:
        """Name in the module → the file's value; and what is to be said of it.

        Raises:
            LoadError: the file holds other tensors than the module.
        """
        state = {n: v for n, v in module.state_dict(keep_vars=True).items() if isinstance(v, torch.Tensor)}
        stored = {tensor.name: tensor for tensor in self.contents.tensors}
        own = {name: stored[key] for key, name in self.contents.weights.items()}
        first = ties(state)
        found = matching.fit(
            {name: (tensor.dtype, tensor.shape) for name, tensor in own.items()},
            {n: (row.name if (row := of_torch(v.dtype)) else str(v.dtype), tuple(v.shape)) for n, v in state.items()},
            first,
        )
        if not found.whole:
            raise self._unfit(found)
        known = {first[name]: own[key] for name, key in found.names.items()}
        values = {n: FileValues(tuple(v.shape), known[first[n]]) for n, v in state.items() if first[n] in known}
        return values, (*self.notes, *_said(self.contents, found))

    def _unfit(self, found: matching.Fit) -> LoadError:
        model = self.model if isinstance(self.model, str) else "the network in it"
        guess = _guess(self.contents, without=str(model))
        return LoadError(
            "the file does not hold the tensors of the architecture",
            where=self.contents.path,
            got=str(found),
            expected=f"the tensors of {model}",
            fix=f"{guess}." if guess else "`zero-convert inspect FILE` lists its tensors.",
        )


def opened(path: str, arch: str | None, trust: bool) -> File:
    """The file at `path`, read as far as its tensors' names; with `trust` and no architecture, loaded by torch.

    Raises:
        UsageError: it holds no architecture, and none is named.
        UntrustedError: it is a network that only running its code could load.
        LoadError: torch could not load it.
        MalformedError, RefusedError, StorageError: as `readers.read`.
    """
    contents = readers.read(path)
    what = f"{contents.format}{f', {contents.producer}' if contents.producer else ''}"
    if arch is not None:
        run = "; its code is not run" if contents.trust else ""
        return File(contents, arch, (f"file {path} ({what}){run}",))
    if not _is_network(contents):
        raise UsageError(
            "the file holds values and no architecture",
            where=path,
            got=f"{what}, {len(contents.tensors)} tensors",
            expected="--arch MODEL, the architecture that they belong to",
            fix=_origin(contents) or f"{_guess(contents) or 'Any MODEL will do that has these names and shapes'}.",
        )
    model_ref.refuse_untrusted(
        ModelRef("file", path=path),
        trust,
        "loading the network in this file means running what is in it",
        where=path,
        got=f"{what}: {_reasons(contents)}",
        expected="--arch MODEL: the structure from there, and nothing of the file is run",
        fix=". ".join(filter(None, ("" if trust else _guess(contents), "--trust runs it, if you know who made it."))),
    )
    module, inputs = _loaded(contents)
    return File(contents, module, (f"file {path} ({what}) was trusted: {_reasons(contents)}",), inputs)


def _reasons(contents: Contents) -> str:
    """Why it asks for trust, and what it names."""
    kinds = [reason for reason in contents.trust if not reason.startswith(IMPORTS)]
    names = [reason.removeprefix(IMPORTS) for reason in contents.trust if reason.startswith(IMPORTS)]
    more = f" and {len(names) - _SHOWN} more, which `inspect` lists" if len(names) > _SHOWN else ""
    return "; ".join([*kinds[:_SHOWN], *([f"it names {', '.join(map(brief, names[:_SHOWN]))}{more}"] if names else [])])


def _is_network(contents: Contents) -> bool:
    """Whether a loader would make a network of the file, and not only tensors."""
    return bool(contents.details.get("module")) or contents.format in (torch_zip.SCRIPT, torch_export.FORMAT)


def _origin(contents: Contents) -> str:
    """The way to make the artifact again, where it is one of ours."""
    recipe = recipe_from_metadata(contents.metadata, contents.path)
    if recipe is None or not recipe.model:
        return ""
    return f"zero-convert made it from {brief(recipe.model)}: convert that, or name it as --arch."


def _guess(contents: Contents, without: str = "") -> str:
    """What to type as --arch, from the names and shapes."""
    shapes = {
        own: tensor.shape for tensor in contents.tensors if (own := contents.weights.get(tensor.name)) is not None
    }
    found = likely(shapes)
    if without and found is not None and found.match == "classes" and any(without in m for m in found.models):
        return f"--arch {without} --model-arg num_classes={found.classes} fits the head" if found.classes else ""
    models = [model for model in found.models if model != without] if found else []
    if not found or not models or without in found.models:
        return ""
    about = {
        "exact": "Its names and shapes are those of",
        "classes": "With another number of classes its names and shapes are those of",
        "headless": "Without a head its names and shapes are those of",
        "part": f"About {found.share:.0%} of its names and shapes are those of",
        "family": "Its names, with other sizes, are those of",
    }[found.match]
    classes = f" --model-arg num_classes={found.classes}" if found.classes is not None else ""
    return f"{about} --arch {models[0]}{classes}"


# ---------------------------------------------------------------------------------------------------------------------
# what is said


def _said(contents: Contents, found: matching.Fit) -> tuple[str, ...]:
    at = f" under {brief(contents.weights_at)}" if contents.weights_at else ""
    before = contents.weights_prefix + found.prefix
    prefix = f", without {brief(before)} before their names" if before else ""
    notes = [f"all {len(found.names)} tensors of the architecture are in the file{at}{prefix}"]
    if contents.sections:
        notes.append(f"the file holds besides: {', '.join(map(brief, contents.sections))}")
    if found.besides:
        more = " …" if len(found.besides) > _SHOWN else ""
        notes.append(f"left out of the file: {', '.join(map(brief, found.besides[:_SHOWN]))}{more}")
    if found.converted:
        notes.append(f"stored in other types: {', '.join(f'{n} {kind}' for kind, n in found.converted.items())}")
    return tuple(notes)


# ---------------------------------------------------------------------------------------------------------------------
# trusted


def _loaded(contents: Contents) -> tuple[nn.Module, Any]:
    """The network that torch makes of a trusted file, and its example inputs if it has some. Runs code from it."""
    try:
        with without_warnings():
            made = _load(contents)
    except Exception as error:
        raise LoadError(
            "torch cannot load the trusted file",
            where=contents.path,
            got=spell(error) + place(error),
            fix="The classes that it names have to be importable, from the current folder for instance.",
        ) from error
    if contents.format == torch_export.FORMAT:
        return programs.from_program(made), programs.example_inputs(made)
    if not isinstance(made, nn.Module):
        raise LoadError("the trusted file holds no network", where=contents.path, got=f"a {type(made).__qualname__}")
    return made, None


def _load(contents: Contents) -> Any:
    path = contents.path
    if contents.format == torch_export.FORMAT:
        return torch.export.load(path)
    if contents.format == torch_zip.SCRIPT:
        return torch.jit.load(path, map_location="cpu")  # type: ignore[no-untyped-call]
    made = torch.load(path, map_location="cpu", weights_only=False)
    for key in contents.weights_at.split(".") if contents.weights_at else ():
        made = made[key]
    return made
