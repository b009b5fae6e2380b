"""The shape of every value in a graph, from a run on fake tensors: no memory, no arithmetic.

A leaf whose control flow depends on values cannot run on fake tensors; then the graph runs on real ones.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_leaves

from ..errors import TraceError
from ..locate import user_frame


class _Recorder(fx.Interpreter):
    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        n.meta["shape"] = tuple(value.shape) if isinstance(value, torch.Tensor) else None
        if n.op == "output":
            tensors = [v for v in tree_leaves(value) if isinstance(v, torch.Tensor)]
            n.meta["outputs"] = tuple((tuple(v.shape), str(v.dtype).removeprefix("torch.")) for v in tensors)
        return value

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not kwargs and _keeps_shape(self.fetch_attr(target), *args):
            return args[0]
        return super().call_module(target, args, kwargs)


def _keeps_shape(module: Any, x: Any = None, *more: Any) -> bool:
    """Whether this is a batch norm on a fake tensor that fits it: torch spells it out in twenty operations."""
    if type(module).forward is not _BatchNorm.forward or not isinstance(x, FakeTensor) or more:
        return False
    module._check_input_dim(x)
    return bool(x.shape[1] == module.num_features) and x.is_floating_point()


def _record(module: nn.Module, graph: fx.Graph, inputs: Sequence[Any]) -> None:
    recorder = _Recorder(module, graph=graph, garbage_collect_values=True)
    recorder.extra_traceback = False
    recorder.run(*inputs)


@contextmanager
def _untouched(module: nn.Module) -> Iterator[None]:
    """Buffers and the random state of the CPU are afterwards what they were."""
    saved = [(buffer, buffer.clone()) for buffer in module.buffers()]
    with torch.random.fork_rng(devices=[]):
        try:
            yield
        finally:
            for buffer, value in saved:
                buffer.copy_(value)


@contextmanager
def _quiet() -> Iterator[None]:
    """What fake tensors log when an operation fails stays off the screen: the error itself is reported."""
    log = logging.getLogger("torch._subclasses.fake_tensor")
    before, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = before


FAILURES = (Exception, SystemExit)  # a forward that ends the program is one that fails


def _own_error(module: nn.Module, inputs: Sequence[Any]) -> BaseException | None:
    """What the module's own forward raises: its traceback leads to the user's source, a graph's does not."""
    try:
        with torch.no_grad(), _untouched(module):
            module(*inputs)
    except FAILURES as error:
        return error
    return None


def refuse_failing_forward(module: nn.Module, inputs: Sequence[Any]) -> None:
    """Raises TraceError if the module's own forward fails for these inputs; so tracing is not to blame."""
    error = _own_error(module, inputs)
    if error is not None:
        raise _failing(module, inputs, error) from error


def _failing(module: nn.Module, inputs: Sequence[Any], error: BaseException) -> TraceError:
    shapes = ", ".join("×".join(map(str, x.shape)) if isinstance(x, torch.Tensor) else repr(x) for x in inputs)
    return TraceError(
        "the model's forward fails for the example input",
        where=f"{type(module).__qualname__} {user_frame(error, module)}".strip(),
        got=f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"[:300],
        expected=f"an output for inputs of shape {shapes}",
        fix="Give example inputs that fit the model (--input 1x3x224x224, or example_inputs= in Python).",
    )


def runs(module: nn.Module, inputs: Sequence[Any]) -> bool:
    """Whether the module's forward accepts these inputs in evaluation mode; on fake tensors, so nothing is computed."""
    mode, modes = FakeTensorMode(allow_non_fake_inputs=True), {m: m.training for m in module.modules()}
    try:
        module.eval()
        with torch.no_grad(), mode, _quiet():
            module(*[mode.from_tensor(x) if isinstance(x, torch.Tensor) else x for x in inputs])
    except FAILURES:
        return False
    finally:
        for m, training in modes.items():
            m.training = training
    return True


def propagate_shapes(module: nn.Module, graph: fx.Graph, example_inputs: Sequence[Any]) -> None:
    """Writes `node.meta["shape"]` (None for what is no tensor) for every node of the graph.

    Raises:
        TraceError: the forward fails for these inputs; the message names the node and the module's source line.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    try:
        with torch.no_grad(), mode, _quiet():
            _record(module, graph, [mode.from_tensor(x) if isinstance(x, torch.Tensor) else x for x in example_inputs])
        return
    except FAILURES:  # the reason that counts is the one that real tensors give
        pass
    try:
        with torch.no_grad(), _untouched(module):
            _record(module, graph, [x.clone() if isinstance(x, torch.Tensor) else x for x in example_inputs])
    except FAILURES as in_graph:
        error = _own_error(module, example_inputs) or in_graph
        raise _failing(module, example_inputs, error) from error
