"""A GPU for machines that have none: torch and ONNX Runtime behave as on one, and compute on the CPU.

Inside `fake_gpu(...)` every tensor knows on which device it would lie, by its storage. What a real device refuses is
refused: operations on tensors of two devices, a device that is not there, `numpy()` of what is not on the CPU, more
memory than there is, float64 on mps. What it does otherwise is done: products are summed in another order, by TF32
where torch's switches say so, and each device has a random generator of its own. ONNX Runtime's session for CUDA says
in its profile that its nodes ran there, but for those that are named. It shows that the code for a device runs and
judges rightly; it does not show what a real one computes.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

CPU = torch.device("cpu")
CUDA_PROVIDER, CPU_PROVIDER = "CUDAExecutionProvider", "CPUExecutionProvider"
aten = torch.ops.aten
# Operations that take tensors of several devices: copies, and indices on the CPU.
MIXED = frozenset(
    {"copy_", "_to_copy", "to", "index", "index_put", "index_put_", "_index_put_impl_", "set_", "_copy_from"}
)
MATMULS = frozenset({"mm", "addmm", "bmm", "baddbmm", "mv", "dot"})
CONVOLUTIONS = frozenset({"convolution", "convolution_backward", "_convolution"})
FUSED = frozenset({"_scaled_dot_product_flash_attention_for_cpu_backward"})  # the CPU's stands for the GPU's
TOTAL = 140 << 30  # bytes

_real_device = torch._C.TensorBase.device.__get__


@dataclass
class Fake:
    """What is faked, and what was seen.

    Attributes:
        kind: "cuda" or "mps".
        count: how many devices there are.
        memory: bytes that each device has.
        on_cpu: pattern of nodes that ONNX Runtime computes on the CPU.
        provider: ONNX Runtime has a provider for CUDA.
        silent: its session says CUDA and runs on the CPU.
        distort: changes what a product on the device returns.
        runtime: changes what ONNX Runtime's session for CUDA returns, by the value's name.
        calls: operations that ran on the device.
    """

    kind: str = "cuda"
    count: int = 1
    memory: int = TOTAL
    on_cpu: str = "$^"
    provider: bool = True
    silent: bool = False
    distort: Callable[[str, Tensor], Tensor] = field(default=lambda name, x: x)
    runtime: Callable[[str, Any], Any] = field(default=lambda name, value: value)
    calls: int = 0
    peak: int = 0
    watched: bool = False
    places: dict[int, tuple[StorageWeakRef, torch.device, int]] = field(default_factory=dict)
    generators: list[torch.Generator] = field(default_factory=list)

    def place(self, tensor: Tensor) -> torch.device:
        if type(tensor) not in (Tensor, torch.nn.Parameter) or _real_device(tensor) != CPU:
            return _real_device(tensor)
        found = self.places.get(tensor.untyped_storage()._cdata)
        return CPU if found is None or found[0].expired() else found[1]

    def put(self, tensor: Tensor, device: torch.device) -> Tensor:
        if device == CPU or type(tensor) not in (Tensor, torch.nn.Parameter) or tensor.layout is not torch.strided:
            return tensor
        if self.kind == "mps" and tensor.dtype in (torch.float64, torch.complex128):
            raise TypeError(
                "Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64."
            )
        storage = tensor.untyped_storage()
        known = self.places.get(storage._cdata)
        if known is None or known[0].expired():
            self._room(storage.nbytes(), device)
            self.places[storage._cdata] = StorageWeakRef(storage), device, storage.nbytes()
        return tensor

    def taken(self, device: torch.device) -> int:
        self.places = {key: held for key, held in self.places.items() if not held[0].expired()}
        return sum(size for _, where, size in self.places.values() if where == device)

    def _room(self, size: int, device: torch.device) -> None:
        if self.memory < TOTAL or self.watched or len(self.places) % 500 == 499:
            taken = self.taken(device) + size
            self.peak = max(self.peak, taken)
            if taken > self.memory:
                raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {size} bytes. GPU 0 has …")

    def watch(self) -> None:
        self.watched, self.peak = True, 0

    def named(self, device: Any) -> torch.device | None:
        """The faked device that is meant; None for another one.

        Raises:
            RuntimeError: there is no such device.
        """
        if device is None or isinstance(device, Tensor):
            return None
        found = torch.device(self.kind, device) if type(device) is int else torch.device(device)
        if found.type != self.kind:
            return None
        found = torch.device(self.kind, found.index or 0)
        if found.index >= self.count:
            raise RuntimeError("CUDA error: invalid device ordinal")
        return found


def _rounds(name: str) -> bool:
    switches = torch.backends.cuda.matmul if name in MATMULS else torch.backends.cudnn.conv
    return switches.fp32_precision == "tf32"


def _tf32(x: Tensor) -> Tensor:
    """Float32 with eleven bits of the significand."""
    return ((x.contiguous().view(torch.int32) + 4096) & -8192).view(torch.float32)


class _Kernels(TorchDispatchMode):
    """Every operation on tensors: where its results lie, and whether its arguments may meet."""

    def __init__(self, fake: Fake) -> None:
        super().__init__()
        self.fake = fake

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if any(type(t) not in (Tensor, torch.nn.Parameter) for t in given):
            return func(*args, **kwargs)
        name = func.overloadpacket.__name__
        places = dict.fromkeys(self.fake.place(t) for t in given if t.ndim or self.fake.place(t) != CPU)
        places.pop(torch.device("meta"), None)
        if len(places) > 1 and name not in MIXED:
            told = ", ".join(map(str, places))
            raise RuntimeError(
                f"Expected all tensors to be on the same device, but found at least two devices, {told}! ({name})"
            )
        device = self.fake.place(given[0]) if name in MIXED and given else next(iter(places), CPU)
        if device.type != self.fake.kind:
            return func(*args, **kwargs)
        self.fake.calls += 1
        made = self._made(name, func, args, kwargs, device)
        for leaf in tree_leaves(made):
            if isinstance(leaf, Tensor):
                self.fake.put(leaf, device)
        return made

    def _made(self, name: str, func: Any, args: Any, kwargs: Any, device: torch.device) -> Any:
        if torch.Tag.nondeterministic_seeded in func.tags:
            own, others = self.fake.generators[device.index or 0], torch.get_rng_state()
            torch.set_rng_state(own.get_state())
            try:
                return func(*args, **kwargs)
            finally:
                own.set_state(torch.get_rng_state())
                torch.set_rng_state(others)
        if name in FUSED and torch.get_deterministic_debug_mode() < 2:  # as the GPU's, unless errors are asked for
            made = func(*args, **kwargs)
            made[0].add_(1e-6 * np.random.default_rng().random())
            return made
        if name not in MATMULS | CONVOLUTIONS or not any(
            isinstance(a, Tensor) and a.dtype == torch.float32 for a in args
        ):
            return func(*args, **kwargs)
        rounds = self.fake.kind == "cuda" and _rounds(name)

        def wide(x: Any) -> Any:
            return (_tf32(x) if rounds else x).double() if isinstance(x, Tensor) else x

        made = func(*map(wide, args), **{key: wide(value) for key, value in kwargs.items()})
        if isinstance(made, tuple):
            return tuple(None if t is None else t.float() for t in made)
        return self.fake.distort(name, made.float())


class _Calls(TorchFunctionMode):
    """Every call that names a device."""

    def __init__(self, fake: Fake) -> None:
        super().__init__()
        self.fake = fake

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        plain = bool(args) and type(args[0]) in (Tensor, torch.nn.Parameter)
        if plain and name in ("to", "cpu", "cuda"):
            return self._moved(name, func, args, kwargs)
        if plain and name in ("numpy", "__array__") and self.fake.place(args[0]) != CPU:
            raise TypeError(f"can't convert {self.fake.place(args[0])} device type tensor to numpy. Use Tensor.cpu()")
        if plain and name == "__deepcopy__" and (device := self.fake.place(args[0])) != CPU:
            return self.fake.put(func(*args, **kwargs), device)
        device = self.fake.named(kwargs["device"]) if kwargs.get("device") is not None else None
        if device is None:
            return func(*args, **kwargs)
        return self.fake.put(func(*args, **{**kwargs, "device": CPU}), device)

    def _moved(self, name: str, func: Any, args: Any, kwargs: Any) -> Any:
        x, *rest = args
        here = self.fake.place(x)
        if name == "cpu":
            device, dtype = CPU, None
        elif name == "cuda":
            device, dtype = self.fake.named(rest[0] if rest else kwargs.get("device", "cuda")), None
        else:
            named = [
                a for a in (*rest, *kwargs.values()) if isinstance(a, str | torch.device | Tensor) or type(a) is int
            ]
            first = named[0] if named else None
            target = self.fake.place(first) if isinstance(first, Tensor) else first
            device = here if target is None else self.fake.named(target) or torch.device(target)
            dtypes = [a for a in (*rest, *kwargs.values()) if isinstance(a, torch.dtype)]
            dtype = first.dtype if isinstance(first, Tensor) else dtypes[0] if dtypes else None
        if device.type not in (self.fake.kind, "cpu"):
            return func(*args, **kwargs)
        if self.fake.kind == "mps" and device.type == "mps" and dtype == torch.float64:
            raise TypeError(
                "Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64."
            )
        copies = device != here or kwargs.get("copy", False) or (len(rest) == 4 and rest[3])
        if not copies and dtype in (None, x.dtype):
            return x
        made: Tensor = _Move.apply(x, self.fake, device, dtype if dtype is not None else x.dtype)
        return made


class _Move(torch.autograd.Function):
    """A copy on another device, whose gradient goes back to where the tensor came from."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, fake: Fake, device: torch.device, dtype: torch.dtype) -> Tensor:
        ctx.back = fake, fake.place(x), x.dtype
        with _disable_current_modes():
            made = x.to(dtype, copy=True)
        return fake.put(made, device)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return _Move.apply(gradient, *ctx.back), None, None, None


