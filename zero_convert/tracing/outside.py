"""Which tensors outside of the state dict a forward reads: found in one run, and refused.

A conversion fills the state dict, and a file holds it. A layer in a plain list, or one that the forward makes anew,
would be in neither: the file would lack weights of the network. So each is named, with what registers it. A plain
tensor that is constant is no weight: it stays what it is. After a constructor in which random numbers are NaN, what
holds no NaN is constant; of a module that exists already nobody can tell, unless its values are few or in order.

What the forward never reads (a teacher in a list, a reference to a parent) is no part of the network.
"""

from __future__ import annotations

import functools
import inspect
import os
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import CodeType, FrameType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

from zero_convert.graph.copies import copy_of
from zero_convert.graph.example_values import reference_tensor
from zero_convert.graph.kinds import kept_whole
from zero_convert.graph.unregistered import Outside, find, registered, storage
from zero_convert.runtime import rng
from zero_convert.runtime.eager import eager
from zero_convert.runtime.messages import without_warnings
from zero_convert.runtime.source_lines import spelled

from ..errors import CoverageError
from .shapes import invoke, stand_in
from .side_effects import restored

Inputs = Sequence[Any] | Mapping[str, Any]
SHOWN = 4
FEW = 16  # different values: a mask, a kernel of small numbers
MANY, DIGITS = 256, 5  # numbers that somebody wrote out, and how long each may be
_REMEMBERED = (functools.cached_property, type(functools.lru_cache(print)))
_LITERALS = frozenset({"lift_fresh", "lift_fresh_copy", "lift"})  # of `torch.tensor(…)`
_FOLDERS = tuple(f"{os.path.dirname(os.path.realpath(inspect.getfile(each)))}{os.sep}" for each in (torch,))
_OURS = os.path.dirname(os.path.dirname(os.path.realpath(__file__))) + os.sep


@dataclass(frozen=True)
class Facts:
    """What is known of how the module was made.

    Attributes:
        trusted: NaN marks what its constructor drew, and nothing was drawn that NaN could not mark.
        drawn: names of tensors that it drew, and that cannot be NaN.
        constant: names of plain tensors that are known to be constant.
    """

    trusted: bool
    drawn: Collection[str] = ()
    constant: Collection[str] = ()


def is_suspicious(module: nn.Module) -> bool:
    """Whether the module reaches tensors outside of its state dict, or a layer's own forward may make some."""
    return bool(find(module)) or any(_makes_layers(part) or _remembers(part) for part in module.modules())


@eager()
def refuse_outside(module: nn.Module, inputs: Inputs, facts: Facts) -> tuple[str, ...]:
    """Notes on what the module holds outside of its state dict, and its forward does not read.

    Raises:
        CoverageError: the forward reads weights there, or tensors that a constructor drew.
    """
    found = find(module)
    held = {each.name: each for each in found}
    seen = _watched(module, inputs)
    if seen is None:
        return ()
    wrong = [each for name, each in held.items() if name in seen.read and _is_weight(each, facts)]
    lines = _spelled_places(wrong)
    fixes = [_remedy(each) for each in wrong]
    for place in seen.made:
        lines.append(f"a layer that the forward makes ({place})")
        fixes.append("Make the layer in the constructor and assign it to an attribute.")
    for name in seen.kept:
        lines.append(f"a random tensor that the forward makes and keeps ({name})")
        fixes.append("Draw it in the constructor: self.register_buffer(NAME, …), or nn.Parameter(…).")
    for place, tensor in seen.strangers:
        drawn = storage(tensor) in seen.random or _is_drawn(tensor, trusted=True)
        if isinstance(tensor, nn.Parameter) or drawn:
            lines.append(f"a tensor that no attribute of the model holds ({place})")
            fixes.append("Register it: self.register_buffer(…), or self.NAME = nn.Parameter(…).")
    if lines:
        guessed = [each for each in wrong if not each.weight and not facts.trusted]
        raise CoverageError(
            "the forward reads weights that are not in the state dict",
            where=", ".join(lines[:SHOWN]) + (" …" if len(lines) > SHOWN else ""),
            got="values that no file would hold" + (", and that may have been drawn" if guessed else ""),
            expected="weights that the module registers",
            fix=" ".join(dict.fromkeys(fixes)),
        )
    idle = [each.name for each in found if each.weight and each.name not in seen.read]
    if not idle:
        return ()
    which = ", ".join(idle[:SHOWN]) + (" …" if len(idle) > SHOWN else "")
    return (f"not part of the network, as neither state dict nor forward knows them: {which}",)


