"""The proof that a module tree computes what the flat graphs say: it is traced again and compared node for node.

The same calls of the same layers on the same values, in both modes, whatever the order; a layer with nodes of a rewrite
around it is one call in the tree.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from zero_convert.graph.in_place import pure_form
from zero_convert.graph.queries import is_size

from .scopes import Mode

CONSTANT = "_tensor_constant"  # a tensor that a forward makes; each tracing has its own


class MismatchError(Exception):
    def __init__(self, reason: str, path: str) -> None:
        super().__init__(reason)
        self.path = path


def compare(
    flat: nn.Module,
    tree: nn.Module,
    modes: Sequence[Mode],
    retrace: Callable[[nn.Module], tuple[fx.Graph, fx.Graph]],
) -> None:
    """Raises MismatchError if the tree's own graphs are not those of the network, in either mode."""
    before = set(vars(tree))
    try:
        graphs = retrace(tree)
    except Exception as error:
        raise MismatchError(f"{type(error).__name__}: {error}", getattr(error, "path", "")) from error
    try:
        for mode, graph in zip((modes[0], modes[-1]), graphs, strict=True):
            _Comparison(flat, tree, mode, graph).run()
    finally:
        for name in vars(tree).keys() - before:
            delattr(tree, name)


class _Comparison:
    """Of the graph of a tree with that of the flat network: the same calls of the same layers on the same values."""

    def __init__(self, flat: nn.Module, tree: nn.Module, mode: Mode, graph: fx.Graph) -> None:
        self.flat, self.tree, self.mode, self.graph = flat, tree, mode, graph
        self.pairs: dict[fx.Node, fx.Node] = {}
        self.back: dict[fx.Node, fx.Node] = {}
        self.inside: set[fx.Node] = set()
        self.todo: list[tuple[fx.Node, fx.Node]] = []

    def run(self) -> None:
        wanted = self.mode.rewritten
        inputs = [[n for n in g.nodes if n.op == "placeholder"] for g in (self.graph, wanted)]
        if len(inputs[0]) != len(inputs[1]):
            raise MismatchError("other inputs", "")
        self.todo = [*zip(*inputs, strict=True), (self.graph.output_node(), wanted.output_node())]
        while self.todo:
            self._pair(*self.todo.pop())
        left = [Counter(_kind(n) for n in self.graph.nodes if n not in self.pairs and _counts(n))]
        left += [Counter(_kind(n) for n in wanted.nodes if n not in self.back and n not in self.inside and _counts(n))]
        if left[0] != left[1]:
            raise MismatchError(f"calls that nothing reads: {left}", "")

    def _pair(self, made: fx.Node, flat: fx.Node) -> None:
        if made in self.pairs or flat in self.back:
            if self.pairs.get(made) is flat or (_shared(made) and _shared(flat)):
                if self.pairs.get(made) is flat:
                    return
            else:
                self._differ(flat, f"{made.name} stands for two values")
        self.pairs[made], self.back[flat] = flat, made
        group = self.mode.collapsed.get(flat)
        if group is not None:
            self.inside |= set(group.nodes)
            if made.op != "call_module" or str(made.target) != group.path or group.source is None:
                self._differ(flat, f"{made.target} instead of {group.path}")
            self._match(flat, made.args, (group.source,))
            return
        first, second = (pure_form(node.op, node.target, node.args, node.kwargs) for node in (made, flat))
        if first[0] != second[0] or not self._same_target(made, flat, first[1] == second[1]):
            self._differ(flat, f"{made.op} {made.target} instead of {flat.target}")
        self._match(flat, first[2:], second[2:])

    def _same_target(self, made: fx.Node, flat: fx.Node, equal: bool) -> bool:
        if made.op in ("placeholder", "output"):
            return True
        if made.op == "call_module":
            return self.tree.get_submodule(str(made.target)) is self.flat.get_submodule(str(flat.target))
        if made.op == "get_attr":
            first, second = _attribute(self.tree, str(made.target)), _attribute(self.flat, str(flat.target))
            constant = CONSTANT in str(made.target) and CONSTANT in str(flat.target) and isinstance(first, Tensor)
            return first is second or (constant and first.dtype == second.dtype and torch.equal(first, second))
        return equal

    def _match(self, at: fx.Node, made: Any, flat: Any) -> None:
        if isinstance(made, fx.Node) and isinstance(flat, fx.Node):
            self.todo.append((made, flat))
        elif isinstance(made, tuple | list) and isinstance(flat, tuple | list) and len(made) == len(flat):
            for a, b in zip(made, flat, strict=True):
                self._match(at, a, b)
        elif isinstance(made, dict) and isinstance(flat, dict) and made.keys() == flat.keys():
            for key in made:
                self._match(at, made[key], flat[key])
        elif isinstance(made, slice) and isinstance(flat, slice):
            self._match(at, (made.start, made.stop, made.step), (flat.start, flat.stop, flat.step))
        elif type(made) is not type(flat) or (made is not flat and made != flat):
            self._differ(at, f"{made!r:.60} instead of {flat!r:.60}")

    def _differ(self, flat: fx.Node, reason: str) -> None:
        scope = flat.meta.get("scope") or ()
        raise MismatchError(f"{flat.name}: {reason}", scope[-1][0] if scope else "")


def _shared(node: fx.Node) -> bool:
    """Whether two nodes may stand for one: each module reads sizes and tensors of its own."""
    return node.op == "get_attr" or is_size(node)


def _counts(node: fx.Node) -> bool:
    return not _shared(node) and node.op != "placeholder"


def _kind(node: fx.Node) -> tuple[str, str]:
    op, target, *_ = pure_form(node.op, node.target, node.args, node.kwargs)
    return op, str(target)


def _attribute(root: nn.Module, path: str) -> Any:
    owner, _, name = path.rpartition(".")
    return getattr(root.get_submodule(owner), name)
