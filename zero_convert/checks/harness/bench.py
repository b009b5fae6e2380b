"""The runs that the checks look at: copies of the converted module, inputs, and what was seen on the way.

Every check works on copies, made once and shared, so the user's module is never run. Several checks read one run; a
run happens when the first of them asks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from os import PathLike
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from zero_convert.errors import DeviceError
from zero_convert.graph.copies import copy_of
from zero_convert.graph.kinds import kind_of
from zero_convert.graph.results import tensors_of
from zero_convert.graph.traced import Traced
from zero_convert.nn.tree import ConvertedModule
from zero_convert.runtime import rng

from ..subject import Subject
from . import isolation
from .inputs import BATCH, Batches, Inputs, batches, crops, floats, moved, varied
from .recorder import READ, RETURNED, Recorder, Run, first_line

SIDES = (96, 160)  # images are cropped to the first of these that the network accepts
SMALL_SIDES = (48, 64, *SIDES)  # where many runs are needed
TRAIN_STEPS = 10  # with "full", where no number is given


class OutOfMemory(DeviceError):
    """The device's memory is too small for the checks."""


@dataclass(frozen=True)
class Answer:
    """What a check answers: the fields of a `records.Check` without name and question, which its file declares.

    Attributes:
        seen: what was looked at, and how much of it, in the words of the file's `LEAST`.
    """

    status: str
    summary: str
    numbers: Mapping[str, Any] = field(default_factory=dict)
    threshold: str = ""
    remedy: str = ""
    seen: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class OnnxFile:
    """A file to compare with the subject.

    Attributes:
        dtype: of its tensors.
        device: where ONNX Runtime computes it, besides the CPU.
        strict: there nothing may fall back to the CPU.
    """

    path: str | PathLike[str]
    dtype: str
    device: str = "cpu"
    strict: bool = False


