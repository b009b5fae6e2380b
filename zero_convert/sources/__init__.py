"""Load: from a MODEL string or a live module to a `Loaded` model on the CPU.

One file per origin (`torchvision.py`, `timm.py`; `factory.py` for the user's own modules and files), each with

    available() -> bool                      whether its library is installed
    names() -> list[str]                     every name that can be typed, sorted; builds nothing
    known(name) -> bool
    build(name, args) -> nn.Module           called under the poisoned constructor
    example_inputs(name, module) -> tuple    by the library's own conventions
    candidates(module) -> [(name, args), …]  names that may have built a live module, and the arguments to try
                                             where the builder's own defaults make the same modules but other sizes

`ORIGINS` orders them for bare names. Nothing here traces a model or looks at its structure.
"""

from __future__ import annotations

import ast
import contextlib
import difflib
import fnmatch
import importlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from zero_convert.errors import UsageError

if TYPE_CHECKING:
    from torch import nn

ORIGINS = ("torchvision", "timm")

# Arguments that make a builder download or read trained weights: every value is replaced here, so they only cost.
WEIGHT_ARGUMENTS = ("pretrained", "weights", "weights_backbone", "pretrained_backbone", "checkpoint_path")


@dataclass(frozen=True)
class Loaded:
    """A model as its source made it, on the CPU.

    Attributes:
        module: freshly built (training mode) or copied (the mode it was in); nobody else holds it.
        example_inputs: positional arguments of `forward`, deterministic values; None if they cannot be guessed.
        name: canonical MODEL string ("torchvision:resnet50"), or "" for a live module of unknown source.
        model_args: keyword arguments the source was called with.
        source: qualified class name of the module.
        poisoned: whether NaN marks the values that a constructor would have drawn at random.
        drawn: names of integer tensors that come from a random draw (they hold fixed values instead).
        notes: what the reader of the plan should know about the loading.
    """

    module: nn.Module
    example_inputs: tuple[Any, ...] | None
    name: str
    model_args: Mapping[str, Any]
    source: str
    poisoned: bool
    drawn: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def load(
    model: str,
    model_args: Mapping[str, Any] | None = None,
    *,
    inputs: Sequence[Any] | None = None,
    folders: Sequence[str] = (),
) -> Loaded:
    """The model that `model` names, built under the poisoned constructor.

    Args:
        model: `resnet50`, `torchvision:NAME`, `timm:NAME`, `package.module:factory` or `path/file.py:factory`.
            The last two run the user's code.
        model_args: keyword arguments for the builder.
        inputs: example inputs, instead of the conventional ones.
        folders: where to look for `file.py` besides the current folder.

    Raises:
        UsageError: no such name, library or argument.
        LoadError: the builder failed, or returned something else than an nn.Module.
    """
    from zero_convert.sources import factory
    from zero_convert.sources.poison import poisoned

    arguments = dict(model_args or {})
    _refuse_weights(arguments)
    prefix, name = _resolve(model)
    origin = factory.Origin(folders) if prefix == "" else _origin(prefix)
    if not origin.known(name):
        raise _unknown(name, prefix)
    # A program that prints while it is imported or built must not mix with results on stdout.
    with contextlib.redirect_stdout(sys.stderr), poisoned() as poison:
        module = factory.checked(lambda: origin.build(name, arguments), model, arguments)
    module = factory.on_cpu(module, model)
    canonical = f"{prefix}:{name}" if prefix else origin.canonical(name)
    return Loaded(
        module=module,
        example_inputs=tuple(inputs) if inputs is not None else origin.example_inputs(name, module),
        name=canonical,
        model_args=arguments,
        source=factory.source_of(module),
        poisoned=True,
        drawn=poison.drawn_names(module),
        notes=tuple(poison.notes),
    )


