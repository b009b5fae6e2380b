"""Values of a model's attributes that are others while it is looked at, and that it gets back.

A setting belongs to a module or to an object that a module holds, such as a configuration: the sizes of a detector, the
cache of a language model. The module that comes back has every setting as it was given.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Setting:
    """An attribute with the value that it was made with, and the one that it has while the model is looked at.

    Attributes:
        exported: whether an export of the network follows `plain` as well: what the value decides is no part of it.
    """

    owner: Any
    name: str
    made: Any
    plain: Any
    exported: bool = False


def apply(settings: Iterable[Setting]) -> tuple[Setting, ...]:
    """The settings, which are plain from now on."""
    settled = tuple(settings)
    for setting in settled:
        setattr(setting.owner, setting.name, setting.plain)
    return settled


def restore(settings: Iterable[Setting]) -> None:
    """The settings as they were made."""
    for setting in settings:
        setattr(setting.owner, setting.name, setting.made)


@contextmanager
def plain(settings: Iterable[Setting]) -> Iterator[None]:
    """The settings are plain within the block, and afterwards what they were before."""
    held = [(setting, getattr(setting.owner, setting.name)) for setting in settings]
    apply(setting for setting, _ in held)
    try:
        yield
    finally:
        for setting, value in held:
            setattr(setting.owner, setting.name, value)


def exporting(settings: Iterable[Setting]) -> AbstractContextManager[None]:
    """What an export follows is plain within the block, and afterwards what it was before."""
    return plain(setting for setting in settings if setting.exported)