def _session(fake: Fake) -> Any:
    """A module that stands for onnxruntime."""

    class Session:
        def __init__(self, model: Any, options: Any, providers: Sequence[Any], enable_fallback: int) -> None:
            assert not enable_fallback, "a failure would be printed, and another session tried on the CPU"
            names = [p if isinstance(p, str) else p[0] for p in providers]
            settings = {} if isinstance(providers[0], str) else providers[0][1]
            self.cuda = names[0] == CUDA_PROVIDER
            if self.cuda and int(settings.get("device_id", 0)) >= fake.count:
                raise RuntimeError("CUDA failure 101: invalid device ordinal ; GPU=-1")
            self.session = onnxruntime.InferenceSession(model, options, providers=[CPU_PROVIDER])

        def get_providers(self) -> list[str]:
            return [CUDA_PROVIDER, CPU_PROVIDER] if self.cuda else [CPU_PROVIDER]

        def run(self, names: None, given: dict[str, Any]) -> list[Any]:
            made = self.session.run(names, given)
            outputs = [each.name for each in self.session.get_outputs()]
            return [fake.runtime(name, value) for name, value in zip(outputs, made, strict=True)] if self.cuda else made

        def end_profiling(self) -> str:
            path = Path(self.session.end_profiling())
            events = json.loads(path.read_text("utf-8"))
            for event in events if self.cuda and not fake.silent else ():
                if event.get("args", {}).get("provider") and not re.search(fake.on_cpu, event["name"]):
                    event["args"]["provider"] = CUDA_PROVIDER
            path.write_text(json.dumps(events), "utf-8")
            return str(path)

        def __getattr__(self, name: str) -> Any:
            return getattr(self.session, name)

    there = {name: getattr(onnxruntime, name) for name in ("SessionOptions", "GraphOptimizationLevel", "__version__")}
    providers = [CUDA_PROVIDER, CPU_PROVIDER] if fake.provider else [CPU_PROVIDER]
    return SimpleNamespace(
        **there,
        InferenceSession=Session,
        get_available_providers=lambda: providers,
        preload_dlls=lambda: print("noise"),
    )


