"""At which step does each parameter first get a gradient?

A layer at zero gives what stands before it no gradient, so some parameters have to wait until others have moved. A
copy is trained on one batch of the check's inputs with hashed classes, until every parameter has had a nonzero gradient
or as many steps were made as the longest branch has weight layers, plus one each for stem and head, and a further step
woke no other parameter: later than that is never. Dropout is off. In each step every parameter moves by `STEP` in the
direction of its own gradient, measured in the Euclidean norm; so a norm layer after a zero layer, which amplifies
gradients by 1/sqrt(eps) = 316, cannot blow up the run, and no matrix grows by more than `STEP` in the spectral norm.

"Nonzero" is exact. A bias directly before a batch norm is subtracted again by it; what gradient it shows is rounding,
and it is listed as "cancelled". A parameter that the output does not depend on in training mode is listed as "unused".

Fails if a weight of a convolution, linear or attention layer stays dead, or a gradient is not finite. Warns if another
parameter stays dead.
"""

from __future__ import annotations

from collections import Counter

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.instancenorm import _InstanceNorm

from ..graphs import Reach, only_user
from ..live import Subject
from ..records import Check
from . import _guard
from ._bench import Bench, floats, moved, still
from ._loss import loss

QUESTION = "Which step is the first to give each parameter a gradient, and does any parameter stay dead?"
STEP = 0.1
SHOWN = 4


def ask(bench: Bench) -> Check:
    subject = bench.subject
    if "train" not in bench.modes:
        return Check("gradients", "skip", QUESTION, f"does not run in training mode: {bench.refused['train']}")
    if not any(p.requires_grad for p in subject.traced.root.parameters()):
        return Check("gradients", "skip", QUESTION, "nothing is trainable")
    cancelled = cancelled_biases(subject)
    limit = longest_branch(subject) + 2
    first, unused, broken, steps = _train(bench, cancelled, limit)
    if broken:
        return Check(
            "gradients", "fail", QUESTION, f"gradient not finite in step {steps}: {', '.join(broken[:SHOWN])}",
            {"steps": steps, "not_finite": broken}, "finite gradients",
        )  # fmt: skip
    trained = [name for name, p in subject.traced.root.named_parameters() if p.requires_grad]
    dead = [n for n in trained if n not in first and n not in unused and n not in cancelled]
    weights = _weights(subject)
    serious = [name for name in dead if name in weights]
    when = Counter(first.values())
    numbers = {
        "first_step": first,
        "parameters_by_step": {str(step): when[step] for step in sorted(when)},
        "steps": steps,
        "limit": limit,
        "dead": dead,
        "unused": unused,
        "cancelled": sorted(cancelled),
    }
    alive = ", ".join(f"{count} from step {step}" for step, count in sorted(when.items()))
    summary = f"parameters with a gradient: {alive or 'none'}"
    if dead:
        summary += f"; {len(dead)} dead after {steps} steps: {_some(serious or dead)}"
    else:
        summary += "; none stays dead"
    if unused:
        summary += f"; {len(unused)} not used in training mode"
    if cancelled:
        summary += f"; {len(cancelled)} biases cancelled by the norm after them"
    return Check(
        "gradients",
        "fail" if serious else "warn" if dead else "pass",
        QUESTION,
        summary,
        numbers,
        f"alive within {limit} steps (longest branch, stem, head), or while each step wakes more",
        "Parameters without a gradient keep their first value: see what stands after them." if dead else "",
    )


def _train(bench: Bench, cancelled: set[str], limit: int) -> tuple[dict[str, int], list[str], list[str], int]:
    """First step by parameter; parameters without a path to the loss; gradients that are not finite; steps made."""
    module = still(bench.fresh().train())
    inputs = moved(bench.small_inputs[0], module, bench.device)
    named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    first: dict[str, int] = {}
    unused: list[str] = []
    with torch.enable_grad():
        step, fresh = 0, True
        while step < limit or fresh:
            step, known = step + 1, len(first)
            _guard.seed(bench.device)
            try:
                made = torch.autograd.grad(loss(floats(module(*inputs))), [p for _, p in named], allow_unused=True)
            except torch.OutOfMemoryError as error:
                raise bench.out_of_memory() from error
            if step == 1:
                unused = [name for (name, _), g in zip(named, made, strict=True) if g is None]
            broken = []
            for (name, parameter), gradient in zip(named, made, strict=True):
                largest = _largest(gradient)
                if not largest < float("inf"):
                    broken.append(name)
                elif gradient is not None and largest > 0:
                    if name not in cancelled:
                        first.setdefault(name, step)
                    _move(parameter, gradient, largest)
            if broken:
                return first, unused, broken, step
            fresh = len(first) > known
            if len(first) + len(unused) + len(cancelled) >= len(named):
                break
    return first, unused, [], step


def _largest(gradient: Tensor | None) -> float:
    if gradient is None or not gradient.numel():
        return 0.0
    return float(torch.linalg.vector_norm(gradient, float("inf")))


@torch.no_grad()
def _move(parameter: nn.Parameter, gradient: Tensor, largest: float) -> None:
    if not 1e-15 < largest < 1e15:  # else squares could under- or overflow
        gradient = gradient / largest
    parameter.sub_(gradient, alpha=STEP / float(torch.linalg.vector_norm(gradient)))


def longest_branch(subject: Subject) -> int:
    """The most weight layers, gates included, on one path from a fork to its join."""
    graph = subject.traced.train
    nodes, reach = {node.name: node for node in graph.nodes}, Reach(graph)
    layers = {layer.name for layer in subject.structure.layers if layer.geometry is not None}
    most = 0
    for join in subject.structure.joins:
        fork, end = nodes[join.fork], nodes[join.branch_node]
        count = {fork: 0}
        for node in reach.between(fork, end) if end is not fork else ():
            owners = {str(n.target).rpartition(".")[0] for n in node.all_input_nodes if n.op == "get_attr"}
            own = len(layers & owners) if node.op != "call_module" else int(str(node.target) in layers)
            count[node] = own + max((count[n] for n in node.all_input_nodes if n in count), default=0)
        most = max(most, *count.values())
    return most


def cancelled_biases(subject: Subject) -> set[str]:
    """Biases whose layer is read by a batch or instance norm alone, which subtracts the mean again."""
    root, found = subject.traced.root, set()
    for node in subject.traced.train.nodes:
        user = only_user(node) if node.op == "call_module" else None
        if user is None or user.op != "call_module":
            continue
        module, norm = root.get_submodule(str(node.target)), root.get_submodule(str(user.target))
        bias = getattr(module, "bias", None)
        if not isinstance(norm, _BatchNorm | _InstanceNorm) or not isinstance(module, _ConvNd | nn.Linear):
            continue
        if isinstance(bias, nn.Parameter) and bias.requires_grad:
            found.add(f"{node.target}.bias")
    return found


def _weights(subject: Subject) -> set[str]:
    kinds = {layer.name: layer.kind for layer in subject.structure.layers}
    return {
        a.tensor.name
        for a in subject.assignments
        if kinds.get(a.layer) in ("convolution", "linear", "attention") and len(a.tensor.shape) > 1
    }


def _some(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (" …" if len(names) > SHOWN else "")