def _spelled_places(wrong: Sequence[Outside]) -> list[str]:
    """One line for each attribute: its first tensor, how many more, what holds them, and the place."""
    lines = []
    for key in dict.fromkeys((each.attribute, each.place) for each in wrong):
        first, *more = [each for each in wrong if (each.attribute, each.place) == key]
        kind = {"attribute": "", "object": " in an object"}.get(first.holder, f" in a {first.holder}")
        what = f"{first.layer or 'a tensor'}{kind}"
        count = f" and {len(more)} more" if more else ""
        lines.append(f"{first.name}{count}: {what}{', ' if first.place else ''}{first.place}")
    return lines


def _remedy(each: Outside) -> str:
    name = each.attribute
    if not each.layer:
        if each.holder == "attribute":
            return f'self.register_buffer("{name}", …), or self.{name} = nn.Parameter(…) if it is to be trained.'
        if each.weight and each.holder in ("list", "tuple", "dict"):
            kind = "ParameterDict" if each.holder == "dict" else "ParameterList"
            return f"self.{name} = nn.{kind}(…), or self.register_buffer for each tensor."
        return (
            "self.register_buffer(NAME, …) in the constructor, or self.NAME = nn.Parameter(…) if it is to be trained."
        )
    container = {"list": "ModuleList", "tuple": "ModuleList", "dict": "ModuleDict"}.get(each.holder)
    if container:
        return f"self.{name} = nn.{container}(…) registers the layers."
    return "Assign the layer to an attribute of the module in the constructor: self.NAME = layer."


def _is_weight(each: Outside, facts: Facts) -> bool:
    return (
        each.weight or each.name in facts.drawn or _is_drawn(each.tensor, facts.trusted or each.name in facts.constant)
    )


def equal_outside(module: nn.Module, twin: nn.Module) -> tuple[str, ...]:
    """Names of the tensors outside of the state dict that another module of the same builder holds as well.

    Where random numbers are NaN in the twin, none of them was drawn.
    """
    there = {each.name: each.tensor for each in find(twin)}
    return tuple(
        each.name
        for each in find(module)
        if not each.weight and each.name in there and torch.equal(each.tensor, there[each.name])
    )


