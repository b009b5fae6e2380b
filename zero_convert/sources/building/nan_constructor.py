"""Build a network without drawing a single random number: every random fill writes NaN instead.

Afterwards "is it NaN?" separates the tensors a scheme must fill from the constants a constructor fixed
(layer scale, logit scale, index tables), and nothing random can slip through unseen.

How it works. A dispatch mode sees every aten operation of the constructor:

1. a random operation (`uniform_`, `randn`, …) and uninitialised memory (`empty`) give NaN in floating tensors;
2. integers cannot be NaN. A drawn integer gets a fixed value (0, the lower bound, or the identity permutation)
   and its storage is remembered as *drawn*, and so is every integer computed from a drawn or a NaN tensor;
   a float computed from a drawn integer is NaN again. `NanFill.drawn_names` finds what is left in a module;
3. factorizations of NaN matrices (the QR of `orthogonal_`, SVD, …) are not computed: LAPACK may raise or stall;
4. reading such a value into Python (`if torch.rand(1) < 0.5`) cannot be followed and becomes a note;
5. Python's `random` and numpy's generators are seeded with 0 meanwhile, with a note if they were used, and a second
   construction with another seed shows what they made (`other_draws.py`);
6. large tensors cost nothing before they are written (`runtime/nan_memory.py`); elsewhere than on Linux, a tensor that
   there is no room for is refused (`memory.py`).

No default generator is seeded or read, and other threads construct as usual. This file knows torch only; it neither
finds nor names models.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from zero_convert.errors import LoadError
from zero_convert.graph import unregistered
from zero_convert.runtime import nan_memory, rng
from zero_convert.runtime.patches import replaced
from zero_convert.runtime.threads import one_thread

from .memory import require
from .other_draws import numpy_generators

_RANDOM_NAMES = """
    uniform normal normal_functional rand randn rand_like randn_like randint randint_like randperm random
    bernoulli exponential cauchy log_normal geometric poisson binomial multinomial _standard_gamma
    _sample_dirichlet native_dropout _fused_dropout _philox_uniform _philox_normal _philox_randint
