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
    settle(module, arguments) -> settings    makes a forward plain, but for what the arguments say: `Setting`s, undone
                                             before the module comes back

`model_ref.LIBRARIES` orders them for bare names: a library is imported only if the ones before it do not know the
name. An installed package offers another one as an entry point of the group `zero_convert.sources`; it comes after
ours. Nothing here traces a model or looks at its structure.
"""

from __future__ import annotations

import contextlib
import fnmatch
import importlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from zero_convert.errors import UsageError, ZeroConvertError, closest
from zero_convert.model_ref import LIBRARIES, ModelRef, installed_libraries
from zero_convert.runtime.messages import printed_to
from zero_convert.runtime.user_code import failing_as

from .model_args import parse_model_args as parse_model_args
from .model_args import refuse_weights

if TYPE_CHECKING:
    from torch import nn

    from zero_convert.sources.inputs import Inputs

    from .building.settings import Setting

_OFFERS = ("available", "names", "known", "build", "example_inputs", "candidates")  # what every source has
_MAY_OFFER = ("more_names", "notes", "owns", "settle")


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
        seeded: whether the constructor drew from a generator that was seeded instead, and no NaN marks its values: a
            second construction could not be compared with the first.
        notes: what the reader of the plan should know about the loading.
        settings: what of the module is another value while it is looked at.
    """

    module: nn.Module
    example_inputs: Inputs | None
    name: str
    model_args: Mapping[str, Any]
    source: str
    nan_filled: bool
    lazy: tuple[str, ...] = ()
    drawn: tuple[str, ...] = ()
    seeded: bool = False
    notes: tuple[str, ...] = ()
    settings: tuple[Setting, ...] = ()

    @property
    def marks_draws(self) -> bool:
        """Whether every drawn value is NaN, or named in `drawn`: what is neither is the constructor's own."""
        return self.nan_filled and not self.seeded


