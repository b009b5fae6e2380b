"""Rows of a description: in which order they stand, however the graph that they come from was ordered."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

from zero_convert.formats.digests import canonical_json

from .vocabulary import COMMUTATIVE

Row = tuple[str, dict[str, Any]]


class Reference(int):
    """The number of a row, where an argument stands."""


def ordered(rows: list[Row], output: Any) -> list[list[Any]]:
    """The rows that the output needs, each after those it reads, and last the output itself."""
    marks = _marks(rows)
    for name, attributes in rows:
        if name in COMMUTATIVE and "terms" in attributes:
            attributes["terms"].sort(key=lambda term: marks[term] if isinstance(term, Reference) else str(term))
    number: dict[int, int] = {}
    for start in _references(output):
        stack = [start]
        while stack:
            at = stack[-1]
            missing = [each for each in _references(rows[at][1]) if each not in number]
            if at in number:
                stack.pop()
            elif missing:
                stack += reversed(missing)
            else:
                number[at] = len(number)
                stack.pop()
    found = [[rows[at][0], _renumbered(rows[at][1], number)] for at in number]
    return [*found, ["output", _renumbered(output, number)]]


def _marks(rows: list[Row]) -> list[str]:
    """Of each row a digest of all that it is computed from; a row reads earlier ones only."""
    marks: list[str] = []
    for name, attributes in rows:
        known = {index: marks[index] for index in _references(attributes)}
        plain = _renumbered(attributes, known)
        if name in COMMUTATIVE and "terms" in plain:
            plain["terms"] = sorted(map(str, plain["terms"]))
        marks.append(hashlib.sha256(canonical_json([name, plain]).encode("ascii")).hexdigest())
    return marks


def _references(value: Any) -> Iterator[int]:
    if isinstance(value, Reference):
        yield value
    elif isinstance(value, dict):
        for key in sorted(value):
            yield from _references(value[key])
    elif isinstance(value, list):
        for item in value:
            yield from _references(item)


def _renumbered(value: Any, number: Mapping[int, Any]) -> Any:
    if isinstance(value, Reference):
        return number[value]
    if isinstance(value, dict):
        return {key: _renumbered(item, number) for key, item in value.items()}
    return [_renumbered(item, number) for item in value] if isinstance(value, list) else value
