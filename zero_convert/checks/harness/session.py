"""A network as a session of ONNX Runtime computes it on a device, in evaluation mode, with every value in between.

The graph is exported once more, its floating values as outputs. What the session returns for them takes their place in
a run of the graph, so the checks look at the device's values and judge them as they judge torch's.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, fx, nn

from zero_convert.graph.results import tensors_of
from zero_convert.runtime import rng

from . import depths, isolation
from .bench import CheckContext, disable_dropout
from .inputs import Batches, Inputs, floats, moved
from .onnxruntime import runs
from .recorder import READ, RETURNED, Recorder, Run, is_float

MODE = "evaluate"


class SessionContext(CheckContext):
    """What a check looks at where ONNX Runtime computes: one sample, as large as the one that torch looks at.

    Args:
        context: of the same subject, where torch computes on the CPU.
        device: of the session.
        strict: nothing may fall back to the CPU; else `fallen` says what did.
    """

    mode = MODE

    def __init__(self, context: CheckContext, device: str, strict: bool) -> None:
        given, kept = context.inputs[1], context.subject
        summary = tuple(_described(t) for t in tensors_of(_returned(context, given)))
        super().__init__(replace(kept, inputs=given, outputs={MODE: summary}), context.level, "cpu", 0, 1)
        self.session, self._strict = device, strict
        self.fallen: tuple[str, ...] = ()

    @cached_property
    def inputs(self) -> Batches:
        return self.subject.inputs, self.subject.inputs

    @property
    def small_inputs(self) -> Batches:
        return self.inputs

    @property
    def modes(self) -> tuple[str, ...]:
        return (MODE,)

    def compute(self, model: bytes, batches: Sequence[Sequence[Tensor]]) -> list[list[Tensor]]:
        """The outputs of a model on the device for each batch of its inputs.

        Raises:
            DeviceError: it cannot be computed there, or a part fell back to the CPU.
        """
        arrays = [[t.detach().numpy() for t in batch] for batch in batches]
        made = runs(model, arrays, self.session, strict=self._strict)
        self.fallen = made[0].fallen or self.fallen
        return [[torch.from_numpy(value) for value in one.outputs.values()] for one in made]

    @cached_property
    def _model(self) -> tuple[bytes, dict[str, Any]]:
        """The file, and node → its value on the CPU, of those whose floating values are outputs of it."""
        values: dict[str, Any] = {}

        class Seeing(fx.Interpreter):
            def run_node(self, n: fx.Node) -> Any:
                value = super().run_node(n)
                parts = value if isinstance(value, tuple | list) else (value,)
                if n.op not in ("placeholder", "get_attr", "output") and any(map(is_float, parts)):
                    values[n.name] = value
                return value

        traced, module = self.subject.traced, self.module
        with isolation.kept(module), torch.no_grad():
            rng.seed()
            Seeing(disable_dropout(module.eval()), graph=traced.evaluate).run(
                *moved(self.subject.inputs, module, "cpu")
            )
        wanted = {
            name: None if isinstance(value, Tensor) else [i for i, part in enumerate(value) if is_float(part)]
            for name, value in values.items()
        }
        from zero_convert.exporters.onnx.whole import content, returning_values  # loads onnx_ir

        own = returning_values(traced.root, traced.evaluate, wanted)
        return content(own, self.subject.inputs, free=False), values

    @cached_property
    def _twice(self) -> list[tuple[list[Tensor], dict[str, Any]]]:
        """Two runs of one session: what it returns, and node → its value."""
        model, values = self._model
        given = list(tensors_of(moved(self.subject.inputs, self.subject.traced.root, "cpu")))
        made = []
        for returned in self.compute(model, [given, given]):
            count = sum(1 if isinstance(v, Tensor) else sum(map(is_float, v)) for v in values.values())
            rest = iter(returned[len(returned) - count :])
            instead = {
                name: next(rest) if isinstance(v, Tensor) else type(v)(next(rest) if is_float(p) else p for p in v)
                for name, v in values.items()
            }
            made.append((returned[: len(returned) - count], instead))
        return made

    @cached_property
    def _turns(self) -> Any:
        return itertools.cycle(range(2))

    def forward(self, module: nn.Module, inputs: Inputs, device: str = "") -> Any:
        """What the session returned, its two runs in turn; for other inputs what torch does on the CPU."""
        if inputs is not self.subject.inputs:
            return super().forward(module, inputs, device)
        return tuple(self._twice[next(self._turns)][0])

    def run(self, mode: str) -> Run:
        if mode not in self._runs:
            self._runs[mode] = self._replayed(RETURNED)
            self._runs[mode].outputs = tuple(floats(self._twice[0][0]))
        return self._runs[mode]

    def reading_run(self) -> Run:
        if self._reading is None:
            self._reading = self._replayed(READ)
        return self._reading

    def not_finite(self) -> list[str]:
        """Nodes whose value is not finite on the device and is on the CPU, in order: what follows may hide it."""
        there, here = self._twice[0][1], self._model[1]
        return [name for name in here if _finite(here[name]) and not _finite(there[name])]

    def _replayed(self, counts: str) -> Run:
        module, traced = self.module, self.subject.traced
        with isolation.kept(module), torch.no_grad():
            recorder = Recorder(module.eval(), traced.evaluate, self.subject, counts, self._twice[0][1])
            recorder.follow(*moved(self.subject.inputs, module, "cpu"))
        return recorder.seen

    def depths(self, which: str) -> depths.Depths | None:
        """Of the session as "own", of torch in float64 as "exact"; the lengths only."""
        if which == "original":
            return None
        traced, structure = self.subject.traced, self.subject.structure
        module, instead = (self.module, self._twice[0][1]) if which == "own" else (self.exact, {})
        try:
            with isolation.in_float64() if which == "exact" else torch.no_grad():
                return depths.run(
                    module, traced.evaluate, structure, self.subject.inputs, "cpu", "", mode=MODE, instead=instead
                )
        except Exception as error:
            if isolation.ran_out(error) or which == "own":
                raise
            return None


def _finite(value: Any) -> bool:
    return all(bool(torch.isfinite(t).all()) for t in floats(value))


def _returned(context: CheckContext, given: Inputs) -> Any:
    module = context.module
    with isolation.kept(module), torch.no_grad():
        return context.forward(disable_dropout(module.eval()), given)


def _described(t: Tensor) -> tuple[tuple[int, ...], str]:
    return tuple(t.shape), str(t.dtype).removeprefix("torch.")
