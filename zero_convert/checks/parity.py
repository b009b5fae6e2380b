"""Do torch and ONNX Runtime return the same, on the CPU and on the device?

Up to four ways compute the network in evaluation mode on hashed inputs of the example's sizes: torch and ONNX Runtime,
each on the CPU and on the device; on WebGPU there is ONNX Runtime only. The reference is torch on the CPU. In torch
TF32, autocast and the search for algorithms are off; ONNX Runtime runs with no graph optimization, no TF32, and
convolution algorithms by heuristics. For every output the largest, mean and median difference are told, and the
smallest tolerance t with which |a - b| <= t + t·|b| holds everywhere. Where a way is beyond the limit, the first node
that is beyond it is named: the network is computed again with every value in between; values of torch and ONNX Runtime
are compared behind the layers that both call by the name of their weight.

Where all outputs are 0, as those of a head that starts at 0, they say nothing: then the values behind the layers are
compared as well, and the worst of them is told as the output "layers".

Fails if t is above 1e-4 (in half precision, 64 times its rounding unit), or an output is not finite where the
reference is. On a named device, CUDA or WebGPU, it is an error if ONNX Runtime computed a floating tensor on the CPU;
with `--device auto` the way is left out and the reason told. Where the device holds too little for the example, one
sample is compared.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, fx, nn

from zero_convert.exporters.onnx.written import weight_outputs, with_all_values
from zero_convert.graph.results import tensors_of
from zero_convert.graph.traced import Traced
from zero_convert.runtime import rng

from ..errors import DeviceError
from .harness import isolation
from .harness.bench import Answer, CheckContext, OnnxFile
from .harness.inputs import Inputs, batches, moved
from .harness.onnxruntime import MemoryTooSmall, SessionRun, provider_of, refusal, run, told
from .harness.recorder import owner_of

NAME = "parity"
QUESTION = "Do torch and ONNX Runtime return the same, on the CPU and on the device?"
AFTER = "linearity"
LEVELS = ("quick", "full")
NEEDS = ("onnx",)
LEAST = {"output tensors": 1, "ways": 1}
LIMIT = 1e-4
LAYERS = frozenset({"Conv", "ConvTranspose", "Gemm", "BatchNormalization", "LayerNormalization"})

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Errors:
    """How far values are from the reference.

    Attributes:
        tolerance: the smallest t with |a - b| <= t + t·|b| everywhere.
    """

    largest: float
    mean: float
    median: float
    tolerance: float


def errors(value: Array, reference: Array) -> Errors:
    """Infinite where the shapes differ, or one is not finite where the other is."""
    if value.shape != reference.shape:
        return Errors(*[float("inf")] * 4)
    if not value.size:
        return Errors(0.0, 0.0, 0.0, 0.0)
    a, b = value.astype(np.float64), reference.astype(np.float64)
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    with np.errstate(invalid="ignore"):
        far = np.where(same, 0.0, np.abs(a - b))
        scale = np.where(same, 1.0, 1 + np.abs(b))
        far = np.where(np.isfinite(far), far, np.inf)
        share = np.where(np.isfinite(scale), far / scale, np.inf)
    return Errors(float(far.max()), float(far.mean()), float(np.median(far)), float(share.max()))


def ask(context: CheckContext) -> Answer:
    try:
        return _answer(context, None)
    except MemoryTooSmall as error:
        try:
            found = _answer(context, 1)
        except Exception as second:  # no smaller, or the file has a batch of its own
            raise error from second
        return replace(found, summary=f"one sample, because for the example {error.got}: {found.summary}")


def _answer(context: CheckContext, samples: int | None) -> Answer:
    """The answer for so many samples; None for as many as the example has."""
    file = context.onnx
    assert file is not None, "a need of this check"
    dtype, strict, second = file.dtype, file.strict, file.device
    if dtype == "bfloat16":
        reason = refusal(file.path)
        where = f"ONNX Runtime's CPU provider does not run the file: {reason}" if reason else ""
        return Answer("skip", where or "NumPy, and so ONNX Runtime in Python, has no bfloat16")
    limit = max(LIMIT, 64 * torch.finfo(getattr(torch, dtype)).eps)
    given, reference = _asked(context, dtype, samples)
    fed = _arrays(moved(given, context.subject.traced.root, "cpu"), dtype)
    names: list[str] = []
    ways: dict[str, Callable[[], Sequence[Array]]] = {}
    answers: dict[str, SessionRun] = {}

    def runtime(device: str) -> Sequence[Array]:
        answers[device] = answer = run(file.path, fed, device, strict=strict or device == "cpu")
        names[:] = names or list(answer.outputs)
        return list(answer.outputs.values())

    ways["onnxruntime cpu"] = lambda: runtime("cpu")
    if context.device != "cpu":
        ways[f"torch {context.device}"] = lambda: _torch(context, given, context.device, dtype)
    if second != "cpu":
        ways[f"onnxruntime {second}"] = lambda: runtime(second)
    distances: dict[str, list[Errors]] = {}
    left_out: dict[str, str] = {}
    for way, compute in ways.items():
        try:
            values = compute()
        except DeviceError as error:
            if strict or way == "onnxruntime cpu":
                raise
            left_out[way] = error.got
            continue
        answer = answers.get(second) if way == f"onnxruntime {second}" and second != "cpu" else None
        if answer is not None and (answer.fallen or answer.provider != provider_of(second)):
            left_out[way] = told(answer.fallen) if answer.fallen else f"it ran on {answer.provider}"
            continue
        distances[way] = [errors(a, b) for a, b in zip(values, reference, strict=False)]
        if len(values) != len(reference):
            distances[way] = [Errors(*[float("inf")] * 4)]
        elif not any(b.any() for b in reference):
            inner = [errors(b, a) for a, b in zip(*_inside(context, file, given, fed, way), strict=True)]
            distances[way] += [max(inner, key=lambda e: e.tolerance)] if inner else []
    if any(len(each) > len(reference) for each in distances.values()):
        names.append("layers")
    over = [way for way, each in distances.items() if any(not e.tolerance <= limit for e in each)]
    first = {way: _first(context, file, given, fed, way, limit) for way in over}
    worst = {way: max((e.tolerance for e in each), default=0.0) for way, each in distances.items()}
    parts = [f"{way} within {value:.2g}" for way, value in worst.items()]
    parts += [f"{way} first beyond the limit at {node}" for way, node in first.items() if node]
    parts += [f"{way} not compared: {reason}" for way, reason in left_out.items()]
    return Answer(
        "fail" if over else "warn" if left_out else "pass",
        f"{len(reference)} outputs against torch cpu: {'; '.join(parts)}",
        {
            "outputs": names,
            "ways": {way: [_numbers(e) for e in each] for way, each in distances.items()},
            "first_node": first,
            "left_out": left_out,
            "placement": {device: dict(answer.placement) for device, answer in answers.items()},
        },
        f"tolerance at most {limit:.0e}",
        ""
        if not over
        else "Look at the node named; where all differ a little, the runtime rounds to less than float32.",
        {"output tensors": len(reference), "ways": len(distances)},
    )


def _asked(context: CheckContext, dtype: str, samples: int | None) -> tuple[Inputs, list[Array]]:
    """Inputs, and what torch returns for them on the CPU: made-up ones, or the example's where these lead nowhere."""
    own = context.subject.inputs
    varied = batches(context.example, None, samples=samples)[0]
    try:
        reference = _torch(context, varied, "cpu", dtype)
    except Exception as error:  # values that the network is not for: offsets that begin elsewhere than at 0
        if isolation.ran_out(error):
            raise
        return own, _torch(context, own, "cpu", dtype)
    if not all(np.isfinite(value).all() for value in reference):
        usual = _torch(context, own, "cpu", dtype)
        if all(np.isfinite(value).all() for value in usual):
            return own, usual
    return varied, reference


