"""Random generators of the calling thread: torch's, Python's and numpy's.

Each of them has one default generator for the whole process, whose next number another thread may be about to draw. It
is neither seeded nor read here. Inside `seeded` the thread has generators of its own, and what draws from a default one
draws from them: functions of `random` and `numpy.random` wherever a module holds them (`patches.py`), and operations of
torch by a dispatch key of the thread. A copy of a network that holds such a function holds `redirected()` instead.
"""

from __future__ import annotations

import functools
import random
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from .patches import Shared, replaced

SEED = 20211021  # any constant does
CPU = torch.device("cpu")
_ALIASES = {"ranf": "random_sample", "sample": "random_sample", "seed": "seed"}  # functions of numpy, not methods


class Generators:
    """The generators of one block."""

    def __init__(self, seed: int) -> None:
        self._python, self._numpy, self._torch = random.Random(), np.random.RandomState(), dict[Any, torch.Generator]()
        self._states: States | None = None  # until a number is drawn
        self.of(CPU)
        self.seed(seed)

    def of(self, device: torch.device) -> torch.Generator:
        """torch's generator for the device, about to draw or to be seeded."""
        self._states = None
        if device.type == "cuda" and device.index is None:
            device = torch.device("cuda", torch.cuda.current_device())
        if device not in self._torch:
            self._torch[device] = _like(device)
            self._torch[device].manual_seed(self._torch[CPU].initial_seed())
        return self._torch[device]

    def call(self, library: str, name: str, args: Any, kwargs: Any) -> Any:
        """What a method of Python's or numpy's generator returns."""
        self._states = None
        return getattr(self._python if library == "python" else self._numpy, name)(*args, **kwargs)

    def seed(self, seed: int) -> None:
        """All begin anew."""
        self._python.seed(seed)
        self._numpy.seed(seed)
        self.seed_torch(seed)

    def seed_torch(self, seed: int) -> None:
        self._states = None
        for generator in self._torch.values():
            generator.manual_seed(seed)

    def states(self) -> States:
        if self._states is None:
            of_torch = tuple(generator.get_state() for generator in self._torch.values())
            self._states = States(of_torch, self._python.getstate(), self._numpy.get_state())
        return self._states


class States(NamedTuple):
    """The states of generators: torch's, Python's and numpy's."""

    torch: tuple[Any, ...]
    python: Any
    numpy: Any

    def changed(self, before: States) -> tuple[str, ...]:
        """Names of the libraries of which random numbers were drawn since."""
        return tuple(name for name, one, other in zip(self._fields, self, before, strict=True) if not _same(one, other))


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor | np.ndarray):
        return bool((one == other).all())
    if isinstance(one, tuple) and isinstance(other, tuple):
        return one is other or (len(one) == len(other) and all(map(_same, one, other)))
    return bool(one == other)


class _Stack(threading.local):
    def __init__(self) -> None:
        self.generators: list[Generators] = []


_stack = _Stack()


@contextmanager
def seeded(seed: int = SEED, *, operations: bool = True) -> Iterator[None]:
    """Inside, the calling thread has generators of its own, which begin with the seed. May be nested.

    Args:
        operations: False while torch exports, which computes nothing, and asks for a kernel at each dispatch key.
    """
    with ExitStack() as stack:
        stack.enter_context(_functions.needed())
        if not _stack.generators:
            for owner, name, make in _torch_functions():
                stack.enter_context(replaced(owner, name, make))
        _stack.generators.append(Generators(seed))
        stack.callback(_stack.generators.pop)
        if operations:
            stack.enter_context(torch._C._IncludeDispatchKeyGuard(_key()[0]))
        yield


def seed(seed: int = SEED) -> None:
    """The generators of the innermost block begin anew. Outside of all nothing happens: default ones are not seeded."""
    if _stack.generators:
        _stack.generators[-1].seed(seed)


def states() -> States:
    """Of the generators that the calling thread draws from now: the innermost block's, or the default ones."""
    if _stack.generators:
        return _stack.generators[-1].states()
    return States((torch.get_rng_state(),), random.getstate(), np.random.get_state())