@contextlib.contextmanager
def fake_gpu(**what: Any) -> Iterator[Fake]:
    """Inside there is a GPU as the fields of `Fake` say."""
    importlib.import_module("torch._dynamo")  # it asks the real driver, and would not survive a GPU that is not there
    fake = Fake(**what)
    fake.generators = [torch.Generator().manual_seed(7 + index) for index in range(fake.count)]
    cuda = fake.kind == "cuda"

    def index(device: Any = None) -> int:
        found = fake.named(fake.kind if device is None else device)
        assert found is not None
        return found.index or 0

    def generator_state(device: Any = "cuda") -> Tensor:
        return fake.generators[index(device)].get_state()

    def set_generator_state(state: Tensor, device: Any = "cuda") -> None:
        fake.generators[index(device)].set_state(state)

    on_cuda: dict[str, Any] = {
        "is_available": lambda: cuda,
        "device_count": lambda: fake.count if cuda else 0,
        "init": lambda: None,
        "is_initialized": lambda: cuda,
        "get_device_name": lambda device=None: f"a CPU that plays GPU {index(device)}",
        "get_device_capability": lambda device=None: (9, 0),
        "get_rng_state": generator_state,
        "set_rng_state": set_generator_state,
        "get_rng_state_all": lambda: [g.get_state() for g in fake.generators],
        "set_rng_state_all": lambda states: [g.set_state(s) for g, s in zip(fake.generators, states, strict=True)],
        "default_generators": tuple(fake.generators),
        "empty_cache": lambda: None,
        "mem_get_info": lambda device=None: (TOTAL, TOTAL),
        "memory_reserved": lambda device=None: fake.taken(torch.device("cuda", index(device))),
        "max_memory_reserved": lambda device=None: fake.peak,
        "reset_peak_memory_stats": lambda device=None: fake.watch(),
        "synchronize": lambda device=None: None,
        "current_device": lambda: 0,
        "set_per_process_memory_fraction": lambda share, device=None: setattr(fake, "memory", int(share * TOTAL)),
    }
    on_mps: dict[str, Any] = {
        "get_rng_state": lambda: generator_state("mps"),
        "set_rng_state": lambda state: set_generator_state(state, "mps"),
        "manual_seed": lambda seed: fake.generators[0].manual_seed(seed),
        "empty_cache": lambda: None,
    }
    of_tensors = {
        "device": property(fake.place),
        "is_cuda": property(lambda t: fake.place(t).type == "cuda"),
        "is_mps": property(lambda t: fake.place(t).type == "mps"),
        "is_cpu": property(lambda t: fake.place(t) == CPU),
    }
    with contextlib.ExitStack() as stack:
        for name, value in on_cuda.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, value))
        for name, value in on_mps.items():
            stack.enter_context(mock.patch.object(torch.mps, name, value))
        stack.enter_context(mock.patch.object(torch.backends.mps, "is_available", return_value=not cuda))
        for name, value in of_tensors.items():
            stack.enter_context(mock.patch.object(Tensor, name, value, create=True))
        patch = stack.enter_context(pytest.MonkeyPatch.context())  # of mock's, what is imported inside would be lost
        patch.setitem(sys.modules, "onnxruntime", _session(fake))
        calls, engine = _Calls(fake), torch.autograd._engine_run_backward

        def backward(*args: Any, **kwargs: Any) -> Any:
            with calls:  # for the hooks: a mode is off while it handles a call
                return engine(*args, **kwargs)

        stack.enter_context(mock.patch.object(torch.autograd, "_engine_run_backward", backward))
        stack.enter_context(_Kernels(fake))
        stack.enter_context(calls)
        yield fake


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol() -> Iterator[None]:
    """With `-p tests.fake_gpu` every test has two such GPUs."""
    example = torch.nn.Sequential(torch.nn.Linear(1, 1)).eval(), (torch.zeros(1, 1),)
    with warnings.catch_warnings():  # torch 2.11 warns of its own objects
        warnings.simplefilter("ignore")
        # Torch loads what it exports with before there is a GPU.
        torch.onnx.export(*example, dynamo=True, verbose=False)
    with fake_gpu(count=2):
        return (yield)
