"""Load: from a MODEL string or a live module to a `Loaded` model on the CPU.

One file per origin (`torchvision.py`, `timm.py`, `transformers.py`; `factory.py` for the user's own modules and
files), each with

    available() -> bool                      whether its library is installed
    names() -> list[str]                     every name that can be typed, sorted; builds nothing
    known(name) -> bool
    build(name, args) -> nn.Module           called under NaN-filled construction
    example_inputs(name, module) -> Inputs   by the library's own conventions
    candidates(module) -> [(name, [args, …])]  names that may have built a live module, and the arguments to try in
                                             turn: later ones make the same modules in other sizes

and where there is reason to

    more_names() -> list[str]                names that are listed only where a pattern asks for them
    notes(module, inputs) -> (sentence, …)   what the reader of the plan should know about them
    owns(module) -> bool                     whether the conventions fit a live module that has no name
    settle(module)                           makes the forward of a live module's copy what `build` would have made it

`ORIGINS` orders them for bare names: a library is imported only if the ones before it do not know the name. Nothing
here traces a model or looks at its structure.
"""

from __future__ import annotations

import ast
import difflib
import fnmatch
import importlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from zero_convert.errors import UsageError
from zero_convert.runtime.messages import printed_to

if TYPE_CHECKING:
    from torch import nn

    from zero_convert.sources.inputs import Inputs

    from .building.detectors import Setting

ORIGINS = ("torchvision", "timm", "transformers")

# Arguments that make a builder download or read trained weights: every value is replaced here, so they only cost.
WEIGHT_ARGUMENTS = ("pretrained", "weights", "weights_backbone", "pretrained_backbone", "checkpoint_path")


@dataclass(frozen=True)
class Loaded:
    """A model as its source made it, on the CPU.

    Attributes:
        module: freshly built (training mode) or copied (the mode it was in); nobody else holds it.
        example_inputs: arguments of `forward`, deterministic values: a tuple by position or a dict by name; None if
            they cannot be guessed.
        name: canonical MODEL string ("torchvision:resnet50"), or "" for a live module of unknown source.
        model_args: keyword arguments the source was called with.
        source: qualified class name of the module.
        nan_filled: whether NaN marks the values that a constructor would have drawn at random.
        lazy: names of tensors that got their shape from the example inputs.
        drawn: names of integer tensors that come from a random draw (they hold fixed values instead).
        notes: what the reader of the plan should know about the loading.
        reduced: what of the module is smaller while it is looked at (`detectors.py`).
    """

    module: nn.Module
    example_inputs: Inputs | None
    name: str
    model_args: Mapping[str, Any]
    source: str
    nan_filled: bool
    lazy: tuple[str, ...] = ()
    drawn: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    reduced: tuple[Setting, ...] = ()


def load(
    model: str,
    model_args: Mapping[str, Any] | None = None,
    *,
    inputs: Sequence[Any] | Mapping[str, Any] | None = None,
    folders: Sequence[str] = (),
) -> Loaded:
    """The model that `model` names, built under NaN-filled construction.

    Args:
        model: `resnet50`, `torchvision:NAME`, `timm:NAME`, `transformers:MODEL_TYPE_OR_CLASS`,
            `package.module:factory` or `path/file.py:factory`. The last two run the user's code.
        model_args: keyword arguments for the builder.
        inputs: example inputs by position or by name, instead of the conventional ones.
        folders: where to look for `file.py` besides the current folder.

    Raises:
        UsageError: no such name, library or argument.
        LoadError: the builder failed, or returned something else than an nn.Module.
    """
    from zero_convert.sources import factory
    from zero_convert.sources.inputs import as_inputs

    from .building.lazy_layers import materialize
    from .building.nan_constructor import nan_filled

    arguments = dict(model_args or {})
    _refuse_weights(arguments)
    prefix, name = _resolve(model)
    origin = factory.Origin(folders) if prefix == "" else _origin(prefix)
    if not origin.known(name):
        raise _unknown(name, prefix)
    # A program that prints while it is imported or built must not mix with results on stdout.
    with printed_to(sys.stderr), nan_filled() as fill:
        module = factory.on_cpu(factory.checked(lambda: origin.build(name, arguments), model, arguments), model)
        lazy, sized_by = materialize(module, as_inputs(inputs) if inputs is not None else None, model)
    factory.refuse_quantized(module, model)
    examples = sized_by if sized_by is not None else origin.example_inputs(name, module)
    said = origin.notes(module, examples) if inputs is None and hasattr(origin, "notes") else ()
    return Loaded(
        module=module,
        example_inputs=examples,
        name=f"{prefix}:{name}" if prefix else origin.canonical(name),
        model_args=arguments,
        source=factory.source_of(module),
        nan_filled=True,
        lazy=lazy,
        drawn=fill.drawn_names(module),
        notes=(*fill.notes, *_lazy_notes(lazy), *said),
    )


