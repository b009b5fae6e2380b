"""Which formula a tensor gets: `RULES`, asked in their order. The last one that answers has decided.

A rule is given the formula that those before it have led to, and answers with another one, or None to leave it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch

from zero_convert.errors import CoverageError
from zero_convert.formulas import Constant, Floats, Formula
from zero_convert.graph.fixed import is_set
from zero_convert.graph.kinds import FIXED
from zero_convert.graph.state import EXTRA
from zero_convert.graph.ties import ties
from zero_convert.options import RecipeOptions
from zero_convert.records import Assignment, Layer, Option, Structure, Tensor
from zero_convert.sources.file_values import FileValues

from .constants import is_constant
from .rules.placing import with_lengths
from .scheme import AsConstructed, Scheme

SHOWN = 6  # tensors named in an error
TIE = "tie"  # decides over all rules
FROZEN = "frozen by its constructor"
HARMLESS = ("added", "indexed", "unused", "multiplied")  # uses in which a matrix of 0 leaves the rest alive


@dataclass(frozen=True, slots=True)
class Tied(Formula):
    """The values of another tensor in the same memory, which are written under that one's name."""

    shape: tuple[int, ...] = field()
    name: str = field()

    @property
    def rule(self) -> str:
        return f"tied to {self.name}"

    def write(self, out: Floats, corner: tuple[int, ...]) -> None:
        """Leaves the array as it is."""


@dataclass(frozen=True, slots=True)
class Context:
    """What the rules may ask.

    Attributes:
        state: the module's tensors by name.
        options: of the scheme.
        asked: of the conversion.
        constructed: the module comes from a NaN-filled construction, so that what is not NaN is a constant, and "keep"
            may keep it. Otherwise a trainable tensor is kept only if it has the same value everywhere.
        drawn: names of integer tensors that a constructor drew at random.
        file_values: values of a file, by name, for what would stay as it was constructed.
        meant: stored names of the frozen tensors that keep their values.
        given: what the scheme gives to the tensors of the layer in question, by their local names.
    """

    state: Mapping[str, torch.Tensor]
    structure: Structure
    scheme: Scheme
    options: Mapping[str, Option]
    asked: RecipeOptions = field(default_factory=RecipeOptions)
    constructed: bool = True
    drawn: Collection[str] = ()
    file_values: Mapping[str, FileValues] = field(default_factory=dict)
    meant: Collection[str] = ()
    given: Mapping[str, Formula] = field(default_factory=dict)

    def is_fixed(self, tensor: Tensor, trusted: bool = False) -> bool:
        """Whether its value is a constant that may stay; `trusted` as for `is_constant`."""
        return tensor.name not in self.drawn and is_constant(self.state[tensor.name], tensor, trusted)


# ---------------------------------------------------------------------------------------------------------------------
# Rules

Answer = Formula | None


def _is_empty(layer: Layer) -> bool:
    known = layer.kind not in ("parameter", "buffers")
    return known and any(0 in tensor.shape for tensor in layer.tensors if tensor.trainable)


def _empty_layer(context: Context, layer: Layer, tensor: Tensor, formula: Answer) -> Answer:
    """A layer without a single weight computes nothing; what else it has is 0."""
    return Constant(tensor.shape, 0.0) if _is_empty(layer) else None


def _scheme(context: Context, layer: Layer, tensor: Tensor, formula: Answer) -> Answer:
    return context.given.get(tensor.local)


def _frozen(context: Context, layer: Layer, tensor: Tensor, formula: Answer) -> Answer:
    """What the constructor froze and set stays, whatever the scheme has for such a tensor."""
    return AsConstructed(tensor.shape) if tensor.name in context.meant else None


def _beside_fixed(context: Context, layer: Layer, tensor: Tensor, formula: Answer) -> Answer:
    """The rest of a layer whose weight is fixed: shifts start at 0, the factors of a norm at 1."""
    started = {"bias": 0.0, "weight": 1.0}
    rest = layer.kind == FIXED and formula is None and not tensor.buffer and tensor.local in started
    return Constant(tensor.shape, started[tensor.local]) if rest else None


def _uncovered(context: Context, layer: Layer, tensor: Tensor, formula: Answer) -> Answer:
    """What the user says of tensors that the scheme has no rule for."""
    said = {"zeros": Constant(tensor.shape, 0.0), "keep": AsConstructed(tensor.shape)}
    return said.get(context.asked.uncovered) if formula is None else None


def _buffer(context: Context, layer: Layer, tensor: Tensor, formula: Answer) -> Answer:
    return AsConstructed(tensor.shape) if formula is None and tensor.buffer else None