# ---------------------------------------------------------------------------------------------------------------------
# random and numpy.random


class _Redirected:
    """A function of `random` or `numpy.random`, which draws from the thread's own generator where there is one."""

    def __init__(self, original: Callable[..., Any], library: str, name: str) -> None:
        self._original, self._library, self._name = original, library, name
        functools.update_wrapper(self, original)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if _stack.generators:
            return _stack.generators[-1].call(self._library, self._name, args, kwargs)
        return self._original(*args, **kwargs)

    def __deepcopy__(self, memo: Any) -> _Redirected:
        return self

    def __reduce__(self) -> Any:
        return self._original.__reduce__()


@functools.cache
def _redirections() -> dict[int, tuple[Any, _Redirected]]:
    """id of a function that draws from a default generator → the function, what stands for it."""
    found: dict[int, tuple[Any, _Redirected]] = {}
    for library, space, owner in (
        ("python", vars(random), random.seed.__self__),  # type: ignore[attr-defined]
        ("numpy", vars(np.random), np.random.rand.__self__),  # type: ignore[attr-defined]
    ):
        for name, function in space.items():
            alias = _ALIASES.get(name) if library == "numpy" else None
            if alias or getattr(function, "__self__", None) is owner:
                found[id(function)] = function, _Redirected(function, library, alias or name)
    return found


def redirected() -> dict[int, Any]:
    """id of a function → what stands for it: for the memo of a deep copy."""
    return {key: redirection for key, (_, redirection) in _redirections().items()}


_searched: set[str] = set()
_places: list[tuple[dict[str, Any], str]] = []  # globals of a module, and a name that stands for such a function


def _search() -> None:
    """Finds the modules, of those that are new, that hold such functions: `from random import random`."""
    known = _redirections().keys()
    for name in set(sys.modules).difference(_searched):
        space = getattr(sys.modules.get(name), "__dict__", None)
        if type(space) is dict and not known.isdisjoint(map(id, space.values())):
            _places.extend((space, key) for key, value in list(space.items()) if id(value) in known)
        _searched.add(name)


def _put() -> Callable[[], object]:
    _search()
    placed = []
    for space, name in _places:
        original, redirection = _redirections().get(id(space.get(name)), (None, None))
        if redirection is not None:
            space[name] = redirection
            placed.append((space, name, original, redirection))

    def take() -> None:
        for space, name, original, redirection in placed:
            if space.get(name) is redirection:
                space[name] = original

    return take


_functions = Shared(_put)

# ---------------------------------------------------------------------------------------------------------------------
# torch


def _like(device: torch.device) -> torch.Generator:
    """A new generator for the device."""
    if device.type == "cuda":
        torch.cuda.init()  # type: ignore[no-untyped-call]
        return torch.cuda.default_generators[device.index].clone_state()
    return torch.Generator(device)


def _torch_functions() -> Iterator[tuple[Any, str, Callable[[Any], Any]]]:
    """What seeds and reads torch's default generators, and what does it in this thread instead."""
    yield torch.random, "default_generator", lambda _: _DefaultGenerator()
    for module, name in ((torch.cuda, "manual_seed_all"), (torch.xpu, "manual_seed_all"), (torch.mps, "manual_seed")):
        yield module, name, lambda _: lambda seed: _stack.generators[-1].seed_torch(int(seed))
    yield torch.cuda, "get_rng_state", lambda _: lambda device="cuda": _own(device).get_state()
    yield torch.cuda, "set_rng_state", lambda _: lambda state, device="cuda": _own(device).set_state(state)


def _own(device: Any) -> torch.Generator:
    """The thread's own generator for the device, by its number or name."""
    return _stack.generators[-1].of(torch.device("cuda", device) if isinstance(device, int) else torch.device(device))


class _DefaultGenerator:
    """The thread's own generator for the CPU, whichever that is when it is asked."""

    def __getattr__(self, name: str) -> Any:
        return getattr(_stack.generators[-1].of(CPU), name)