def adopt(module: nn.Module, example_inputs: Sequence[Any] | Mapping[str, Any] | None = None) -> Loaded:
    """A deep copy of a live module on the CPU, in the mode it was in; the original is not touched.

    Where a known builder makes the same structure, `name` and `model_args` say which, so that the module can be
    rebuilt from a file.

    Raises:
        UsageError: `module` is not an nn.Module instance.
        LoadError: it cannot be copied, or has tensors without values.
    """
    from torch import nn

    from . import factory, inputs
    from .building import fingerprint
    from .building.lazy_layers import materialize
    from .building.nan_constructor import nan_filled

    if not isinstance(module, nn.Module):
        called = isinstance(module, type) and issubclass(module, nn.Module)
        raise UsageError(
            "this is not a module",
            got=f"the class {module.__qualname__}" if isinstance(module, type) else type(module).__qualname__,
            expected="an nn.Module or a MODEL string",
            fix="Call the class first." if called else "",
        )
    copied = factory.copied(module)
    owner = _owner(copied)
    if owner is not None and hasattr(owner, "settle"):
        owner.settle(copied)
    given = inputs.copied(inputs.as_inputs(example_inputs)) if example_inputs is not None else None
    with nan_filled() as fill:
        lazy, sized_by = materialize(copied, given, type(copied).__qualname__)
    factory.refuse_quantized(copied, type(copied).__qualname__)
    found = fingerprint.recognize(copied) if not lazy else None
    return Loaded(
        module=copied,
        example_inputs=sized_by if sized_by is not None else _convention(copied, found),
        name=found[0] if found else "",
        model_args=found[1] if found else {},
        source=factory.source_of(copied),
        nan_filled=False,
        lazy=lazy,
        drawn=fill.drawn_names(copied),
        notes=_lazy_notes(lazy),
    )


def conventional_inputs(loaded: Loaded) -> Inputs | None:
    """The example inputs that `load` would give a model of this name; None for one without a name.

    Where inputs gave lazy layers their sizes none are conventional: an empty tuple, which is never what was given.
    """
    if loaded.name and loaded.lazy:
        return ()
    prefix, _, name = loaded.name.partition(":")
    if prefix in ORIGINS:
        inputs: Inputs | None = _origin(prefix).example_inputs(name, loaded.module)
        return inputs
    return _convention(loaded.module, None) if loaded.name else None


def names(pattern: str | None = None) -> dict[str, list[str]]:
    """Every model name that can be typed, by source: {"torchvision": ["alexnet", …], "timm": […]}.

    Args:
        pattern: a part of the name, or a wildcard (`resnet*`); upper and lower case are the same. The classes of
            transformers are looked through as well then; without a pattern only its model types are listed.

    Libraries that are not installed are left out; no model is built.
    """
    wanted = (pattern or "").lower()
    if not any(sign in wanted for sign in "*?["):
        wanted = f"*{wanted}*"
    found: dict[str, list[str]] = {}
    for prefix in ORIGINS:
        origin = _origin(prefix)
        if origin.available():
            every = origin.names() + (origin.more_names() if pattern and hasattr(origin, "more_names") else [])
            found[prefix] = [name for name in every if fnmatch.fnmatchcase(name.lower(), wanted)]
    return found


