"""Initialize: one paper, one file. A scheme's name is `SCHEME.name`, whatever its file is called. No torch.

This file finds the schemes and checks options. Schemes from outside, in a file of the user's or in an installed
package, are found through `_user_schemes.py`.
"""

from __future__ import annotations

import functools
import pkgutil
from collections.abc import Collection, Mapping, Sequence
from importlib import import_module

from zero_convert.initialization.scheme import OptionSpec, Scheme

from ..errors import UsageError, closest
from ..model_ref import SchemeRef
from ..records import Check, Option
from . import _user_schemes
from ._user_schemes import Found as Found


def names() -> tuple[str, ...]:
    """Names of all schemes of this package, sorted."""
    return tuple(_schemes())


def installed() -> tuple[str, ...]:
    """Names of the schemes that installed packages offer, but for those that this package has. Runs none of them."""
    own = {name for scheme in _schemes().values() for name in (scheme.name, *scheme.aliases)}
    return tuple(name for name in _user_schemes.installed() if name not in own)


def get(name: str) -> Scheme:
    """The scheme of this name, alias or path. Errors as for `find`."""
    return find(name).scheme


def find(name: str, folders: Sequence[str] = ()) -> Found:
    """The scheme of this name or alias, the one in the file `path/to/scheme.py`, or that of an installed package.

    A file is run, and a package imported. The names of this package cannot be taken by another.

    Args:
        folders: where to look for a file besides the current folder.

    Raises:
        UsageError: there is none; the message names the nearest.
        LoadError: a scheme from outside failed.
    """
    if SchemeRef(name).runs_code:
        return _user_schemes.from_file(name, folders)
    schemes = _schemes()
    aliases = {alias: scheme.name for scheme in schemes.values() for alias in scheme.aliases}
    known = aliases.get(name, name)
    if known in schemes:
        return Found(schemes[known], known)
    others = _user_schemes.installed()
    if name in others:
        return _user_schemes.from_package(others[name])
    raise UsageError(
        "unknown scheme",
        got=repr(name),
        expected="one of " + ", ".join([*schemes, *others]) + ", or a file.py",
        fix=closest(name, [*schemes, *aliases, *others], "`zero-convert schemes` lists them.", cutoff=0.5),
    )


@functools.cache
def _schemes() -> dict[str, Scheme]:
    """Name → scheme, sorted: one of each public file of this folder."""
    files = (info.name for info in pkgutil.iter_modules(__path__) if not info.name.startswith("_"))
    schemes: list[Scheme] = [import_module(f".{name}", __name__).SCHEME for name in files]
    return {scheme.name: scheme for scheme in sorted(schemes, key=lambda scheme: scheme.name)}


def examine(name: str, only: Collection[str] = ()) -> tuple[Check, ...]:
    """What every scheme is held to, asked of this one: the questions of `_conformance.py`. Errors as for `find`.

    Args:
        only: the questions that are asked; all where none is named.
    """
    from . import _conformance

    return _conformance.examine(find(name).scheme, name, only)


def read_pairs(pairs: Sequence[str]) -> dict[str, Option]:
    """The options in `key=value` texts, as texts.

    Raises:
        UsageError: a text without "=", or an option that is given twice.
    """
    given: dict[str, Option] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise UsageError("an option needs a value", where="--set", got=repr(pair), expected="key=value")
        if key in given:
            raise UsageError("an option is given twice", where="--set", got=key)
        given[key] = value
    return given


def complete_options(scheme: Scheme, given: Mapping[str, Option]) -> dict[str, Option]:
    """The given options checked, the others at their defaults, in the scheme's order.

    Raises:
        UsageError: an option or a value that the scheme does not have.
    """
    specs = {spec.name: spec for spec in scheme.options}
    chosen: dict[str, Option] = {}
    for key, value in given.items():
        if key not in specs:
            raise UsageError(
                f"scheme {scheme.name} has no such option",
                where="--set",
                got=repr(key),
                expected="one of " + ", ".join(specs),
                fix=closest(key, specs, f"`zero-convert schemes {scheme.name}` explains them.", cutoff=0.5),
            )
        spec: OptionSpec = specs[key]
        if (read := spec.read(value)) is None:
            raise UsageError(
                f"option {key} of scheme {scheme.name} has no such value",
                where="--set",
                got=repr(value),
                expected="one of " + ", ".join(spec.spellings),
                fix=closest(str(value), spec.choices, cutoff=0.5),
            )
        chosen[key] = read
    return {name: chosen.get(name, spec.default) for name, spec in specs.items()}
