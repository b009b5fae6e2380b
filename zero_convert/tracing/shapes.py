"""The shape of every value in a graph, from a run on meta or fake tensors: no memory, no arithmetic.

A leaf whose control flow depends on values cannot run on fake tensors; then the graph runs on real ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.nn import functional as F
from torch.utils._pytree import tree_map

from zero_convert.graph.copies import copy_of
from zero_convert.graph.example_values import reference_tensor
from zero_convert.graph.results import tensors_of
from zero_convert.runtime import rng
from zero_convert.runtime.eager import eager
from zero_convert.runtime.messages import without_logs
from zero_convert.runtime.source_lines import user_frame

from ..errors import TraceError
from .known_shapes import known_output, known_value
from .shape_cache import Remembered
from .side_effects import restored

Inputs = Sequence[Any] | Mapping[str, Any]
WITH_OPTIONS = frozenset({F.dropout, F.batch_norm})  # whose keyword arguments do not change the shape


class _Recorder(fx.Interpreter):
    on_meta = False
    remembered: Remembered

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        n.meta["shape"] = tuple(value.shape) if isinstance(value, torch.Tensor) else None
        if n.op == "output":
            n.meta["outputs"] = tensor_summary(value)
        return value

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        known = known_value(target, args) if not kwargs or target in WITH_OPTIONS else None
        if known is not None:
            return known
        return self._remembering(super().call_function, target, args, kwargs)

    def call_method(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return self._remembering(super().call_method, target, args, kwargs)

    def _remembering(self, call: Callable[..., Any], target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not self.on_meta:
            return call(target, args, kwargs)
        return self.remembered.call(target, args, kwargs, lambda: call(target, args, kwargs))

    def get_attr(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        value = super().get_attr(target, args, kwargs)
        return value.to("meta") if self.on_meta and isinstance(value, torch.Tensor) else value

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        known = None if kwargs else known_output(self.fetch_attr(target), *args)
        return super().call_module(target, args, kwargs) if known is None else known


def tensor_summary(value: Any) -> tuple[tuple[tuple[int, ...], str], ...]:
    """(shape, dtype) of every tensor that a forward returned."""
    return tuple((tuple(t.shape), str(t.dtype).removeprefix("torch.")) for t in tensors_of(value))


def stand_in(module: nn.Module) -> None:
    """Puts made-up numbers where a NaN-filled construction left NaN, so that the module can run."""
    with torch.no_grad():
        for value in (*module.parameters(), *module.buffers()):
            if value.is_floating_point() and bool(torch.isnan(value).any()):
                fan = max(1, value.numel() // max(1, value.shape[0] if value.ndim else 1))
                value.copy_(reference_tensor(value.shape, value.dtype) / fan**0.5)


def example_output(mode: FakeTensorMode, module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """What a module returns whose forward depends on values, as fake tensors: from a run on made-up real ones."""

    def real(value: Any) -> Any:
        return reference_tensor(value.shape, value.dtype) if isinstance(value, torch.Tensor) else value

    with unset_fake_temporarily(), torch.no_grad(), _untouched(module):
        twin = copy_of(module)
        stand_in(twin)
        returned = twin(*tree_map(real, tuple(args)), **tree_map(real, dict(kwargs)))
    return tree_map(lambda v: mode.from_tensor(v) if isinstance(v, torch.Tensor) else v, returned)


def _record(module: nn.Module, graph: fx.Graph, inputs: Sequence[Any]) -> None:
    recorder = _Recorder(module, graph=graph, garbage_collect_values=True)
    recorder.extra_traceback = False
    recorder.remembered = Remembered()
    recorder.on_meta = any(isinstance(x, torch.Tensor) and x.is_meta for x in inputs)
    recorder.run(*inputs)


@contextmanager
def _untouched(module: nn.Module) -> Iterator[None]:
    """Attributes and buffers are afterwards what they were, and no number is drawn from a default generator."""
    saved = [(buffer, buffer.clone()) for buffer in module.buffers()]
    with rng.seeded(), restored(module):
        try:
            yield
        finally:
            with torch.no_grad():
                for buffer, value in saved:
                    buffer.copy_(value)


@contextmanager
def quiet() -> Iterator[None]:
    """What fake tensors log when an operation fails stays off the screen: the error itself is reported."""
    with without_logs(logger="torch._subclasses.fake_tensor"):
        yield


FAILURES = (Exception, SystemExit)  # a forward that ends the program is one that fails


def invoke(module: nn.Module, inputs: Inputs) -> Any:
    """What the module returns for positional arguments, or for arguments by name."""
    return module(**inputs) if isinstance(inputs, Mapping) else module(*inputs)


def _own_error(module: nn.Module, inputs: Inputs) -> BaseException | None:
    """What the module's own forward raises: its traceback leads to the user's source, a graph's does not."""
    try:
        with torch.no_grad(), _untouched(module):
            invoke(module, inputs)
    except FAILURES as error:
        return error
    return None


