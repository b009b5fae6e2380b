"""The three stages of a model that carry live torch objects. Everything else that travels is a frozen record."""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx, nn


@dataclass(frozen=True)
class Traced:
    """A module and the graphs of its forward.

    Attributes:
        root: the module that the graphs call into.
        train: graph in training mode; every node has `meta["shape"]`.
        evaluate: graph in evaluation mode; the same object as `train` where the two agree.
        rung: which rung of the ladder captured it.
        failed: one line for each thing that did not work on the way.
        opaque: paths of the submodules that had to be kept whole.
    """

    root: nn.Module
    train: fx.Graph
    evaluate: fx.Graph
    rung: str
    failed: tuple[str, ...] = ()
    opaque: tuple[str, ...] = ()

    @property
    def graphs(self) -> tuple[fx.Graph, ...]:
        """The distinct graphs: training first."""
        return (self.train,) if self.train is self.evaluate else (self.train, self.evaluate)