class CheckContext:
    """What a check looks at: copies of the subject's module on the device and, in float64, on the CPU; and their runs.

    Where memory is too small, torch's own error comes through; `checks` turns it into `out_of_memory`.

    Attributes:
        train_steps: how many steps of training are asked for; 0 for none.
        samples: of a batch in training mode.
        limits: check → the limit that the scheme promises there.
        session: the device of ONNX Runtime that computes it, where torch does not; "" where torch does.
        mode: the one that is looked at most.
    """

    session, mode = "", "train"

    def __init__(
        self,
        subject: Subject,
        level: str,
        device: str,
        train_steps: int | None = None,
        samples: int = BATCH,
        onnx: OnnxFile | None = None,
    ) -> None:
        self.subject, self.level, self.device, self.samples, self.onnx = subject, level, device, samples, onnx
        self.train_steps = (TRAIN_STEPS if level == "full" else 0) if train_steps is None else train_steps
        self.limits = subject.scheme.checks(subject.options)
        self._runs: dict[str, Run] = {}
        self._exact_runs: dict[str, Run | None] = {}
        self._reading: Run | None = None
        self._fitting: dict[tuple[int, ...], Batches] = {}
        self.refused: dict[str, str] = {}  # mode → why the network does not run in it
        self.not_exact = ""  # why it does not run in float64
        self.measured: dict[str, Any] = {}  # what one check has measured and another may ask for

    def depths(self, which: str) -> Any:
        """Of a session: what is seen at each depth, as `harness.depths` has it."""
        raise NotImplementedError

    # -- copies --------------------------------------------------------------------------------------------------------

    @cached_property
    def module(self) -> nn.Module:
        """A copy in its own precision on the device. Leave it as it is (`isolation.kept`): it may share the weights."""
        if self.device != "cpu":
            return self.fresh()
        shared = {
            id(p): nn.Parameter(p.detach(), p.requires_grad)
            for p in self.subject.traced.root.parameters()
            if type(p) is nn.Parameter
        }
        return self._copy(shared)

    @cached_property
    def exact(self) -> nn.Module:
        """A copy in float64 on the CPU, which is the reference for every device."""
        return _constants(self._copy().double(), lambda t: t.double() if t.is_floating_point() else t)

    def fresh(self) -> nn.Module:
        """A new copy on the device, for a check that changes weights."""
        return self.copy_on(self.device)

    def copy_on(self, device: str) -> nn.Module:
        """A new copy on any device."""
        return _constants(self._copy().to(device), lambda t: t.to(device))

    def _copy(self, shared: Mapping[int, Any] = MappingProxyType({})) -> nn.Module:
        """Args: `shared`: objects to share instead of copying (the memo of a deepcopy)."""
        traced = self.subject.traced
        graphs = {id(graph): graph for graph in traced.graphs}  # no need to copy these
        return copy_of(traced.root, graphs | dict(shared))

    def out_of_memory(self) -> OutOfMemory:
        return OutOfMemory(
            "the checks do not fit into the device's memory",
            where=self.device,
            got=f"too little for a batch of {self.samples}",
            expected="room for two copies of the model and one batch",
            fix="Run them with --device cpu, or leave them out with --validate none.",
        )

    def graph(self, mode: str) -> fx.Graph:
        """The graph of a mode."""
        return self.subject.traced.train if mode == "train" else self.subject.traced.evaluate

    # -- modes ---------------------------------------------------------------------------------------------------------

    def stopped(self) -> str:
        """Why a recording could not be followed to its end in some mode, so that not all joins and heads were seen."""
        return next((run.stopped for run in map(self.run, self.modes) if run.stopped), "")

    @property
    def modes(self) -> tuple[str, ...]:
        """ "train" and "evaluate", or only "train" where the two compute the same; without one it does not run in."""
        self.inputs  # noqa: B018  finding them finds out what the network refuses
        return tuple(mode for mode in self._modes if mode not in self.refused)

    def refusal(self) -> str:
        """Why the network runs in no mode, so that nothing can be looked at; "" if it runs in one."""
        return (
            "" if self.modes else "; ".join(f"does not run in {mode} mode: {why}" for mode, why in self.refused.items())
        )

    @cached_property
    def _modes(self) -> tuple[str, ...]:
        traced = self.subject.traced
        differs = traced.train is not traced.evaluate or any(
            getattr(m, "track_running_stats", False) or (not kind_of(m) and not _is_plain(m)) for m in self._called()
        )
        return ("train", "evaluate") if differs else ("train",)

    def _called(self) -> Iterator[nn.Module]:
        traced = self.subject.traced
        for node in traced.train.nodes:
            if node.op == "call_module":
                yield from traced.root.get_submodule(str(node.target)).modules()

    # -- inputs --------------------------------------------------------------------------------------------------------

    @cached_property
    def example(self) -> Inputs:
        """The example inputs, tokens that are all the same drawn anew."""
        return varied(self.subject.inputs, _rows(self.subject.traced))

    @cached_property
    def inputs(self) -> Batches:
        """For the runs that are looked at."""
        clips = any(x.ndim == 5 for x in tensors_of(self.subject.inputs))
        return self._fit(self._cropped(SMALL_SIDES if clips else SIDES), self._modes, keep=True)

    @cached_property
    def small_inputs(self) -> Batches:
        """For what has to be repeated often."""
        sides = self._cropped(SMALL_SIDES)
        if not any(crops(self.subject.inputs, side) for side in sides):
            return self.inputs
        return self._fit(sides, self.modes, keep=False)

    @cached_property
    def other_inputs(self) -> Inputs:
        """Another batch for training mode: like `small_inputs`, but no smaller than usual, with other values.

        The same where the network is for no other values than the example's.
        """
        if self.small_inputs[0] is self.subject.inputs:
            return self.small_inputs[0]
        samples = self.samples
        return batches(self.small_inputs[0], None, samples=samples, few=samples, variant=1, lengthen=True)[0]

    def _cropped(self, sides: tuple[int, ...]) -> tuple[int, ...]:
        return sides if self.level == "quick" else ()

    def fitting(self, sides: tuple[int, ...]) -> Batches:
        """Inputs whose images are cropped to the first of these sides that the network takes, at any level."""
        if sides not in self._fitting:
            self._fitting[sides] = self._fit(sides, self.modes, keep=False)
        return self._fitting[sides]

    def _fit(self, sides: tuple[int, ...], modes: tuple[str, ...], *, keep: bool) -> Batches:
        """The first candidates that the network takes in these modes, outputs like the example's; else the example.

        Made-up values can be none that the network is for (it takes their logarithm): where they lead to a NaN and the
        example does not, the example is taken. With `keep` the runs are remembered, and so is what the network says
        where it does not take the example either.
        """
        given = self.example
        cropped = [batches(given, side, samples=self.samples) for side in sides if crops(given, side)]
        few = 2 if any(isinstance(m, _BatchNorm) for m in self.subject.traced.root.modules()) else 1
        own = self.subject.inputs
        whole = batches(given, None, samples=self.samples, few=min(few, self.samples))
        taken: list[tuple[Batches, dict[str, Run]]] = []
        for candidate in (*cropped, whole, batches(given, None, samples=None), (own, own)):
            runs, failures = self._attempt(candidate, modes, RETURNED if keep else "")
            if not failures:
                taken.append((candidate, runs))
            if not failures and all(_is_finite(run) for run in runs.values()):
                break
        else:
            if taken:
                (candidate, runs), failures = taken[0], {}
        if keep:
            self._runs |= runs
            self.refused |= failures
        return candidate

    def _attempt(
        self, candidate: Batches, modes: tuple[str, ...], counts: str
    ) -> tuple[dict[str, Run], dict[str, str]]:
        """The runs by mode, and mode → why it fails."""
        runs: dict[str, Run] = {}
        for mode in modes:
            try:
                own = counts if mode == "train" else ""
                runs[mode] = run = self._measure(mode, self.module, candidate, self.device, counts=own)
                self._run_original(mode, candidate)
            except Exception as error:  # whatever the network says to a batch it does not take
                if isolation.ran_out(error):
                    raise
                return runs, {mode: first_line(error)}
            expected = [
                (*shape, 2) if "complex" in dtype else shape
                for shape, dtype in self.subject.outputs.get(mode, ())
                if "float" in dtype or "complex" in dtype
            ]
            found = [tuple(t.shape) for t in run.outputs]
            if [(len(s), s[1:2]) for s in expected] != [(len(s), s[1:2]) for s in found]:
                return runs, {mode: f"outputs of shape {found}"}
        return runs, {}

    def _run_original(self, mode: str, candidate: Batches) -> None:
        """Runs the original forward once, so that its own checks of sizes are raised; where a graph may lack them."""
        traced, given = self.subject.traced, candidate[mode != "train"]
        own = traced.whole and traced.capture != "fx" and not isinstance(self.module, ConvertedModule)
        if own and given is not self.subject.inputs:
            with isolation.kept(self.module), torch.no_grad():
                self.forward(disable_dropout(self.module.train(mode == "train")), given)

    # -- runs ----------------------------------------------------------------------------------------------------------

    def run(self, mode: str) -> Run:
        """The run in a mode of `modes`, on the device in the model's precision."""
        inputs = self.inputs
        if mode not in self._runs:
            counts = RETURNED if mode == "train" else ""
            self._runs[mode] = self._measure(mode, self.module, inputs, self.device, counts=counts)
        return self._runs[mode]

    def reading_run(self) -> Run:
        """A run in training mode that counts the channels which layers read and joins return.

        The one in float64; in the model's own precision where it does not run in float64.
        """
        exact = self.exact_run("train")
        if exact is not None:
            return exact
        if self._reading is None:
            self._reading = self._measure("train", self.module, self.inputs, self.device, counts=READ)
        return self._reading

    def exact_run(self, mode: str) -> Run | None:
        """The same run in float64 on the CPU, whatever precision the forward asks for on the way.

        None, and the reason in `not_exact`, where the network does not run in float64.
        """
        if mode not in self._exact_runs:
            run = None
            try:
                with isolation.in_float64():
                    counts = READ if mode == "train" else ""
                    run = self._measure(mode, self.exact, self.inputs, "cpu", counts=counts)
            except Exception as error:  # a kernel or a constant that knows one precision only
                if isolation.ran_out(error):
                    raise
                self.not_exact = first_line(error)
            self._exact_runs[mode] = run
            if self.level == "quick" and self._exact_runs.keys() >= set(self.modes):
                self.__dict__.pop("exact", None)  # as large as two models, and asked for no more
        return self._exact_runs[mode]

    def forward(self, module: nn.Module, inputs: Inputs, device: str = "") -> Any:
        """What a copy of the converted module returns for inputs in the order of the graph's; the same random numbers.

        Args:
            device: where the copy is, if not on the context's.
        """
        rng.seed()
        return self.subject.traced.call(module, moved(inputs, module, device or self.device))

    def _measure(self, mode: str, module: nn.Module, inputs: Batches, device: str, counts: str = "") -> Run:
        """One forward; `counts` says of which values the channels are counted."""
        traced, given = self.subject.traced, inputs[mode != "train"]
        with isolation.kept(module), torch.no_grad():
            disable_dropout(module.train(mode == "train"))
            rng.seed()
            before = rng.states()
            recorder = Recorder(module, self.graph(mode), self.subject, counts)
            if traced.whole:
                returned = recorder.run(*moved(given, module, device))
            else:
                recorder.follow(*moved(given, module, device))
                returned = self.forward(module, given, device)
            recorder.seen.random = bool(rng.states().changed(before))
            recorder.seen.outputs = tuple(t.cpu() for t in floats(returned))
        return recorder.seen


