"""Trace: from a module to a graph of its forward, one for training and one for evaluation.

The fallback chain tries one capture after the other and records why one did not work:

1. `fx`            torch.fx on symbols: nothing runs, nothing is fixed. `symbolic.py`
2. `values`        the forward runs on fake tensors: control flow follows the example, sizes stay free. `recorder.py`
3. `values+leaf`   the same, with innermost submodules that ask for values of tensors kept whole.
4. `regions`       the Python of the model stays; its largest submodules that capture 2 takes are rewritten in place,
                   and a recording on real tensors shows how they belong together. `regions.py`

A leaf hides what is inside it: `Traced.opaque` lists the leaves that are no known layer but own parameters.
This room changes neither the module nor its state.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, fx, nn

from zero_convert.graph.kinds import WEIGHT_KINDS, kept_whole, kind_of
from zero_convert.graph.queries import kind, tensors_in
from zero_convert.graph.traced import Traced
from zero_convert.runtime import rng
from zero_convert.runtime.eager import eager
from zero_convert.runtime.source_lines import defined_at, user_frame
from zero_convert.tracing.nodes import follow_writes

from ..errors import TraceError
from .nodes import CannotRecord
from .recorder import Recorder
from .regions import record_real, trace_regions
from .shapes import propagate_shapes, refuse_failing_forward
from .symbolic import LayerTracer, TraceFailure, argument_names

Inputs = Sequence[Any] | Mapping[str, Any]
MAX_LEAVES = 256  # a model that needs more opaque leaves than this has no structure worth the name
HIDDEN = 0.2  # share of the parameters inside leaves with several weight layers from which on sums may hide in them


@eager()
def trace(module: nn.Module, example_inputs: Inputs) -> Traced:
    """The module's graphs in training and evaluation mode, with the shape of every value.

    Args:
        module: any module; its mode is restored, its parameters are read for their shapes only.
        example_inputs: positional arguments of `forward`, or its arguments by name; the optional ones left out take
            their defaults.

    Raises:
        TraceError: no capture worked for the model, or its forward fails for these inputs.
    """
    modes = {m: m.training for m in module.modules()}
    failed: list[str] = []
    try:
        with rng.seeded():
            return _symbolic(module, example_inputs, failed) or _ladder(module, example_inputs, failed)
    finally:
        for m, mode in modes.items():
            m.training = mode


@eager()
def retrace(traced: Traced, root: nn.Module, values: Sequence[Any]) -> Traced:
    """The recordings of a model whose regions were rewritten in place."""
    modes = {m: m.training for m in root.modules()}
    try:
        inputs = dict(zip(traced.keywords, values, strict=True)) if traced.keywords else values
        train, evaluate = (record_real(root, inputs, training=mode)[0] for mode in (True, False))
    finally:
        for m, mode in modes.items():
            m.training = mode
    return Traced(
        root,
        train,
        evaluate,
        traced.capture,
        traced.failed,
        traced.opaque,
        traced.keywords,
        False,
        (),
        traced.decisions,
    )


@eager()
def retrace_tree(traced: Traced, inputs: Sequence[Any], root: nn.Module) -> tuple[fx.Graph, fx.Graph]:
    """The graphs of another module for the same inputs, in training and evaluation mode, by the same capture.

    Raises:
        TraceFailure: its forward cannot be followed.
    """
    modes = {m: m.training for m in root.modules()}
    try:
        with rng.seeded():
            if traced.capture == "fx":
                return _symbolic_graph(root, len(inputs), training=True), _symbolic_graph(
                    root, len(inputs), training=False
                )
            named = dict(zip(traced.keywords, inputs, strict=True)) if traced.keywords else inputs
            leaves = list(traced.opaque)
            train, evaluate = (_record(root, named, leaves, [], {}, training=mode) for mode in (True, False))
            return train, evaluate
    finally:
        for m, mode in modes.items():
            m.training = mode


@eager()
def record(module: nn.Module, example_inputs: Inputs) -> fx.Graph | None:
    """The graph of one forward in evaluation mode on real values, to look into parts that were kept whole.

    None where the module does not run on made-up values.
    """
    modes = {m: m.training for m in module.modules()}
    try:
        return record_real(module, example_inputs, training=False)[0]
    except Exception:
        return None
    finally:
        for m, mode in modes.items():
            m.training = mode


def _symbolic(module: nn.Module, inputs: Inputs, failed: list[str]) -> Traced | None:
    if isinstance(inputs, Mapping) or not all(isinstance(x, Tensor) for x in inputs):
        return None  # symbols stand for tensors only
    try:
        graphs = [_symbolic_graph(module, len(inputs), training=training) for training in (True, False)]
    except TraceFailure as failure:
        failed.append(f"fx: {_where(module, failure.path, failure.cause)}")
        return None
    train, evaluate = graphs
    if str(train) == str(evaluate):
        evaluate = train
    module.eval()  # in training mode a batch norm refuses a single value per channel; shapes are the same
    try:
        for graph in dict.fromkeys((train, evaluate)):
            propagate_shapes(module, graph, inputs)
    except TraceError as error:
        failed.append(f"fx: its graph does not run: {error.got[:120]}")
        return None
    return Traced(module, train, evaluate, "fx")


def _symbolic_graph(module: nn.Module, inputs: int, *, training: bool) -> fx.Graph:
    module.train(training)
    graph = LayerTracer((), inputs).trace(module)
    follow_writes(graph)
    return graph


def _ladder(module: nn.Module, inputs: Inputs, failed: list[str]) -> Traced:
    leaves: list[str] = []
    try:
        whole = _values(module, inputs, leaves, failed)
    except TraceFailure as failure:
        refuse_failing_forward(module, inputs)
        failed.append(f"values: {_where(module, failure.path, failure.cause)}")
        found = trace_regions(module, inputs, failed, _values)
        if found is None:
            raise _untraceable(module, failure) from failure.cause
        return found
    if _hidden(module, leaves) > HIDDEN:
        found = trace_regions(module, inputs, failed, _values)
        hides = found is not None and _sums(module, found.evaluate) > _sums(module, whole.evaluate)
        if found is not None and hides and found.captured > whole.captured:
            return found
    return whole


def _sums(module: nn.Module, graph: fx.Graph) -> int:
    """How many sums of two values of one shape the graph shows: inside leaves there may be more."""
    count = 0
    for node in graph.nodes:
        shapes = [n.meta.get("shape") for n in tensors_in(node)] if kind(node, module) == "add" else []
        count += len(shapes) == 2 and shapes[0] == shapes[1]
    return count


def _values(module: nn.Module, inputs: Inputs, leaves: list[str], failed: list[str]) -> Traced:
    """The module captured on fake tensors; submodules that have to be kept whole are added to `leaves`.

    Raises:
        TraceFailure: the module's own forward cannot be followed.
    """
    keywords = tuple(inputs) if isinstance(inputs, Mapping) else ()
    decisions: dict[str, None] = {}
    while True:
        found = len(leaves)
        graphs = [_record(module, inputs, leaves, failed, decisions, training=mode) for mode in (True, False)]
        if found == len(leaves):  # a leaf found in evaluation mode must be one in training mode as well
            break
    train, evaluate = graphs
    if str(train) == str(evaluate):
        evaluate = train
    capture = "values+leaf" if leaves else "values"
    return Traced(module, train, evaluate, capture, tuple(failed), tuple(leaves), keywords, decisions=tuple(decisions))


def _record(
    module: nn.Module,
    inputs: Inputs,
    leaves: list[str],
    failed: list[str],
    decisions: dict[str, None],
    *,
    training: bool,
) -> fx.Graph:
    args = () if isinstance(inputs, Mapping) else tuple(inputs)
    keywords = inputs if isinstance(inputs, Mapping) else {}
    if any(isinstance(x, (list, set)) and _tensors_in(x) for x in (*args, *keywords.values())):
        raise TraceFailure("", CannotRecord("an input is a list of tensors, and a graph would fix its length"))
    while True:
        module.train(training)
        recorder = Recorder(module, leaves, kept_whole)
        try:
            graph = recorder.record(args, keywords, argument_names(module, len(args)) + list(keywords))
        except Exception as error:
            path = getattr(error, "zero_convert_path", "")
            if not path or path in leaves or len(leaves) >= MAX_LEAVES:
                raise TraceFailure(path, error) from error
            leaves.append(path)
            failed.append(f"{path} kept whole: {_where(module, path, error)}")
            continue
        decisions |= dict.fromkeys(recorder.decisions)
        follow_writes(graph)
        return _tidied(graph)


def _tidied(graph: fx.Graph) -> fx.Graph:
    """Without sizes and parts that nobody reads."""
    for node in reversed(graph.nodes):
        if not node.users and node.op in ("call_function", "call_method", "get_attr") and node.meta.get("part"):
            graph.erase_node(node)
    return graph


def _tensors_in(value: Any) -> bool:
    return any(isinstance(x, Tensor) for x in value)


def _weight_layers(module: nn.Module) -> int:
    return sum(kind_of(m) in WEIGHT_KINDS for m in module.modules())


def _hidden(module: nn.Module, leaves: Sequence[str]) -> float:
    """The share of the parameters inside leaves that own several weight layers."""
    parts = [module.get_submodule(path) for path in leaves]
    inside = {id(p): p.numel() for part in parts if _weight_layers(part) > 1 for p in part.parameters()}
    return sum(inside.values()) / max(1, sum(p.numel() for p in module.parameters()))


def _where(module: nn.Module, path: str, error: BaseException) -> str:
    first = str(error).strip().splitlines()
    frame = user_frame(error, module)
    return f"{type(error).__name__}: {first[0] if first else ''}"[:160] + (f" ({frame})" if frame else "")


def _untraceable(module: nn.Module, failure: TraceFailure) -> TraceError:
    where = user_frame(failure.cause, module) or defined_at(module)
    lines = str(failure.cause).strip().splitlines()
    return TraceError(
        "the model cannot be traced",
        where=", ".join(filter(None, (type(module).__qualname__, failure.path, where))),
        got=f"{type(failure.cause).__name__}: {lines[0] if lines else ''}"[:300],
        expected="a forward that torch's Python interface can be watched through",
        fix="Give the part that stands in the way a module of its own, so that it can be kept whole, "
        "or pass other example inputs (--input).",
    )
