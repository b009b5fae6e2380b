"""The stages of a model that carry live torch objects. Everything else that travels is a frozen record."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import fx, nn

from zero_convert.records import Structure

from .module_tree import Given


@dataclass(frozen=True)
class Traced:
    """A module and the graphs of its forward.

    Attributes:
        root: the module that the graphs call into.
        train: graph in training mode; every node has `meta["shape"]`.
        evaluate: graph in evaluation mode; the same object as `train` where the two agree.
        capture: which capture of the fallback chain it is.
        failed: one line for each thing that did not work on the way.
        opaque: paths of the submodules that had to be kept whole.
        keywords: names of the arguments, in the order of the graphs' inputs, where they are given by name.
        whole: the graphs may stand for the forward. Otherwise they are recordings to look at, and `regions` are what
            may be rewritten.
        regions: parts that have graphs of their own while the Python around them stays.
        decisions: what the example inputs' values decided in the forward.
        inside: name → role of the layers inside `opaque` parts, from a recording.
        ends: for a region: names of the layers in it that are the whole model's stems, and its heads.
        given: of a rewritten network: what it was before, to build its module tree from.
        answers: what the analysis asked parts of the graphs by running them, kept from one analysis to the next.
    """

    root: nn.Module
    train: fx.Graph
    evaluate: fx.Graph
    capture: str
    failed: tuple[str, ...] = ()
    opaque: tuple[str, ...] = ()
    keywords: tuple[str, ...] = ()
    whole: bool = True
    regions: tuple[Region, ...] = ()
    decisions: tuple[str, ...] = ()
    inside: Mapping[str, str] = field(default_factory=dict)
    ends: tuple[frozenset[str], frozenset[str]] | None = None
    given: Given | None = field(default=None, repr=False, compare=False)
    answers: dict[Hashable, list[int] | None] = field(default_factory=dict, repr=False, compare=False)

    @property
    def graphs(self) -> tuple[fx.Graph, ...]:
        """The distinct graphs: training first."""
        return (self.train,) if self.train is self.evaluate else (self.train, self.evaluate)

    @property
    def captured(self) -> float:
        """The share of the parameters inside graphs that may stand for the forward, from 0 to 1."""
        seen = {id(p): p.numel() for p in self.root.parameters()}
        if self.whole:
            inside = {id(p) for path in self.opaque for p in self.root.get_submodule(path).parameters()}
            kept = sum(n for key, n in seen.items() if key not in inside)
        else:
            inside = {id(p) for region in self.regions for p in region.traced.root.parameters()}
            kept = sum(n for key, n in seen.items() if key in inside)
        return kept / max(1, sum(seen.values()))

    def call(self, module: nn.Module, values: tuple[Any, ...]) -> Any:
        """What the module, `root` or one like it, returns for values in the order of the graphs' inputs."""
        return module(**dict(zip(self.keywords, values, strict=True))) if self.keywords else module(*values)


@dataclass(frozen=True)
class Region:
    """A part of a model with graphs of its own; its names are those inside `traced.root`, the module at `path`."""

    path: str
    traced: Traced


@dataclass(frozen=True)
class Original:
    """The network as it was given, to compare with; its large parameters are not there, see `original.filled`.

    Attributes:
        traced: modules and graphs before any rewrite.
        structure: of these; joins carry node names of `traced.train`.
    """

    traced: Traced
    structure: Structure