"""
RANDOM = frozenset(_RANDOM_NAMES.split())
EMPTY = frozenset(["empty", "empty_like", "empty_strided", "empty_permuted", "new_empty", "new_empty_strided"])
FACTORIZATION = frozenset(
    ["geqrf", "orgqr", "ormqr", "cholesky_solve", "cholesky_inverse", "lu_unpack", "triangular_solve"]
)
NO_FACTORIZATION = frozenset(
    ["linalg_vector_norm", "linalg_cross", "linalg_vecdot", "linalg_diagonal", "linalg_matmul", "_linalg_check_errors"]
)

# A constructor that reads this many random values into Python is redrawing until a condition holds.
MAX_READS = 10_000

_PLAIN, _EMPTY, _FILL, _DRAW, _FACTOR, _READ = range(6)


class NanFill(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """What was drawn while the mode was active.

    Attributes:
        notes: one sentence per kind of randomness that NaN cannot carry.
        seeded: whether Python's or numpy's generator was used, which NaN cannot mark.
    """

    def __init__(self, write: bool = True) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.notes: list[str] = []
        self.seeded = False
        self._write = write
        self._kinds: dict[Any, int] = {}
        self._drawn: dict[int, Tensor] = {}  # storage → a tensor that keeps it alive
        self._reads = 0

    def drawn_names(self, module: nn.Module) -> tuple[str, ...]:
        """Names of the module's integer tensors, registered or not, whose values came from a random draw, sorted."""
        outside = ((each.name, each.tensor) for each in unregistered.find(module))
        tensors = (*_tensors(module), *outside)
        return tuple(sorted(n for n, t in tensors if not _can_be_nan(t) and _storage(t) in self._drawn))

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """False: nothing is compiled in here, and torch need not load torch.compile to see to that."""
        return False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        kind = self._kinds.get(func)
        if kind is None:
            kind = self._kinds[func] = _classify(func)
        if kind == _PLAIN:
            out = func(*args, **kwargs)
            if self._write and (self._drawn or not _all_floating(out)):
                self._follow(func, args, kwargs, out)
            return out
        if kind == _EMPTY:
            out = func(*args, **kwargs)
            if not _can_be_nan(out):
                return out if out.is_quantized else out.fill_(0)
            if not self._write:
                return out
            return self._new(out)
        if kind == _FILL:
            written = _written(func, args, kwargs)
            for tensor in written:
                self._fill(tensor, _bound(func, args, kwargs))
            return written[0] if len(func._schema.returns) == 1 else tuple(written)
        if kind == _DRAW:
            return self._draw(func, args, kwargs)
        if kind == _FACTOR:
            return self._factor(func, args, kwargs)
        out = func(*args, **kwargs)  # _READ
        if self._write and self._suspicious(args[0]):
            self._read()
        return out

    def _fill(self, tensor: Tensor, value: int = 0, derived: bool = False) -> Tensor:
        if _can_be_nan(tensor):
            if self._write and not nan_memory.restore(tensor):
                tensor.fill_(torch.nan)
        else:
            tensor.fill_(value)
            self._remember(tensor, derived)
        return tensor

    def _new(self, empty: Tensor) -> Tensor:
        """NaN of the sizes and type of a tensor that nothing was written to."""
        if (made := nan_memory.like(empty)) is not None:
            return made
        require(empty.numel() * empty.element_size())
        return empty.fill_(torch.nan)

    def _draw(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        given = _given(func, args, kwargs)
        name = func.overloadpacket.__name__
        options = {k: given[k] for k in ("dtype", "device", "layout") if given.get(k) is not None}
        if name == "randperm":
            out = torch.arange(given["n"], **{"dtype": torch.int64, **options})
            self._remember(out)
            return out
        if name == "native_dropout":
            if not given["train"]:
                return func(*args, **kwargs)
            source = given["input"]
            mask = torch.ones_like(source, dtype=torch.bool)
            self._remember(mask)
            return self._fill(torch.empty_like(source)), mask
        if name == "_fused_dropout":
            source = given["self"]
            return self._fill(torch.empty_like(source)), self._fill(torch.empty_like(source, dtype=torch.uint8))
        if name == "multinomial":
            source = given["self"]
            out = torch.empty((*source.shape[:-1], given["num_samples"]), dtype=torch.int64, device=source.device)
        elif "size" in given:
            integers = name in ("randint", "_philox_randint")
            out = torch.empty(given["size"], **({"dtype": torch.int64} if integers else {}) | options)
        else:
            sources = [value for value in given.values() if isinstance(value, Tensor)]
            shape = torch.broadcast_shapes(*(source.shape for source in sources))  # type: ignore[no-untyped-call]
            out = sources[0].new_empty(shape, **options)
        if self._write and _can_be_nan(out):
            return self._new(out)
        return self._fill(out, _bound(func, args, kwargs))

    def _factor(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        inputs = list(_flatten((args, kwargs)))
        if self._write and not any(map(self._suspicious, inputs)):
            return func(*args, **kwargs)
        try:
            shapes = func(*_on_meta(args), **_on_meta(kwargs))
        except (NotImplementedError, RuntimeError):
            return func(*args, **kwargs)
        device = inputs[0].device
        made = [
            self._fill(torch.empty_strided(s.shape, s.stride(), dtype=s.dtype, device=device), derived=True)
            for s in _flatten(shapes)
        ]
        return made[0] if isinstance(shapes, Tensor) else tuple(made)

    def _follow(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        results = list(_flatten(out))
        if not results:
            return
        inputs = list(_flatten((args, kwargs)))
        carried = any(_storage(t) in self._drawn for t in inputs)
        if not carried and all(map(_can_be_nan, results)):
            return
        if func._schema.is_mutable:
            results = _written(func, args, kwargs) or results
        else:
            aliased = {_storage(t) for t in inputs}
            results = [t for t in results if _storage(t) not in aliased]  # a view changes nothing
        for tensor in results:
            if _can_be_nan(tensor):
                if carried:
                    tensor.fill_(torch.nan)
            elif carried or any(map(_has_nan, inputs)):
                self._remember(tensor, derived=True)

    def _remember(self, tensor: Tensor, derived: bool = False) -> None:
        key = _storage(tensor)
        if key is not None:
            self._drawn[key] = tensor.detach()
        if not derived:
            self.note("the constructor draws random integers; each got a fixed value")

    def _read(self) -> None:
        self.note("the constructor reads a random number into Python; it saw NaN, or a fixed value for an integer")
        self._reads += 1
        if self._reads > MAX_READS:
            raise LoadError(
                "the constructor draws random numbers until they satisfy a condition",
                got=f"{MAX_READS} reads of values that are not random here",
                fix="Draw once, or use torch.nn.init.trunc_normal_.",
            )

    def note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)

    def _suspicious(self, tensor: Tensor) -> bool:
        return _storage(tensor) in self._drawn or _has_nan(tensor)


@contextmanager
def nan_filled(shift: int = 0) -> Iterator[NanFill]:
    """Random fills inside the block write NaN. Yields the `NanFill`, which knows what NaN cannot carry.

    Only in the calling thread.

    Args:
        shift: is added to the seeds of Python's and numpy's generators.

    Raises:
        LoadError: from inside the block, when a constructor redraws until a condition holds.
    """
    fill = NanFill()
    with one_thread(), _generators(fill, shift), numpy_generators(fill, shift), _quick_inits(), fill:
        yield fill


@contextmanager
def skeleton() -> Iterator[None]:
    """Random fills inside the block are skipped: shapes, buffers and structure only.

    Floating values are whatever memory held, so nothing may be read from them. A skeleton of any size costs
    almost no time or memory, because untouched pages are never committed.
    """
    fill = NanFill(write=False)
    with one_thread(), _generators(fill, 0), _quick_inits(), fill:
        yield


def nan_filled_names(module: nn.Module) -> frozenset[str]:
    """Names of the parameters and buffers (persistent or not, every alias) that hold at least one NaN.

    One pass over memory at most: a NaN in front decides at once, a finite sum proves that there is none.
    """
    with one_thread():
        return frozenset(name for name, tensor in _tensors(module) if _has_nan(tensor))


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters(remove_duplicate=False)
    yield from module.named_buffers(remove_duplicate=False)


def _has_nan(tensor: Tensor) -> bool:
    if (
        not _can_be_nan(tensor)
        or tensor.is_meta
        or tensor.layout != torch.strided
        or nn.parameter.is_lazy(tensor)
        or tensor.numel() == 0
    ):
        return False
    tensor = tensor.detach()
    if tensor.element_size() == 1:  # 8-bit floats have no arithmetic
        tensor = tensor.float()
    first = tensor[(0,) * tensor.dim()].item()
    if first != first:
        return True
    total = tensor.sum().item()
    return total != total and bool(torch.isnan(tensor).any())  # inf - inf is NaN as well


def _can_be_nan(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def _all_floating(out: Any) -> bool:
    return out.is_floating_point() if isinstance(out, Tensor) else not isinstance(out, (tuple, list))


def _storage(tensor: Tensor) -> int | None:
    try:
        key: int = tensor.untyped_storage()._cdata
    except (NotImplementedError, RuntimeError):  # sparse layouts have none
        return None
    return key


def _classify(func: Any) -> int:
    namespace, name = func.namespace, func.overloadpacket.__name__
    if namespace != "aten":
        return _PLAIN
    if name == "_local_scalar_dense":
        return _READ
    if name in EMPTY:
        return _EMPTY
    if name.rstrip("_") in RANDOM:
        return _FILL if func._schema.is_mutable else _DRAW
    if name in FACTORIZATION or (name.lstrip("_").startswith("linalg_") and name not in NO_FACTORIZATION):
        return _PLAIN if func._schema.is_mutable else _FACTOR
    return _PLAIN


def _given(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    names = [argument.name for argument in func._schema.arguments]
    return {**dict(zip(names, args, strict=False)), **kwargs}


def _written(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    given = _given(func, args, kwargs)
    writes = (a.name for a in func._schema.arguments if a.alias_info is not None and a.alias_info.is_write)
    return list(_flatten([given[name] for name in writes if name in given]))


def _bound(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    """The smallest integer that the draw could have given."""
    given = _given(func, args, kwargs)
    low = given.get("low", given.get("from", 0))
    return int(low) if isinstance(low, int) else 0


def _flatten(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _flatten(item)
    elif isinstance(value, dict):
        yield from _flatten(list(value.values()))


def _on_meta(value: Any) -> Any:
    if isinstance(value, Tensor):
        return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")
    if isinstance(value, (tuple, list)):
        return type(value)(map(_on_meta, value))
    if isinstance(value, dict):
        return {key: _on_meta(item) for key, item in value.items()}
    return value


@contextmanager
def _generators(fill: NanFill, seed: int) -> Iterator[None]:
    """Python's and numpy's generators begin with the seed; a note says which was used."""
    with rng.seeded(seed):
        before = rng.states()
        try:
            yield
        finally:
            used = rng.states().changed(before)
            fill.seeded |= "python" in used or "numpy" in used
            if "python" in used:
                fill.note("the constructor draws from Python's random; it was seeded with 0")
            if "numpy" in used:
                fill.note("the constructor draws from numpy's global generator; it was seeded with 0")


@contextmanager
def _quick_inits() -> Iterator[None]:
    """torch's initializers that need several passes over a tensor become one pass.

    For speed only: without this the dispatch mode gives the same NaN.
    """
    with ExitStack() as stack:
        for name in ("trunc_normal_", "_no_grad_trunc_normal_", "orthogonal_", "sparse_"):
            if hasattr(nn.init, name):
                stack.enter_context(replaced(nn.init, name, lambda _: _quick))
        yield


def _quick(tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    with torch.no_grad():
        return tensor.uniform_()
