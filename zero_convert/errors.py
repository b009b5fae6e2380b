"""Every error a user can meet, and the exit code the command line gives it.

    ZeroConvertError
    ├── UsageError          2   a name, option or suffix that does not exist
    ├── ModelError          3
    │   ├── LoadError           the factory failed, or returned something else than a module
    │   ├── TraceError          no capture in the chain worked for the model
    │   └── CoverageError       a tensor that no rule of the scheme covers
    ├── RefusedError        4
    │   ├── UntrustedError      running code that a file names needs the user's word
    │   └── MalformedError      the bytes are not what they claim to be
    ├── DeviceError         5   the device or backend is not there, or did not really run
    ├── FindingError        1
    │   ├── CheckError          a check of the converted model failed
    │   └── MismatchError       an artifact differs from its receipt
    └── StorageError       74   the file system said no

A message is one paragraph: what failed, where, what was found, what was expected, and what to do about it.
This file imports nothing of the package, so that every room can raise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable


class ZeroConvertError(Exception):
    """What failed, in words a user can act on.

    Args:
        what: the failure itself, a short clause.
        where: the model, module path, file or option it happened at.
        got: what was found there.
        expected: what would have been right.
        fix: what to do next.
    """

    exit_code = 1

    def __init__(self, what: str, *, where: str = "", got: str = "", expected: str = "", fix: str = "") -> None:
        self.what, self.where, self.got, self.expected, self.fix = what, where, got, expected, fix
        parts = [f"{what} ({where})" if where else what]
        if got:
            parts.append(f"got {got}")
        if expected:
            parts.append(f"expected {expected}")
        text = "; ".join(parts) + "."
        super().__init__(f"{text} {fix}" if fix else text)


class UsageError(ZeroConvertError):
    exit_code = 2


class ModelError(ZeroConvertError):
    exit_code = 3


class LoadError(ModelError):
    pass


class TraceError(ModelError):
    pass


class CoverageError(ModelError):
    pass


class DeclinedError(CoverageError):
    """The scheme does not promise anything for such a network."""


class RefusedError(ZeroConvertError):
    exit_code = 4


class UntrustedError(RefusedError):
    pass


class MalformedError(RefusedError):
    pass


class DeviceError(ZeroConvertError):
    exit_code = 5


class FindingError(ZeroConvertError):
    exit_code = 1


class CheckError(FindingError):
    pass


class MismatchError(FindingError):
    pass


class StorageError(ZeroConvertError):
    exit_code = 74


def closest(
    word: str,
    known: Iterable[str],
    otherwise: str = "",
    *,
    most: int = 1,
    cutoff: float = 0.6,
    spell: Callable[[str], str] = str,
    comma: str = ", ",
) -> str:
    """ "Did you mean a, b or c?" of the known words most like `word`, or `otherwise` where none is: an error's `fix`.

    Args:
        most: how many are named.
        cutoff: the least likeness, 0 to 1, by `difflib`.
        spell: how a known word is written.
        comma: what separates all but the last two.
    """
    from difflib import get_close_matches  # only when something is wrong: it takes milliseconds

    words = [spell(near) for near in get_close_matches(word, known, most, cutoff)]
    before = f"{comma.join(words[:-1])} or " if len(words) > 1 else ""
    return f"Did you mean {before}{words[-1]}?" if words else otherwise
