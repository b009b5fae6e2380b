"""Initialize: every tensor of the state dict gets the value of its rule, or the run stops and lists what has none.

Asks the scheme layer by layer and writes the formulas into the module's own tensors. No random number, no device.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable, Mapping
from dataclasses import replace

import torch
from torch import nn

from zero_convert.errors import CoverageError
from zero_convert.formulas.formula import Constant, Formula
from zero_convert.graph.traced import Traced
from zero_convert.records import Assignment, Layer, Option, Structure, Tensor
from zero_convert.runtime.threads import one_thread
from zero_convert.sources.file_values import Taken

from .scheme import Kept, Scheme

SHOWN = 6  # tensors named in an error
MONOTONE = 8  # values in order: one draw in 20,000 is


@one_thread()
def initialize(
    traced: Traced,
    structure: Structure,
    scheme: Scheme,
    options: Mapping[str, Option],
    *,
    leftovers: str = "error",
    constructed: bool = True,
    drawn: Collection[str] = (),
    taken: Mapping[str, Taken] | None = None,
    write: bool = True,
) -> tuple[Assignment, ...]:
    """The rule of every tensor, after its values were written (unless `write` is false).

    Args:
        traced: the model after rewriting; its parameters and buffers are overwritten.
        drawn: names of integer tensors that a constructor drew at random.
        leftovers: "error", "zeros" or "keep" for trainable tensors without a rule.
        taken: values of a file, by name, for what would stay as it was constructed.
        constructed: the module comes from a NaN-filled construction, so that what is not NaN is a constant, and "keep"
            may keep it. Otherwise a trainable tensor is kept only if it has the same value everywhere.

    Raises:
        CoverageError: tensors without a rule, or values to be kept that were drawn at random.
    """
    state = traced.root.state_dict(keep_vars=True)
    if strange := [name for name, value in state.items() if not isinstance(value, torch.Tensor)]:
        raise CoverageError("the state dict holds more than tensors", where=", ".join(strange[:SHOWN]))
    first = ties(state)
    rules: dict[str, tuple[Layer, Tensor, Formula]] = {}
    missing: list[str] = []

    def is_fixed(tensor: Tensor, trusted: bool = False) -> bool:
        return tensor.name not in drawn and _is_constant(state[tensor.name], tensor, trusted)

    for layer in structure.layers:
        known = layer.kind not in ("parameter", "buffers")
        empty = known and any(0 in tensor.shape for tensor in layer.tensors if tensor.trainable)  # it computes nothing
        given = None if empty else scheme.fill(layer, structure, options)
        for tensor in layer.tensors:
            rule = None if given is None else given.get(tensor.local)
            rule = Constant(tensor.shape, 0.0) if empty else rule
            if rule is None:
                rule = {"zeros": Constant(tensor.shape, 0.0), "keep": Kept(tensor.shape)}.get(leftovers)
            if rule is None and tensor.buffer:
                rule = Kept(tensor.shape)
            if rule is None and dict(layer.uses).get(tensor.local) == "read" and is_fixed(tensor):
                rule = Kept(tensor.shape)  # a policy's logarithms of deviations
            if isinstance(rule, Kept) and rule.otherwise is not None:
                rule = Kept(tensor.shape) if is_fixed(tensor, constructed) else rule.otherwise
            if isinstance(rule, Kept) and taken and tensor.name in taken and taken[tensor.name].shape == tensor.shape:
                rule = taken[tensor.name]
            if isinstance(rule, Kept) and leftovers == "zeros" and not is_fixed(tensor):
                rule = Constant(tensor.shape, 0.0)
            if rule is None:
                uses = f", {dict(layer.uses).get(tensor.local, '')}" if layer.uses else ""
                uses += f": {layer.refusal}" if layer.refusal else ""
                missing.append(f"{tensor.name} ({'×'.join(map(str, tensor.shape)) or 'scalar'}, {layer.cls}{uses})")
            else:
                rules[tensor.name] = (layer, tensor, rule)
    if missing:
        raise CoverageError(
            f"scheme {scheme.name} has no rule for {len(missing)} tensors",
            where=", ".join(missing[:SHOWN]) + (" …" if len(missing) > SHOWN else ""),
            expected="a rule for every trainable tensor",
            fix="Pass --leftovers zeros or --leftovers keep to say what they should be, or use another scheme.",
        )
    chosen: dict[str, str] = {}  # stored name → the name, first in order of execution, whose rule its values follow
    for name in rules:
        chosen.setdefault(first[name], name)
    assert chosen.keys() == set(first.values()), "every tensor of the state dict belongs to a layer"
    random = [
        name
        for name, (_, tensor, rule) in rules.items()
        if isinstance(rule, Kept)
        and chosen[first[name]] == name
        and not is_fixed(tensor, constructed and leftovers == "keep")
    ]
    if random:
        raise CoverageError(
            f"{len(random)} tensors would be kept as constructed, but hold no constants",
            where=", ".join(random[:SHOWN]) + (" …" if len(random) > SHOWN else ""),
            expected="values that no generator drew and no training left",
            fix="Pass --leftovers zeros, or set them to constants "
            + ("in the constructor." if constructed else "before converting, or give the model as a factory."),
        )
    if write:
        with torch.no_grad():
            for name, (_, _, rule) in rules.items():
                if chosen[first[name]] == name and not isinstance(rule, Kept):
                    _write(state[name], rule)
    return tuple(
        Assignment(
            tensor,
            layer.name,
            layer.role,
            _noted(rule.rule, layer, tensor) if (own := chosen[first[name]]) == name else f"tied to {own}",
        )
        for name, (layer, tensor, rule) in rules.items()
    )


def _noted(rule: str, layer: Layer, tensor: Tensor) -> str:
    """The rule, and what else the plan should say of the tensor."""
    notes = []
    if not tensor.trainable and not tensor.buffer:
        notes.append("frozen")
    if dict(layer.uses).get(tensor.local) == "unused" and not tensor.buffer:
        notes.append("unused: the output does not depend on it")
    return f"{rule} ({', '.join(notes)})" if notes else rule


def ties(state: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """Every name of a state dict → the name it is stored under: the first, by its UTF-8 bytes, of the same tensor.

    Two tensors that show the same numbers in memory are one: what is written to either is in both.
    """
    names: dict[Hashable, str] = {}
    for name in sorted(state, key=lambda n: n.encode()):
        names.setdefault(_memory(state[name]), name)
    return {name: names[_memory(state[name])] for name in state}


def _memory(value: torch.Tensor) -> Hashable:
    if value.numel() == 0 or value.device.type == "meta" or value.layout is not torch.strided:
        return id(value)
    return value.data_ptr(), value.dtype, value.shape, value.stride()


def _is_constant(value: torch.Tensor, tensor: Tensor, trusted: bool) -> bool:
    """Whether a tensor may stay as it is.

    A trainable one with different values may come from a generator that nobody saw, such as NumPy's: the user has to
    ask for it.
    """
    if not (value.is_floating_point() or value.is_complex()) or value.numel() == 0:
        return True
    value = value.detach().float() if value.element_size() == 1 else value.detach()  # 8-bit floats have no arithmetic
    if bool(torch.isnan(value).any()):
        return False
    return trusted or not tensor.trainable or bool((value == value.reshape(-1)[0]).all()) or _is_progression(value)


def _is_progression(value: torch.Tensor) -> bool:
    """Whether a real tensor varies along one axis only, steadily: a formula, such as a state space's log(1 … n).

    A few values that do not stand there several times could be in order by chance.
    """
    if value.is_complex():
        return False
    axes = [i for i in range(value.ndim) if not bool((value == value.narrow(i, 0, 1)).all())]
    if len(axes) != 1 or (value.numel() == value.shape[axes[0]] < MONOTONE):
        return False
    steps = value.movedim(axes[0], 0).reshape(value.shape[axes[0]], -1)[:, 0].diff()
    return bool((steps > 0).all()) or bool((steps < 0).all())


def taken_over(root: nn.Module, assignments: Iterable[Assignment]) -> list[str]:
    """Names of the buffers that keep varied values without a formula: tables, or drawn by a constructor."""
    state = root.state_dict()
    return [
        a.tensor.name
        for a in assignments
        if a.tensor.buffer
        and a.rule == Kept(a.tensor.shape).rule
        and not _is_constant(state[a.tensor.name], replace(a.tensor, trainable=True), False)
    ]


def _write(target: torch.Tensor, rule: Formula) -> None:
    if isinstance(rule, Taken):
        target.copy_(rule.values())
    elif isinstance(rule, Constant):
        target.fill_(rule.value)
    elif target.is_contiguous() and target.device.type == "cpu" and target.dtype in (torch.float32, torch.float64):
        rule.fill(target.detach().numpy())
    else:
        values = torch.empty(target.shape, dtype=torch.float32)
        rule.fill(values.numpy())
        target.copy_(values)


@one_thread()
def nan_names(module: nn.Module) -> list[str]:
    """Names of parameters and buffers, stored or not, that hold a NaN: drawn at random, and no rule wrote them."""
    return [name for name, value in (*module.named_parameters(), *module.named_buffers()) if _has_nan(value)]


def _has_nan(value: torch.Tensor) -> bool:
    if not (value.is_floating_point() or value.is_complex()):
        return False
    value = value.float() if value.is_floating_point() and value.element_size() == 1 else value
    return bool(torch.isnan(value.sum())) and bool(torch.isnan(value).any())