def _numbers(e: Errors) -> dict[str, float]:
    return {"max": e.largest, "mean": e.mean, "median": e.median, "tolerance": e.tolerance}


def _arrays(values: Any, dtype: str) -> list[Array]:
    """Tensors as ONNX Runtime takes them, floating ones in the file's type; with float32 in the module's."""
    kind = None if dtype == "float32" else getattr(torch, dtype)
    return [_array(t.to(kind) if kind and t.is_floating_point() else t) for t in tensors_of(values)]


def _array(t: Tensor) -> Array:
    made: Array = t.detach().cpu().numpy()
    return made


def _torch(context: CheckContext, given: Inputs, device: str, dtype: str) -> list[Array]:
    """The outputs of torch in evaluation mode, in the file's precision."""
    module = _module(context, device, dtype)
    values = moved(given, module, device)
    with isolation.kept(module), torch.no_grad():
        rng.seed()
        returned = context.subject.traced.call(module.eval(), values)
    return [_array(t) for t in tensors_of(returned)]


def _module(context: CheckContext, device: str, dtype: str) -> nn.Module:
    key = f"parity {device} {dtype}"
    if key not in context.measured:
        copy = context.copy_on(device)
        context.measured[key] = (copy if dtype == "float32" else copy.to(getattr(torch, dtype))).eval()
    module: nn.Module = context.measured[key]
    return module