def _rows(traced: Traced) -> dict[int, int]:
    """Number of an input → rows of the table that it takes rows of."""
    rows: dict[int, int] = {}
    for number, node in enumerate(node for node in traced.train.nodes if node.op == "placeholder"):
        for user in node.users:
            module = traced.root.get_submodule(str(user.target)) if user.op == "call_module" else None
            if isinstance(module, nn.Embedding | nn.EmbeddingBag) and user.args[:1] == (node,):
                rows[number] = min(rows.get(number, module.num_embeddings), module.num_embeddings)
    return rows


def _is_finite(run: Run) -> bool:
    return all(bool(torch.isfinite(t).all()) for t in run.outputs)


def _is_plain(module: nn.Module) -> bool:
    """A torch.nn module without state that a mode could change."""
    return type(module).__module__.startswith("torch.nn.")


def _constants(module: nn.Module, change: Callable[[Tensor], Tensor]) -> nn.Module:
    """The module with its plain tensors changed, which are neither parameters nor buffers: tracing makes such."""
    for m in module.modules():
        for name, value in vars(m).items():
            if isinstance(value, Tensor):
                setattr(m, name, change(value))
    return module


def disable_dropout(module: nn.Module) -> nn.Module:
    """The module with everything that drops values at random switched off."""
    for m in module.modules():
        if kind_of(m) == "drop":
            m.eval()
        elif isinstance(m, nn.MultiheadAttention):
            m.dropout = 0.0
    return module
