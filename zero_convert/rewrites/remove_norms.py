"""Norms are removed: what reads a norm reads the norm's input instead.

    before   y = f(N(x))        after   y = f(x)

Wherever they stand: in residual branches, on shortcuts, behind joins, at the stem, before the head. Their factors,
shifts and running statistics leave the state dict with them. What takes their place, if anything, is another rewrite's.
A norm stays, with the reason in the plan, where it does more than normalize one signal: it reads a second one, or
its own forward holds an activation or another module that `norm_modules` could not take apart.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import fx, nn

from ..records import Analyzed, Edit, Option
from ._norms import remove

NAME = "remove_norms"


def rewrite(root: nn.Module, graph: fx.Graph, analyzed: Analyzed, options: Mapping[str, Option]) -> list[Edit]:
    return remove(root, graph, NAME)