def parse_model_args(texts: Sequence[str]) -> dict[str, Any]:
    """Keyword arguments from `key=value` texts: a value is a Python literal, or else the text itself.

    >>> parse_model_args(["num_classes=10", "norm=batch"])
    {'num_classes': 10, 'norm': 'batch'}

    A key may have parts, `text_config.num_hidden_layers`, for what is inside a configuration.

    Raises:
        UsageError: no `=`, a key that is no name, a key given twice, or one that asks for trained weights.
    """
    arguments: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        key = key.strip()
        if not equals or not all(part.isidentifier() for part in key.split(".")):
            raise UsageError("a model argument is not key=value", where="--model-arg", got=repr(text))
        if key in arguments:
            raise UsageError("a model argument is given twice", where="--model-arg", got=repr(key))
        try:
            arguments[key] = ast.literal_eval(value.strip())
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            arguments[key] = value
    _refuse_weights(arguments)
    return arguments


def _refuse_weights(arguments: Mapping[str, Any]) -> None:
    for key in WEIGHT_ARGUMENTS:
        if arguments.get(key):
            raise UsageError(
                "trained weights are not used",
                where=f"model argument {key!r}",
                got=repr(arguments[key]),
                fix="Every value is replaced by a closed formula and nothing is downloaded: leave it out.",
            )


def _origin(prefix: str) -> Any:
    return importlib.import_module(f"zero_convert.sources.{prefix}")


def _resolve(model: str) -> tuple[str, str]:
    """(origin, name) for names of a library, ("", model) for the user's own code."""
    before, colon, after = model.rpartition(":")
    if not colon:
        for prefix in ORIGINS:
            origin = _origin(prefix)
            if origin.available() and origin.known(model):
                return prefix, model
        raise _unknown(model, "")
    if before in ORIGINS and not _origin(before).available():
        raise UsageError(
            f"{before} is not installed", where=model, fix=f"Install it with `pip install {before}` and try again."
        )
    return (before, after) if before in ORIGINS else ("", model)


def _unknown(name: str, prefix: str) -> UsageError:
    if not prefix and name.endswith(".py"):
        return UsageError("a file needs the name of its factory", got=repr(name), expected="path/to/file.py:factory")
    known = dict.fromkeys(item for origin, items in names("*").items() if prefix in ("", origin) for item in items)
    close = difflib.get_close_matches(name, known, n=3)
    fix = f"Did you mean {_either(close)}?" if close else "`zero-convert models` lists every name."
    for library in ORIGINS if not prefix else ():
        if not _origin(library).available():
            fix += f" {library} is not installed; `pip install {library}` adds its names."
    return UsageError("no model has this name", where=prefix, got=repr(name), fix=fix)


def _either(words: Sequence[str]) -> str:
    return " or ".join(words) if len(words) < 3 else f"{', '.join(words[:-1])} or {words[-1]}"


def _convention(module: nn.Module, found: tuple[str, Mapping[str, Any]] | None) -> Inputs | None:
    from .inputs.guess import guess

    prefix, _, name = found[0].partition(":") if found else ("", "", "")
    origin = _origin(prefix) if found else _owner(module)
    inputs: Inputs | None = origin.example_inputs(name, module) if origin else guess(module)
    return inputs


def _owner(module: nn.Module) -> Any:
    """The origin whose conventions fit a live module, or None."""
    for prefix in ORIGINS:
        if prefix in sys.modules:
            origin = _origin(prefix)
            if hasattr(origin, "owns") and origin.owns(module):
                return origin
    return None


def _lazy_notes(lazy: Sequence[str]) -> tuple[str, ...]:
    return (f"{len(lazy)} lazy parameters got their shapes from the example input",) if lazy else ()


def known_candidates(module: nn.Module) -> Iterator[tuple[str, str, list[dict[str, Any]]]]:
    """(origin, name, arguments to try in turn) for `module`, from every library that is already imported."""
    for prefix in ORIGINS:
        if prefix in sys.modules:
            for name, attempts in _origin(prefix).candidates(module):
                yield prefix, name, attempts