def _extra_state(context: Context, layer: Layer, tensor: Tensor, formula: Answer) -> Answer:
    """What a module's own code adds to the state dict is no weight, and nothing that is written to it stays there."""
    return AsConstructed(tensor.shape) if tensor.local == EXTRA else None


def _constant_read(context: Context, layer: Layer, tensor: Tensor, formula: Answer) -> Answer:
    """A constant that is used in a way no rule knows: the log-std of a policy network."""
    read = formula is None and dict(layer.uses).get(tensor.local) == "read"
    return AsConstructed(tensor.shape) if read and context.is_fixed(tensor) else None


def _constant_or_else(context: Context, layer: Layer, tensor: Tensor, formula: Answer) -> Answer:
    """What the scheme keeps if it is a constant, and gives a formula otherwise."""
    if not isinstance(formula, AsConstructed) or formula.otherwise is None:
        return None
    return AsConstructed(tensor.shape) if context.is_fixed(tensor, context.constructed) else formula.otherwise


def _file_value(context: Context, layer: Layer, tensor: Tensor, formula: Answer) -> Answer:
    value = context.file_values.get(tensor.name) if isinstance(formula, AsConstructed) else None
    return value if value is not None and value.shape == tensor.shape else None


def _drawn_value(context: Context, layer: Layer, tensor: Tensor, formula: Answer) -> Answer:
    """What would be kept and was drawn at random is 0, where the user wants zeros."""
    zero = isinstance(formula, AsConstructed) and context.asked.uncovered == "zeros" and not context.is_fixed(tensor)
    return Constant(tensor.shape, 0.0) if zero else None


RULES: tuple[tuple[str, Callable[[Context, Layer, Tensor, Answer], Answer]], ...] = (
    ("empty layer", _empty_layer),
    ("scheme", _scheme),
    (FROZEN, _frozen),
    ("beside fixed", _beside_fixed),
    ("uncovered", _uncovered),
    ("buffer", _buffer),
    ("constant read", _constant_read),
    ("constant or else", _constant_or_else),
    ("file value", _file_value),
    ("drawn value", _drawn_value),
    ("extra state", _extra_state),
)


# ---------------------------------------------------------------------------------------------------------------------


def resolve(context: Context) -> tuple[Assignment, ...]:
    """The formula of every tensor of the structure, and which rule decided.

    Raises:
        CoverageError: tensors without a rule, or values to be kept that were drawn at random.
    """
    stored = ties(context.state)
    context = replace(context, meant=_meant(context, stored))
    _refuse_divided(context)
    owners: dict[str, str] = {}  # stored name → the name, first in order of execution, whose formula its values follow
    assignments: list[Assignment] = []
    missing: list[tuple[Layer, Tensor]] = []
    for layer in context.structure.layers:
        given = None if _is_empty(layer) else context.scheme.fill(layer, context.structure, context.options)
        context = replace(context, given=with_lengths(layer, given or {}, binary=context.scheme.binary))
        for tensor in layer.tensors:
            formula, decided_by = _decide(context, layer, tensor)
            if formula is None:
                missing.append((layer, tensor))
            elif (owner := owners.setdefault(stored[tensor.name], tensor.name)) != tensor.name:
                assignments.append(Assignment(tensor, layer.name, layer.role, Tied(tensor.shape, owner), TIE))
            else:
                notes = _notes(layer, tensor, decided_by)
                assignments.append(Assignment(tensor, layer.name, layer.role, formula, decided_by, notes))
    if missing:
        refused = dict.fromkeys(f"{layer.name}: {layer.refusal}" for layer, _ in missing if layer.refusal)
        raise CoverageError(
            f"scheme {context.scheme.name} has no rule for {len(missing)} tensors",
            where=_first([_without_rule(layer, tensor) for layer, tensor in missing]),
            got="; ".join(list(refused)[:2]) + (f"; and {len(refused) - 2} more" if len(refused) > 2 else ""),
            expected="a rule for every trainable tensor",
            fix=_remedies(context, missing),
        )
    assert owners.keys() == set(stored.values()), "every tensor of the state dict belongs to a layer"
    _refuse_drawn(context, assignments)
    return tuple(assignments)


def _decide(context: Context, layer: Layer, tensor: Tensor) -> tuple[Answer, str]:
    """What the rules lead to for one tensor, and which one decided; None where none of them answers."""
    formula, decided_by = None, ""
    for name, rule in RULES:
        if (answer := rule(context, layer, tensor, formula)) is not None:
            formula, decided_by = answer, name
    return formula, decided_by


