"""Would this network's forward take these inputs? Asked of a copy that computes nothing, or of one that does.

The network itself is never called: a forward may count batches or fill caches. No model library is known here.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from zero_convert.graph.copies import copy_of
from zero_convert.runtime import rng
from zero_convert.runtime.eager import eager
from zero_convert.runtime.messages import without_warnings
from zero_convert.sources.inputs import Inputs, moved, run


class Trials:
    """Copies of a network in evaluation mode, made when they are first needed.

    Args:
        module: its tensors are on the CPU.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._lazy = bool(lazy_names(module))  # a forward gives such a copy its sizes, so each trial takes a new one
        self._twins: dict[str, nn.Module | None] = {}

    def accepts(self, inputs: Inputs, values: bool = True) -> bool:
        """Whether the forward returns.

        Asked without values first, which costs little. A forward that looks at values is asked again with them,
        if `values` allows it.
        """
        answer = None if self._lazy else self._runs("meta", inputs)
        if answer is None and (values or self._lazy):
            answer = self._runs("cpu", inputs)
        return bool(answer)

    def call(self, path: str, method: str, inputs: dict[str, Any]) -> Any:
        """What a method of the part at `path` returns for keyword arguments, on the first device that can say.

        Raises:
            LookupError: no copy can be made, or the method fails on both.
        """
        for device in ("meta", "cpu"):
            twin = self._twin(device)
            if twin is not None:
                with contextlib.suppress(Exception), _quietly():
                    return getattr(twin.get_submodule(path), method)(**moved(inputs, device))
        raise LookupError(method)

    def _runs(self, device: str, inputs: Inputs) -> bool | None:
        """None where the device cannot say: what torch refuses for want of values it refuses for the meta device."""
        twin = self._twin(device)
        if twin is None:
            return None
        try:
            with _quietly():
                run(twin, moved(inputs, device))
        except Exception as error:
            return None if device in str(error) or isinstance(error, NotImplementedError) else False
        return True

    def _twin(self, device: str) -> nn.Module | None:
        if self._lazy:
            return duplicate(self._module).eval() if device == "cpu" else None
        if device not in self._twins:
            try:
                twin = _asking(without_values(self._module)) if device == "meta" else _with_values(self._module)
            except Exception:
                twin = None
            self._twins[device] = twin.eval() if twin is not None else None
        return self._twins[device]


def lazy_names(module: nn.Module) -> tuple[str, ...]:
    """Names of the parameters and buffers that get their shape from the first input."""
    tensors = (*module.named_parameters(), *module.named_buffers())
    return tuple(name for name, tensor in tensors if nn.parameter.is_lazy(tensor))


def duplicate(module: nn.Module) -> nn.Module:
    """A deep copy of what torch does not copy as well: buffers without a shape are made anew, and values that hooks
    compute from parameters before each forward (the older `weight_norm`) lose their history."""
    memo: dict[int, Any] = {}
    for part in module.modules():
        for value in vars(part).values():
            if isinstance(value, torch.Tensor) and not value.is_leaf:
                memo[id(value)] = value.detach().clone()
    for buffer in module.buffers():
        if isinstance(buffer, nn.parameter.UninitializedBuffer):
            memo[id(buffer)] = nn.parameter.UninitializedBuffer(  # type: ignore[call-arg]
                device=buffer.device, dtype=buffer.dtype
            )
    return copy_of(module, memo)


def without_values(module: nn.Module) -> nn.Module:
    """A deep copy on the meta device; no value is copied on the way, so that size does not matter."""
    memo: dict[int, Any] = {}
    for part in module.modules():
        for parameter in part._parameters.values():
            if parameter is not None and id(parameter) not in memo:
                memo[id(parameter)] = nn.Parameter(parameter.detach().to("meta"), parameter.requires_grad)
        for buffer in part._buffers.values():
            if buffer is not None and id(buffer) not in memo:
                memo[id(buffer)] = buffer.detach().to("meta")
    return copy_of(module, memo).to("meta")


def _asking(module: nn.Module) -> nn.Module:
    """The copy, whose embeddings ask for integers: in torch 2.11 they take any number on the meta device."""
    for part in module.modules():
        if isinstance(part, nn.Embedding | nn.EmbeddingBag):
            part.register_forward_pre_hook(_integers)
    return module


def _integers(module: nn.Module, given: tuple[Any, ...]) -> None:
    if given and isinstance(given[0], torch.Tensor) and given[0].is_floating_point():
        raise TypeError(f"indices of an embedding are integers, not {given[0].dtype}")


def _with_values(module: nn.Module) -> nn.Module:
    """A deep copy that shares the parameters, which no forward writes to."""
    return copy_of(module, {id(parameter): parameter for parameter in module.parameters()})


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    with eager(), torch.no_grad(), rng.seeded(), without_warnings():
        yield
