"""Values that leave a signal alone: the factors and shifts of norms that are no classes of torch, and of weight layers.

Most norms multiply by their weight, so that its neutral value is 1; some (Gemma's) multiply by 1 + weight, some add
what they scale to the signal (global response norm), and their neutral value is 0. What the constructor fixed says
which, unless that is 0: a factor may be 0 to begin with in order to close a branch. Then, and for a module that was
trained, the module is tried: with everything at 0, a signal passes only where 0 is neutral.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

KNOWN = {"running_mean": 0.0, "running_var": 1.0, "num_batches_tracked": 0.0}


def constant(tensor: Tensor) -> float | None:
    """The one value that a real tensor holds everywhere; None where it holds several, none, or NaN."""
    if not tensor.numel() or tensor.is_complex() or tensor.is_meta:
        return None
    flat = tensor.detach().reshape(-1)
    first = flat[0].float().item()
    if first != first or flat[-1].float().item() != first:
        return None
    return first if bool((flat == flat[0]).all()) else None


def neutral(module: nn.Module) -> tuple[tuple[str, float], ...]:
    """The neutral value of every parameter that the module itself owns, by local name; not of a weight layer's own."""
    own = {name: p for name, p in module._parameters.items() if p is not None}
    channels = max((p.numel() for p in own.values()), default=1)
    if isinstance(module, nn.Linear | _ConvNd):
        channels = module.in_features if isinstance(module, nn.Linear) else module.in_channels
        own = {name: p for name, p in own.items() if name not in ("weight", "bias")}
    fixed = {name: value for name, p in own.items() if (value := constant(p)) is not None}
    if len(fixed) < len(own) or any(value == 0 and not name.startswith("bias") for name, value in fixed.items()):
        fixed = _tried(module, own, channels) or {key: float(not key.startswith("bias")) for key in own} | fixed
    buffers = {name: KNOWN[name] for name, b in module._buffers.items() if b is not None and name in KNOWN}
    return tuple((fixed | buffers).items())


def _tried(module: nn.Module, own: dict[str, nn.Parameter], channels: int) -> dict[str, float]:
    """1 for the first parameter, if any, that has to be 1 for a signal to pass; 0 for the others.

    Nothing where the module cannot be tried; 1 for all but biases where no such choice lets a signal pass.
    """
    for name in (None, *own):
        values = {key: float(key == name) for key in own}
        passes = _passes(module, values, channels)
        if passes is None:
            return {}
        if passes:
            return values
    return {key: float(not key.startswith("bias")) for key in own}


def _passes(module: nn.Module, values: dict[str, float], channels: int) -> bool | None:
    """Whether the output depends on the input when the parameters have these values, and the others any.

    None where the module cannot be tried.
    """
    trial = copy.deepcopy(module).eval().float()
    with torch.no_grad():
        for key, parameter in trial._parameters.items():
            if parameter is not None:
                steps = torch.arange(parameter.numel(), dtype=torch.float32).reshape(parameter.shape)
                parameter.copy_(torch.full_like(steps, values[key]) if key in values else torch.sin(steps))
        for name, buffer in trial._buffers.items():
            if buffer is not None and buffer.is_floating_point():
                buffer.fill_(KNOWN.get(name, 1.0))
        reach = (
            [d * k for d, k in zip(module.dilation, module.kernel_size, strict=True)]
            if isinstance(module, _ConvNd)
            else []
        )
        n = max([4, *reach])
        last = ((2, channels), (2, channels, n, n), (2, n, n, channels), (2, n, channels))
        for shape in (*last, (2, channels, n), (2, channels, n, n, n)):
            steps = torch.arange(torch.Size(shape).numel(), dtype=torch.float32)
            try:
                outputs = [trial(torch.sin(steps * rate).reshape(shape)) for rate in (0.7, 0.3)]
            except Exception:  # another rank of input, or a second input
                continue
            if isinstance(outputs[0], Tensor):
                return not torch.equal(outputs[0], outputs[1])
    return None
