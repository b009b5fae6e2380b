"""The user's own code: `package.module:factory` and `path/file.py:factory`, and what any builder can do wrong.

A factory is a function or class that returns an nn.Module, or such a module itself. Importing and calling it is
running it: the user asked for that by typing its name. No model library is known here.
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from zero_convert.errors import LoadError, UsageError, ZeroConvertError, closest
from zero_convert.model_ref import ModelRef
from zero_convert.runtime.eager import uncompiled
from zero_convert.runtime.user_code import importable, place, run_file, spell
from zero_convert.sources.inputs import Inputs

from .inputs.guess import guess
from .inputs.trials import duplicate

# sys.modules names of the files we run: never those of an installed module, always importable by pickle.
FILE_MODULE = "zero_convert_file_"

# Packages of layers that hold packed integers; those of their helpers that have no state are no such layers.
QUANTIZED = ("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized", "torch.nn.quantized")


def build(ref: ModelRef, args: Mapping[str, Any], folders: Sequence[str] = ()) -> Any:
    """What the factory returns.

    Args:
        folders: where to look for a file besides the current folder.

    Raises:
        UsageError: no such file, module or factory, or it cannot be called with the arguments.
    """
    place = ref.path or ref.name
    if not place or not ref.factory:
        raise UsageError(
            "this names no factory", got=repr(str(ref)), expected="package.module:factory or file.py:factory"
        )
    if ref.path:
        path = _find(ref.path, folders)
        with importable(path.parent):
            return _call(_attribute(run_file(path, FILE_MODULE), ref.factory, place), args)
    with importable(Path.cwd()):
        return _call(_attribute(_import(place), ref.factory, place), args)


def example_inputs(name: str, module: nn.Module) -> Inputs | None:
    """Inputs that the module's forward accepts; the same question as the files of the model libraries answer."""
    return guess(module)


def _find(place: str, folders: Sequence[str]) -> Path:
    for path in (Path(place), *(Path(folder) / Path(place).name for folder in folders)):
        if path.is_file():
            return path.resolve()
    raise UsageError(
        "no such file",
        where=place,
        got=f"looked in {', '.join(dict.fromkeys(str(Path(each).resolve()) for each in ('.', *folders)))}",
        fix="Give the path to the file that defines the model"
        + (f": --arch path/to/{Path(place).name}:NAME." if folders else "."),
    )


def checked(build: Callable[[], Any], model: str, args: Mapping[str, Any]) -> nn.Module:
    """The module that `build` returns, not compiled; whatever it does instead becomes one of our errors.

    Raises:
        UsageError: an argument the builder does not take, or a missing one.
        LoadError: it raised (type, message and line of the user's code), or returned no nn.Module.
    """
    try:
        made = build()
    except ZeroConvertError:
        raise
    except (Exception, SystemExit) as error:
        refused = re.search(r"unexpected keyword argument '(\w+)'", str(error))
        if isinstance(error, TypeError) and refused and refused[1] in args:
            raise UsageError(
                f"the model takes no argument {refused[1]!r}", where=model, fix="Check --model-arg."
            ) from error
        raise LoadError("building the model failed", where=model, got=spell(error) + place(error)) from error
    if not isinstance(made, nn.Module):
        raise LoadError(
            "the factory returned no module",
            where=model,
            got=f"an object of type {type(made).__module__}.{type(made).__qualname__}",
            expected="an nn.Module",
        )
    refuse_classes_of_tensors(made, model)
    return uncompiled(made)


def refuse_classes_of_tensors(module: nn.Module, model: str) -> None:
    """Raises LoadError for a parameter or buffer of a class of its own: what it holds no rule could write.

    Quantized weights and shards are such, and what operations make of them is theirs to say.
    """
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        base = type(tensor)
        if tensor.layout is not torch.strided:
            raise LoadError(
                "a tensor is stored sparse or packed, and no file here holds one",
                where=f"{model}, {name}",
                got=str(tensor.layout),
                expected="a dense tensor",
                fix="Register it dense (`to_dense()`) and make the sparse one of it in the forward.",
            )
        if base not in (Tensor, nn.Parameter) and not nn.parameter.is_lazy(tensor):
            raise LoadError(
                "a tensor is of a class of its own",
                where=f"{model}, {name}",
                got=f"a {base.__module__}.{base.__qualname__}",
                expected="a torch.Tensor or nn.Parameter",
                fix="Convert the module before it is quantized, sharded or wrapped, or register the plain tensor "
                "(as_subclass(torch.Tensor)).",
            )


