"""Rewrite: the graph edits that schemes ask for, one a file.

Every public file declares `NAME`, by which schemes ask for it and locks know its edits, whatever the file is called,
and has one function `rewrite(root, graph, analyzed, options) -> list[Edit]`. It edits the graph in place, may
register or replace submodules of `root`, sets `meta["shape"]` of what it puts in, and says what it did and what it
declined. `analyzed()` is the structure of the graph as it is then, asked for before the first edit; so no rewrite
depends on what another remembers, and one that looks at single nodes costs no analysis.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from importlib import import_module
from types import ModuleType

from torch import fx, nn

from zero_convert.graph.editing import replace_module, resort
from zero_convert.graph.module_tree import Content, Given, without_scopes
from zero_convert.graph.traced import Region, Traced
from zero_convert.nn.tree import ConvertedModule, uncalled

from ..errors import ModelError
from ..records import Edit, Option, Structure
from ..structure import analyze


def _files() -> dict[str, ModuleType]:
    """Name → file."""
    public = (info.name for info in pkgutil.iter_modules(__path__) if not info.name.startswith("_"))
    return {file.NAME: file for file in (import_module(f".{name}", __name__) for name in public)}


FILES = _files()


def apply(traced: Traced, rewrites: Sequence[str], options: Mapping[str, Option]) -> tuple[Traced, tuple[Edit, ...]]:
    """The rewritten model and the edits. `traced` is used up: its modules and graphs move into the new one.

    Without rewrites the model is returned as it is. Where only regions may be rewritten, each is replaced in its place
    by a module of the same names, and the recordings of the whole no longer fit: they have to be made again. Its edits
    begin with its path; joins have the names of their nodes in the whole, layers those inside the region.
    """
    if not rewrites:
        return traced, ()
    if traced.whole:
        return _rewritten(traced, rewrites, options)
    whole = analyze(traced)
    ends = tuple(frozenset(x.name for x in whole.layers if x.role == role) for role in ("stem", "head"))
    nodes = {join.branch: join.node for join in whole.joins}
    edits: list[Edit] = []
    for region in traced.regions:
        prefix = f"{region.path}."
        joins = analyze(region.traced).joins
        named = {x.node: nodes.get(tuple(f"{prefix}{name}" for name in x.branch), x.node) for x in joins}
        stems, heads = (frozenset(n.removeprefix(prefix) for n in names if n.startswith(prefix)) for names in ends)
        inner, inner_edits = _rewritten(replace(region.traced, ends=(stems, heads)), rewrites, options)
        without_scopes(inner.graphs)
        _keep_attributes(inner, region)
        replace_module(traced.root, region.path, inner.root)
        edits += [replace(edit, target=f"{region.path}: {named.get(edit.target, edit.target)}") for edit in inner_edits]
    return replace(traced, regions=()), tuple(edits)


def _rewritten(
    traced: Traced, rewrites: Sequence[str], options: Mapping[str, Option]
) -> tuple[Traced, tuple[Edit, ...]]:
    aside = uncalled(traced.root, *traced.graphs)
    lists = {
        p: tuple(m._modules) for p, m in traced.root.named_modules() if isinstance(m, nn.Sequential | nn.ModuleList)
    }
    given = Given(traced.root, {graph: _content(graph) for graph in traced.graphs}, lists)
    edits: dict[tuple[str, str, str], Edit] = {}
    known: dict[fx.Graph, Structure] = {}  # of graphs that no rewrite has changed since
    for name in rewrites:
        for graph in traced.graphs:
            before = _content(graph)
            new_edits = FILES[name].rewrite(traced.root, graph, partial(_analyzed, traced, graph, known), options)
            for edit in new_edits:
                edits.setdefault((edit.rewrite, edit.target, edit.action), edit)
            if _content(graph) == before and not any(edit.applied for edit in new_edits):
                continue
            known.clear()  # the graphs share their modules
            try:
                resort(graph)
            except ValueError as error:
                raise ModelError(
                    f"the rewrite {name} does not fit this model",
                    got=str(error),
                    fix="--scheme zero-2022 leaves the architecture as it is. Please report the model.",
                ) from error
            graph.lint()
            called = {str(node.target) for node in graph.nodes if node.op == "call_module"}
            # It is a call from now on, or a later rewrite removes it.
            aside = [path for path in aside if path not in called]
    module = ConvertedModule.assemble(traced.root, traced.train, traced.evaluate, aside)
    return replace(traced, root=module, given=given), tuple(edits.values())


def _analyzed(traced: Traced, graph: fx.Graph, known: dict[fx.Graph, Structure]) -> Structure:
    if graph not in known:
        known[graph] = analyze(traced, graph)
    return known[graph]


def _content(graph: fx.Graph) -> Content:
    """What the graph computes, in a form that can be compared."""
    return [(node, node.op, node.target, node.args, node.kwargs) for node in graph.nodes]


def _keep_attributes(inner: Traced, region: Region) -> None:
    """What the Python around a region may ask it for besides calling it: numbers, a configuration, methods."""
    if isinstance(inner.root, ConvertedModule):
        inner.root.stands_for = type(region.traced.root)
    for name, value in vars(region.traced.root).items():
        if not name.startswith("_") and not hasattr(inner.root, name):
            setattr(inner.root, name, value)
