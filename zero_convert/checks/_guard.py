"""What a check must leave as it found it: random state, global switches of torch, a module's buffers and modes."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from .. import generators

EXACT = ("none", "ieee")
OFF, WARN = 0, 1  # of `torch.set_deterministic_debug_mode`
SMALLER = frozenset({torch.float32, torch.float16, torch.bfloat16})


@contextmanager
def pinned(device: str) -> Iterator[None]:
    """Inside: full float32, deterministic algorithms, autocast off, no warnings. After: all as before, generators too.

    TF32 would make identity layers inexact (1e-3), and timing-based algorithm search would make runs differ.
    """
    kind = device.partition(":")[0]
    switches: list[tuple[Any, str, Any]] = [
        (torch.backends.cudnn, "benchmark", False),
        (torch.backends.cudnn, "deterministic", True),
        *((owner, "fp32_precision", None) for owner in _rounding(kind)),
    ]
    before = [(owner, name, getattr(owner, name)) for owner, name, _ in switches]
    mode = torch.get_deterministic_debug_mode()
    workspace = os.environ.get("CUBLAS_WORKSPACE_CONFIG")
    states = generators.states(device)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            for owner, name, value in switches:
                if value is not None:
                    setattr(owner, name, value)
                    continue
                owner.fp32_precision = "none"  # off, and what the older `allow_tf32` calls off
                if owner.fp32_precision not in EXACT:  # inherited from a general switch
                    owner.fp32_precision = "ieee"
            if kind == "cuda" and workspace is None:
                os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # without it cuBLAS refuses to be deterministic
            deterministic(WARN)
            with torch.autocast(kind, enabled=False), torch.inference_mode(False):
                yield
        finally:
            deterministic(mode)
            for owner, name, value in before:
                setattr(owner, name, value)
            if workspace is None:
                os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)
            generators.restore(states, device)


def deterministic(mode: int) -> None:
    """What `torch.use_deterministic_algorithms` does, which loads torch.compile first: two seconds for nothing."""
    torch.set_deterministic_debug_mode(mode)


def _rounding(kind: str) -> list[Any]:
    """Torch's switches for the device that now let float32 products be rounded to less."""
    cudnn, mkldnn = torch.backends.cudnn, torch.backends.mkldnn
    owners: dict[str, list[Any]] = {
        "cuda": [torch.backends.cuda.matmul, cudnn.conv, cudnn.rnn],  # type: ignore[attr-defined]
        "cpu": [mkldnn.matmul, mkldnn.conv, mkldnn.rnn],  # type: ignore[attr-defined]
    }
    return [owner for owner in owners.get(kind, []) if owner.fp32_precision not in EXACT]


def ran_out(error: BaseException) -> bool:
    """Whether memory was too small. Only some of torch's backends have a class for it."""
    said = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and ("out of memory" in said or "not enough memory" in said)
    )


@contextmanager
def kept(module: nn.Module) -> Iterator[None]:
    """After: every buffer, gradient and training flag of the module as before, bit for bit.

    A forward may change these; parameters it leaves alone.
    """
    modes = [(m, m.training) for m in module.modules()]
    tensors = [(b, b.detach().clone()) for b in module.buffers()]
    gradients = [(p, p.grad) for p in module.parameters()]
    try:
        yield
    finally:
        for m, mode in modes:
            m.training = mode
        with torch.no_grad():
            for tensor, value in tensors:
                tensor.copy_(value)
        for parameter, gradient in gradients:
            parameter.grad = gradient


def _doubled(value: Any) -> Any:
    return torch.float64 if isinstance(value, torch.dtype) and value in SMALLER else value


class _Double(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Every operation that names a smaller floating type is told float64."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """False: nothing is compiled in here, and torch need not load torch.compile to see to that."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        named = {key: _doubled(value) for key, value in (kwargs or {}).items()}
        return func(*map(_doubled, args), **named)


@contextmanager
def in_float64() -> Iterator[None]:
    """Inside: a forward that makes or casts tensors to a smaller floating type gets float64."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with _Double():  # type: ignore[no-untyped-call]
            yield
    finally:
        torch.set_default_dtype(before)
