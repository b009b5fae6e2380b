"""Changes of the process that only the calling thread sees.

What is read by name from a class or module (`nn.Module.__call__`, `sys.stdout`) is one thing for all threads. In its
place stands a dispatcher while any thread needs one: the thread's own replacement in a thread that has one, what was
there before in all others. Blocks of several threads begin and end in any order. No torch here.
"""

from __future__ import annotations

import builtins
import functools
import os
import threading
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

_places = threading.RLock()  # held while something is put in place or taken away, never longer
_work = threading.RLock()
_NONE: Any = object()


@contextmanager
def one_at_a_time() -> Iterator[None]:
    """No two threads are in such a block at once. The thread that is in one may enter another. Also a decorator."""
    with _work:
        yield


class Shared:
    """Something that is in the process while at least one block, of any thread, needs it.

    Args:
        put: puts it there, and returns what takes it away.
    """

    def __init__(self, put: Callable[[], Callable[[], object]]) -> None:
        self._put, self._users = put, 0
        self._take: Callable[[], object] = lambda: None

    @contextmanager
    def needed(self) -> Iterator[None]:
        with _places:
            if not self._users:
                self._take = self._put()
            self._users += 1
        try:
            yield
        finally:
            with _places:
                self._users -= 1
                if not self._users:
                    self._take()


class _Own(threading.local):
    value: Any = _NONE


class _Place(Shared):
    """An attribute, or an entry of a dict, that threads replace."""

    def __init__(self, owner: Any, name: str) -> None:
        super().__init__(self._place)
        self.owner, self.name, self.own = owner, name, _Own()
        self.original: Any = None

    def _place(self) -> Callable[[], object]:
        before = _held(self.owner, self.name)
        self.original = getattr(self.owner, self.name, None) if before is _NONE else before
        if before is _NONE and isinstance(self.owner, dict):
            self.original = getattr(builtins, self.name)
        of_class = isinstance(before, classmethod | types.ClassMethodDescriptorType)
        if of_class:
            self.original = lambda cls, *args, **kwargs: before.__get__(None, cls)(*args, **kwargs)
        placed: Any = _function(self.original, self.own) if callable(self.original) else _Value(self.original, self.own)
        if of_class:
            placed = classmethod(placed)
        _hold(self.owner, self.name, placed)

        def take() -> None:
            del _known[id(self.owner), self.name]
            if _held(self.owner, self.name) is placed:  # else another patch is above it, and the dispatcher stays
                _hold(self.owner, self.name, before)

        return take


_known: dict[tuple[int, str], _Place] = {}


@contextmanager
def replaced(owner: Any, name: str, make: Callable[[Any], Any]) -> Iterator[None]:
    """In this thread, `owner.name` is `make(what it was)`.

    Args:
        owner: a class, a module, any other object with attributes, or the dict of a module's globals.
        make: given the function or value that this thread had there, of a class method the function that takes the
            class first.
    """
    with _places:
        place = _known.get((id(owner), name)) or _known.setdefault((id(owner), name), _Place(owner, name))
        needed = place.needed()
        needed.__enter__()
    before = place.own.value
    try:
        place.own.value = make(place.original if before is _NONE else before)
        yield
    finally:
        place.own.value = before
        needed.__exit__(None, None, None)


def _held(owner: Any, name: str) -> Any:
    return (owner if isinstance(owner, dict) else vars(owner)).get(name, _NONE)


def _hold(owner: Any, name: str, value: Any) -> None:
    if isinstance(owner, dict):
        owner.pop(name) if value is _NONE else owner.update({name: value})
    elif value is _NONE:
        delattr(owner, name)
    else:
        setattr(owner, name, value)


def _function(original: Callable[..., Any], own: _Own) -> Callable[..., Any]:
    @functools.wraps(original, updated=())
    def dispatch(*args: Any, **kwargs: Any) -> Any:
        mine = own.value
        return (original if mine is _NONE else mine)(*args, **kwargs)

    return dispatch


class _Value:
    """A value that each thread has for itself: its attributes, and whether it is true."""

    def __init__(self, original: Any, own: _Own) -> None:
        vars(self).update(_original=original, _own=own)

    def _mine(self) -> Any:
        return self._original if self._own.value is _NONE else self._own.value

    def __getattr__(self, name: str) -> Any:
        return getattr(self._mine(), name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._mine(), name, value)

    def __bool__(self) -> bool:
        return bool(self._mine())


def _free() -> None:
    """In a forked process no other thread holds the locks."""
    global _places, _work
    _places, _work = threading.RLock(), threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_free)