# Operations that draw; all others that draw are made of these. Of the first every overload, also without a generator.
_FACTORIES = "rand rand_like randn randn_like randint randint_like randperm"
_RANDOM = """
    bernoulli bernoulli.p bernoulli.Tensor bernoulli.out bernoulli_.Tensor bernoulli_.float uniform_ normal_ random_
    random_.from random_.to exponential_ cauchy_ log_normal_ geometric_ multinomial multinomial.out poisson binomial
    normal.float_float normal.Tensor_float normal.float_Tensor normal.Tensor_Tensor normal.Tensor_float_out
    normal.float_Tensor_out normal.Tensor_Tensor_out rrelu_with_noise rrelu_with_noise_ rrelu_with_noise.out
    _standard_gamma _sample_dirichlet _fused_dropout native_dropout
"""
_KEY = "TESTING_ONLY_GenericMode"  # no tensor has it, and torch itself computes nothing for it


@functools.cache
def _key() -> Any:
    """A dispatch key under which random operations are computed by `_drawn`, and all others as if it were not there.

    The set of such keys is each thread's own. Whatever is made of random operations, dropout in a recurrent layer for
    instance, comes here as well; what draws no number costs nothing.
    """
    library: Any = torch.library
    everything, random_ones = library.Library("_", "IMPL"), library.Library("aten", "IMPL")
    everything.fallback(library.fallthrough_kernel, _KEY)
    for name in (*_factories(), *_RANDOM.split()):
        packet, _, overload = name.partition(".")
        function = getattr(getattr(torch.ops.aten, packet, None), overload or "default", None)
        if function is not None:  # other versions of torch may have others
            random_ones.impl(name, functools.partial(_drawn, function, _with_generator(function)), _KEY)
    key = torch._C._dispatch_key_parse(_KEY)
    torch._ops._HIGHER_ORDER_OP_DEFAULT_FALLTHROUGH_DISPATCH_KEYS.append(key)
    operators: Any = torch._ops._higher_order_ops.values()
    for operator in operators:
        operator.fallthrough(key)
    return key, torch._C.DispatchKeySet(key), everything, random_ones  # which last as long as somebody holds them


def _factories() -> Iterator[str]:
    for packet in _FACTORIES.split():
        for overload in getattr(torch.ops.aten, packet).overloads():
            yield packet if overload == "default" else f"{packet}.{overload}"


def _with_generator(function: Any) -> Any:
    """The overload of the same arguments and a generator; the function itself where there is none, or it is that."""

    def named(overload: Any) -> dict[str, str]:
        return {argument.name: str(argument.type) for argument in overload._schema.arguments}

    wanted = named(function) | {"generator": "Optional[Generator]"}
    overloads = (getattr(function.overloadpacket, name) for name in function.overloadpacket.overloads())
    return next((overload for overload in overloads if named(overload) == wanted), function)


def _drawn(function: Any, overload: Any, *args: Any, **kwargs: Any) -> Any:
    """What the function returns for numbers of the thread's own generator, which the overload takes."""
    given = {**dict(zip((a.name for a in function._schema.arguments), args, strict=False)), **kwargs}
    tensors = [value for value in given.values() if isinstance(value, Tensor)]
    device = torch.device(given.get("device") or (tensors[0].device if tensors else CPU))
    with torch._C._ExcludeDispatchKeyGuard(_key()[1]):
        if device.type == "meta" or any(isinstance(t, FakeTensor) for t in tensors):
            return function(*args, **kwargs)  # draws nothing
        generator = _stack.generators[-1].of(device)
        if function is torch.ops.aten.native_dropout.default:
            return _dropout(generator, *args, **kwargs)
        default: Any = torch.default_generator
        if getattr(given.get("generator"), "_cdata", None) in (None, default._cdata):
            given["generator"] = generator
        return overload(**given)


def _dropout(generator: torch.Generator, x: Tensor, p: float, train: bool | None) -> tuple[Tensor, Tensor]:
    """What `native_dropout` returns, which takes no generator."""
    kept = torch.ones_like(x, dtype=torch.bool)
    if train is False:
        return x.clone(), kept
    kept.bernoulli_(1 - p, generator=generator)
    return x * kept * (1 / (1 - p) if p < 1 else 0.0), kept