def _is_drawn(tensor: Tensor, trusted: bool) -> bool:
    """Whether the values may come from a generator."""
    if tensor.layout is not torch.strided or not (tensor.is_floating_point() or tensor.is_complex()):
        return False
    value = tensor.detach().float() if tensor.element_size() == 1 else tensor.detach()
    if value.is_complex():
        value = torch.view_as_real(value.resolve_conj())
    if bool(torch.isnan(value).any()):
        return True
    if trusted or value.numel() < 2:
        return False
    flat = value.flatten()
    if _is_written_out(flat):
        return False
    ordered = bool((flat.diff() >= 0).all()) or bool((flat.diff() <= 0).all())
    return (
        not ordered and len(torch.unique(flat)) > min(FEW, flat.numel() // 2) and not bool((flat == flat.round()).all())
    )


def _is_written_out(values: Tensor) -> bool:
    """Whether all values are short decimal numbers, as people write them: 0.485, 0.229."""
    distinct = torch.unique(values.float())[: MANY + 1]
    spelled = [np.format_float_scientific(x, unique=True, trim="-").partition("e")[0] for x in distinct.numpy()]
    return len(spelled) <= MANY and all(sum(map(str.isdigit, text)) <= DIGITS for text in spelled)


# ---------------------------------------------------------------------------------------------------------------------


@dataclass
class _Seen:
    """What a forward read.

    Attributes:
        read: names of tensors outside of the state dict.
        made: places of layers that it made itself.
        strangers: places and values of tensors that were there before it, and that nothing of the model reaches.
        kept: names and places of random tensors that it made and that the model keeps, for the next forward.
        random: storage → tensor made of random numbers of the forward; held, so that no other gets its place.
    """

    read: set[str] = field(default_factory=set)
    made: dict[str, None] = field(default_factory=dict)
    strangers: list[tuple[str, Tensor]] = field(default_factory=list)
    kept: dict[str, None] = field(default_factory=dict)
    random: dict[int, Tensor] = field(default_factory=dict)


class _Reader(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees the tensors that operations read. `known` and `names` tell them by their storages."""

    def __init__(self, known: set[int], names: Mapping[int, str], seen: _Seen) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._known, self._names, self._seen = known, names, seen
        self._made: set[int] = set()  # by operations that read nothing known
        self._derived: set[int] = set()
        self._strange: set[int] = set()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        read = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, Tensor)]
        literal = func.overloadpacket.__name__ in _LITERALS
        carried = [self._look(tensor, literal) for tensor in read]
        out = func(*args, **kwargs)
        random = torch.Tag.nondeterministic_seeded in func.tags or any(storage(t) in self._seen.random for t in read)
        for tensor in tree_flatten(out)[0]:
            if isinstance(tensor, Tensor):
                key = storage(tensor)
                if random and not any(carried):
                    self._seen.random[key] = tensor
                if any(carried):
                    self._derived.add(key)
                    self._made.discard(key)
                elif key not in self._known and key not in self._names:
                    self._made.add(key)
                    self._derived.discard(key)
        return out

    def _look(self, tensor: Tensor, literal: bool) -> bool:
        """Whether the tensor comes from an input or from a tensor that was there before."""
        key = storage(tensor)
        if key in self._names:
            self._seen.read.add(self._names[key])
            return True
        if key in self._known or key in self._derived:
            return True
        if key in self._made:
            if isinstance(tensor, nn.Parameter) and tensor.numel():
                self._initialized(tensor)
            return False
        if literal:
            self._made.add(key)
            return False
        if key not in self._strange and tensor.dim():
            self._strange.add(key)
            self._seen.strangers.append((_place(), tensor))
        return True

    def _initialized(self, tensor: Tensor) -> None:
        """A parameter of this forward is read: by its initialization, or by the forward."""
        place = _place(skip_init=True)
        if place:
            self._seen.made.setdefault(place)


def _place(skip_init: bool = False) -> str:
    """`net.py:12` of the innermost frame outside of torch and of this package; "" while a layer is constructed."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        file = os.path.realpath(code.co_filename)
        if skip_init and code.co_name in ("__init__", "reset_parameters"):
            return ""
        if not file.startswith((*_FOLDERS, _OURS)) and not code.co_filename.startswith("<"):
            return f"{spelled(file)}:{frame.f_lineno}"
        frame = frame.f_back
    return "the model's own forward"


def _watched(module: nn.Module, inputs: Inputs) -> _Seen | None:
    """What a copy's forward reads, in training and evaluation mode; None where the module cannot be copied."""
    try:
        twin = copy_of(module)
    except Exception:  # it is converted, or refused, as it stands
        return None
    seen = _Seen()
    outside = find(twin)
    names = {storage(each.tensor): each.name for each in outside}
    known = registered(module) | registered(twin)
    stand_in(twin)
    with without_warnings(), _filled(outside), torch.no_grad(), rng.seeded():
        for training in (True, False):
            given = tree_map(lambda x: x.detach().clone() if isinstance(x, Tensor) else x, inputs)
            shown = {storage(x) for x in tree_flatten(given)[0] if isinstance(x, Tensor)}
            twin.train(training)
            try:
                with restored(twin), _Reader(known | shown, names, seen):
                    invoke(twin, given)
                    for each in find(twin) if seen.random else ():
                        if storage(each.tensor) in seen.random and each.tensor.dim():
                            seen.kept.setdefault(f"{each.name}{', ' if each.place else ''}{each.place}")
            except (Exception, SystemExit):  # tracing says what is wrong with it
                continue
    return seen


@contextmanager
def _filled(outside: Sequence[Outside]) -> Iterator[None]:
    """Made-up numbers where NaN stands, so that the forward runs; afterwards the values of before."""
    kept = [(each.tensor, each.tensor.detach().clone()) for each in outside if each.tensor.layout is torch.strided]
    with torch.no_grad():
        for tensor, value in kept:
            if (value.is_floating_point() or value.is_complex()) and bool(torch.isnan(value.float().sum())):
                tensor.copy_(reference_tensor(tuple(value.shape), torch.float32))
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, value in kept:
                tensor.copy_(value)


def _remembers(module: nn.Module) -> bool:
    """Whether a class of the module keeps what a function made the first time."""
    own = [base for base in type(module).__mro__ if not base.__module__.startswith(("torch.", "builtins"))]
    return any(isinstance(value, _REMEMBERED) for base in own for value in vars(base).values())


def _makes_layers(module: nn.Module) -> bool:
    """Whether the forward of a layer that tracing keeps whole names classes of layers: it may make them."""
    forward = type(module).forward
    if not kept_whole(module) or (forward.__module__ or "").startswith("torch."):
        return False
    return isinstance(code := getattr(forward, "__code__", None), CodeType) and any(map(_is_layer, code.co_names))


def _is_layer(name: str) -> bool:
    found = getattr(nn, name, None)
    return isinstance(found, type) and issubclass(found, nn.Module) and found is not nn.Module