# ---------------------------------------------------------------------------------------------------------------------
# the first node that differs


def _first(context: CheckContext, file: OnnxFile, given: Inputs, fed: Sequence[Array], way: str, limit: float) -> str:
    """The first node on this way that is beyond the limit; "" where none can be named."""
    if way.startswith("torch") or way == "onnxruntime cpu":
        return first_beyond(*_compared(context, file, given, fed, way), limit)
    content, values = with_all_values(file.path)
    named = [(node or value, value) for node, value in values]
    runs = (run(content, fed, device, strict=False).outputs for device in ("cpu", file.device))
    reference, mine = ({n: values[v] for n, v in named if isinstance(values.get(v), np.ndarray)} for values in runs)
    return first_beyond(reference, mine, limit)


def _inside(
    context: CheckContext, file: OnnxFile, given: Inputs, fed: Sequence[Array], way: str
) -> tuple[list[Array], list[Array]]:
    """Floating values in between, of torch on the CPU and of the way."""
    reference, mine = _compared(context, file, given, fed, way)
    both = [name for name in reference if name in mine and reference[name].dtype.kind == "f"]
    return [reference[name] for name in both], [mine[name] for name in both]


def _compared(
    context: CheckContext, file: OnnxFile, given: Inputs, fed: Sequence[Array], way: str
) -> tuple[dict[str, Array], dict[str, Array]]:
    """What torch makes on the CPU and what the way makes, by node; where the way is ONNX Runtime's, by layer."""
    values = _values(context, given, "cpu", file.dtype)
    device = way.partition(" ")[2]
    if way.startswith("torch"):
        return values, _values(context, given, device, file.dtype)
    own = run(with_all_values(file.path)[0], fed, device, strict=False).outputs
    return _by_layer(context.subject.traced, file.path, values, own)


def first_beyond(reference: Mapping[str, Array], values: Mapping[str, Array], limit: float) -> str:
    """The first name, in order of the reference, whose floating values are beyond the limit."""
    for name, expected in reference.items():
        if name in values and expected.dtype.kind == "f" and not errors(values[name], expected).tolerance <= limit:
            return name
    return ""


def _values(context: CheckContext, given: Inputs, device: str, dtype: str) -> dict[str, Array]:
    """Node → its value in torch."""
    module, seen = _module(context, device, dtype), dict[str, Array]()

    class Seeing(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            value = super().run_node(n)
            if isinstance(value, Tensor) and value.is_floating_point():
                seen[n.name] = _array(value.float()).copy()
            return value

    with isolation.kept(module), torch.no_grad():
        rng.seed()
        Seeing(module, graph=context.subject.traced.evaluate).run(*moved(given, module, device))
    return seen


def _by_layer(
    traced: Traced, path: str | PathLike[str], values: Mapping[str, Array], own: Mapping[str, Array]
) -> tuple[dict[str, Array], dict[str, Array]]:
    """Layer → what torch makes behind it, and what ONNX Runtime makes, told by the name of the weight in both."""
    layers = weight_outputs(path, LAYERS)
    reference: dict[str, Array] = {}
    mine: dict[str, Array] = {}
    for name, owner in _called(traced):
        if layers.get(owner) and name in values:
            output = layers[owner].pop(0)
            if output in own:
                reference[owner], mine[owner] = values[name], own[output]
    return reference, mine


def _called(traced: Traced) -> list[tuple[str, str]]:
    """(node, path of its layer) in order of execution."""
    return [(node.name, owner) for node in traced.evaluate.nodes if (owner := owner_of(node))]
