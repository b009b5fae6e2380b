"""The values of a start in a live network, in place, in each process those of its own shards; and the digest of them.

The start is a `Result`, a plan, or a file that zero-convert wrote. Which formula a tensor gets was decided for the
whole network; a shard is a block of it. So every layout has the same bits, and filling needs no communication.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from os import PathLike
from typing import Any

import torch
from torch import Tensor, nn

from .artifacts import receipt
from .errors import UsageError
from .formats import naming
from .formats.digests import leaf_digest, weights_digest
from .formats.dtypes import DTYPES, of_torch
from .formats.identity import start_digest
from .graph.shards import Ranges, local_parts, pieces
from .graph.state import EXTRA, hidden_buffers, stored_tensors
from .graph.ties import ties
from .initialization.fill import block
from .initialization.resolve import Tied
from .initialization.scheme import AsConstructed
from .nn.layers import HadamardTransform
from .nn.state_guard import guarded_by
from .records import Assignment, Plan
from .result import Result
from .runtime.patches import one_at_a_time

PIECE = 1 << 22  # elements made at once
SHOWN = 6  # tensors named in an error
WRAPPERS = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})  # parts of names
FLAT = "_flat_param"  # of FSDP1

Block = Callable[[Ranges], Tensor]


@dataclass(frozen=True, slots=True)
class Value:
    """What one tensor gets.

    Attributes:
        shape, dtype: of the whole tensor; no dtype where the start does not fix it.
        block: its values within these ranges, of the dtype.
        tied: the name of the tensor whose memory it shares, or its own.
        at_once: a block costs as much as the whole, so that a part of it is made in one piece.
        stored: state dicts have it.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype | None
    block: Block
    tied: str
    at_once: bool = False
    stored: bool = True


@dataclass(frozen=True, slots=True)
class Digests:
    """Of a live network, hex; each process of a distributed one gets the same.

    Attributes:
        weights: `zc1`.
        architecture: `za1` that the network carries; "" where a module is not a converted one.
        start: `zs1` of both; "" without the architecture.
    """

    weights: str
    architecture: str
    start: str


@one_at_a_time()
@torch.no_grad()
def fill_(module: nn.Module, start: Result | Plan | str | PathLike[str], *, keep: Collection[str] = ()) -> nn.Module:
    """Set every tensor of a live network to the values of a start, in place, and return the network.

    The network is one that the start was made for: `result.module`, `zero_convert.load(FILE)`, the original class where
    the scheme keeps it; on any device, after `to_empty()`, with parameters that are `DTensor`s (FSDP2, tensor
    parallelism) or wrapped by DDP, `torch.compile` or activation checkpointing. Each process computes the part that it
    holds; no process talks to another one. The bits are those of the file that the start is written as.

    Args:
        module: the network; on no error is any of it changed.
        start: where the values come from. A plan has formulas alone: what "is kept as constructed" must be in `keep`. A
            file has the stored tensors alone: buffers that no state dict has must be in `keep`.
        keep: names, or patterns as in "*.inv_freq", of tensors that already hold what they should.

    Raises:
        UsageError: names, shapes or types differ from those of the start; a tensor has no storage, or one that cannot
            be written; tied tensors are apart; the start has no value for a tensor.
    """
    root = _unwrapped(module)
    _reshard(module)
    values = _values_of(start)
    state, hidden = _named(stored_tensors(root)), _named(hidden_buffers(root))
    everything = state | hidden
    kept = {name for name in everything if any(fnmatchcase(name, pattern) for pattern in keep)}
    transforms = {path: part for path, part in _modules(root).items() if isinstance(part, HadamardTransform)}
    computed = {f"{path}.{name}" for path, part in transforms.items() for name in part._buffers}
    wanted = {name: value for name, value in everything.items() if name not in kept | computed}
    _refuse(wanted, values, kept | computed)
    parts = [
        (part, value)
        for name, target in wanted.items()
        for value in [values[name]]
        for whole in local_parts(target, name)
        for part in (pieces(whole, PIECE) if not value.at_once else (whole,))
    ]
    for part, value in parts:
        part.target.copy_(value.block(part.ranges))
    for transform in transforms.values():
        transform.reset_parameters()
    return module


