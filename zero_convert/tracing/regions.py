"""Where a model's own Python cannot become a graph: its largest submodules that can, each with graphs of its own.

How the regions belong together is seen in a recording of the whole forward on real tensors; it is for looking at only.
The Python around the regions stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, fx, nn
from torch.utils._pytree import tree_map

from zero_convert.graph.copies import copy_of
from zero_convert.graph.kinds import WEIGHT_KINDS, kept_whole, kind_of
from zero_convert.graph.traced import Region, Traced
from zero_convert.runtime import rng
from zero_convert.tracing.nodes import follow_writes

from .call_signatures import Call, Like
from .recorder import MAX_CALLS, Recorder
from .shapes import stand_in
from .symbolic import TraceFailure, argument_names

Inputs = Sequence[Any] | Mapping[str, Any]
Capture = Callable[[nn.Module, Inputs, list[str], list[str]], Traced]


def trace_regions(module: nn.Module, inputs: Inputs, failed: list[str], capture: Capture) -> Traced | None:
    """The recordings of the whole forward, and the regions in it; None if not even a recording can be made.

    `capture` makes the graphs of a region.
    """
    try:
        train, calls = record_real(module, inputs, training=True)
        evaluate, _ = record_real(module, inputs, training=False)
    except Exception as error:
        lines = str(error).strip().splitlines()
        failed.append(f"regions: {type(error).__name__}: {lines[0] if lines else ''}"[:200])
        return None
    regions = [*_inside(module, "", calls, capture)]
    keywords = tuple(inputs) if isinstance(inputs, Mapping) else ()
    return Traced(module, train, evaluate, "regions", tuple(failed), (), keywords, whole=False, regions=tuple(regions))


def record_real(module: nn.Module, inputs: Inputs, *, training: bool) -> tuple[fx.Graph, dict[str, list[Call]]]:
    """The graph of a forward on real tensors, and how each submodule was called in it, but for those of which others
    call parts: these parts would have no forward any more.

    A copy runs, in which made-up numbers stand where a constructor would have drawn random ones.
    """
    twin = copy_of(module).train(training)
    stand_in(twin)
    args = () if isinstance(inputs, Mapping) else tuple(inputs)
    keywords = inputs if isinstance(inputs, Mapping) else {}
    with rng.seeded():
        recorder = Recorder(twin, (), kept_whole, real=True)
        graph = recorder.record(args, keywords, argument_names(module, len(args)) + list(keywords))
    follow_writes(graph)
    for name, value in vars(twin).items():
        if name.startswith("_tensor_constant"):
            setattr(module, name, value)
    own = {path: calls for path, calls in recorder.calls.items() if path not in recorder.entered}
    return graph, own


def _inside(module: nn.Module, path: str, calls: Mapping[str, Sequence[Call]], capture: Capture) -> list[Region]:
    """The regions among the children of the module at `path`."""
    found: list[Region] = []
    for name, child in module.named_children():
        where = f"{path}.{name}" if path else name
        if kept_whole(child) or not any(kind_of(m) in WEIGHT_KINDS for m in child.modules()):
            continue
        traced = _captured(child, calls.get(where, ()), capture)
        found += [Region(where, traced)] if traced is not None else _inside(child, where, calls, capture)
    return found


def _captured(module: nn.Module, calls: Sequence[Call], capture: Capture) -> Traced | None:
    """The module's graphs, if every way in which it was called makes the same ones."""
    if not calls or len(calls) > MAX_CALLS:
        return None
    found: Traced | None = None
    for call in calls:
        traced = _captured_by(module, call, capture)
        if traced is None or (found is not None and list(map(str, traced.graphs)) != list(map(str, found.graphs))):
            return None
        found = found or traced
    return found


def _captured_by(module: nn.Module, call: Call, capture: Capture) -> Traced | None:
    args, kwargs = tree_map(lambda x: x.zeros() if isinstance(x, Like) else x, (tuple(call.args), dict(call.kwargs)))
    inputs: Inputs = args
    if kwargs:
        inputs = dict(zip(argument_names(module, len(args)), args, strict=True)) | kwargs
    if not inputs or not _plain(inputs.values() if isinstance(inputs, Mapping) else inputs):
        return None
    modes = {m: m.training for m in module.modules()}
    leaves: list[str] = []
    try:
        traced = capture(module, inputs, leaves, [])
    except TraceFailure:
        return None
    finally:
        for m, mode in modes.items():
            m.training = mode
    return traced if not leaves else None


def _plain(values: Any) -> bool:
    """Whether all values are tensors, plain numbers and names, or dicts and tuples of such: nothing with a length."""
    for value in values:
        if isinstance(value, Mapping):
            if not _plain(value.values()):
                return False
        elif isinstance(value, tuple):
            if not _plain(value):
                return False
        elif not isinstance(value, (Tensor, str, int, float, bool, type(None))):
            return False
    return True