def adopt(module: nn.Module, example_inputs: Sequence[Any] | None = None) -> Loaded:
    """A deep copy of a live module on the CPU, in the mode it was in; the original is not touched.

    Where a known builder makes the same structure, `name` and `model_args` say which, so that the module can be
    rebuilt from a file.

    Raises:
        UsageError: `module` is not an nn.Module instance.
        LoadError: it cannot be copied, or has tensors without values.
    """
    from torch import nn

    from zero_convert.sources import factory, inputs, recognize

    if not isinstance(module, nn.Module):
        called = isinstance(module, type) and issubclass(module, nn.Module)
        raise UsageError(
            "this is not a module",
            got=f"the class {module.__qualname__}" if isinstance(module, type) else type(module).__qualname__,
            expected="an nn.Module or a MODEL string",
            fix="Call the class first." if called else "",
        )
    copied = factory.copied(module)
    found = recognize.recognize(copied)
    return Loaded(
        module=copied,
        example_inputs=inputs.copied(example_inputs) if example_inputs is not None else _convention(copied, found),
        name=found[0] if found else "",
        model_args=found[1] if found else {},
        source=factory.source_of(copied),
        poisoned=False,
    )


def conventional_inputs(loaded: Loaded) -> tuple[Any, ...] | None:
    """The example inputs that `load` would give a model of this name; None for one without a name."""
    prefix, _, name = loaded.name.partition(":")
    if prefix in ORIGINS:
        inputs: tuple[Any, ...] | None = _origin(prefix).example_inputs(name, loaded.module)
        return inputs
    return _convention(loaded.module, None) if loaded.name else None


def names(pattern: str | None = None) -> dict[str, list[str]]:
    """Every model name that can be typed, by source: {"torchvision": ["alexnet", …], "timm": […]}.

    Args:
        pattern: a part of the name, or a wildcard (`resnet*`); upper and lower case are the same.

    Libraries that are not installed are left out; no model is built.
    """
    wanted = (pattern or "").lower()
    if not any(sign in wanted for sign in "*?["):
        wanted = f"*{wanted}*"
    found: dict[str, list[str]] = {}
    for prefix in ORIGINS:
        origin = _origin(prefix)
        if origin.available():
            found[prefix] = [name for name in origin.names() if fnmatch.fnmatchcase(name.lower(), wanted)]
    return found


def parse_model_args(texts: Sequence[str]) -> dict[str, Any]:
    """Keyword arguments from `key=value` texts: a value is a Python literal, or else the text itself.

    >>> parse_model_args(["num_classes=10", "norm=batch"])
    {'num_classes': 10, 'norm': 'batch'}

    Raises:
        UsageError: no `=`, a key that is no name, a key given twice, or one that asks for trained weights.
    """
    arguments: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        key = key.strip()
        if not equals or not key.isidentifier():
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
    known = dict.fromkeys(item for origin, items in names().items() if prefix in ("", origin) for item in items)
    close = difflib.get_close_matches(name, known, n=3)
    fix = f"Did you mean {_either(close)}?" if close else "`zero-convert models` lists every name."
    if not prefix and not _origin("timm").available():
        fix += " timm is not installed; `pip install timm` adds its names."
    return UsageError("no model has this name", where=prefix, got=repr(name), fix=fix)


def _either(words: Sequence[str]) -> str:
    return " or ".join(words) if len(words) < 3 else f"{', '.join(words[:-1])} or {words[-1]}"


def _convention(module: nn.Module, found: tuple[str, Mapping[str, Any]] | None) -> tuple[Any, ...] | None:
    if found:
        prefix, _, name = found[0].partition(":")
        inputs: tuple[Any, ...] | None = _origin(prefix).example_inputs(name, module)
        return inputs
    from zero_convert.sources.guess import guess

    return guess(module)


def known_candidates(module: nn.Module) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(origin, name, arguments to try after none) for `module`, from every library that is already imported."""
    for prefix in ORIGINS:
        if prefix in sys.modules:
            for name, arguments in _origin(prefix).candidates(module):
                yield prefix, name, arguments