def _meant(context: Context, stored: Mapping[str, str]) -> frozenset[str]:
    """Names of the tensors that keep the values they are frozen at, with every name of the same memory.

    Of a live module only the user can say that values were meant.
    """
    if not context.constructed and context.asked.uncovered != "keep":
        return frozenset()
    tensors = [tensor for layer in context.structure.layers for tensor in layer.tensors]
    frozen = (t.name for t in tensors if not t.trainable and not t.buffer and t.name not in context.drawn)
    still = [t.name for layer in context.structure.layers if layer.kind == FIXED for t in layer.tensors if t.buffer]
    kept = {stored[name] for name in (*(n for n in frozen if _holds_values(context.state[n])), *still)}
    return frozenset(name for name in stored if stored[name] in kept)


def _refuse_divided(context: Context) -> None:
    """Raises CoverageError if a weight that stays is divided by its largest singular value."""
    for layer in context.structure.layers:
        names = {t.local: t.name for t in layer.tensors}
        kept = [names[local] for local, meaning in layer.parameters if meaning == "weight" and local in names]
        if (layer.parametrization or ("",))[0] == "spectral_norm" and any(name in context.meant for name in kept):
            raise CoverageError(
                "a weight that stays as its constructor froze it has a spectral norm, whose vectors no formula gives",
                where=kept[0],
                fix="Divide it once in the constructor: torch.nn.utils.parametrize.remove_parametrizations(layer, "
                "'weight'), or torch.nn.utils.remove_spectral_norm(layer).",
            )


def _holds_values(value: torch.Tensor) -> bool:
    return is_set(value) if value.is_floating_point() or value.is_complex() else True


def _notes(layer: Layer, tensor: Tensor, decided_by: str) -> tuple[str, ...]:
    """What else the plan says of a tensor."""
    unused = dict(layer.uses).get(tensor.local) == "unused" and not tensor.buffer
    frozen = "" if tensor.trainable or tensor.buffer else "frozen"
    first = (FROZEN if decided_by == FROZEN else frozen,)
    return (*filter(None, first), *("unused: the output does not depend on it",) * unused)


def _refuse_drawn(context: Context, assignments: Sequence[Assignment]) -> None:
    """Raises CoverageError if values that no rule writes may have been drawn at random."""
    trusted = context.constructed and context.asked.uncovered == "keep"
    unasked = [a.tensor for a in assignments if isinstance(a.formula, AsConstructed)]
    kept = [tensor for tensor in unasked if tensor.trainable is False or tensor.name not in context.meant]
    if drawn := [tensor.name for tensor in kept if not context.is_fixed(tensor, trusted)]:
        owners = {t.name: (layer, t) for layer in context.structure.layers for t in layer.tensors}
        advice = "Pass --uncovered zeros, or set" if all(_may_be_zero(*owners[name]) for name in drawn) else "Set"
        where = "in the constructor." if context.constructed else "before converting, or give the model as a factory."
        raise CoverageError(
            f"{len(drawn)} tensors would be kept as constructed, but hold no constants",
            where=_first(drawn),
            expected="values that no generator drew and no training left",
            fix=f"{advice} them to constants {where}",
        )


def _without_rule(layer: Layer, tensor: Tensor) -> str:
    uses = f", {dict(layer.uses).get(tensor.local, '')}" if layer.uses else ""
    return f"{tensor.name} ({'×'.join(map(str, tensor.shape)) or 'scalar'}, {layer.cls}{uses})"


def _remedies(context: Context, missing: Sequence[tuple[Layer, Tensor]]) -> str:
    """What to do about tensors without a rule; of the options of the command line those that work for all of them."""
    zeros = all(_may_be_zero(layer, tensor) for layer, tensor in missing)
    keep = all(t.name in context.file_values or context.is_fixed(t, context.constructed) for _, t in missing)
    ways = [f"--uncovered {word}" for word, works in (("zeros", zeros), ("keep", keep)) if works]
    passed = f"Pass {' or '.join(ways)} to say what they should be, or give" if ways else "Give"
    return f"{passed} them a rule in a scheme of your own: --scheme FILE.py (docs/write-a-scheme.md)."


def _may_be_zero(layer: Layer, tensor: Tensor) -> bool:
    """Whether 0 takes nothing away that others need: of a matrix it does, unless it is added or chosen from."""
    matrix = sum(size > 1 for size in tensor.shape) > 1
    return not matrix or (not layer.refusal and dict(layer.uses).get(tensor.local, "") in HARMLESS)


def _first(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (" …" if len(names) > SHOWN else "")