@one_at_a_time()
@torch.no_grad()
def digest(module: nn.Module) -> Digests:
    """The digests of what a live network holds now; equal to those of the file that it would be written as.

    Of a sharded network one tensor after the other is gathered in every process, so that all must call this.

    Raises:
        UsageError: a tensor has no storage, or is of a type that no file of ours holds.
    """
    root = _unwrapped(module)
    _reshard(module)
    state = _named(stored_tensors(root))
    own = _memory_names(state)
    leaves = {}
    for name in dict.fromkeys(own.values()):
        value = _gathered(state[name], name)
        if (row := of_torch(value.dtype)) is None:
            raise UsageError("no file holds this type", where=name, got=str(value.dtype))
        leaves[name] = leaf_digest(name, row.name, tuple(value.shape), _raw(value))
    weights = weights_digest(leaves)
    architecture = next(filter(None, (guarded_by(part) for part in root.modules())), "")
    return Digests(weights, architecture, start_digest(architecture, weights) if architecture else "")


# ---------------------------------------------------------------------------------------------------------------------
# Starts


def _values_of(start: Result | Plan | str | PathLike[str]) -> dict[str, Value]:
    """Name → what it gets, as the start says."""
    if isinstance(start, Result):
        assignments = start.plan.assignments
        values = {a.tensor.name: _formula(a, start.dtypes.get(a.tensor.name)) for a in assignments}
        values |= {name: _copy(value, name, name in values) for name, value in start.constructed.items()}
        return _joined(values, {a.tensor.name: a.formula.name for a in assignments if isinstance(a.formula, Tied)})
    if isinstance(start, Plan):
        made = [a for a in start.assignments if not isinstance(a.formula, AsConstructed)]
        tied = {a.tensor.name: a.formula.name for a in made if isinstance(a.formula, Tied)}
        return _joined({a.tensor.name: _formula(a, None) for a in made}, tied)
    if isinstance(start, (str, PathLike)):
        return _in_file(start)
    raise UsageError(
        "nothing to fill from", got=type(start).__name__, expected="a Result, a Plan, or the path of a file"
    )


def _joined(values: Mapping[str, Value], tied: Mapping[str, str]) -> dict[str, Value]:
    """With the values of tied names taken from the name that has a formula."""
    joined = dict(values)
    for name, owner in tied.items():
        if owner in joined:
            joined[name] = joined[owner]
        else:
            joined.pop(name, None)
    return joined


def _formula(assignment: Assignment, dtype: torch.dtype | None) -> Value:
    """The closed form: made in the type that the tensor had when it was filled, then cast as the file's was."""
    tensor, formula = assignment.tensor, assignment.formula
    made = getattr(torch, str(DTYPES[tensor.dtype].torch))

    def values(ranges: Ranges) -> Tensor:
        return block(formula, ranges, made).to(dtype or made)

    return Value(tensor.shape, dtype or made, values, tensor.name, formula.whole)


def _copy(value: Tensor, name: str, stored: bool) -> Value:
    return Value(tuple(value.shape), value.dtype, lambda ranges: value[_slices(ranges)], name, stored=stored)


def _in_file(path: str | PathLike[str]) -> dict[str, Value]:
    if naming.format_in(path) != "safetensors":
        raise UsageError("networks are filled from safetensors", where=str(path), fix="Convert to FILE.safetensors.")
    from safetensors import safe_open

    metadata = naming.load("safetensors").read_metadata(path)
    recipe = receipt.recipe_from_metadata(metadata, str(path))
    file: Any = safe_open(path, framework="pt")
    values = {}
    for name in file.keys():  # noqa: SIM118  # no dict
        part = file.get_slice(name)
        shape, dtype = tuple(part.get_shape()), getattr(torch, str(DTYPES[part.get_dtype()].torch))

        def read(ranges: Ranges, name: str = name, part: Any = part) -> Tensor:
            values: Tensor = part[_slices(ranges)] if ranges else file.get_tensor(name)
            return values

        values[name] = Value(shape, dtype, read, name)
    return _joined(values, dict(recipe.ties) if recipe is not None else {})


def _slices(ranges: Ranges) -> tuple[slice, ...]:
    return tuple(slice(*pair) for pair in ranges)


# ---------------------------------------------------------------------------------------------------------------------
# Networks


def _unwrapped(module: nn.Module) -> nn.Module:
    """The network inside of DDP or DataParallel."""
    while isinstance(module, nn.parallel.DistributedDataParallel | nn.DataParallel):
        module = module.module
    return module


