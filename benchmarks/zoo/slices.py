"""Which models: by pattern, from a list file, one per family, up to a number of parameters.

Nothing here traces or converts; models are built at most to count their parameters.
"""

from __future__ import annotations

import fnmatch
import importlib.util
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from zero_convert import sources
from zero_convert.model_ref import LIBRARIES
from zero_convert.sources import parse_model_args


@dataclass(frozen=True)
class Model:
    """One row's model: a MODEL string, arguments of its factory as `key=value` texts, and the family it belongs to."""

    name: str  # "timm:resnet18"
    arguments: tuple[str, ...] = ()
    family: str = field(default="", compare=False)
    label: str = ""  # stands for the arguments in tables

    @property
    def zoo(self) -> str:
        """The source: "torchvision", "timm", "transformers", or "" for the user's own code."""
        before = self.name.partition(":")[0]
        return before if before in LIBRARIES else ""

    @property
    def title(self) -> str:
        return " ".join((self.name, self.label) if self.label else (self.name, *self.arguments))

    def model_args(self) -> dict[str, Any]:
        return parse_model_args(self.arguments)


def choose(patterns: Sequence[str], files: Sequence[Path] = ()) -> list[Model]:
    """The models that match any pattern, and those of the list files, without doubles.

    A pattern has wildcards and applies to "origin:name" (`torchvision:*`, `timm:vit_*`, `*resnet18`). A line of a list
    file is a MODEL string and arguments of its factory (`transformers:bert num_hidden_layers=2`); `#` begins a comment.

    Raises:
        ValueError: a pattern that no name matches.
    """
    found: dict[Model, None] = {}
    known = [f"{zoo}:{name}" for zoo, names in sources.names().items() for name in names] if patterns else []
    for pattern in patterns:
        hits = [name for name in known if fnmatch.fnmatchcase(name, pattern)]
        if not hits:
            raise ValueError(f"no model matches {pattern!r}")
        found |= dict.fromkeys(map(Model, hits))
    for file in files:
        for line in file.read_text(encoding="utf-8").splitlines():
            name, *arguments = line.partition("#")[0].split() or [""]
            if name:
                found[Model(name, tuple(arguments))] = None
    return with_families(found)


def tiny_transformers() -> list[Model]:
    """A tiny configuration of each model type that the tests have one for."""
    from tests.tiny_transformers import TINY

    texts = {name: tuple(f"{key}={value!r}" for key, value in given.items()) for name, given in TINY.items()}
    return with_families(Model(f"transformers:{name}", given, label="tiny") for name, given in texts.items())


def with_families(models: Iterable[Model]) -> list[Model]:
    """The models with their families; where a library has none for a name, the name is the family."""
    found = list(models)
    families = family_names({model.zoo for model in found})
    return [replace(model, family=families.get(model.name, model.name.partition(":")[2])) for model in found]


def family_names(zoos: Iterable[str]) -> dict[str, str]:
    """MODEL string → family, the file that a library keeps the architecture in."""
    found: dict[str, str] = {}
    if "torchvision" in zoos:
        from torchvision import models

        for name in models.list_models():
            home = models.get_model_builder(name).__module__.removeprefix("torchvision.models.")
            found[f"torchvision:{name}"] = home
    if "timm" in zoos and importlib.util.find_spec("timm"):
        import timm

        for module in timm.list_modules():
            found |= {f"timm:{name}": module for name in timm.list_models(module=module)}
    return found


def parameters_of(model: Model) -> int | None:
    """How many parameters the model has; None where it cannot be built.

    Counted on the meta device where its constructor can do without values, else on the CPU.
    """
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for device in ("meta", "cpu"):
            try:
                with torch.device(device):
                    made = _built(model) if device == "meta" else sources.load(model.name, model.model_args()).module
                    return sum(int(p.numel()) for p in made.parameters())
            except Exception:
                continue
    return None


def _built(model: Model) -> Any:
    _, _, name = model.name.partition(":")
    if model.zoo == "torchvision":
        from torchvision import models

        backbone = {"weights_backbone": None} if model.name in _with_backbone() else {}
        return models.get_model(name, weights=None, **backbone, **model.model_args())
    if model.zoo == "timm":
        import timm

        return timm.create_model(name, pretrained=False, **model.model_args())
    return sources.load(model.name, model.model_args()).module


def _with_backbone() -> frozenset[str]:
    from torchvision import models

    parts = (models.detection, models.segmentation)
    return frozenset(f"torchvision:{name}" for part in parts for name in models.list_models(module=part))


def limited(models: Sequence[Model], largest: float, sizes: Mapping[str, int]) -> list[Model]:
    """The models with at most `largest` parameters; one whose size is unknown stays, its own process will count."""
    return [model for model in models if sizes.get(model.title, 0) <= largest]


def one_per_family(models: Sequence[Model], sizes: Mapping[str, int]) -> list[Model]:
    """The smallest model of each family; the first by name where two are equal."""
    best: dict[tuple[str, str], Model] = {}
    for model in sorted(models, key=lambda m: (sizes.get(m.title, 1 << 62), m.name)):
        best.setdefault((model.zoo, model.family), model)
    chosen = set(best.values())
    return [model for model in models if model in chosen]
