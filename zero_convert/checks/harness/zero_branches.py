"""Which tensors start at zero, from the plan's rules, and which branches have to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_arg

from zero_convert.graph.copies import copy_of
from zero_convert.graph.queries import ADDS, tensors_in
from zero_convert.records import Assignment, Join, Layer

from ..subject import Subject


def rules_of(subject: Subject) -> dict[str, list[Assignment]]:
    """Layer → the rules of its trainable tensors."""
    found: dict[str, list[Assignment]] = {}
    for assignment in subject.assignments:
        if assignment.tensor.trainable:
            found.setdefault(assignment.layer, []).append(assignment)
    return found


def all_zero(assignments: Iterable[Assignment]) -> bool:
    """Whether there are tensors, and all of them are 0."""
    zero = [assignment.formula.is_zero for assignment in assignments]
    return bool(zero) and all(zero)


def zero_joins(subject: Subject) -> tuple[list[Join], list[Join]]:
    """Residual joins whose branch must add exactly 0, and the others.

    It must where the scheme asks for it (not of a branch that neither a layer of its own nor a scale ends: a
    recurrence), and where every last layer of the branch is 0, or is the output projection of an attention whose values
    V are; and in both cases where 0 from that layer is 0 at the join (not behind a sigmoid).
    """
    rules = rules_of(subject)
    layers = {layer.name: layer for layer in subject.structure.layers}
    nodes = {node.name: node for node in subject.traced.train.nodes}
    required: list[Join] = []
    free: list[Join] = []
    for join in subject.structure.joins:
        last = [layer.name for layer in subject.structure.ends(join)]
        if join.residual:
            certain = bool(last) and all(_returns_zero(name, join, layers, rules) for name in last)
            own = [name for name in last if _ends(layers[name])]
            asked = bool(own or join.scale) and subject.scheme.zero_branch(join, subject.structure)
            zero = (asked or certain) and _keeps_zero(nodes.get(join.branch_node), subject.traced.root)
            (required if zero else free).append(join)
    return required, free


def _ends(layer: Layer) -> bool:
    """Whether the layer ends branches; a raw weight does where one of its uses is said to."""
    return not layer.weights or any(role == "branch-last" for _, _, role in layer.weights)


def _keeps_zero(node: fx.Node | None, root: nn.Module) -> bool:
    """Whether nothing without parameters that the branch passes last makes something else of 0."""
    while node is not None and len(sources := tensors_in(node)) == 1 and len(node.all_input_nodes) == 1:
        shape = sources[0].meta.get("shape")
        module = root.get_submodule(str(node.target)) if node.op == "call_module" else None
        if shape is None or (module is not None and next(module.parameters(), None) is not None):
            return True
        zero = torch.zeros(shape)
        try:
            args, kwargs = map_arg((node.args, node.kwargs), {sources[0]: zero}.__getitem__)
            if module is not None:
                made = copy_of(module).eval()(*args, **kwargs)
            elif node.op == "call_method":
                made = getattr(args[0], str(node.target))(*args[1:], **kwargs)
            else:
                made = node.target(*args, **kwargs)  # type: ignore[operator]
        except (ArithmeticError, IndexError, RuntimeError, TypeError, ValueError):
            return True
        if isinstance(made, Tensor) and not bool((made == 0).all()):
            return False
        node = sources[0]
    if node is not None and node.target in ADDS and len(sources := tensors_in(node)) == 2:
        return all(_keeps_zero(source, root) for source in sources)
    return True


def _returns_zero(name: str, join: Join, layers: Mapping[str, Layer], rules: Mapping[str, list[Assignment]]) -> bool:
    own = rules.get(name, [])
    if all_zero(own):
        return True
    before = name.rpartition(".")[0]  # nn.MultiheadAttention holds its output projection
    if before not in layers or layers[before].kind != "attention":
        at = join.branch.index(name) if name in join.branch else 0
        before = join.branch[at - 1] if at else ""  # queries, keys and values from one linear layer
        if before not in layers or not layers[before].fused_qkv:
            return False
    inside = rules.get(before, [])
    biases = [a for a in (*own, *inside) if "bias" in a.tensor.local]
    return any(_values_are_zero(a) for a in inside) and all(a.formula.is_zero for a in biases)


def _values_are_zero(assignment: Assignment) -> bool:
    """Whether the tensor holds the weights of V, last of three parts or alone, and they are 0."""
    local, parts = assignment.tensor.local, assignment.formula.parts
    held = local == "v_proj_weight" or (local in ("weight", "in_proj_weight") and len(parts) > 1)
    return held and parts[-1].is_zero
