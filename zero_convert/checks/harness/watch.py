"""Looking at every value of one forward, for the checks that only schemes which promise something ask for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn

from zero_convert.records import Check
from zero_convert.runtime import rng

from . import isolation
from .bench import Bench, still
from .inputs import Inputs, moved
from .recorder import first_line, is_float

See = Callable[[fx.Node, Tensor], None]


class Watcher(fx.Interpreter):
    """Runs a graph and shows every floating value to `see`. Values given by `instead` take the place of a node's."""

    def __init__(self, module: nn.Module, graph: fx.Graph, see: See, instead: dict[str, Tensor] | None = None) -> None:
        super().__init__(module, graph=graph, garbage_collect_values=True)
        self.extra_traceback = False
        self._see, self._instead = see, instead or {}

    def run_node(self, n: fx.Node) -> Any:
        value = self._instead[n.name] if n.name in self._instead else super().run_node(n)
        shown = value[0] if isinstance(value, tuple) and value else value
        if isinstance(shown, Tensor) and is_float(shown):
            self._see(n, shown)
        return value


def graph_of(bench: Bench, mode: str) -> fx.Graph:
    """The graph of a mode."""
    traced = bench.subject.traced
    return traced.train if mode == "train" else traced.evaluate


def watch(
    bench: Bench,
    mode: str,
    see: See,
    *,
    exact: bool = False,
    inputs: Inputs | None = None,
    module: nn.Module | None = None,
) -> str:
    """Shows every value of a run on the check's inputs; why it could not be followed to its end, "" if it could.

    Args:
        exact: in float64 on the CPU.
        inputs: others than the bench's for this mode, on the CPU.
        module: another copy on the device than the bench's.
    """
    device = "cpu" if exact else bench.device
    module = bench.exact if exact else bench.module if module is None else module
    given = bench.inputs[mode != "train"] if inputs is None else inputs
    with isolation.kept(module), torch.no_grad():
        still(module.train(mode == "train"))
        rng.seed()
        watcher = Watcher(module, graph_of(bench, mode), see)
        try:
            if exact:
                with isolation.in_float64():
                    watcher.run(*moved(given, module, device))
            else:
                watcher.run(*moved(given, module, device))
        except Exception as error:  # a recording that other values decide, or a kernel without float64
            if isolation.ran_out(error):
                raise
            return first_line(error)
    return ""


def nothing(bench: Bench, name: str, question: str, stopped: str, what: str, otherwise: str) -> Check:
    """The answer where no `what` was seen: because the recording ended before, or nothing runs, or `otherwise`."""
    why = f"the recording ends before any: {stopped}" if stopped else bench.refusal() or otherwise
    return Check(name, "warn" if stopped else "skip", question, f"no {what} to look at: {why}")
