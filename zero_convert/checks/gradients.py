"""At which step does each parameter first get a gradient?

A layer at zero passes no gradient back, so some parameters get one only after others have moved. A copy is trained on
one batch of the check's inputs with hashed classes, dropout off, until every parameter has had a nonzero gradient. It
makes as many steps as the longest branch has weight layers, plus one each for stem and head, and goes on while each
step reaches a new parameter; a parameter not reached by then is reported as dead. In each step every parameter moves by
0.1, in the Euclidean norm, against its own gradient: a norm layer after a zero layer, which amplifies gradients by
1/sqrt(eps) = 316, cannot make the run diverge, and no matrix grows by more than 0.1 in the spectral norm.

A nonzero gradient in any run proves a parameter alive. A run without one proves little: too large a step can push every
unit of a ReLU below 0 for all inputs (SqueezeNet under zero-2022 outputs zero after five steps of 0.1), and a narrow
layer, or a batch norm over two values, may output zero for the few inputs of one batch. So if a weight seems dead, or a
gradient overflows after the first step, the training is repeated from the same start until every parameter is decided:
with steps of 0.01 on a larger batch of other values, with steps of 0.001 on the first batch, and then on the other.
A parameter that is dead in all of these is dead; the first step reported for another is the earliest of all.

"Nonzero" is exact. A bias directly before a batch norm is subtracted again by it, its gradient is rounding, and it is
listed as "cancelled". A parameter that the output does not depend on in training mode is listed as "unused".

A weight whose gradient is exactly 0 even for hashed matrices is dead in the network and not in its start (the first
self-attention of DETR's decoder reads zeros, whatever the weights are): it is listed as "inert". Biases are 0 there,
and factors as they are.

A gate with few hidden units reads few channels, and a ReLU behind them stays closed if these are negative, or 0, in all
inputs of the check. A weight of a gate that gets a gradient when the dead weights start with the opposite sign, or read
the next channel with either sign, is listed as "closed": the inputs decide, and the rest of the network learns without
the gate. The direction of a kernel (`weight_norm`) has no gradient where the inputs reach a single value of it: such a
weight is as alive as its length.

Fails if a weight of a convolution, linear or attention layer stays dead, if a gradient is not finite, or if no
parameter at all, or none of a whole branch or stage, gets a gradient, whatever the reason. A stage is a submodule with
weights in two layers at least, all of which the output is computed from; gates that the inputs close are none. Warns if
another parameter stays dead, or if a gate is closed.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from zero_convert.formulas.hashing import words
from zero_convert.graph.kinds import WEIGHT_KINDS
from zero_convert.graph.queries import Reach

from .harness.bench import Answer, CheckContext, disable_dropout
from .harness.inputs import Inputs, floats
from .harness.isolation import ran_out
from .harness.remedies import INFINITE
from .harness.silent_parts import silent_parts
from .harness.training import cancelled_biases, gradients_of, step
from .subject import Subject

NAME = "gradients"
QUESTION = "Which step is the first to give each parameter a gradient, and does any parameter stay dead?"
AFTER = "logits"
LEVELS = ("quick", "full")
NEEDS = ("train",)
LEAST = {"parameters with a gradient": 1}
TRIALS = ((0.1, False), (0.01, True), (0.001, False), (0.001, True))  # size of the steps; on the other batch
JUDGED = WEIGHT_KINDS - {"embedding"}  # rows of an embedding that no index names have no gradient
SHOWN = 4
KEPT = "Parameters without a gradient keep their first value: see what stands after them."
SILENT = (
    "Nothing there ever learns. See what stands after it: a factor or a frozen layer of 0, a `detach`, a `no_grad`. "
    "What is to stay as it is: requires_grad_(False) in the constructor."
)


@dataclass
class _Run:
    """One training.

    Attributes:
        size: of its steps.
        first: parameter → first step that gave it a gradient.
        unused: parameters without a path to the loss.
        broken: parameters whose gradient is not finite in the last step.
        steps: how many were made.
    """

    size: float
    first: dict[str, int] = field(default_factory=dict)
    unused: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    steps: int = 0


def ask(context: CheckContext) -> Answer:
    subject = context.subject
    trained = [name for name, p in subject.traced.root.named_parameters() if p.requires_grad]
    if not trained:
        return Answer("skip", "nothing is trainable")
    if not context.run("train").outputs:
        return Answer("skip", "no floating tensor is returned in training mode")
    cancelled, limit, weights = cancelled_biases(subject), longest_branch(subject) + 2, _weights(subject)
    lengths = _lengths(subject)
    runs = _trainings(context, trained, weights, cancelled, limit, lengths)
    if runs[0].broken and (runs[0].steps == 1 or all(run.broken for run in runs)):
        return Answer(
            "fail",
            f"gradient not finite in step {runs[0].steps}: {_some(runs[0].broken)}",
            {"steps": runs[0].steps, "step_sizes": [run.size for run in runs], "not_finite": runs[0].broken},
            "finite gradients",
            INFINITE,
        )  # fmt: skip
    seen = {name for run in runs for name in run.first} | set(runs[0].unused) | cancelled
    weights -= {name for name, length in lengths.items() if length in seen}
    inert = _inert(context, [name for name in trained if name in weights - seen])
    closed = _closed(context, {*trained} & weights - seen - {*inert}, limit)
    first = {name for run in runs for name in run.first}
    silent = silent_parts(subject, {*trained} - cancelled, first, {*closed})
    return _answer(trained, runs, cancelled, limit, weights, inert, closed, silent)


def _answer(
    trained: list[str],
    runs: list[_Run],
    cancelled: set[str],
    limit: int,
    weights: set[str],
    inert: list[str],
    closed: list[str],
    silent: list[str],
) -> Answer:
    steps = {name: [run.first[name] for run in runs if name in run.first] for name in trained}
    first = {name: min(reached) for name, reached in steps.items() if reached}
    unused = runs[0].unused
    dead = [n for n in trained if n not in first and n not in unused and n not in cancelled and n not in inert]
    serious = [name for name in dead if name in weights and name not in closed]
    when = Counter(first.values())
    count = max(run.steps for run in runs)
    numbers = {
        "first_step": first,
        "parameters_by_step": {str(step): when[step] for step in sorted(when)},
        "steps": count,
        "step_sizes": [run.size for run in runs],
        "limit": limit,
        "dead": dead,
        "inert": inert,
        "silent_parts": silent,
        "closed": closed,
        "unused": unused,
        "cancelled": sorted(cancelled),
    }
    alive = ", ".join(f"{count} from step {step}" for step, count in sorted(when.items()))
    summary = f"parameters with a gradient: {alive or 'none'}"
    summary += f"; {len(dead)} dead after {count} steps: {_some(serious or dead)}" if dead else "; none stays dead"
    if closed:
        summary += f"; {len(closed)} of them in gates that these inputs leave closed"
    if not dead and len(runs) > 1:
        late = [name for name in first if name not in runs[0].first]
        summary += f"; {len(late)} of them only with smaller steps or another batch"
    if unused:
        summary += f"; {len(unused)} not used in training mode"
    if inert:
        summary += f"; {len(inert)} without a gradient whatever the weights are: {_some(inert)}"
    if cancelled:
        summary += f"; {len(cancelled)} biases cancelled by the norm after them"
    if silent:
        summary += f"; without any gradient: {_some(silent)}"
    return Answer(
        "fail" if serious or silent else "warn" if dead else "pass",
        summary,
        numbers,
        f"alive within {limit} steps (longest branch, stem, head), or while each step wakes more",
        SILENT if silent else KEPT if dead else "",
        {"parameters with a gradient": len(first)},
    )


def _inert(context: CheckContext, silent: list[str]) -> list[str]:
    """Those of the silent parameters that have no gradient for hashed weights either."""
    if not silent:
        return []
    module = disable_dropout(context.fresh().train())
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.ndim > 1 and parameter.requires_grad and parameter.is_floating_point():
                bits = words(0, f"gradients {name}", 0, parameter.numel()) >> 40
                values = bits.astype("float32") / 2**23 - 1
                spread = max(1, parameter.numel() // max(1, parameter.shape[0])) ** 0.5
                parameter.copy_(torch.from_numpy(values).reshape(parameter.shape) / spread)
        for part in module.modules():
            bias, weight = getattr(part, "bias", None), getattr(part, "weight", None)
            if isinstance(bias, Tensor) and isinstance(weight, Tensor) and weight.ndim > 1:
                bias.zero_()
    with torch.enable_grad():
        gradients = gradients_of(floats(context.forward(module, context.small_inputs[0])), module)
    return [name for name in silent if (g := gradients.get(name)) is None or not bool(torch.count_nonzero(g))]


def _closed(context: CheckContext, dead: set[str], limit: int) -> list[str]:
    """Those of the dead weights that stand in gates, and have a gradient once the dead weights are others."""
    roles = {a.tensor.name: a.role for a in context.subject.assignments}
    gates = {name for name in dead if roles[name].startswith("gate")}
    if not gates:
        return []
    alive: set[str] = set()
    for size, (sign, channel) in itertools.product((0.01, 0.001), ((-1, 0), (1, 1), (-1, 1))):

        def change(weight: Tensor, sign: int = sign, channel: int = channel) -> Tensor:
            return sign * weight.roll(channel, 1)

        run = _train(context, context.small_inputs[0], size, gates - alive, limit, changed=dead, change=change)
        alive |= run.first.keys()
        if gates <= alive:
            break
    return sorted(gates & alive)


def _trainings(
    context: CheckContext,
    trained: list[str],
    weights: set[str],
    cancelled: set[str],
    limit: int,
    lengths: Mapping[str, str],
) -> list[_Run]:
    """One training, and its repetitions until every parameter is decided."""
    runs: list[_Run] = []
    wanted = set(trained) - cancelled
    for size, other in TRIALS:
        try:
            run = _train(context, context.other_inputs if other else context.small_inputs[0], size, wanted, limit)
        except (ArithmeticError, IndexError, RuntimeError, ValueError) as error:
            if not other or ran_out(error):
                raise
            run = _train(context, context.small_inputs[0], size, wanted, limit)  # it takes no other batch
        runs.append(run)
        wanted -= {*run.first, *run.unused}
        doubtful = {name for name in wanted & weights if lengths.get(name, name) in wanted}
        if (run.broken and run.steps == 1) or not (run.broken or doubtful):
            break
    return runs


def _train(
    context: CheckContext,
    inputs: Inputs,
    size: float,
    wanted: set[str],
    limit: int,
    changed: Collection[str] = (),
    change: Callable[[Tensor], Tensor] = torch.neg,
) -> _Run:
    """One training with steps of one size; it ends when all the wanted parameters had a gradient, or at the limit.

    The parameters `changed` start as what `change` makes of them.
    """
    run = _Run(size)
    module = disable_dropout(context.fresh().train())
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name in changed:
                parameter.copy_(change(parameter))
    fresh = True
    while run.steps < limit or fresh:
        run.steps, known = run.steps + 1, len(run.first)
        with torch.enable_grad():
            magnitudes = step(floats(context.forward(module, inputs)), module, size)
        if run.steps == 1:
            run.unused = [name for name, value in magnitudes.items() if value is None]
        for name, value in magnitudes.items():
            if not (value or 0.0) < float("inf"):
                run.broken.append(name)
            elif value and name in wanted:
                run.first.setdefault(name, run.steps)
        fresh = len(run.first) > known
        if run.broken or wanted <= {*run.first, *run.unused}:
            break
    return run


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


def _weights(subject: Subject) -> set[str]:
    kinds = {layer.name: layer.kind for layer in subject.structure.layers}
    return {a.tensor.name for a in subject.assignments if kinds.get(a.layer) in JUDGED and len(a.tensor.shape) > 1}


def _lengths(subject: Subject) -> dict[str, str]:
    """The direction of each weight that is kept as a length and a direction → the length."""
    lengths = {}
    for layer in subject.structure.layers:
        meanings = dict(layer.parameters)
        by_meaning = {meanings.get(tensor.local, ""): tensor.name for tensor in layer.tensors}
        if {"g", "v"} <= by_meaning.keys():
            lengths[by_meaning["v"]] = by_meaning["g"]
    return lengths


def _some(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (" …" if len(names) > SHOWN else "")
