"""Does the converted model return what the original returned: as many tensors, of the same shapes and dtypes?

It is run on the example inputs, in evaluation mode and, where its graph is another one, in training mode. There a batch
norm refuses a single value per channel; then the training graph is run with its modules in evaluation mode, as tracing
did.

Some sizes are values: how many boxes a detector keeps depends on its weights, which the conversion changes. A size that
differs is excused if it is seen to depend on values: copies of the converted model with other weights and inputs of the
same shapes return other sizes there, or an operation leads to it that finds as many items as there are (`nonzero`,
`nms`), and the size is that of the first axis. Number of tensors, dtypes and ranks must agree in any case.

Fails on any other difference: a rewrite that changes a shape is wrong. Fails if no tensor is returned in any mode: then
no check has seen what the network computes.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from zero_convert.formulas.hashing import words
from zero_convert.graph.results import tensors_of

from .harness import isolation
from .harness.bench import Answer, CheckContext, disable_dropout
from .harness.inputs import Inputs, batches, moved

NAME = "outputs"
QUESTION = "Are the shapes and dtypes of the outputs the original's, in training and evaluation mode?"
AFTER = "coverage"
LEVELS = ("quick", "full")
NEEDS = ()
SESSION = True
LEAST = {"output tensors": 1}  # of both modes
SCALES = (1.0, 4.0, 0.25)  # of the weights in the copies: scores pass or miss a limit
SHOWN = 6
FINDING = frozenset({"nonzero", "argwhere", "masked_select", "nms", "batched_nms", "unique", "unique_consecutive"})

Summary = tuple[tuple[tuple[int, ...], str], ...]


def ask(context: CheckContext) -> Answer:
    traced, wrong, described, free = context.subject.traced, [], "", {}
    seen = sum(map(len, context.subject.outputs.values()))
    if not seen:
        return Answer(
            "fail",
            "the forward returns no tensor that could be looked at",
            {"outputs": {mode: [] for mode in context.subject.outputs}},
            "at least one tensor, in containers or attributes of objects",
            "Return the tensors themselves: what a set, a function or a module holds is not looked at.",
        )
    for mode, expected in context.subject.outputs.items():
        if mode == "train" and traced.train is traced.evaluate:
            continue
        module = context.module
        with isolation.kept(module):
            own = returned(context, module, mode, context.subject.inputs)
        described = spell(own)
        if own != tuple(expected):
            excused = sizes_of_values(context, mode, own)
            if differs(own, expected, excused):
                rows = _found_items(context.graph(mode))
                excused |= {(index, 0) for index in rows if index < len(own) and own[index][0]}
            if differs(own, expected, excused):
                wrong.append(f"{mode} mode: {described} instead of {spell(expected)}")
            free[mode] = sorted(excused)
    summary = f"{described}, as the original"
    if any(free.values()):
        count = max(map(len, free.values()))
        summary += f"; {count} size{'s depend' if count > 1 else ' depends'} on values and need not agree"
    return Answer(
        "fail" if wrong else "pass",
        "; ".join(wrong) or summary,
        {"outputs": {mode: [list(shape) for shape, _ in of] for mode, of in context.subject.outputs.items()}}
        | ({"sizes_of_values": free} if free else {}),
        "equal shapes and dtypes",
        "An edit changed what comes out: --dry-run lists the edits; --scheme zero-2022 makes none." if wrong else "",
        {"output tensors": seen},
    )


def returned(context: CheckContext, module: nn.Module, mode: str, inputs: Inputs) -> Summary:
    """Shape and dtype of every tensor that a copy of the converted model returns."""
    with torch.no_grad():
        disable_dropout(module.train(mode == "train"))
        values: Any
        try:
            values = context.forward(module, inputs)
        except ValueError as error:
            if mode != "train" or "more than 1 value per channel" not in str(error):
                raise
            graph = context.subject.traced.train
            values = fx.Interpreter(module.eval(), graph=graph).run(*moved(inputs, module, context.device))
    return tuple((tuple(t.shape), str(t.dtype).removeprefix("torch.")) for t in tensors_of(values))


def differs(own: Summary, expected: Summary, excused: set[tuple[int, int]]) -> bool:
    """Whether more than the excused sizes, (tensor, axis), are different."""
    if [(len(shape), dtype) for shape, dtype in own] != [(len(shape), dtype) for shape, dtype in expected]:
        return True
    return any(
        a != b and (index, axis) not in excused
        for index, ((shape, _), (other, _)) in enumerate(zip(own, expected, strict=True))
        for axis, (a, b) in enumerate(zip(shape, other, strict=True))
    )


def sizes_of_values(context: CheckContext, mode: str, own: Summary) -> set[tuple[int, int]]:
    """(tensor, axis) of the sizes that change with weights and inputs whose shapes do not change."""
    excused = set()
    module = context.fresh()
    for variant, scale in enumerate(SCALES):
        _refill(module, variant, scale)
        inputs = batches(context.subject.inputs, None, samples=None, variant=variant)[0]
        try:
            other = returned(context, module, mode, inputs)
        except (ArithmeticError, IndexError, RuntimeError, ValueError) as error:  # made-up values need not make sense
            if isolation.ran_out(error):
                raise
            continue
        if [len(shape) for shape, _ in other] == [len(shape) for shape, _ in own]:
            sizes = enumerate(zip(own, other, strict=True))
            excused |= {
                (index, axis) for index, ((a, _), (b, _)) in sizes for axis, size in enumerate(a) if size != b[axis]
            }
    return excused


def _found_items(graph: fx.Graph) -> list[int]:
    """Which of the output's tensors have as many rows as some operation finds items."""
    leaves = [x for x in tree_leaves(graph.output_node().args[0]) if isinstance(x, fx.Node)]
    return [index for index, leaf in enumerate(leaves) if _finds_items(leaf)]


def _finds_items(leaf: fx.Node) -> bool:
    todo, seen = [leaf], set()
    while todo:
        node = todo.pop()
        if node in seen:
            continue
        seen.add(node)
        name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
        if name in FINDING or (name == "where" and len(node.args) == 1):
            return True
        todo += node.all_input_nodes
    return False


@torch.no_grad()
def _refill(module: nn.Module, variant: int, scale: float) -> None:
    """Hashed values for every floating parameter, a matrix scaled by its fan-in."""
    for name, parameter in module.named_parameters():
        if parameter.is_floating_point() and parameter.numel():
            drawn = words(variant, name, 0, parameter.numel()) >> 40
            values: Tensor = torch.from_numpy(drawn.astype("int64")).to(torch.float64) / 2**23 - 1
            fan = math.prod(parameter.shape[1:])
            parameter.copy_((values * scale * 3 / fan**0.5).to(parameter.dtype).reshape(parameter.shape))


def spell(shapes: Summary) -> str:
    """ "1×1000 float32, …"."""
    spelled = [f"{'×'.join(map(str, shape)) or 'scalar'} {dtype}" for shape, dtype in shapes]
    more = f" and {len(spelled) - SHOWN} more" if len(spelled) > SHOWN else ""
    return ", ".join(spelled[:SHOWN]) + more or "nothing"