def on_cpu(module: nn.Module, model: str) -> nn.Module:
    """The same module with its tensors on the CPU.

    Raises:
        LoadError: a tensor is on the meta device: it has no values to move.
    """
    tensors = dict((*module.named_parameters(), *module.named_buffers()))
    for name, tensor in tensors.items():
        if tensor.is_meta:
            raise LoadError(
                "a tensor has no values",
                where=f"{model}, {name}",
                got="the meta device",
                fix="Build the module on a device with memory, or give the function that builds it.",
            )
    return module if all(tensor.is_cpu for tensor in tensors.values()) else module.cpu()


def refuse_quantized(module: nn.Module, model: str) -> None:
    """Raises LoadError if a layer holds packed integers instead of weights."""
    for name, part in module.named_modules():
        packed = type(part).__module__.startswith(QUANTIZED) and part.state_dict(keep_vars=True)
        if packed or any(tensor.is_quantized for tensor in (*part.parameters(False), *part.buffers(False))):
            raise LoadError(
                "a quantized layer has no weights that a rule could write",
                where=f"{model}, {name}" if name else model,
                got=f"a {type(part).__module__}.{type(part).__qualname__}",
                fix="Convert the model first and quantize the result.",
            )


def copied(module: nn.Module) -> nn.Module:
    """A deep copy on the CPU; ties between parameters are kept.

    Raises:
        LoadError: the module cannot be copied.
    """
    name = type(module).__qualname__
    refuse_classes_of_tensors(module, name)
    try:
        twin = duplicate(module)
    except Exception as error:
        raise LoadError(
            "the module cannot be copied", where=name, got=spell(error), fix="Give a function that builds it."
        ) from error
    return on_cpu(checked(lambda: twin, name, {}), name)


def source_of(module: nn.Module) -> str:
    """Qualified name of the module's class: "torchvision.models.resnet.ResNet", "net.Net" for a file net.py."""
    cls = type(module)
    name = cls.__qualname__.partition(".__new__.")[0]  # fx makes a class of its own for each graph
    return f"{cls.__module__.removeprefix(FILE_MODULE)}.{name}"


def _call(factory: Any, args: Mapping[str, Any]) -> Any:
    if isinstance(factory, nn.Module):
        if args:
            raise UsageError("a module that exists already takes no arguments", got=", ".join(args))
        return duplicate(factory)
    if not callable(factory):
        return factory  # `checked` says what it is
    try:
        inspect.signature(factory).bind(**args)
    except TypeError as error:
        raise UsageError(f"the factory cannot be called this way: {error}", fix="Check --model-arg.") from error
    except ValueError:  # written in C: no signature to ask
        pass
    return factory(**args)


def _attribute(module: ModuleType, path: str, place: str) -> Any:
    value: Any = module
    for part in path.split("."):
        if not hasattr(value, part):
            own = [n for n in vars(value) if not n.startswith("_")] if hasattr(value, "__dict__") else []
            raise UsageError("no such factory", where=place, got=repr(path), fix=closest(part, own))
        value = getattr(value, part)
    return value


def _import(place: str) -> ModuleType:
    if not all(part.isidentifier() for part in place.split(".")):
        raise UsageError(
            "no such Python module", got=repr(place), fix="Give package.module:factory or file.py:factory."
        )
    try:
        return importlib.import_module(place)
    except ModuleNotFoundError as error:
        if error.name and (place == error.name or place.startswith(error.name + ".")):
            raise UsageError(
                "no such Python module", got=repr(error.name), fix="Check the spelling, or give file.py:factory."
            ) from error
        raise
