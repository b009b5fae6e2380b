"""Without the skips that were inserted, is the rewritten network the original, bit for bit?

The rewrites are done again one by one on a copy of the original, and after each the network is run in evaluation mode
with the same hashed weights as before it. Some rewrites promise to compute the same at once (`SAME`). Others insert
skips, gates, shifts or transforms (`INSERTED`): there each new sum is taken without the new operand, which is the skip
scaled to 0, and each new factor, shift, dropout and transform is left out; if then every node that was there before
reads what it read before, the outputs must be those of before. Where a rewrite also moves what was there (a shortcut
that joins earlier, another order of norm and activation, a norm taken out), the network has no such reading, and the
rewrite is listed as not readable.

Fails on any different bit. It is asked of networks that were captured as a whole.
"""

from __future__ import annotations

import operator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from zero_convert import rewrites
from zero_convert.graph.original import filled, keep
from zero_convert.graph.queries import kind
from zero_convert.graph.traced import Original, Traced
from zero_convert.runtime import rng

from .harness.bench import Answer, CheckContext, disable_dropout
from .harness.inputs import Inputs, floats, moved
from .harness.recorder import most, same_bits

NAME = "skips"
QUESTION = "Without the inserted skips, does the rewritten network compute what the original does, bit for bit?"
AFTER = "exact_parts"
LEVELS = ("full",)
NEEDS = ()
LEAST = {"rewrites": 1, "output tensors": 1}
SAME = frozenset({"out_of_place", "norm_modules", "relu_derivative"})
INSERTED = frozenset(
    {
        *("inner_skips", "stem_skip", "growth_transforms", "branch_scalars", "scalar_biases", "outer_biases"),
        "symmetry_dropout",
    }
)
LEFT_OUT = frozenset({"transform", "bias", "scale", "drop"})  # kinds of inserted modules that hand on what they read


def ask(context: CheckContext) -> Answer | None:
    original = context.subject.original
    names = context.subject.scheme.rewrites(context.subject.options)
    if original is None or not original.traced.whole or not names:
        return None
    equal: list[str] = []
    wrong: dict[str, float] = {}
    unreadable: dict[str, str] = {}
    looked = 0
    before = _rewritten(context, original, ())
    for index, name in enumerate(names):
        after = _rewritten(context, original, names[: index + 1])
        if name in SAME or name in INSERTED:
            reason = "" if name in SAME else _moved(before, after)
            if reason:
                unreadable[name] = reason
            else:
                off, tensors = _difference(context, before, after)
                looked = max(looked, tensors)
                if off == 0:
                    equal.append(name)
                else:
                    wrong[name] = off
        elif str(before.train) != str(after.train):
            unreadable[name] = "it changes what the network computes"
        before = after
    if wrong:
        summary = ", ".join(f"{name} changes the output by {off:.3g}" for name, off in wrong.items())
    elif equal:
        summary = f"equal bit for bit through {', '.join(equal)}"
    else:
        summary = "no rewrite allows this reading"
    if unreadable:
        summary += f"; no such reading for {', '.join(unreadable)}"
    return Answer(
        "fail" if wrong else "pass" if equal else "skip",
        summary,
        {"equal": equal, "different": wrong, "not_readable": unreadable},
        "equal bits",
        "That edit is wrong for this network: please report it; --scheme zero-2022 makes no edit." if wrong else "",
        {"rewrites": len(equal), "output tensors": looked},
    )


def _rewritten(context: CheckContext, original: Original, names: tuple[str, ...]) -> Traced:
    """A copy of the original with hashed values in every parameter, after these rewrites."""
    copied = keep(original.traced)
    assert copied is not None, "it was copied before"
    full = replace(copied, root=filled(replace(original, traced=copied), sd=1.0))
    with torch.no_grad():
        for parameter in full.root.parameters():  # a bias or factor that is not 0 or 1 shows where it goes
            if parameter.is_floating_point() and parameter.ndim < 2 and parameter.numel():
                steps = torch.arange(parameter.numel(), dtype=torch.float32) % 17
                parameter.copy_(((steps + 8) / 16).reshape(parameter.shape))
    return rewrites.apply(full, names, context.subject.options)[0]


def _moved(before: Traced, after: Traced) -> str:
    """Why nodes of before do not read the same afterwards, once what is new hands on its first operand."""
    for old, new in zip(before.graphs, after.graphs, strict=True):
        there = {node.name: node for node in old.nodes}
        for node in new.nodes:
            if node.name in there:
                was = [n.name for n in there[node.name].all_input_nodes]
                now = [_behind(n, there).name for n in node.all_input_nodes]
                if was != now:
                    return f"{node.name} reads {', '.join(now)} instead of {', '.join(was)}"
    return ""


def _behind(node: fx.Node, there: dict[str, fx.Node]) -> fx.Node:
    while node.name not in there and node.all_input_nodes:
        node = node.all_input_nodes[0]
    return node


def _difference(context: CheckContext, before: Traced, after: Traced) -> tuple[float, int]:
    """The largest difference of the outputs, 0 for equal bits, infinity for other shapes; and how many there are."""
    inputs = context.small_inputs[1]
    first = _run(_Plain, before, inputs, set(), context.device)
    known = {node.name for node in before.evaluate.nodes}
    second = _run(_Without, after, inputs, known, context.device)
    if [t.shape for t in first] != [t.shape for t in second]:
        return float("inf"), len(first)
    pairs = zip(first, second, strict=True)
    return most(float((a - b).abs().max()) for a, b in pairs if not same_bits(a, b)), len(first)


def _run(how: type[_Plain], traced: Traced, inputs: Inputs, known: set[str], device: str) -> list[Tensor]:
    module = disable_dropout(traced.root.to(device).eval())
    rng.seed()
    with torch.no_grad():
        return floats(how(module, traced.evaluate, known).run(*moved(inputs, module, device)))


class _Plain(fx.Interpreter):
    def __init__(self, module: nn.Module, graph: fx.Graph, known: set[str]) -> None:
        super().__init__(module, graph=graph, garbage_collect_values=True)
        self.extra_traceback = False
        self.known, self._root = known, module


class _Without(_Plain):
    """Sums that are new return their first operand, as do new factors, shifts, dropouts and transforms."""

    def run_node(self, n: fx.Node) -> Any:
        new = n.name not in self.known and n.op in ("call_function", "call_module")
        if new and (n.target is operator.add or kind(n, self._root) in LEFT_OUT):
            return self.env[n.all_input_nodes[0]]
        return super().run_node(n)
