"""What a check must leave as it found it: random state, global switches of torch, a module's buffers and modes."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from zero_convert.runtime import rng

from .precision import full_float32

OFF, WARN = 0, 1  # of `torch.set_deterministic_debug_mode`
SMALLER = frozenset({torch.float32, torch.float16, torch.bfloat16})


@contextmanager
def pinned(device: str) -> Iterator[None]:
    """Inside: full float32, deterministic algorithms, autocast off, no warnings. After: all as before, generators too.

    TF32 would make identity layers inexact (1e-3), and timing-based algorithm search would make runs differ. Operations
    without a deterministic kernel only warn, so that networks with them can be asked; but then torch leaves the fused
    attention of a GPU as it is, whose backward adds in any order: there attention is computed step by step.
    """
    kind = device.partition(":")[0]
    cudnn = torch.backends.cudnn
    before = cudnn.benchmark, cudnn.deterministic, torch.get_deterministic_debug_mode(), fused_attention()
    workspace = os.environ.get("CUBLAS_WORKSPACE_CONFIG")
    states = rng.states(device)
    with warnings.catch_warnings(), contextlib.ExitStack() as stack:
        warnings.simplefilter("ignore")
        stack.enter_context(full_float32())
        try:
            cudnn.benchmark, cudnn.deterministic = False, True
            if kind == "cuda":
                set_fused_attention((False,) * len(before[3]))
                if workspace is None:
                    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # without it cuBLAS is not deterministic
            deterministic(WARN)
            with torch.autocast(kind, enabled=False), torch.inference_mode(False):
                yield
        finally:
            cudnn.benchmark, cudnn.deterministic = before[:2]
            deterministic(before[2])
            set_fused_attention(before[3])
            if workspace is None:
                os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)
            rng.restore(states, device)


def fused_attention() -> tuple[bool, ...]:
    """Whether torch may use its flash, memory-efficient and cuDNN kernels for attention."""
    cuda: Any = torch.backends.cuda
    return cuda.flash_sdp_enabled(), cuda.mem_efficient_sdp_enabled(), cuda.cudnn_sdp_enabled()


def set_fused_attention(allowed: tuple[bool, ...]) -> None:
    """Args: `allowed`: as `fused_attention` tells it."""
    cuda = torch.backends.cuda
    for enable, value in zip(
        (cuda.enable_flash_sdp, cuda.enable_mem_efficient_sdp, cuda.enable_cudnn_sdp), allowed, strict=True
    ):
        enable(value)


def deterministic(mode: int) -> None:
    """What `torch.use_deterministic_algorithms` does, which loads torch.compile first: two seconds for nothing."""
    torch.set_deterministic_debug_mode(mode)


def ran_out(error: BaseException) -> bool:
    """Whether memory was too small. Only some of torch's backends have a class for it; cuBLAS and cuDNN have a word."""
    text = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError)
        and any(cause in text for cause in ("out of memory", "not enough memory", "alloc_failed"))
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


def wide(values: Tensor) -> Tensor:
    """In float64: where the values are, or on the CPU if the device has none (mps)."""
    return (values.cpu() if values.device.type == "mps" else values).double()


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
