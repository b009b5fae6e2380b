"""What a pickle describes, as symbols: nothing is imported, called or set. Plain values stand for themselves."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


class Symbol:
    """Whatever is no plain value (None, bool, int, float, str, bytes, tuple)."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Global(Symbol):
    """A class or function that a loader would import."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(eq=False, slots=True)
class Sequence(Symbol):
    """A list, or a set where `ordered` is False."""

    items: list[Any] = field(default_factory=list)
    ordered: bool = True


@dataclass(eq=False, slots=True)
class Table(Symbol):
    """A dict: pairs in order. `attributes` says whether it could have any, as an OrderedDict does."""

    pairs: list[tuple[Any, Any]] = field(default_factory=list)
    known: set[tuple[type, Any]] = field(default_factory=set)
    attributes: bool = False

    def get(self, key: str) -> Any:
        """The value of a text key, else None."""
        return next((value for name, value in self.pairs if type(name) is str and name == key), None)


@dataclass(eq=False, slots=True)
class Call(Symbol):
    """The result of a call that a loader would make, and what it would do to that result."""

    function: Any
    arguments: tuple[Any, ...]
    items: list[Any] = field(default_factory=list)
    pairs: list[tuple[Any, Any]] = field(default_factory=list)
    state: Any = None


@dataclass(frozen=True, slots=True)
class StoredIn(Symbol):
    """A storage: `count` elements of `dtype` (None: of bytes, whose meaning the tensor tells) under a key."""

    key: str
    dtype: str | None
    count: int
    first: int = 0  # element that a view of it begins with


@dataclass(frozen=True, slots=True)
class Array(Symbol):
    """A tensor: a view of a storage; strides and offset in elements."""

    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    storage: StoredIn | None
    offset: int = 0
    kind: str = ""
    flipped: str = ""  # as `Tensor.flipped`


@dataclass(eq=False, slots=True)
class Parts(Symbol):
    """A tensor that is no plain one: what it is, and its parts by name; None is a part that is called as the whole."""

    what: str
    pairs: list[tuple[Any, Any]]
