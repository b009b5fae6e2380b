"""What a check must leave as it found it: random state, switches of torch, a module's buffers and modes.

torch's switches are the whole process's. For a GPU they are set, and put back: what other threads compute meanwhile is
in full float32 and deterministic too. On the CPU, where their bits would change, operations of this thread are computed
as the switches would have it, and no switch is touched.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from zero_convert.graph.traced import Traced
from zero_convert.runtime import rng
from zero_convert.runtime.messages import without_warnings
from zero_convert.runtime.patches import replaced
from zero_convert.runtime.threads import one_thread

from .precision import full_float32, rounds_on_cpu

OFF, WARN = 0, 1  # of `torch.set_deterministic_debug_mode`
SMALLER = frozenset({torch.float32, torch.float16, torch.bfloat16})
# Operations of the CPU by name: sums of several threads in any order, memory as it is, products.
_ATOMIC = frozenset({"index_put", "index_put_", "_index_put_impl_", "_unsafe_index_put", "put", "put_"})
_EMPTY = frozenset({"empty", "empty_like", "empty_strided", "empty_permuted", "new_empty", "new_empty_strided"})
_ATTENTION = "_scaled_dot_product_flash_attention_for_cpu"
_PRODUCTS = frozenset(
    {
        *("convolution", "convolution_backward", "mm", "addmm", "bmm", "baddbmm", "mv", "addmv", "dot"),
        *(_ATTENTION, f"{_ATTENTION}_backward"),
    }
)


@contextmanager
def pinned(device: str, traced: Traced | None = None) -> Iterator[None]:
    """Inside: full float32, deterministic algorithms, autocast off, no warnings. After: all as before, generators too.

    TF32 would make identity layers inexact (1e-3), and timing-based algorithm search would make runs differ. Operations
    without a deterministic kernel only warn, so that networks with them can be asked; but then torch leaves the fused
    attention of a GPU as it is, whose backward adds in any order: there attention is computed step by step.

    Args:
        traced: the network that runs inside; without it operations are seen to that it may not have, which costs time.
    """
    kind = device.partition(":")[0]
    with (
        without_warnings(),
        _switches(kind) if kind != "cpu" else _operations(traced),
        rng.seeded(),
        torch.autocast(kind, enabled=False),
        torch.inference_mode(False),
    ):
        yield


@contextmanager
def _switches(kind: str) -> Iterator[None]:
    cudnn = torch.backends.cudnn
    before = cudnn.benchmark, cudnn.deterministic, torch.get_deterministic_debug_mode(), fused_attention()
    workspace = os.environ.get("CUBLAS_WORKSPACE_CONFIG")
    with full_float32():
        try:
            cudnn.benchmark, cudnn.deterministic = False, True
            if kind == "cuda":
                set_fused_attention((False,) * len(before[3]))
                if workspace is None:
                    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # without it cuBLAS is not deterministic
            deterministic(WARN)
            yield
        finally:
            cudnn.benchmark, cudnn.deterministic = before[:2]
            deterministic(before[2])
            set_fused_attention(before[3])
            if workspace is None:
                os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)


class _Chosen(threading.local):
    any_algorithm = False


_chosen = _Chosen()


@contextmanager
def _operations(traced: Traced | None) -> Iterator[None]:
    def asked(_: Any) -> Any:
        return lambda: not _chosen.any_algorithm

    several = torch.get_num_threads() > 1 or rounds_on_cpu()
    with (
        replaced(torch, "are_deterministic_algorithms_enabled", asked),
        _Pinned() if several or traced is None or _reads_memory(traced) else nullcontext(),  # type: ignore[no-untyped-call]
    ):
        yield


def _reads_memory(traced: Traced) -> bool:
    """Whether the network makes tensors of what memory holds, or may do so where no graph shows it."""
    targets = (node.target for graph in traced.graphs for node in graph.nodes)
    return bool(traced.opaque) or any(getattr(t, "__name__", t) in _EMPTY for t in targets)


@contextmanager
def any_algorithm(device: str) -> Iterator[None]:
    """Inside: the libraries choose their algorithms as they do by themselves, and search for the fastest."""
    before = torch.get_deterministic_debug_mode()
    cudnn = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    attention = fused_attention()
    _chosen.any_algorithm = True
    if device != "cpu":
        set_fused_attention((True,) * len(attention))
        deterministic(OFF)
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = False, True
    try:
        yield
    finally:
        _chosen.any_algorithm = False
        if device != "cpu":
            deterministic(before)
            torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = cudnn
            set_fused_attention(attention)


class _Mode(TorchDispatchMode):  # type: ignore[no-untyped-call]
    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """False: nothing is compiled in here, and torch need not load torch.compile to see to that."""
        return False


class _Pinned(_Mode):  # type: ignore[no-untyped-call]
    """Operations of the CPU as deterministic algorithms and full float32 have them."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = func.overloadpacket.__name__, kwargs or {}
        if name in _PRODUCTS and rounds_on_cpu() and any(map(_is_float32, args)):  # no product of float64 is rounded
            args, kwargs = tree_map(lambda x: x.double() if _is_float32(x) else x, (args, kwargs))
            return tree_map(lambda x: x.float() if _is_double(x) else x, func(*args, **kwargs))
        if _chosen.any_algorithm or name not in _ATOMIC | _EMPTY:
            return func(*args, **kwargs)
        with one_thread():
            made = func(*args, **kwargs)
        return made.fill_(torch.nan) if name in _EMPTY and made.is_floating_point() else made


def _is_float32(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dtype is torch.float32


def _is_double(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dtype is torch.float64


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


class _Double(_Mode):  # type: ignore[no-untyped-call]
    """Every operation that names a smaller floating type, or none, gets float64."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        named = {key: _doubled(value) for key, value in (kwargs or {}).items()}
        args = tuple(map(_doubled, args))
        tensors = [x for x in args if isinstance(x, Tensor)]
        if not tensors and named.get("dtype") is None and _takes_default_type(func, args):
            named["dtype"] = torch.float64
        made = func(*args, **named)
        if not isinstance(made, Tensor) or made.dtype not in SMALLER:
            return made
        if func is torch.ops.aten.lift_fresh.default:  # of a new tensor of Python's numbers
            return made.double()
        if tensors and not any(x.is_floating_point() for x in tensors) and not func._schema.is_mutable:
            return func(*(x.double() if isinstance(x, Tensor) else x for x in args), **named)
        return made


def _takes_default_type(func: Any, args: tuple[Any, ...]) -> bool:
    """Whether what an operation makes of these numbers has torch's default type, where no type is given."""
    types = [argument for argument in func._schema.arguments if argument.name == "dtype"]
    by_value = func.overloadpacket.__name__ in ("arange", "range", "full", "scalar_tensor")
    return bool(types) and types[0].default_value is None and not (by_value and not any(type(x) is float for x in args))


@contextmanager
def in_float64() -> Iterator[None]:
    """Inside: a forward that makes or casts tensors to a smaller floating type gets float64."""
    with replaced(torch, "get_default_dtype", lambda _: lambda: torch.float64), _Double():  # type: ignore[no-untyped-call]
        yield
