"""The user's module tree over the layers of a rewritten network: a second view of it, made last.

A module whose own Python still says what the network computes keeps it (`scopes`); a layer with nodes of a rewrite
around it becomes one module at its path. Any other module that is called gets the graphs of what it computes
(`outlining`) under its own class's name, and where that cannot be cut out, it refuses to be called. The finished tree
is traced again and compared with the graphs (`proof`); where they differ, the innermost module gives way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torch import fx, nn

from zero_convert.graph.module_tree import Given, Tree, without_scopes
from zero_convert.graph.traced import Traced
from zero_convert.tracing import retrace_tree

from .assembly import Assembly
from .assembly import share_tensors as share_tensors
from .plan import Plan
from .proof import MismatchError, compare

TRIES = 12  # trees that are compared with the graphs before all modules give way


def tree(traced: Traced, inputs: Sequence[Any]) -> Tree:
    """The rewritten network as its user gets it: with the module tree that it had. Uses `traced.given` up."""
    if traced.given is None:
        return Tree(traced.root)
    return build(traced, traced.given, partial(retrace_tree, traced, inputs))


def build(traced: Traced, given: Given, retrace: Callable[[nn.Module], tuple[fx.Graph, fx.Graph]]) -> Tree:
    """The tree of a rewritten network; `retrace` gives the graphs of a module in training and in evaluation mode."""
    undo = _snapshot(given.root)
    yielding: dict[str, int] = {}
    why = "the tree could not be compared with the graphs"
    for _ in range(TRIES):
        try:
            plan = Plan(traced, given, yielding)
            plan.make()
            tree = Assembly(traced, given, plan).tree()
            compare(traced.root, tree.module, plan.modes, retrace)
            return tree
        except MismatchError as error:
            undo()
            path = error.path
            while yielding.get(path, 0) > 1 and path:
                path = path.rpartition(".")[0]
            if yielding.get(path, 0) > 1:
                break
            yielding[path] = yielding.get(path, 0) + 1
        except Exception as error:  # the flat network serves
            undo()
            why = f"the tree could not be made ({type(error).__name__}: {error})"
            break
    without_scopes(traced.graphs)
    return Tree(traced.root, refused={"": why})


def _snapshot(root: nn.Module) -> Callable[[], None]:
    held = [
        (m, type(m), dict(vars(m)), dict(m._modules), dict(m._parameters), dict(m._buffers)) for m in root.modules()
    ]

    def undo() -> None:
        for module, cls, own, *dicts in held:
            module.__class__ = cls
            vars(module).clear()
            vars(module).update(own)
            for name, content in zip(("_modules", "_parameters", "_buffers"), dicts, strict=True):
                own[name].clear()
                own[name].update(content)

    return undo
