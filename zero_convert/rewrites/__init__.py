"""Rewrite: the graph edits that schemes ask for, one a file; the file's name is the rewrite's name.

Every file has one function `rewrite(root, graph, structure, options) -> list[Edit]`. It edits the graph in place, may
register or replace submodules of `root`, sets `meta["shape"]` of what it puts in, and says what it did and what it
declined. The structure is analyzed anew before each rewrite, so that none depends on what another remembers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module

from ..converted import ConvertedModule
from ..graphs import resort
from ..live import Traced
from ..records import Edit, Option
from ..structure import analyze


def apply(traced: Traced, rewrites: Sequence[str], options: Mapping[str, Option]) -> tuple[Traced, tuple[Edit, ...]]:
    """The rewritten model and the edits. `traced` is used up: its modules and graphs move into the new one.

    Without rewrites the model is returned as it is.
    """
    if not rewrites:
        return traced, ()
    called = {str(node.target) for graph in traced.graphs for node in graph.nodes if node.op == "call_module"}
    inside = tuple(f"{path}." for path in called)
    uncalled = [path for path, _ in traced.root.named_modules() if path not in called and not path.startswith(inside)]
    edits: dict[tuple[str, str, str], Edit] = {}
    for name in rewrites:
        room = import_module(f".{name}", __name__)
        for graph in traced.graphs:
            for edit in room.rewrite(traced.root, graph, analyze(traced, graph), options):
                edits.setdefault((edit.rewrite, edit.target, edit.action), edit)
            resort(graph)
            graph.lint()
    module = ConvertedModule.assemble(traced.root, traced.train, traced.evaluate, uncalled)
    return Traced(module, traced.train, traced.evaluate, traced.rung, traced.failed, traced.opaque), tuple(
        edits.values()
    )
