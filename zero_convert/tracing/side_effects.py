"""What a forward does to the modules it runs through: undone afterwards, or refused."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator
from contextlib import contextmanager

from torch import nn

from zero_convert.graph.kinds import kept_whole
from zero_convert.runtime import rng


class StateAssigned(Exception):
    """A forward puts a new tensor in the place of a buffer, which a graph does not do."""


class RandomDecision(Exception):
    """A forward draws random numbers itself, and a graph would hold what they were this time."""


def refuse_draws(before: rng.States, path: str) -> None:
    """Raises RandomDecision, with the module's path in `zero_convert_path`, if numbers were drawn since."""
    if rng.states().changed(before):
        error = RandomDecision("the forward draws random numbers, and what it does depends on them")
        error.zero_convert_path = path  # type: ignore[attr-defined]
        raise error


@contextmanager
def restored(root: nn.Module) -> Iterator[None]:
    """What a forward sets on its modules, or puts into their dicts and lists, is afterwards what it was."""
    before, data = [], [(parameter, parameter.data) for parameter in root.parameters()]
    for module in root.modules():
        kept = dict(vars(module))
        before.append((module, kept, [(v, copy.copy(v)) for v in kept.values() if type(v) in (dict, list, set)]))
    try:
        yield
    finally:
        for parameter, value in data:  # `parameter.data = …`, of a moving average of weights
            parameter.data = value
        for module, kept, containers in before:
            constants = {k: v for k, v in vars(module).items() if k.startswith("_tensor_constant")}
            vars(module).clear()
            vars(module).update(kept | constants)
            for container, content in containers:
                if isinstance(container, list):
                    container[:] = content
                else:
                    container.clear()
                    container.update(content)


@contextmanager
def unassigned(root: nn.Module, whole: Collection[str] = ()) -> Iterator[None]:
    """Raises StateAssigned at its end, with the module's path in `zero_convert_path`, if a buffer was replaced, or a
    parameter was given other data (a moving average of weights).

    A change in place is no replacement: the graph makes it too. And in the parts at the paths `whole`, and in layers,
    the forward stays what it is.
    """
    inside = tuple(f"{path}." for path in whole)
    before = [
        (path, module, dict(module._buffers))
        for path, module in root.named_modules()
        if path not in whole and not path.startswith(inside) and not kept_whole(module)
    ]
    held = [(name, p, p.untyped_storage()._cdata) for name, p in root.named_parameters() if not name.startswith(inside)]
    yield
    for name, parameter, storage in held:
        if parameter.untyped_storage()._cdata != storage:
            moved = StateAssigned(f"the forward assigns new data to the parameter {name}")
            moved.zero_convert_path = ""  # type: ignore[attr-defined]
            raise moved
    for path, module, buffers in before:
        for name, value in buffers.items():
            if module._buffers.get(name) is not value:
                error = StateAssigned(f"the forward assigns a new tensor to the buffer {name}")
                error.zero_convert_path = path  # type: ignore[attr-defined]
                raise error
