"""The model types and classes of transformers, where it is installed: names, construction from configurations.

    MODEL_TYPE   "bert": the network that AutoModel makes, or the first AutoModelFor… where there is none
    ClassName    "BertForSequenceClassification"

Built from the default configuration with the user's changes, never from a checkpoint; the hub client is offline
meanwhile. The configurations are in `transformers_config.py`, the inputs in `transformers_inputs.py`. Imports
transformers inside functions only, because importing it takes seconds.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import logging
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from zero_convert.errors import LoadError
from zero_convert.runtime.messages import without_logs
from zero_convert.runtime.patches import replaced
from zero_convert.sources.building.settings import Setting, apply

if TYPE_CHECKING:
    from torch import nn

    from zero_convert.sources.inputs import Inputs


def available() -> bool:
    return importlib.util.find_spec("transformers") is not None


def names() -> list[str]:
    """The model types. The classes are in `more_names`: they are ten times as many."""
    return sorted(_by_type())


def more_names() -> list[str]:
    """The classes that some AutoModel makes, sorted; any other network class of the library can be typed as well."""
    return sorted({name for found in _mappings() for name in found.values()})


def known(name: str) -> bool:
    """Whether `name` is a model type, or a network class with a configuration."""
    if name in _by_type():
        return True
    return _class_of(name) is not None if name[:1].isupper() else _of_part(name) is not None


def build(name: str, args: dict[str, Any]) -> nn.Module:
    """The network with values as constructed, in training mode.

    Raises:
        UsageError: a change that the configuration does not take.
        LoadError: no default configuration, or a library that the network needs is missing.
    """
    from .configs import configured

    with offline():
        try:
            cls = _network(name)
            config = configured(cls.config_class, args, f"transformers:{name}")
            module: nn.Module = cls(config)
        except ImportError as error:
            text = " ".join(str(error).split())
            raise LoadError("a library that this model needs is missing", where=name, got=text[:300]) from error
    return module.train()


def example_inputs(name: str, module: nn.Module) -> Inputs | None:
    """Keyword arguments of forward by the library's conventions."""
    from .inputs import conventional

    with offline():
        return conventional(module)


def notes(module: nn.Module, inputs: Inputs | None) -> tuple[str, ...]:
    """One sentence for each kind of input that the network takes and the example inputs lack."""
    from .inputs import missing

    return tuple(missing(module, inputs))


def owns(module: nn.Module) -> bool:
    """Whether a live module is a network of the library."""
    import transformers

    return isinstance(module, transformers.PreTrainedModel)


def settle(module: nn.Module, args: Mapping[str, Any]) -> tuple[Setting, ...]:
    """Makes the forward of a network plain, except where the user said otherwise."""
    from .configs import PLAIN, plain

    said = set(_keys(args))
    found = [s for part in module.modules() if owns(part) for s in plain(part.config)]
    found += [
        Setting(part, key, vars(part)[key], PLAIN[key], exported=True)
        for part in module.modules()
        for key in PLAIN
        if key in vars(part)
    ]
    unique = {(id(s.owner), s.name): s for s in found if s.name not in said and s.made != s.plain}
    return apply(unique.values())


def _keys(args: Mapping[str, Any]) -> Iterator[str]:
    for key, value in args.items():
        yield key.rpartition(".")[2]
        yield from _keys(value) if isinstance(value, Mapping) else ()


def candidates(module: nn.Module) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """The module's own class with what its configuration changes."""
    from .configs import differences

    if owns(module) and _class_of(type(module).__name__) is type(module):
        with contextlib.suppress(ValueError):
            yield type(module).__name__, [differences(module.config)]


@contextlib.contextmanager
def offline() -> Iterator[None]:
    """In the calling thread, the hub client refuses to connect, and the library's own messages are dropped."""
    from huggingface_hub import constants

    with replaced(constants, "HF_HUB_OFFLINE", lambda _: True), without_logs(logging.WARNING, "transformers"):
        yield


def _network(name: str) -> Any:
    if name in _by_type():
        return _class_of(_by_type()[name]) or _missing(name)
    return _class_of(name) or _of_part(name) or _missing(name)


def _missing(name: str) -> Any:
    raise LoadError("transformers names this model but has no class with a forward for it", where=name)


@functools.cache
def _mappings() -> tuple[dict[str, str], ...]:
    """Model type → class name, of every AutoModel; the base models come first."""
    from transformers.models.auto import modeling_auto

    found = []
    for key, mapping in vars(modeling_auto).items():
        if key.startswith("MODEL_") and key.endswith("MAPPING_NAMES"):
            found.append({kind: name if isinstance(name, str) else name[0] for kind, name in mapping.items()})
    return tuple(found)


@functools.cache
def _by_type() -> dict[str, str]:
    chosen: dict[str, str] = {}
    for mapping in _mappings():
        for kind, name in mapping.items():
            chosen.setdefault(kind, name)
    return chosen


def _class_of(name: str) -> Any:
    """The network class of that name, or None. One that needs a missing library is a class that raises when asked."""
    import transformers
    from torch import nn

    try:
        cls = getattr(transformers, name)
    except (AttributeError, ImportError, ValueError):
        return None
    try:
        network = cls.config_class is not None and cls.forward is not nn.Module.forward
    except AttributeError:
        return None
    except ImportError:
        return cls
    return cls if network else None


def _of_part(name: str) -> Any:
    """The class for a model type that no AutoModel makes, such as a tower of a model with several."""
    from transformers import CONFIG_MAPPING
    from transformers.models.auto.configuration_auto import model_type_to_module_name

    if name not in CONFIG_MAPPING:
        return None
    folder = model_type_to_module_name(name)
    config = CONFIG_MAPPING[name]
    where = config.__module__.rpartition(".")[0]
    try:
        code = importlib.import_module(f"{where}.modeling_{folder.rpartition('.')[2]}")
    except ImportError:
        return None
    fitting = [
        cls
        for cls in vars(code).values()
        if isinstance(cls, type) and getattr(cls, "config_class", None) is config and cls.__module__ == code.__name__
    ]
    return next((cls for cls in fitting if cls.__name__.endswith("Model")), fitting[-1] if fitting else None)
