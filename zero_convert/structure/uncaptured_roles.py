"""Roles of layers that no node of the graph shows: inside parts that were kept whole, and in branches not taken.

A part that tracing kept whole is one node; a recording of the forward on real values has seen the layers in it. And
where values choose among the members of a `ModuleList` (experts, an early exit), the members that were not chosen
have the roles of those that were.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import nn

from ..records import Join, Layer


def with_hidden(
    root: nn.Module,
    layers: tuple[Layer, ...],
    joins: tuple[Join, ...],
    shown: set[str],
    opaque: tuple[str, ...],
    recorded: Mapping[str, str],
) -> tuple[Layer, ...]:
    """The layers with the roles that the graph does not show.

    Args:
        shown: names of the layers that nodes of the graph apply.
        opaque: paths of the parts that were kept whole.
        recorded: name → role, for layers that a recording has seen.
    """
    roles = {layer.name: (layer.role, layer.join) for layer in layers if layer.name in shown}
    for layer in layers:
        part = next((path for path in opaque if layer.name == path or layer.name.startswith(f"{path}.")), None)
        if part is not None and layer.name in recorded:
            join = next((join for join in joins if part in join.branch), None)
            roles[layer.name] = recorded[layer.name], None if join is None else join.index
    twins = _twins(root, {layer.name for layer in layers}, roles.keys())
    for name, twin in twins.items():
        roles[name] = roles[twin]
    return tuple(
        replace(layer, role=roles[layer.name][0], join=roles[layer.name][1])
        if layer.name in roles and layer.name not in shown
        else layer
        for layer in layers
    )


def _twins(root: nn.Module, names: set[str], known: object) -> dict[str, str]:
    """Layer without a role → the same layer of another member of the same list, which has one."""
    has = set(known)  # type: ignore[call-overload]
    found: dict[str, str] = {}
    for path, container in root.named_modules():
        if not isinstance(container, nn.ModuleList):
            continue
        members = [f"{path}.{name}" if path else name for name, _ in container.named_children()]
        for member in members:
            for name in sorted(names - has):
                if name == member or name.startswith(f"{member}."):
                    rest = name[len(member) :]
                    twin = next((m + rest for m in members if m + rest in has), None)
                    if twin is not None and type(root.get_submodule(twin)) is type(root.get_submodule(name)):
                        found[name] = twin
    return found