def load(
    model: str | ModelRef,
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
    from .building.other_draws import STEP, holds_values, mark_drawn

    arguments = dict(model_args or {})
    refuse_weights(arguments)
    ref = _with_library(model if isinstance(model, ModelRef) else ModelRef.named(model))
    origin: Any = _origin(ref.library) if ref.library else factory
    asked = (ref.name, arguments) if ref.library else (ref, arguments, folders)
    text = str(model)
    # A program that prints while it is imported or built must not mix with results on stdout.

    def built() -> tuple[nn.Module, tuple[str, ...], Any]:
        made = factory.on_cpu(factory.checked(lambda: origin.build(*asked), text, arguments), text)
        return made, *materialize(made, as_inputs(inputs) if inputs is not None else None, text)

    with printed_to(sys.stderr), nan_filled() as fill:
        module, lazy, sized_by = built()
    drawn: tuple[str, ...] | None = ()
    if fill.seeded or (not ref.library and holds_values(module)):
        with printed_to(sys.stderr), nan_filled(STEP):
            twin, _, _ = built()
        drawn = mark_drawn(module, twin)
    factory.refuse_quantized(module, text)
    settled = origin.settle(module, arguments) if hasattr(origin, "settle") else ()
    examples = sized_by if sized_by is not None else origin.example_inputs(ref.name, module)
    said = origin.notes(module, examples) if inputs is None and hasattr(origin, "notes") else ()
    return Loaded(
        module=module,
        example_inputs=examples,
        name=ref.canonical,
        model_args=arguments,
        source=factory.source_of(module),
        nan_filled=True,
        lazy=lazy,
        drawn=(*fill.drawn_names(module), *(drawn or ())),
        seeded=drawn is None and fill.seeded,
        notes=(*fill.notes, *_lazy_notes(lazy), *said),
        settings=settled,
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
    settled = owner.settle(copied, {}) if owner is not None and hasattr(owner, "settle") else ()
    given = inputs.copied(inputs.as_inputs(example_inputs)) if example_inputs is not None else None
    with nan_filled() as fill:
        lazy, sized_by = materialize(copied, given, type(copied).__qualname__)
    factory.refuse_quantized(copied, type(copied).__qualname__)
    found = fingerprint.recognize(copied) if not lazy else None
    return Loaded(
        module=copied,
        example_inputs=sized_by if sized_by is not None else _convention(copied, found[0] if found else ""),
        name=found[0] if found else "",
        model_args=found[1] if found else {},
        source=factory.source_of(copied),
        nan_filled=False,
        lazy=lazy,
        drawn=fill.drawn_names(copied),
        notes=_lazy_notes(lazy),
        settings=settled,
    )


def conventional_inputs(loaded: Loaded) -> Inputs | None:
    """The example inputs that `load` would give a model of this name; None for one without a name.

    Where inputs gave lazy layers their sizes none are conventional: an empty tuple, which is never what was given.
    """
    if loaded.name and loaded.lazy:
        return ()
    return _convention(loaded.module, loaded.name) if loaded.name else None


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
    for library, origin in _available():
        every = origin.names() + (origin.more_names() if pattern and hasattr(origin, "more_names") else [])
        found[library] = [name for name in every if fnmatch.fnmatchcase(name.lower(), wanted)]
    return found


def _origin(library: str) -> Any:
    """The module that knows a library. One from another package is imported.

    Raises:
        LoadError: importing it failed.
        UsageError: it lacks a function that every source has.
    """
    if library in LIBRARIES:
        return importlib.import_module(f"zero_convert.sources.{library}")
    point = installed_libraries()[library]
    with failing_as("source", f"{point.value}, importing it"), printed_to(sys.stderr):
        module = point.load()
    if lacking := [name for name in _OFFERS if not callable(getattr(module, name, None))]:
        raise UsageError(
            "this is no source of models", where=point.value, got=f"no {lacking[0]}", expected=", ".join(_OFFERS)
        )
    functions = {name: getattr(module, name) for name in (*_OFFERS, *_MAY_OFFER) if hasattr(module, name)}
    told = {name: failing_as("source", f"{point.value}, its {name}")(own) for name, own in functions.items()}
    return SimpleNamespace(**{**told, "build": module.build})  # what that raises is told by `factory.checked`


def broken() -> dict[str, ZeroConvertError]:
    """Name → error of the sources that other packages offer and that cannot be used."""
    found = {}
    for library in installed_libraries():
        try:
            _origin(library)
        except ZeroConvertError as error:
            found[library] = error
    return found


def _available(imported: bool = False) -> Iterator[tuple[str, Any]]:
    """(library, its module) of those that are installed, ours first; another package's that fails is left out.

    Args:
        imported: those only that the process has imported already.
    """
    for library in (*LIBRARIES, *installed_libraries()):
        if imported and library not in sys.modules:
            continue
        with contextlib.suppress(*(() if library in LIBRARIES else (ZeroConvertError,))):
            origin = _origin(library)
            if origin.available():
                yield library, origin


def _with_library(ref: ModelRef) -> ModelRef:
    """The reference with the library that knows its name, where that is a library's. Errors as for `load`."""
    if ref.kind == "name":
        library = next((library for library, origin in _available() if origin.known(ref.name)), "")
        if not library:
            raise _unknown(ref)
        return replace(ref, kind="library", library=library)
    if ref.library and not (origin := _origin(ref.library)).available():
        raise UsageError(
            f"{ref.library} is not installed",
            where=str(ref),
            fix=f"Install it with `pip install {ref.library}` and try again.",
        )
    if ref.library and not origin.known(ref.name):
        raise _unknown(ref)
    return ref


def _unknown(ref: ModelRef) -> UsageError:
    name, library = ref.name, ref.library
    if not library and name.endswith(".py"):
        return UsageError("a file needs the name of its factory", got=repr(name), expected="path/to/file.py:factory")
    known = dict.fromkeys(item for origin, items in names("*").items() if library in ("", origin) for item in items)
    fix = closest(name, known, "`zero-convert models` lists every name.", most=3)
    for other in LIBRARIES if not library else ():
        if not _origin(other).available():
            fix += f" {other} is not installed; `pip install {other}` adds its names."
    return UsageError("no model has this name", where=library, got=repr(name), fix=fix)


def _convention(module: nn.Module, model: str) -> Inputs | None:
    """The example inputs of a module that is of this name; of one without, by what it looks like."""
    from .inputs.guess import guess

    ref = ModelRef.named(model)
    origin = _origin(ref.library) if ref.library else _owner(module)
    inputs: Inputs | None = origin.example_inputs(ref.name, module) if origin else guess(module)
    return inputs


def _owner(module: nn.Module) -> Any:
    """The origin whose conventions fit a live module, or None."""
    fitting = (origin for _, origin in _available(True) if hasattr(origin, "owns") and origin.owns(module))
    return next(fitting, None)


def _lazy_notes(lazy: Sequence[str]) -> tuple[str, ...]:
    return (f"{len(lazy)} lazy parameters got their shapes from the example input",) if lazy else ()


def known_candidates(module: nn.Module) -> Iterator[tuple[str, str, list[dict[str, Any]]]]:
    """(origin, name, arguments to try in turn) for `module`, from every library that is already imported."""
    for library, origin in _available(True):
        for name, attempts in origin.candidates(module):
            yield library, name, attempts
