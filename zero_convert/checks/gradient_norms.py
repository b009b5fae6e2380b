"""How large is the gradient of each parameter at the start, and is it the one that float64 finds?

One batch in training mode, dropout off; what goes back is a fixed direction at what the heads read (see
`harness/depths.py`), so that a head that starts at 0 does not hide the rest. Compared is the Euclidean norm; with
`full` the same is done in float64 on the CPU, and the difference of the two gradients is taken relative to the one in
float64. A batch norm over a channel that is constant up to rounding multiplies noise by 1/sqrt(eps) = 316 on the way
forward and again on the way back: there the gradient that training follows is noise. A bias that a norm takes away
again has no gradient but rounding, and is left out.

Fails if a gradient is not finite. Warns if a gradient differs by more than 1 % from float64 (rounding alone stays below
1e-4; gradients below 1e-6 of the largest are not judged), or if among the weights of two and more dimensions the
largest norm is more than 1e4 times the smallest that is not 0: no one rate of learning suits both. With He's weights
the range was 7 in ResNet-18 and 160 to 180 in ResNet-50, with those of their library 18 to 23 and 590; constant
channels behind batch norms made it 5e4 and more. Shifts and factors are not judged by it: a shift that the next norm
takes away again has a gradient of rounding alone, which makes the range of a sound MobileNetV2, EfficientNet or
ConvNeXt 1e7 to 1e9.
"""

from __future__ import annotations

import math

from torch import Tensor

from .harness.bench import Answer, CheckContext
from .harness.depths import Depths, depths, length, rounded
from .harness.remedies import CANCELS, INFINITE, remedy
from .harness.training import cancelled_biases

NAME = "gradient_norms"
QUESTION = "How large is the first gradient of each parameter, and how far from that in float64?"
AFTER = "signal"
LEVELS = ("quick", "full")
NEEDS = ("train",)
LEAST = {"gradients": 1}
LIMIT = 0.01
RANGE = 1e4  # of the weights
SMALL = 1e-6  # of the largest norm


def ask(context: CheckContext) -> Answer | None:
    own = depths(context, "own")
    if own is None or not own.weights:
        return None
    cancelled = cancelled_biases(context.subject)
    names = [name for name in own.weights if name not in cancelled]
    exact = depths(context, "exact") if context.level == "full" and not context.run("train").random else None
    far = _differences(names, own, exact) if exact is not None and exact.backward else {}
    broken = [name for name in names if not math.isfinite(own.weights[name])]
    norms = {name: own.weights[name] for name in names if own.weights[name] > 0}
    over = [name for name, value in far.items() if not value <= LIMIT]
    most, least = max(norms, key=norms.__getitem__, default=""), min(norms, key=norms.__getitem__, default="")
    axes = {name: parameter.ndim for name, parameter in context.subject.traced.root.named_parameters()}
    judged = [value for name, value in norms.items() if axes[name] > 1]
    ratio = max(judged) / min(judged) if judged else 1.0
    if broken:
        summary = f"not finite: {', '.join(broken[:4])}"
    elif norms:
        summary = (
            f"{len(norms)} of {len(names)} are not 0: from {norms[least]:.2g} ({least}) to {norms[most]:.2g} ({most})"
        )
    else:
        summary = "all are exactly 0"
    if judged and not broken:
        summary += f"; weights within a factor of {ratio:.2g}"
    if far and not broken:
        worst = max(far, key=far.__getitem__)
        summary += f"; up to {far[worst]:.2g} of it off float64 ({worst})"
    status = "fail" if broken else "warn" if over or ratio > RANGE else "pass"
    return Answer(
        status,
        summary,
        {
            "parameter": names,
            "range_of_weights": ratio,
            "norm": rounded(own.weights[name] for name in names),
            "difference_to_float64": rounded(far.get(name) for name in names),
        },
        f"finite; at most {LIMIT:.0%} off float64; weights within a factor of {RANGE:.0e}",
        _remedy(context, bool(broken), bool(over)) if status != "pass" else "",
        {"gradients": len(names)},
    )


def _remedy(context: CheckContext, broken: bool, over: bool) -> str:
    if broken:
        return INFINITE
    return remedy(context.subject) or (CANCELS if over else "An optimizer that scales each gradient, as Adam does.")


def _differences(names: list[str], own: Depths, exact: Depths) -> dict[str, float]:
    """Parameter → how far its gradient is from that in float64, relative to the latter."""
    largest = max((value for value in exact.weights.values() if math.isfinite(value)), default=0.0)
    pairs: dict[str, tuple[Tensor, Tensor]] = {
        name: (own.backward[name].cpu().double(), exact.backward[name])
        for name in names
        if exact.weights.get(name, 0.0) > SMALL * largest
    }
    return {name: length(a - b) / exact.weights[name] for name, (a, b) in pairs.items()}