def refuse_failing_forward(module: nn.Module, inputs: Inputs) -> None:
    """Raises TraceError if the module's own forward fails for these inputs; so tracing is not to blame."""
    error = _own_error(module, inputs)
    if error is None:
        return
    try:  # it may refuse the NaNs of a constructor whose random numbers were not drawn
        twin = copy_of(module)
        stand_in(twin)
        fails = _own_error(twin, inputs) is not None
    except Exception:  # a module that cannot be copied, or holds no values
        fails = True
    if fails:
        raise _failing(module, inputs, error) from error


NO_GRADIENT = "does not require grad and does not have a grad_fn"


def _failing(module: nn.Module, inputs: Inputs, error: BaseException) -> TraceError:
    given = inputs.values() if isinstance(inputs, Mapping) else inputs
    shapes = ", ".join(map(_spelled, given))
    said = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"[:300]
    if NO_GRADIENT in str(error):
        return TraceError(
            "the model's forward takes derivatives itself, which no graph holds",
            where=f"{type(module).__qualname__} {user_frame(error, module)}".strip(),
            got="a gradient of values inside of the forward (torch.autograd.grad)",
            expected="a forward that runs under torch.no_grad()",
            fix="Convert the part whose output is differentiated (model.part), and load its weights into the model's.",
        )
    if any(m.training for m in module.modules()) and runs(module, inputs):
        return TraceError(
            "the model's forward fails in training mode",
            where=f"{type(module).__qualname__} {user_frame(error, module)}".strip(),
            got=said,
            expected="a forward that runs in training mode, as what starts here is to be trained",
            fix="In evaluation mode it runs. Take out what refuses, or give inputs that training mode takes (a larger "
            "batch: --input 2x3x224x224, or example_inputs= in Python).",
        )
    return TraceError(
        "the model's forward fails for the example input",
        where=f"{type(module).__qualname__} {user_frame(error, module)}".strip(),
        got=said,
        expected=f"an output for inputs of shape {shapes}",
        fix="Give example inputs that fit the model: --input 1x3x224x224, lengths and other numbers as --input [7,5]; "
        'a dict or a list in Python: example_inputs=({"ids": ids, "mask": mask},).',
    )


def _spelled(value: Any) -> str:
    """An input as a message names it: shapes of tensors, also inside containers."""
    if isinstance(value, torch.Tensor):
        return "×".join(map(str, value.shape)) or "scalar"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_spelled(item)}" for key, item in value.items()) + "}"
    if isinstance(value, (tuple, list)):
        return "[" + ", ".join(map(_spelled, value)) + "]"
    return repr(value)[:40]


@eager()
def runs(module: nn.Module, inputs: Inputs) -> bool:
    """Whether the module's forward accepts these inputs in evaluation mode; on fake tensors, so nothing is computed."""
    mode, modes = FakeTensorMode(allow_non_fake_inputs=True), {m: m.training for m in module.modules()}
    try:
        module.eval()
        with torch.no_grad(), restored(module), mode, quiet():
            invoke(module, tree_map(lambda x: mode.from_tensor(x) if isinstance(x, torch.Tensor) else x, inputs))
    except FAILURES:
        return False
    finally:
        for m, training in modes.items():
            m.training = training
    return True


@eager()
def propagate_shapes(module: nn.Module, graph: fx.Graph, example_inputs: Sequence[Any]) -> None:
    """Writes `node.meta["shape"]` (None for what is no tensor) for every node of the graph.

    Raises:
        TraceError: the forward fails for these inputs; the message names the node and the module's source line.
    """
    try:
        with torch.no_grad(), _untouched(module):
            _record(module, graph, [x.to("meta") if isinstance(x, torch.Tensor) else x for x in example_inputs])
        return
    except FAILURES:  # an operation on the values of a module that meta tensors do not meet
        pass
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    try:
        with torch.no_grad(), _untouched(module), mode, quiet():  # torch writes to real buffers even here
            fakes = [mode.from_tensor(x) if isinstance(x, torch.Tensor) else x for x in example_inputs]
            _record(module, graph, fakes)
        return
    except FAILURES:  # the reason that counts is the one that real tensors give
        pass
    try:
        with torch.no_grad(), _untouched(module):
            _record(module, graph, [x.clone() if isinstance(x, torch.Tensor) else x for x in example_inputs])
    except FAILURES as in_graph:
        error = _own_error(module, example_inputs) or in_graph
        raise _failing(module, example_inputs, error) from error
