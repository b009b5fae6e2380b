"""How far is the model's own precision from float64?

The same graph on the same inputs, in training and evaluation mode: once in the model's precision on the device, once
in float64 on the CPU. Compared are what each head reads (the features) and the outputs; the number is the largest
difference, beside the largest feature. A batch norm multiplies the rounding noise of a channel that is mathematically
constant by up to 1/sqrt(eps) = 316, and several in a row do it again and again.

Never fails. Warns if the difference is above 1e-3 of the largest value (in half precision, 64 times its rounding
unit): rounding alone gives 1e-6 to 1e-5 in networks of this kind, and TF32, which many train in, 1e-3.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .harness.bench import Answer, CheckContext
from .harness.recorder import most
from .harness.remedies import CANCELS, remedy

NAME = "precision"
QUESTION = "How much does the model's own precision differ from float64?"
AFTER = "channels"
LEVELS = ("quick", "full")
NEEDS = ()
LEAST = {"tensors": 1}
LIMIT = 1e-3
MODES = {"train": "training", "evaluate": "evaluation"}


def ask(context: CheckContext) -> Answer:
    dtypes = {p.dtype for p in context.module.parameters() if p.is_floating_point()}
    dtype = min(dtypes, key=lambda d: torch.finfo(d).bits, default=torch.float32)
    limit = max(LIMIT, 64 * torch.finfo(dtype).eps)
    numbers: dict[str, dict[str, float]] = {}
    left_out: dict[str, list[str]] = {}  # why → modes
    seen = 0
    for mode in context.modes:
        own = context.run(mode)
        if own.random:
            left_out.setdefault("which draws random numbers", []).append(mode)
            continue
        exact = context.exact_run(mode)
        if exact is None:
            left_out.setdefault(f"which does not run in float64 ({context.not_exact})", []).append(mode)
            continue
        both = [name for name in own.heads if name in exact.heads]  # values may decide which layers run
        features = _difference([own.heads[n] for n in both], [exact.heads[n] for n in both])
        outputs = _difference(own.outputs, exact.outputs)
        seen += len(both) + len(own.outputs)
        numbers[mode] = {
            "features": features[0],
            "largest_feature": features[1],
            "outputs": outputs[0],
            "largest_output": outputs[1],
        }
    name = str(dtype).removeprefix("torch.")
    over = [
        mode
        for mode, n in numbers.items()
        if not (n["features"] <= limit * n["largest_feature"] and n["outputs"] <= limit * n["largest_output"])
    ]
    parts = [
        f"{n['features'] or n['outputs']:.1e} in {MODES[mode]} mode "
        f"(values up to {n['largest_feature'] or n['largest_output']:.2g})"
        for mode, n in numbers.items()
    ]
    parts += [f"not compared in {' and '.join(MODES[m] for m in modes)} mode, {why}" for why, modes in left_out.items()]
    return Answer(
        "warn" if over else "pass" if numbers else "skip",
        f"{name} differs from float64 in {seen} tensors by {', '.join(parts)}"
        if numbers
        else "; ".join(parts) or context.refusal(),
        {"dtype": name, **numbers},
        f"at most {limit:.0e} of the largest value",
        (remedy(context.subject) or CANCELS) if over else "",
        {"tensors": seen},
    )


def _difference(own: Sequence[Tensor], exact: Sequence[Tensor]) -> tuple[float, float]:
    """The largest difference and the largest magnitude in float64.

    Tensors whose size rounding has changed (a detector's boxes above a limit) have no difference.
    """
    pairs = [(a.double(), b.double()) for a, b in zip(own, exact, strict=True) if b.numel() and a.shape == b.shape]
    return (
        most(float((a - b).abs().max()) for a, b in pairs),
        most(float(b.abs().max()) for _, b in pairs),
    )
