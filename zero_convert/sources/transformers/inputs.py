"""Example inputs of transformers models: which arguments of forward they are, and which of several forms.

The arguments: those that forward requires, the class's main input, and one for each modality it declares. What they
look like is in `transformers_kinds.py`. Where a model leaves room (images in a batch or in a list of a batch, text
with images or without), the first that its forward accepts is taken, the richest first.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from zero_convert.sources.inputs.trials import Trials

from .dummy_inputs import MAKERS, TEXT, Asked, text_masks

MAX_TRIALS = 24

# The arguments that carry a modality, the usual ones first.
MODALITIES: Mapping[str, tuple[str, ...]] = {
    "text": ("input_ids",),
    "image": ("pixel_values", "flattened_patches"),
    "video": ("pixel_values_videos", "pixel_values"),
    "audio": ("input_features", "input_values", "audio_values"),
    "time": ("past_values",),
}

# Fields that name the token whose places in a text are taken by features, what they are made of, and the method.
PLACES = (
    (("image_token_id", "image_token_index"), ("pixel_values",), "get_image_features"),
    (("audio_token_id", "audio_token_index"), ("input_features", "input_values"), "get_audio_features"),
)


def conventional(module: nn.Module) -> dict[str, Any] | None:
    """Keyword arguments that the module's forward accepts; None if an argument it requires is of an unknown kind.

    If the forward accepts nothing that was tried, the first is returned: its failure is the pipeline's to report.
    """
    asked = Asked(module)
    trials = Trials(module)
    variants = itertools.islice(_variants(asked, trials), MAX_TRIALS)
    first = next(variants, None)
    second = next(variants, None)
    if first is None or second is None:
        return first  # nothing to choose from
    for inputs in itertools.chain((first, second), variants):
        # A mask of ones says nothing, and a forward that looks at it cannot be asked without values.
        if trials.accepts({name: value for name, value in inputs.items() if name != "attention_mask"}):
            return inputs
    return first


def missing(module: nn.Module, inputs: Mapping[str, Any] | tuple[Any, ...] | None) -> list[str]:
    """A sentence for each modality that the network declares and its forward names, of which the inputs carry none."""
    asked = Asked(module)
    if not isinstance(inputs, Mapping):
        return []
    found = []
    for kind in asked.modalities:
        names = [name for name in MODALITIES.get(kind, ()) if name in asked.parameters]
        if names and not set(names) & set(inputs):
            found.append(f"the example inputs have no {kind}: forward took none that was tried")
            token, size = asked.field(f"{kind}_token_id", f"{kind}_token_index"), asked.field("vocab_size", inside=TEXT)
            if isinstance(token, int) and isinstance(size, int) and token >= size:
                found[-1] += f"; its token, {token}, is outside the vocabulary of {size} (model argument vocab_size)"
    return found


def _variants(asked: Asked, trials: Trials) -> Iterator[dict[str, Any]]:
    """Complete sets of arguments, the richest first."""
    for wanted in _wanted(asked):
        made = {name: MAKERS[name](asked) for name in wanted if name in MAKERS}
        if any(name not in made or not made[name] for name in asked.required):
            continue
        names = [name for name in made if made[name]]
        for values in itertools.product(*(made[name] for name in names)):
            inputs: dict[str, Any] = {}
            for value in values:
                inputs.update(value)
            inputs = {name: value for name, value in inputs.items() if name in asked.parameters}
            if "input_ids" in inputs and len(inputs) > 1 and (joined := _with_places(asked, trials, inputs)):
                yield joined
            if inputs:
                yield inputs


def _wanted(asked: Asked) -> list[list[str]]:
    """Names of arguments: required, main and one for each modality; without the modalities; required and one only."""
    least = list(dict.fromkeys([*asked.required, *([asked.main] if asked.main else [])]))
    rich = list(least)
    for modality in asked.modalities:
        carriers = [name for name in MODALITIES.get(modality, ()) if name in asked.parameters]
        if carriers and not set(carriers) & set(rich) and not (modality == "video" and "image" in asked.modalities):
            rich.append(carriers[0])
    single = [[*dict.fromkeys([*asked.required, name])] for name in rich if name not in asked.required]
    found: list[list[str]] = []
    for names in (rich, least, *single, asked.required):
        if names and names not in found:
            found.append(names)
    return found


def _with_places(asked: Asked, trials: Trials, inputs: dict[str, Any]) -> dict[str, Any] | None:
    """The inputs with a text in which features find their places, for models that put them in place of a token."""
    ids = inputs["input_ids"]
    places = []
    for fields, carriers, method in PLACES:
        token = asked.field(*fields)
        owner = next((path for path, part in asked.module.named_modules() if hasattr(part, method)), None)
        if not isinstance(token, int) or owner is None or not set(carriers) & set(inputs):
            continue
        features_of: Any = getattr(asked.module.get_submodule(owner), method)
        accepted = inspect.signature(features_of).parameters
        try:
            features = trials.call(owner, method, {name: value for name, value in inputs.items() if name in accepted})
        except LookupError:
            continue
        places.append(torch.full((1, _rows(features)), token, dtype=ids.dtype))
    if not places:
        return None
    joined = torch.cat([ids[:, :1], *places, ids[:, 1:]], dim=1)
    return {**inputs, "input_ids": joined, **text_masks(asked, joined)}


def _rows(features: Any) -> int:
    """How many feature vectors there are: all tensors, all dimensions but the last."""
    features = getattr(features, "pooler_output", features)
    if isinstance(features, torch.Tensor):
        return features.numel() // features.shape[-1]
    return sum(map(_rows, features))
