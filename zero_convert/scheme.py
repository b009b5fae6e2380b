"""What a scheme is: a name, options, the rewrites it needs and a pure function from facts to formulas.

The files under `schemes/` each hold one `SCHEME`. No torch here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from .formulas import Floats, Formula
from .records import Join, Layer, Option, Structure

Fill = Callable[[Layer, Structure, Mapping[str, Option]], Mapping[str, Formula] | None]


@dataclass(frozen=True, slots=True)
class OptionSpec:
    """One `--set name=value`: its values, the default first among equals, and a line of help."""

    name: str
    choices: tuple[str, ...]
    default: str
    help: str


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
        name: as typed on the command line; the file's name with dashes.
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
class Kept(Formula):
    """The value that the constructor gave: a layer scale, an index table. Not for what was drawn at random.

    Args:
        otherwise: the rule for a tensor whose value is no constant of the constructor; None where that is an error.
    """

    shape: tuple[int, ...] = field()
    otherwise: Formula | None = None

    @property
    def rule(self) -> str:
        return "kept as constructed"

    def write(self, out: Floats, start: int) -> None:
        """Leaves the array as it is."""
