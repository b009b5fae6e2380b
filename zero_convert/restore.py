"""From an artifact back to the module that it holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import nn

from zero_convert.runtime.patches import one_at_a_time

from . import model_ref
from .artifacts import receipt
from .conversion import Conversion, prepare
from .errors import LoadError, MalformedError, MismatchError, UsageError
from .formats import naming
from .graph.state import EXTRA, put_extra, stateful_parts, stored_tensors
from .graph.ties import ties
from .initialization.constants import nan_names
from .model_ref import ModelRef, SchemeRef
from .options import Inputs, Options, carried
from .records import Recipe

ANOTHER_NETWORK = (
    "The model's source may have changed since, or another model, scheme or example input was named: name those it was "
    "made from (`model=`, `example_inputs=`; --arch, --input)."
)


@one_at_a_time()
@torch.inference_mode(False)
def load(
    path: str | PathLike[str],
    model: str | nn.Module | None = None,
    example_inputs: Inputs | None = None,
    *,
    scheme: str | None = None,
    trust: bool = False,
) -> nn.Module:
    """The rewritten network that an artifact holds, with its weights, in training mode, on the CPU.

    The file alone is enough where its model came from an installed model library. It never makes us run other code:
    for a model from a user's own factory, or a scheme from a user's own file, say which one, or `trust=True` to run the
    one that the file names, from the current folder or from beside the artifact.

    Args:
        path: a file that `Result.save` wrote.
        model: the module or MODEL string to rebuild the network from, where the file cannot say.
        example_inputs: as for `convert`.
        scheme: the path of the scheme, where it was in a file of Python.
        trust: run the factory and the scheme's file that the artifact names.

    Raises:
        MalformedError: no file of ours, or its tensors do not fit the network.
        MismatchError: the network that was rebuilt has another architecture digest than the file records.
        UntrustedError: it names a factory outside the model libraries, or a scheme's file.
        LoadError: it names no model; and the errors of `convert`.
        UsageError: it is an ONNX file.
    """
    if naming.format_in(path) != "safetensors":
        raise UsageError(
            "modules are loaded from safetensors", where=str(path), fix="Convert to FILE.safetensors as well."
        )
    conversion, recipe = rebuilt(path, Named(model, example_inputs, scheme, trust), uncovered="keep")
    conversion.asked = replace(conversion.asked, dtype=recipe.dtype)
    module = conversion.release()
    _fill_from(module, path, recipe, str(path), trust)
    refuse_other_architecture(conversion, path)
    if nan := nan_names(module):
        raise MalformedError("values are left that the file does not hold", where=", ".join(nan[:6]), got="NaN")
    return conversion.tree.module.train()


@dataclass(frozen=True)
class Named:
    """What the user says of an artifact instead of its recipe; the fields are the arguments of `load`."""

    model: str | nn.Module | None = None
    example_inputs: Inputs | None = None
    scheme: str | None = None
    trust: bool = False


def rebuilt(
    path: str | PathLike[str], named: Named, *, compare: bool = False, **others: Any
) -> tuple[Conversion, Recipe]:
    """The conversion that an artifact's recipe describes, up to the moment the values are written, and the recipe.

    Args:
        compare: keep the network as given beside the rewritten one.
        others: fields of `Options`, instead of the recipe's.

    Errors as for `load`.
    """
    where = str(path)
    metadata = naming.load(naming.format_in(path)).read_metadata(path)
    recipe = receipt.recipe_from_metadata(metadata, where)
    if recipe is None:
        raise MalformedError("the file has no recipe", where=where, expected="a file that zero-convert wrote")
    model = _trusted_model(recipe, where, named.trust) if named.model is None else named.model
    if named.model is not None:
        others["model_args"] = {}
    others["scheme"] = _trusted_scheme(recipe, where, named.trust) if named.scheme is None else named.scheme
    # The dtype is for the caller: the values are cast once they are there.
    options = carried(Options, recipe, example_inputs=named.example_inputs, dtype="float32", **others)
    return prepare(model, options, [str(Path(path).parent)], compare=compare), recipe


# ---------------------------------------------------------------------------------------------------------------------


def _trusted_model(recipe: Recipe, where: str, trust: bool) -> ModelRef:
    """What the recipe says of the model. Raises LoadError without one, UntrustedError where it runs code."""
    if not recipe.model:
        raise LoadError(
            "the file does not say how its model is built: it was converted from a live module",
            where=where,
            got=f"a {recipe.source}",
            fix="Say how: --arch MODEL (in Python the module, or a MODEL string, as `model=`).",
        )
    ref = ModelRef.named(recipe.model)
    model_ref.refuse_untrusted(
        ref,
        trust,
        "the file names a factory outside the model libraries, and running it means running its code",
        where=where,
        fix="If you know that file and that code: --trust. Or name the factory: --arch path/to/net.py:Net. "
        "(In Python `trust=True`, `model=`.)",
    )
    return ref


def _trusted_scheme(recipe: Recipe, where: str, trust: bool) -> str:
    """The scheme of the recipe. Raises UntrustedError where it runs code."""
    model_ref.refuse_untrusted(
        SchemeRef(recipe.scheme),
        trust,
        "the file names a scheme in a file of Python, and loading it means running that code",
        where=where,
        fix="If you know that file and that code: --trust. Or name it: --scheme FILE.py. (In Python `trust=True`, "
        "`scheme=`.)",
    )
    return recipe.scheme


def refuse_misfit(
    expected: Mapping[str, torch.Tensor], tensors: Mapping[str, torch.Tensor], recipe: Recipe, where: str
) -> None:
    """Raises MalformedError if the file's tensors have other names, shapes or types than the network's."""
    strange = sorted(expected.keys() ^ tensors.keys())
    strange += [
        name
        for name in sorted(expected.keys() & tensors.keys())
        if (expected[name].shape, expected[name].dtype) != (tensors[name].shape, tensors[name].dtype)
    ]
    if strange:
        raise MalformedError(
            f"the file does not fit the network that its recipe builds: {len(strange)} tensors differ",
            where=where,
            got=", ".join(strange[:6]),
            expected=f"the tensors of {recipe.model or recipe.source} under {recipe.scheme}",
            fix="The model library may have changed since; name the model it was made from (`model=`, --arch).",
        )


def recorded_architecture(path: str | PathLike[str]) -> str:
    """The architecture digest that an artifact carries, hex; "" of one from before there was such a digest."""
    metadata = naming.load(naming.format_in(path)).read_metadata(path)
    return receipt.architecture_from_metadata(metadata, str(path))


def refuse_other_architecture(conversion: Conversion, path: str | PathLike[str]) -> None:
    """Raises MismatchError if the network is not the one that the artifact records."""
    known, own = recorded_architecture(path), conversion.architecture_digest
    if known and known != own:
        raise MismatchError(
            "the network that was rebuilt is not the one that the file was made from",
            where=str(path),
            got=f"za1 {own}",
            expected=f"za1 {known}",
            fix=ANOTHER_NETWORK,
        )


def _fill_from(module: nn.Module, path: str | PathLike[str], recipe: Recipe, where: str, trust: bool) -> None:
    from safetensors.torch import load_file

    tensors = load_file(path)
    state = stored_tensors(module)
    tied = ties(state)
    stored = set(tied.values())
    refuse_misfit({name: state[name] for name in stored}, tensors, recipe, where)
    with torch.no_grad():
        for name in sorted(stored):
            if name.rpartition(".")[2] != EXTRA:
                state[name].copy_(tensors[name])
    for name, part in stateful_parts(module).items():
        if name in tied:
            part.set_extra_state(tensors[tied[name]])
    metadata = naming.load("safetensors").read_metadata(path)
    put_extra(module, receipt.extra_state_from_metadata(metadata, recipe, where), recipe.extra_state, where, trust)
