"""TorchScript as networks of torch's layers again: a whole module, or the scripted parts of one.

torch's own converter makes a graph of a script, as it goes with example inputs; `__init__.py` makes layers of it.
What a part is called with is seen in a forward of a copy. Nothing here reads files, or knows of schemes.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import nn

from zero_convert.errors import LoadError
from zero_convert.graph.copies import copy_of
from zero_convert.runtime import rng
from zero_convert.runtime.eager import eager
from zero_convert.runtime.export import export_in_this_thread
from zero_convert.runtime.messages import without_logs, without_warnings
from zero_convert.runtime.patches import replaced
from zero_convert.runtime.user_code import spell
from zero_convert.sources import programs
from zero_convert.tracing.shapes import invoke, stand_in

_UNSCRIPTED = "Build the model without torch.jit.script, and script what was converted: names and shapes are the same."


def lifted(module: nn.Module, inputs: Any) -> nn.Module:
    """The module with a network of layers in the place of each scripted part; itself where nothing is scripted.

    Args:
        module: changed in place where only parts of it are scripted.
        inputs: positional arguments of `forward`, or its arguments by name.

    Raises:
        LoadError: torch does not turn the code of a part into a graph, or the part is not called for these inputs.
    """
    if isinstance(module, torch.jit.ScriptModule):
        return _network(module, tuple(inputs.values()) if isinstance(inputs, Mapping) else tuple(inputs), "")
    paths = _outermost(module)
    if not paths:
        return module
    calls = _calls(module, paths, inputs)
    for path in paths:
        part: Any = module.get_submodule(path)
        if path not in calls:
            raise LoadError(
                "a scripted part of the model is not called", where=path, got="no call in a forward", fix=_UNSCRIPTED
            )
        network = _network(part, calls[path], path)
        module.set_submodule(path, network.train(part.training))
    return module


def _outermost(module: nn.Module) -> list[str]:
    found: list[str] = []
    for path, part in module.named_modules():
        inside = any(path.startswith(f"{outer}.") for outer in found)
        if isinstance(part, torch.jit.ScriptModule) and not inside:
            found.append(path)
    return found


def _calls(module: nn.Module, paths: list[str], inputs: Any) -> dict[str, tuple[Any, ...]]:
    """The arguments of each part's first call in one forward."""
    twin = copy_of(module)
    stand_in(twin)
    names = {id(twin.get_submodule(path)): path for path in paths}
    calls: dict[str, tuple[Any, ...]] = {}

    def seen(call: Any, part: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if id(part) in names:
            calls.setdefault(names[id(part)], (*args, *kwargs.values()))
        return call(part, *args, **kwargs)

    try:
        watched = replaced(nn.Module, "__call__", partial(partial, seen))  # scripts take no hooks
        with eager(), torch.no_grad(), rng.seeded(), watched:
            invoke(twin.eval(), inputs)
    except Exception as error:
        if len(calls) < len(paths):
            raise LoadError("the forward of the model fails", got=spell(error)) from error
    return calls


def _network(script: torch.jit.ScriptModule, given: tuple[Any, ...], path: str) -> nn.Module:
    """The network that a TorchScript program describes, as it goes with these example inputs; in training mode."""
    trained = frozenset(name for name, _ in script.named_parameters(remove_duplicate=False))
    try:
        from torch._export.converter import TS2EPConverter

        # What torch says of its own converter is of no use to the reader.
        with without_warnings(), without_logs(logging.WARNING), export_in_this_thread():
            program = TS2EPConverter(script.eval(), given).convert()
    except Exception as error:  # whatever torch says of code that it does not follow
        raise LoadError(
            "torch does not turn this TorchScript program into a graph",
            where=": ".join(filter(None, (path, str(script.original_name)))),
            got=spell(error),
            expected="straight code, or branches that the example inputs decide",
            fix=_UNSCRIPTED if path else programs.WAY_OUT,
        ) from error
    return programs.from_program(program, trained).train()
