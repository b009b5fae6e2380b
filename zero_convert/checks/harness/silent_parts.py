"""Parts of a network in which no parameter gets a gradient: the whole, branches of residual joins, stages."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from torch import fx

from zero_convert.graph.kinds import WEIGHT_KINDS
from zero_convert.graph.queries import Reach
from zero_convert.records import Layer

from ..subject import Subject

WHOLE = "the network"
MATRICES = WEIGHT_KINDS - {"embedding"}


def silent_parts(
    subject: Subject, wanted: Collection[str], alive: Collection[str], closed: Collection[str]
) -> list[str]:
    """Names of the outermost parts without any gradient.

    Args:
        wanted: names of the trainable parameters that may be asked for a gradient.
        alive: those that had one.
        closed: those in gates that the inputs close; a part that holds one is left out.
    """
    if wanted and not alive:
        return [WHOLE]
    silent: dict[str, frozenset[str]] = {}
    for part, names in _parts(subject, wanted):
        inside = any(names <= others for others in silent.values())
        if names and not inside and not names & {*alive} and not names & {*closed}:
            silent[part] = names
    return list(silent)


def _parts(subject: Subject, wanted: Collection[str]) -> Iterator[tuple[str, frozenset[str]]]:
    """Submodules with trainable weights in two layers at least, from outside to inside, then branches; and their
    trainable parameters. Only of layers that the output is computed from."""
    layers = {layer.name: layer for layer in subject.structure.layers if _computes(layer) and layer.name}
    reached = _reached(subject)
    used = {name: layer for name, layer in layers.items() if name in reached}
    own = {a.layer: [] for a in subject.assignments}  # type: dict[str, list[str]]
    for assignment in subject.assignments:
        if assignment.tensor.name in wanted:
            own[assignment.layer].append(assignment.tensor.name)
    stages = dict.fromkeys(stage for name in used if own.get(name) for stage in _outer(name))
    for stage in sorted(stages, key=lambda name: name.count(".")):
        inside = [name for name in used if name.startswith(f"{stage}.") and own.get(name)]
        held = [n for name, names in own.items() if name.startswith(f"{stage}.") for n in names]
        if len(inside) > 1:
            yield stage, frozenset(held)
    for join in subject.structure.joins:
        branch = [name for name in join.branch if name in used]
        if join.residual and branch and len(branch) == len(join.branch):
            yield f"the branch of {join.node}", frozenset(n for name in branch for n in own.get(name, ()))


def _computes(layer: Layer) -> bool:
    return layer.kind in MATRICES or bool(layer.weights)


def _outer(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:end]) for end in range(1, len(parts))]


def _reached(subject: Subject) -> set[str]:
    """Modules that the output in training mode is computed from, as the graph shows it."""
    graph = subject.traced.train
    reach, end = Reach(graph), next(node for node in graph.nodes if node.op == "output")
    return {name for node in graph.nodes if reach.reaches(node, end) for name in _owners(node)}


def _owners(node: fx.Node) -> set[str]:
    reads = {str(n.target).rpartition(".")[0] for n in node.all_input_nodes if n.op == "get_attr"}
    return reads | ({str(node.target)} if node.op == "call_module" else set())
