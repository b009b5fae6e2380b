"""What a scheme is: a name, options, the rewrites it needs and a pure function from facts to formulas.

The files under `schemes/` each hold one `SCHEME`. No torch here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from zero_convert.formulas import Floats, Formula
from zero_convert.records import Join, Layer, Option, Structure

Fill = Callable[[Layer, Structure, Mapping[str, Option]], Mapping[str, Formula] | None]


class Values(Protocol):
    """What an option may be besides a word: a number, a word with a number. One class for each kind."""

    @property
    def spelling(self) -> str:
        """The values in the table of options: "0…9"."""

    def read(self, value: Option) -> Option | None:
        """The value in the form that recipes hold, from that form or its text; None where it is no such value."""


@dataclass(frozen=True, slots=True)
class Integers:
    """Whole numbers from `low` to `high`, in decimal digits."""

    low: int
    high: int

    @property
    def spelling(self) -> str:
        return f"{self.low}…{self.high}"

    def read(self, value: Option) -> int | None:
        digits = isinstance(value, str) and value.isascii() and value.removeprefix("-").isdecimal() and len(value) < 32
        number = int(value) if digits or type(value) is int else None
        return number if number is not None and self.low <= number <= self.high else None


@dataclass(frozen=True, slots=True)
class Rates:
    """A word and a share, "dropout:0.01": more than 0, less than 1."""

    word: str

    @property
    def spelling(self) -> str:
        return f"{self.word}:P"

    def read(self, value: Option) -> str | None:
        word, _, text = str(value).partition(":")
        digits = text.replace(".", "", 1)
        if word != self.word or not (digits.isascii() and digits.isdecimal()) or len(text) > 32:
            return None
        return f"{word}:{float(text)!r}" if 0 < float(text) < 1 else None


@dataclass(frozen=True, slots=True)
class OptionSpec:
    """One `--set name=value`: the words it may be, the default, a line of help, and `values` besides the words."""

    name: str
    choices: tuple[str, ...]
    default: Option
    help: str
    values: Values | None = None

    @property
    def spellings(self) -> tuple[str, ...]:
        """What it may be, for people."""
        return (*self.choices, self.values.spelling) if self.values is not None else self.choices

    def read(self, value: Option) -> Option | None:
        """The value as recipes hold it; None where the option cannot have it."""
        if isinstance(value, str) and value in self.choices:
            return value
        return self.values.read(value) if self.values is not None else None


SEED = OptionSpec(
    "seed",
    (),
    0,
    "key of the integer hash that every hashed value comes from",
    Integers(0, (1 << 53) - 1),  # what every reader of JSON keeps
)


@dataclass(frozen=True, slots=True)
class Decline:
    """Why a scheme does not start a network: what stands against it, where, and the way out."""

    reason: str
    where: str
    fix: str


@dataclass(frozen=True, slots=True)
class Scheme:
    """One initialization scheme.

    Attributes:
        name: as typed on the command line.
        title: the paper in a line.
        doc: source, mathematics and what is the authors' and what ours.
        options: what `--set` takes.
        rewrites: names under `rewrites/`, in order, for these options.
        fill: pure; the formula of each tensor of a layer by its local name, or None for a layer it does not cover.
        binary: every trainable value is 0 or 1.
        zero_branch: whether the branch of this residual join must add exactly 0 at the start; the checks hold the
            scheme to it, whatever its rules say.
        checks: names of the questions of `checks/` that only schemes which promise something ask for, and the limit
            that the scheme promises there, for these options; what the limit is of, the check's file says.
        declines: pure; why the scheme cannot start this network, or None. Asked of the rewritten network.
    """

    name: str
    title: str
    doc: str
    options: tuple[OptionSpec, ...]
    rewrites: Callable[[Mapping[str, Option]], tuple[str, ...]]
    fill: Fill
    aliases: tuple[str, ...] = ()
    binary: bool = False
    zero_branch: Callable[[Join, Structure], bool] = lambda join, structure: False
    checks: Callable[[Mapping[str, Option]], Mapping[str, float]] = lambda options: {}
    declines: Callable[[Structure, Mapping[str, Option]], Decline | None] = lambda structure, options: None


@dataclass(frozen=True, slots=True)
class AsConstructed(Formula):
    """The value that the constructor gave: a layer scale, an index table. Not for what was drawn at random.

    Args:
        otherwise: the rule for a tensor whose value is no constant of the constructor; None where that is an error.
    """

    shape: tuple[int, ...] = field()
    otherwise: Formula | None = None

    @property
    def rule(self) -> str:
        return "kept as constructed"

    def write(self, out: Floats, corner: tuple[int, ...]) -> None:
        """Leaves the array as it is."""
