"""At which step does each parameter first get a gradient?

A layer at zero gives what stands before it no gradient, so some parameters have to wait until others have moved. A
copy is trained on one batch of the check's inputs with hashed classes, until every parameter has had a nonzero gradient
or as many steps were made as the longest branch has weight layers, plus one each for stem and head, and a further step
woke no other parameter: later than that is never. Dropout is off. In each step every parameter moves by 0.1 in the
direction of its own gradient, measured in the Euclidean norm; so a norm layer after a zero layer, which amplifies
gradients by 1/sqrt(eps) = 316, cannot blow up the run, and no matrix grows by more than 0.1 in the spectral norm.

A nonzero gradient in any run proves a parameter alive; a run without one proves little: a step that is too large can
push every unit of a ReLU below 0 for all inputs (SqueezeNet under zero-2022 is silent after five steps of 0.1), and a
narrow layer, or a batch norm over two values, may be silent for the few inputs of one batch. So if a weight seems dead,
or a gradient overflows after the first step, the training is repeated from the same start: with steps of 0.01 on a
larger batch of other values, with steps of 0.001 on the first batch, and then on the other, until no doubt is left.
What is dead in all of these is called dead; the first step told of a parameter is the earliest of all.

"Nonzero" is exact. A bias directly before a batch norm is subtracted again by it; what gradient it shows is rounding,
and it is listed as "cancelled". A parameter that the output does not depend on in training mode is listed as "unused".

A weight whose gradient is exactly 0 for matrices of no structure at all, hashed numbers everywhere, is dead in the
network and not in its start (the first self-attention of DETR's decoder reads zeros, whatever the weights are): it is
listed as "inert". Biases are 0 there, and factors as they are.

A gate with few hidden units reads few channels, and a ReLU behind them is closed for good if these are negative, or 0,
in all inputs of the check. A weight of a gate that gets a gradient when the dead weights start with the opposite sign,
or read the next channel with either sign, is listed as "closed": it is the inputs that decide, and the rest of the
network learns without the gate. The direction of a kernel (`weight_norm`) has no gradient where the inputs reach a
single value of it: such a weight is as alive as its length.

Fails if a weight of a convolution, linear or attention layer stays dead, or a gradient is not finite. Warns if another
parameter stays dead, if a gate is closed, or if no output depends on any parameter.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.instancenorm import _InstanceNorm

from zero_convert.formulas.hashing import words
from zero_convert.graph.kinds import WEIGHT_KINDS
from zero_convert.graph.queries import Reach, only_user
from zero_convert.graph.traced import Subject
from zero_convert.runtime import rng

from ..records import Check
from ._steps import largest_of, move
from .harness.bench import Bench, call, still
from .harness.inputs import Inputs, floats, moved
from .harness.isolation import ran_out
from .harness.training import gradients_of

QUESTION = "Which step is the first to give each parameter a gradient, and does any parameter stay dead?"
TRIALS = ((0.1, False), (0.01, True), (0.001, False), (0.001, True))  # size of the steps; on the other batch
JUDGED = WEIGHT_KINDS - {"embedding"}  # rows of an embedding that no index names have no gradient
SHOWN = 4
INFINITE = "Something behind these has an infinite derivative: a root, a logarithm or a quotient at 0."


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


def ask(bench: Bench) -> Check:
    subject = bench.subject
    if "train" not in bench.modes:
        return Check("gradients", "skip", QUESTION, f"does not run in training mode: {bench.refused['train']}")
    trained = [name for name, p in subject.traced.root.named_parameters() if p.requires_grad]
    if not trained:
        return Check("gradients", "skip", QUESTION, "nothing is trainable")
    if not bench.run("train").outputs:
        return Check("gradients", "skip", QUESTION, "no floating tensor is returned in training mode")
    cancelled, limit, weights = cancelled_biases(subject), longest_branch(subject) + 2, _weights(subject)
    lengths = _lengths(subject)
    runs = _trainings(bench, trained, weights, cancelled, limit, lengths)
    if runs[0].broken and (runs[0].steps == 1 or all(run.broken for run in runs)):
        return Check(
            "gradients", "fail", QUESTION,
            f"gradient not finite in step {runs[0].steps}: {_some(runs[0].broken)}",
            {"steps": runs[0].steps, "step_sizes": [run.size for run in runs], "not_finite": runs[0].broken},
            "finite gradients",
            INFINITE,
        )  # fmt: skip
    seen = {name for run in runs for name in run.first} | set(runs[0].unused) | cancelled
    weights -= {name for name, length in lengths.items() if length in seen}
    inert = _inert(bench, [name for name in trained if name in weights - seen])
    closed = _closed(bench, {*trained} & weights - seen - {*inert}, limit)
    return _answer(trained, runs, cancelled, limit, weights, inert, closed)


def _answer(
    trained: list[str],
    runs: list[_Run],
    cancelled: set[str],
    limit: int,
    weights: set[str],
    inert: list[str],
    closed: list[str],
) -> Check:
    steps = {name: [run.first[name] for run in runs if name in run.first] for name in trained}
    first = {name: min(found) for name, found in steps.items() if found}
    unused = runs[0].unused
    dead = [n for n in trained if n not in first and n not in unused and n not in cancelled and n not in inert]
    serious = [name for name in dead if name in weights and name not in closed]
    when = Counter(first.values())
    made = max(run.steps for run in runs)
    numbers = {
        "first_step": first,
        "parameters_by_step": {str(step): when[step] for step in sorted(when)},
        "steps": made,
        "step_sizes": [run.size for run in runs],
        "limit": limit,
        "dead": dead,
        "inert": inert,
        "closed": closed,
        "unused": unused,
        "cancelled": sorted(cancelled),
    }
    alive = ", ".join(f"{count} from step {step}" for step, count in sorted(when.items()))
    summary = f"parameters with a gradient: {alive or 'none'}"
    summary += f"; {len(dead)} dead after {made} steps: {_some(serious or dead)}" if dead else "; none stays dead"
    if closed:
        summary += f"; {len(closed)} of them in gates that these inputs leave closed"
    if not dead and len(runs) > 1:
        silent = [name for name in first if name not in runs[0].first]
        summary += f"; {len(silent)} of them only with smaller steps or another batch"
    if unused:
        summary += f"; {len(unused)} not used in training mode"
    if inert:
        summary += f"; {len(inert)} without a gradient whatever the weights are: {_some(inert)}"
    if cancelled:
        summary += f"; {len(cancelled)} biases cancelled by the norm after them"
    return Check(
        "gradients",
        "fail" if serious else "warn" if dead or not first else "pass",
        QUESTION,
        summary,
        numbers,
        f"alive within {limit} steps (longest branch, stem, head), or while each step wakes more",
        "Parameters without a gradient keep their first value: see what stands after them." if dead else "",
    )


def _inert(bench: Bench, silent: list[str]) -> list[str]:
    """Those of the silent parameters that have no gradient for hashed weights either."""
    if not silent:
        return []
    module = still(bench.fresh().train())
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
    rng.seed()
    with torch.enable_grad():
        outputs = floats(call(module, bench.subject, moved(bench.small_inputs[0], module, bench.device)))
        made = gradients_of(outputs, module)
    return [name for name in silent if (g := made.get(name)) is None or not bool(torch.count_nonzero(g))]


def _closed(bench: Bench, dead: set[str], limit: int) -> list[str]:
    """Those of the dead weights that stand in gates, and have a gradient once the dead weights are others."""
    roles = {a.tensor.name: a.role for a in bench.subject.assignments}
    gates = {name for name in dead if roles[name].startswith("gate")}
    if not gates:
        return []
    alive: set[str] = set()
    for size, (sign, channel) in itertools.product((0.01, 0.001), ((-1, 0), (1, 1), (-1, 1))):

        def change(weight: Tensor, sign: int = sign, channel: int = channel) -> Tensor:
            return sign * weight.roll(channel, 1)

        run = _train(bench, bench.small_inputs[0], size, gates - alive, limit, changed=dead, change=change)
        alive |= run.first.keys()
        if gates <= alive:
            break
    return sorted(gates & alive)


def _trainings(
    bench: Bench, trained: list[str], weights: set[str], cancelled: set[str], limit: int, lengths: Mapping[str, str]
) -> list[_Run]:
    """One training, and where it leaves a doubt the repetitions until there is none."""
    runs: list[_Run] = []
    wanted = set(trained) - cancelled
    for size, other in TRIALS:
        try:
            run = _train(bench, bench.other_inputs if other else bench.small_inputs[0], size, wanted, limit)
        except (ArithmeticError, IndexError, RuntimeError, ValueError) as error:
            if not other or ran_out(error):
                raise
            run = _train(bench, bench.small_inputs[0], size, wanted, limit)  # it takes no other batch
        runs.append(run)
        wanted -= {*run.first, *run.unused}
        doubtful = {name for name in wanted & weights if lengths.get(name, name) in wanted}
        if (run.broken and run.steps == 1) or not (run.broken or doubtful):
            break
    return runs


def _train(
    bench: Bench,
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
    module = still(bench.fresh().train())
    named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    with torch.no_grad():
        for name, parameter in named:
            if name in changed:
                parameter.copy_(change(parameter))
    fresh = True
    while run.steps < limit or fresh:
        run.steps, known = run.steps + 1, len(run.first)
        rng.seed()
        with torch.enable_grad():
            outputs = floats(call(module, bench.subject, moved(inputs, module, bench.device)))
            made = gradients_of(outputs, module)
        if run.steps == 1:
            run.unused = [name for name, g in made.items() if g is None]
        for name, parameter in named:
            gradient = made[name]
            largest = largest_of(gradient)
            if not largest < float("inf"):
                run.broken.append(name)
            elif gradient is not None and largest > 0:
                if name in wanted:
                    run.first.setdefault(name, run.steps)
                move(parameter, gradient, largest, size)
        made.clear()  # before the next step makes others
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
    return {a.tensor.name for a in subject.assignments if kinds.get(a.layer) in JUDGED and len(a.tensor.shape) > 1}


def _lengths(subject: Subject) -> dict[str, str]:
    """The direction of each weight that is kept as a length and a direction → the length."""
    found = {}
    for layer in subject.structure.layers:
        meanings = dict(layer.parameters)
        by_meaning = {meanings.get(tensor.local, ""): tensor.name for tensor in layer.tensors}
        if {"g", "v"} <= by_meaning.keys():
            found[by_meaning["v"]] = by_meaning["g"]
    return found


def _some(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (" …" if len(names) > SHOWN else "")
