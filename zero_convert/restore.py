"""From an artifact back to the module that it holds."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from pathlib import Path

import torch
from torch import nn

from . import exporters, sources
from .artifacts import receipt
from .conversion import Inputs, Made, cast, prepare
from .errors import LoadError, MalformedError, UntrustedError, UsageError
from .graph.ties import ties
from .initialization.constants import nan_names
from .records import Recipe
from .result import Progress
from .runtime import user_code
from .sources.inputs import parse_inputs


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
        UntrustedError: it names a factory outside the model libraries, or a scheme's file.
        LoadError: it names no model; and the errors of `convert`.
        UsageError: it is an ONNX file.
    """
    if exporters.format_in(path) != "safetensors":
        raise UsageError(
            "modules are loaded from safetensors", where=str(path), fix="Convert to FILE.safetensors as well."
        )
    made, recipe = rebuilt(path, model, example_inputs, scheme=scheme, trust=trust, leftovers="keep")
    module = made.traced.root
    cast(module, recipe.dtype)
    _fill_from(module, path, recipe, str(path))
    if nan := nan_names(module):
        raise MalformedError("values are left that the file does not hold", where=", ".join(nan[:6]), got="NaN")
    return made.release().train()


def rebuilt(
    path: str | PathLike[str],
    model: str | nn.Module | None = None,
    example_inputs: Inputs | None = None,
    *,
    scheme: str | None = None,
    trust: bool = False,
    leftovers: str | None = None,
    compare: bool = False,
    progress: Progress | None = None,
) -> tuple[Made, Recipe]:
    """The network that an artifact's recipe builds, up to the moment the values are written, and the recipe.

    Args:
        leftovers: instead of the recipe's.
        compare: keep the network as given beside the rewritten one.

    The others, and errors, as for `load`.
    """
    where = str(path)
    metadata = exporters.load(exporters.format_in(path)).read_metadata(path)
    recipe = receipt.recipe_from_metadata(metadata, where)
    if recipe is None:
        raise MalformedError("the file has no recipe", where=where, expected="a file that zero-convert wrote")
    arguments = None
    if model is None:
        model, arguments = _named_model(recipe, where, trust), recipe.model_args
    if example_inputs is None and recipe.inputs:
        example_inputs = parse_inputs(recipe.inputs)
    rules = scheme if scheme is not None else _named_scheme(recipe, where, trust)
    kept = recipe.leftovers if leftovers is None else leftovers
    folders = [str(Path(path).parent)]
    made = prepare(model, example_inputs, rules, recipe.options, arguments, kept, progress, folders, compare=compare)
    return made, recipe


# ---------------------------------------------------------------------------------------------------------------------


def _named_model(recipe: Recipe, where: str, trust: bool) -> str:
    if not recipe.model:
        raise LoadError(
            "the file does not say how its model is built: it was converted from a live module",
            where=where,
            got=f"a {recipe.source}",
            fix="Say how: --arch MODEL (in Python the module, or a MODEL string, as `model=`).",
        )
    if recipe.model.partition(":")[0] not in sources.ORIGINS and not trust:
        raise UntrustedError(
            "the file names a factory outside the model libraries, and running it means running its code",
            where=where,
            got=repr(recipe.model),
            fix="If you know that file and that code: --trust. Or name the factory: --arch path/to/net.py:Net. "
            "(In Python `trust=True`, `model=`.)",
        )
    return recipe.model


def _named_scheme(recipe: Recipe, where: str, trust: bool) -> str:
    if user_code.is_file(recipe.scheme) and not trust:
        raise UntrustedError(
            "the file names a scheme in a file of Python, and loading it means running that code",
            where=where,
            got=repr(recipe.scheme),
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


def _fill_from(module: nn.Module, path: str | PathLike[str], recipe: Recipe, where: str) -> None:
    from safetensors.torch import load_file

    tensors = load_file(path)
    state = module.state_dict(keep_vars=True)
    stored = set(ties(state).values())
    refuse_misfit({name: state[name] for name in stored}, tensors, recipe, where)
    with torch.no_grad():
        for name in sorted(stored):
            state[name].copy_(tensors[name])