def _reshard(module: nn.Module) -> None:
    """FSDP2 shows whole parameters after some forwards, and what is written to those is lost."""
    for part in module.modules():
        reshard: Any = getattr(part, "reshard", None)
        if reshard is not None and hasattr(part, "unshard"):
            reshard()


def _plain(name: str) -> str:
    """A name without the wrappers on its way."""
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def _named(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {_plain(name): tensor for name, tensor in tensors.items() if name.rpartition(".")[2] != EXTRA}


def _modules(root: nn.Module) -> dict[str, nn.Module]:
    return {_plain(path): part for path, part in root.named_modules(remove_duplicate=False)}


def _memory_names(state: Mapping[str, Tensor]) -> dict[str, str]:
    """Every name → the name it is stored under. A shard may be empty, so that it has no memory to go by."""
    plain = {name: value for name, value in state.items() if not hasattr(value, "placements")}
    names: dict[int, str] = {}
    for name in sorted(state.keys() - plain.keys(), key=lambda name: name.encode()):
        names.setdefault(id(state[name]), name)
    return {name: ties(plain)[name] if name in plain else names[id(state[name])] for name in state}


def _refuse(wanted: Mapping[str, Tensor], values: Mapping[str, Value], known: Collection[str]) -> None:
    """Raises UsageError if network and start do not fit."""
    if flat := [name for name in wanted if name.rpartition(".")[2] == FLAT]:
        raise _unfit("FSDP1 has flattened the parameters", flat, "Fill before wrapping, or use fully_shard (FSDP2).")
    if strange := [name for name in wanted if name not in values]:
        raise _unfit(
            "the start has no value for tensors of the network",
            strange,
            "Fill the network that the start was made for. What already holds its values: keep=[name, …]. A Result has "
            "all values; a plan lacks those that are kept as constructed, a file the buffers that are not stored.",
        )
    if missing := sorted(n for n, value in values.items() if value.stored and n not in known and n not in wanted):
        raise _unfit("the network lacks tensors of the start", missing, "Fill the network that the start was made for.")
    shapes = [
        f"{name} {tuple(t.shape)}, expected {values[name].shape}"
        for name, t in wanted.items()
        if tuple(t.shape) != values[name].shape
    ]
    if shapes:
        raise _unfit("tensors have other shapes than in the start", shapes, "Fill the network that it was made for.")
    types = [
        f"{name} {t.dtype}, expected {values[name].dtype}"
        for name, t in wanted.items()
        if values[name].dtype not in (None, t.dtype)
    ]
    if types:
        raise _unfit("tensors have other types than in the start", types, "Convert with --dtype, or cast the network.")
    if meta := [name for name, t in wanted.items() if t.is_meta]:
        raise _unfit("tensors have no storage", meta, 'Call module.to_empty(device="cpu") first.')
    memory = _memory_names(dict(wanted))
    owners = {name: values[name].tied for name in wanted}
    apart = {name: own for name, own in owners.items() if own in memory and memory[name] != memory[own]}
    if apart:
        again = "; ".join(f"{_attribute(name)} = {_attribute(own)}" for name, own in apart.items())
        raise _unfit(
            "tied tensors are apart",
            [f"{name} and {own}" for name, own in apart.items()],
            "`to` and `to_empty` take ties apart. Tie them again, before sharding and after to_empty(), with net the "
            f"network: {again}",
        )


def _attribute(name: str) -> str:
    path, _, local = name.rpartition(".")
    return f"net.get_submodule({path!r}).{local}"


def _unfit(what: str, names: list[str], fix: str) -> UsageError:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return UsageError(what, where=", ".join(names[:SHOWN]) + more, got=f"{len(names)} tensors", fix=fix)


def _gathered(value: Tensor, name: str) -> Tensor:
    if value.is_meta:
        raise UsageError("a tensor has no storage", where=name, fix="Fill the network first: zero_convert.fill_.")
    local_parts(value, name)  # raises for what is not stored as numbers
    gather: Any = getattr(value, "full_tensor", None)
    whole: Tensor = value if gather is None else gather()
    return whole.detach().cpu().contiguous()


def _raw(value: Tensor) -> Any:
    return value.reshape(-1).view(torch.uint8).numpy() if value.dtype is not torch.bool else value.numpy()
