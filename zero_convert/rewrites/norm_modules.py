"""Norms that a module applies as a function, before an activation of its own, become calls of a plain norm.

    before   act(batch_norm(x, running_mean, running_var, weight, bias))        after   act(norm(x))

The plain norm has torch's class and shares the parameters and buffers, under the same names. What counts the batches
in the module's own forward goes: the plain norm counts them itself.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping

from torch import fx, nn
from torch.nn import functional as F

from zero_convert.graph.editing import replace_module
from zero_convert.graph.kinds import NORMS

from ..records import Analyzed, Edit, Option

NAME = "norm_modules"
FUNCTIONS = frozenset({F.batch_norm, F.group_norm, F.layer_norm})


def rewrite(root: nn.Module, graph: fx.Graph, analyzed: Analyzed, options: Mapping[str, Option]) -> list[Edit]:
    count = 0
    for node in list(graph.nodes):
        path = _owner(node) if node.target in FUNCTIONS else ""
        module = root.get_submodule(path) if path else None
        if not isinstance(module, NORMS) or not isinstance(node.args[0], fx.Node):
            continue
        if type(module).__module__.partition(".")[0] != "torch":
            replace_module(root, path, _plain(module))
        with graph.inserting_before(node):
            norm = graph.call_module(path, (node.args[0],))
        norm.meta |= node.meta
        node.replace_all_uses_with(norm)
        graph.erase_node(node)
        _drop_counting(graph, f"{path}.num_batches_tracked")
        count += 1
    for node in reversed(list(graph.nodes)):
        if node.op == "get_attr" and not node.users:
            graph.erase_node(node)
    what = f"{count} norms with an activation inside taken apart"
    return [Edit(NAME, "*", what, source=(str(count),))] if count else []


def _owner(node: fx.Node) -> str:
    """The path of the module whose parameters and buffers the norm is given; "" if they are of several or none."""
    owners = {str(n.target).rpartition(".")[0] for n in node.all_input_nodes if n.op == "get_attr"}
    return owners.pop() if len(owners) == 1 else ""


def _plain(module: nn.Module) -> nn.Module:
    plain = copy.copy(module)
    plain.__class__ = next(cls for cls in type(module).__mro__ if cls.__module__.partition(".")[0] == "torch")
    return plain


def _drop_counting(graph: fx.Graph, counter: str) -> None:
    for node in list(graph.nodes):
        if node.op == "get_attr" and node.target == counter:
            for user in list(node.users):
                if not user.users:
                    graph.erase_node(user)
