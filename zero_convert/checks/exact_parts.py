"""Do layers of zeros and ones return the same for the same integers, however they are computed?

With weights 0 and ±1 and integers small enough that no sum reaches 2^24, every partial sum in float32 is exact, so the
order in which a kernel adds does not matter: the answers must be equal, not close. Asked are convolutions and linear
layers with such weights, one of each size; one that is 0 everywhere, which any kernel gets right, is asked with hashed
0 and ±1 in its place. The integers go up to 4095, twelve bits: TF32 keeps eleven and bfloat16 eight, so that one of
them in the way is seen. Compared with float64, one sample at a time: batches of 1, 2, 7 and 32, one and two threads of
the CPU, and the device of the checks. Where ONNX Runtime computes, the largest batch is left out. With `quick` the
smallest layer of each kind and kernel, and batches of 1 and 7.

Fails on any difference. Winograd and FFT convolutions go by other numbers on the way: for a kernel of more than one tap
on a GPU a difference below 1e-5 of the largest value is told as a warning.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from zero_convert.formulas.hashing import words
from zero_convert.graph.kinds import geometry
from zero_convert.runtime.threads import one_thread, threads

from ..records import Geometry
from .harness.bench import Answer, CheckContext
from .harness.session import SessionContext

NAME = "exact_parts"
QUESTION = "Do layers of zeros and ones return exactly the same on integers for every batch size, thread and device?"
AFTER = "distinct_units"
LEVELS = ("quick", "full")
NEEDS = ()
SESSION = True
LEAST = {"layers": 1}
EXACT = 1 << 24  # from here on float32 does not hold every integer
LARGEST = 4095
BATCHES = {"quick": (1, 7), "full": (1, 2, 7, 32)}
THREADS = (1, 2)
REMEDY = (
    "Something rounds to less than float32 though torch's switches are off: TF32 (NVIDIA_TF32_OVERRIDE), bfloat16, or "
    "another convolution algorithm."
)
WINOGRAD = 1e-5  # of the largest value


Asked = tuple[str, nn.Module, Geometry]


def ask(context: CheckContext) -> Answer | None:
    asked = _layers(context)
    if not asked:
        return None
    wrong: dict[str, float] = {}
    excused: dict[str, float] = {}
    compared = _on_session(context, asked) if isinstance(context, SessionContext) else _here(context, asked)
    for name, g, how, off in compared:
        kernel = max(g.kernel, default=1) > 1 and how.startswith("cuda")
        (excused if kernel and off < WINOGRAD else wrong)[f"{name} {how}"] = off
    batches = ", ".join(map(str, _batches(context)))
    ways = f"batches of {batches}" + ("" if context.session else f", {THREADS[0]} and {THREADS[-1]} threads")
    ways += f", cpu and {context.device}" if context.device != "cpu" else ""
    differences = wrong or excused
    summary = f"{len(asked)} layers equal for {ways}"
    if differences:
        worst = max(differences, key=differences.__getitem__)
        summary = f"{len(differences)} differences, up to {differences[worst]:.2g} of the largest value: {worst}"
    return Answer(
        "fail" if wrong else "warn" if excused else "pass",
        summary,
        {"layers": [name for name, _, _ in asked], "different": wrong, "excused": excused},
        "equal values",
        REMEDY if differences else "",
        {"layers": len(asked)},
    )


def _layers(context: CheckContext) -> list[Asked]:
    """One layer of each size with weights of 0 and ±1, as a float32 copy on the CPU."""
    smallest: dict[tuple[object, ...], tuple[str, nn.Module, Geometry]] = {}
    for name, module in context.subject.traced.root.named_modules():
        if type(module).__module__.partition(".")[0] != "torch" or not isinstance(module, _ConvNd | nn.Linear):
            continue
        g = geometry(module)
        if g is None or nn.utils.parametrize.is_parametrized(module) or module._forward_pre_hooks:
            continue
        key: tuple[object, ...] = (type(module), g.kernel if context.level == "quick" else g)
        if (key not in smallest or _size(g) < _size(smallest[key][2])) and _plain(module):
            smallest[key] = (name, module, g)
    return [(name, _with_values(name, module), g) for name, module, g in smallest.values()]


def _plain(module: nn.Module) -> bool:
    """Whether all its values are real, and 0 or ±1."""
    return all(p.is_floating_point() and bool(((p == 0) | (p.abs() == 1)).all()) for p in module.parameters())


def _size(g: Geometry) -> int:
    return g.in_channels * g.out_channels


def _with_values(name: str, module: nn.Module) -> nn.Module:
    own = copy.deepcopy(module).cpu().float()
    weight = own.weight
    assert isinstance(weight, Tensor)
    if not bool(weight.any()):
        drawn = (words(0, f"exact {name}", 0, weight.numel()) % 3).astype("float32") - 1
        with torch.no_grad():
            weight.copy_(torch.from_numpy(drawn).reshape(weight.shape))
    return own.eval()


def _batches(context: CheckContext) -> tuple[int, ...]:
    """A software adapter takes minutes for the largest."""
    return BATCHES[context.level][: 3 if context.session else None]


def _here(context: CheckContext, asked: Sequence[Asked]) -> Iterator[tuple[str, Geometry, str, float]]:
    """(layer, its geometry, how, the largest difference) for each way of torch that does not return the same."""
    for name, layer, g in asked:
        for how, off in _differences(context, layer, g):
            yield name, g, how, off


def _on_session(context: SessionContext, asked: Sequence[Asked]) -> Iterator[tuple[str, Geometry, str, float]]:
    """The same where ONNX Runtime computes: all layers in one file, whose batch size is free."""
    from zero_convert.exporters.onnx.whole import content  # loads onnx_ir

    batches = _batches(context)
    given = [_integers(layer, g, max(batches)) for _, layer, g in asked]
    model = content(_Side([layer for _, layer, _ in asked]), (given,), free=True)
    made = context.compute(model, [[x[:batch] for x in given] for batch in batches])
    with torch.no_grad(), one_thread():
        for index, (name, layer, g) in enumerate(asked):
            exact = copy.deepcopy(layer).double()
            right = torch.cat([exact(part) for part in torch.split(given[index].double(), 1)])
            for batch, values in zip(batches, made, strict=True):
                for how, off in _compared(f"{context.session}, batch {batch}", values[index], right):
                    yield name, g, how, off


class _Side(nn.Module):
    """Layers side by side, each with an input of its own."""

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, given: Sequence[Tensor]) -> tuple[Tensor, ...]:
        return tuple(layer(x) for layer, x in zip(self.layers, given, strict=True))


def _differences(context: CheckContext, layer: nn.Module, g: Geometry) -> Iterator[tuple[str, float]]:
    """(how, the largest difference relative to the largest value) for each way that does not return the same."""
    batches = BATCHES[context.level]
    x = _integers(layer, g, max(batches))
    with torch.no_grad():
        with one_thread():
            exact = copy.deepcopy(layer).double()
            right = torch.cat([exact(part) for part in torch.split(x.double(), 1)])
        for count in THREADS:
            with threads(count):
                for batch in batches:
                    yield from _compared(f"cpu, batch {batch}, {count} threads", layer(x[:batch]), right)
        if context.device != "cpu":
            there = copy.deepcopy(layer).to(context.device)
            for batch in batches:
                values = there(x[:batch].to(context.device)).cpu()
                yield from _compared(f"{context.device}, batch {batch}", values, right)


def _compared(how: str, values: Tensor, right: Tensor) -> Iterator[tuple[str, float]]:
    expected, values = right[: len(values)], values.double()
    if not torch.equal(values, expected):
        yield how, float((values - expected).abs().max() / expected.abs().max().clamp(min=1))


def _integers(layer: nn.Module, g: Geometry, batch: int) -> Tensor:
    """Hashed integers whose sums stay exact.  # (batch, n, positions)"""
    sizes = [d * (k - 1) + 1 + s for k, s, d in zip(g.kernel, g.stride, g.dilation, strict=True)]
    if isinstance(layer, _ConvTransposeNd):
        sizes = [3] * len(g.kernel)
    fan = g.in_channels // g.groups * math.prod(g.kernel)
    most = max(1, min(LARGEST, EXACT // max(1, fan) - 1))
    shape = (batch, g.in_channels, *sizes)
    drawn = (words(0, "exact integers", 0, math.prod(shape)) >> 20) % (2 * most + 1)
    return torch.from_numpy(drawn.astype("float32") - most).reshape(shape)
