"""Numbers that remember where they came from: sizes of tensors, and what a forward computes from them.

While a forward runs on example values, `x.shape[0] * 2` is the number 8 for every test that the code makes, and at the
same time the expression `x.shape[0] * 2` where it ends up as an argument: so control flow follows the example, and
sizes stay free. What leaves this arithmetic (`int(…)`, `range`, a hash) is a plain number from there on.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import fx

Source = Callable[[], fx.Node]
_recording: list[fx.Graph] = []  # the graph that is recorded now is the last


@contextmanager
def sizes_of(graph: fx.Graph) -> Iterator[None]:
    """While it lasts, sizes belong to this graph; one of another graph, out of somebody's cache, is a plain number."""
    _recording.append(graph)
    try:
        yield
    finally:
        _recording.pop()


class _Traced:
    """What `Size` and `Real` share: the node of the value, made when an operation asks for it."""

    _source: Source
    _made: fx.Node | None
    _graph: fx.Graph | None

    @property
    def lives(self) -> bool:
        """Whether the number belongs to the graph that is recorded now."""
        return bool(_recording) and self._graph is _recording[-1]

    def node(self) -> fx.Node:
        if self._made is None:
            self._made = self._source()
        return self._made

    def plain(self) -> int | float:
        return int(self) if isinstance(self, int) else float(self)  # type: ignore[arg-type]


class Size(int, _Traced):
    """A whole number with a source."""

    def __new__(cls, value: int, source: Source) -> Size:
        made = super().__new__(cls, value)
        made._source, made._made = source, None
        made._graph = _recording[-1] if _recording else None
        return made

    def __reduce__(self) -> tuple[Any, ...]:
        return int, (int(self),)


class Real(float, _Traced):
    """A floating number with a source; rounding it gives a `Size`."""

    def __new__(cls, value: float, source: Source) -> Real:
        made = super().__new__(cls, value)
        made._source, made._made = source, None
        made._graph = _recording[-1] if _recording else None
        return made

    def __reduce__(self) -> tuple[Any, ...]:
        return float, (float(self),)


def argument(value: _Traced) -> fx.Node | int | float:
    """The number as an argument of a node."""
    return value.node() if value.lives else value.plain()


def traced(value: Any, source: Source) -> Any:
    """The number with its source; anything else as it is."""
    if type(value) is int:
        return Size(value, source)
    return Real(value, source) if type(value) is float else value


def _operation(name: str, function: Callable[..., Any], cls: type, swap: bool) -> Callable[..., Any]:
    plain = getattr(cls, name)

    def method(self: Any, *others: Any) -> Any:
        value = plain(self, *others)
        if value is NotImplemented:
            return value
        operands = (*others, self) if swap else (self, *others)
        if not any(isinstance(o, _Traced) and o.lives for o in operands):
            return value
        return traced(value, lambda: _call(function, operands))

    method.__name__ = name
    return method


def _call(function: Callable[..., Any], operands: tuple[Any, ...]) -> fx.Node:
    nodes = [argument(o) if isinstance(o, _Traced) else o for o in operands]
    graph = next(n for n in nodes if isinstance(n, fx.Node)).graph
    return graph.call_function(function, tuple(nodes))


def _install() -> None:
    pairs = ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow")
    for cls in (Size, Real):
        base = cls.__mro__[1]
        for name in pairs:
            function = getattr(operator, name)
            setattr(cls, f"__{name}__", _operation(f"__{name}__", function, base, False))
            setattr(cls, f"__r{name}__", _operation(f"__r{name}__", function, base, True))
        setattr(cls, "__neg__", _operation("__neg__", operator.neg, base, False))  # noqa: B010
        setattr(cls, "__abs__", _operation("__abs__", operator.abs, base, False))  # noqa: B010
    for name, function in (
        ("__ceil__", math.ceil),
        ("__floor__", math.floor),
        ("__round__", round),
        ("__trunc__", math.trunc),
    ):
        setattr(Real, name, _operation(name, function, float, False))


_install()
