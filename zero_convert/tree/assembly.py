"""Puts a plan into practice: layers exchanged, classes with a forward of a graph, refusals."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from torch import nn

from zero_convert.graph.kinds import NORMS
from zero_convert.graph.module_tree import Given, Tree
from zero_convert.graph.state import EXTRA, stored_tensors
from zero_convert.graph.traced import Traced
from zero_convert.nn import containers
from zero_convert.nn.containers import AugmentedLayer, Block, Code, Extended, Refusal, RemovedLayer, code_of
from zero_convert.nn.tree import Container

from .plan import Plan
from .proof import MismatchError

EMPTY = Code("", "", {}, "", ())


class Assembly:
    """Puts a plan into practice on the modules of the given network."""

    def __init__(self, traced: Traced, given: Given, plan: Plan) -> None:
        self.flat, self.root, self.given, self.plan = traced.root, given.root, given, plan
        self.root.__dict__.pop("_rewrites", None)

    def tree(self) -> Tree:
        moved = {
            q for by_mode in self.plan.groups.values() for found in by_mode.values() if found for q in found[1].values()
        }
        before = {str(target) for mode in self.plan.modes for _, op, target, _, _ in mode.before if op == "call_module"}
        exchanged = {path: self._layer(path, by_mode, before) for path, by_mode in self.plan.groups.items()}
        known = {path for path, _ in self.flat.named_modules(remove_duplicate=False)}
        for path in before - known - exchanged.keys():
            exchanged[path] = RemovedLayer(path, type(self.root.get_submodule(path)).__name__)
        for path, others in self.plan.others.items():
            for name, target in others.items():
                self.root.get_submodule(path)._modules[name] = self.root.get_submodule(target)
        for path in self.plan.scopes:
            if path and path not in self.plan.called and isinstance(self.root.get_submodule(path), NORMS):
                exchanged[path] = Container()  # a norm that was taken apart and then taken away
                exchanged[path]._modules |= self.root.get_submodule(path)._modules
        self._exchange(exchanged)
        for path in moved - before:
            parent, _, name = path.rpartition(".")
            self.root.get_submodule(parent)._modules.pop(name, None)
        share_tensors(self.flat, self.root)
        self._classes()
        if callable(getattr(self.root, "save_pretrained", None)):
            self.root.__dict__["save_pretrained"] = containers.UnsavedConfiguration()
        named, wanted = stored_tensors(self.root), stored_tensors(self.flat)
        if list(named) != list(wanted) or any(
            named[name] is not wanted[name] for name in wanted if name.rpartition(".")[2] != EXTRA
        ):
            strange = [a for a, b in zip([*named, ""], [*wanted, ""], strict=False) if a != b]
            raise MismatchError(f"other tensors: {strange[:1]}", "")
        return Tree(
            self.root,
            tuple(self.plan.kept),
            tuple(self.plan.codes),
            dict(self.plan.refused),
            tuple(path for path, made in exchanged.items() if isinstance(made, AugmentedLayer)),
        )

    def _layer(self, path: str, by_mode: Mapping[int, Any], before: set[str]) -> nn.Module:
        found = list(by_mode.values())
        if found[0] is None:
            return nn.Identity()
        graphs = [found[0], found[-1]]
        parts: dict[str, nn.Module] = {}
        for name, target in (item for _, own, _ in graphs for item in own.items()):
            module = self.root.get_submodule(target)
            parts[name] = copy.deepcopy(module) if target in before else module
        shared = {name: self.root.get_submodule(target) for _, _, there in graphs for name, target in there.items()}
        layer = self.root.get_submodule(path)
        inside = any(node.target == containers.HIDDEN for graph, *_ in graphs for node in graph.nodes)
        if not inside and layer.state_dict(keep_vars=True):
            layer = nn.Identity()  # a norm that something else stands for
        return AugmentedLayer.of(layer, code_of(graphs[0][0], graphs[1][0]), parts, shared)

    def _exchange(self, made: Mapping[str, nn.Module]) -> None:
        """Puts modules in the places of others, under each of their names."""
        by_id = {id(self.root.get_submodule(path)): module for path, module in made.items()}
        for holder in list(self.root.modules()):
            if isinstance(holder, AugmentedLayer):
                continue
            for name, module in holder._modules.items():
                if id(module) in by_id:
                    holder._modules[name] = by_id[id(module)]

    def _classes(self) -> None:
        for path, module in list(self.root.named_modules()):
            extra = tuple(n for n in module._modules if n not in self.given.children.get(path, (n,)))
            kind: type[Block | Refusal | Extended]
            if path in self.plan.codes:
                kind, code = Block, self._code(path, module)
            elif path in self.plan.refused:
                kind, code = Refusal, EMPTY
                module.__dict__["_why"] = (path, self.plan.refused[path])
            elif extra:
                kind, code = Extended, EMPTY
            else:
                continue
            if extra:
                module.__dict__["_extra"] = extra
            module.__class__ = containers.class_of(kind, type(module), code)

    def _code(self, path: str, module: nn.Module) -> Code:
        graphs = self.plan.codes[path]
        inputs = [str(node.target) for node in graphs[0].nodes if node.op == "placeholder"]
        known = containers.signature_text(module, inputs, self.plan.constants.get(path, {}))
        if known is None:
            return code_of(graphs[0], graphs[-1])
        return code_of(graphs[0], graphs[-1], *known)


def share_tensors(flat: nn.Module, tree: nn.Module) -> None:
    """The holders of the tree have the tensors of the flat network's, and no others."""
    for path, holder in flat.named_modules():
        if isinstance(holder, Container) or not path:
            own = tree.get_submodule(path)
            for held, wanted in ((own._parameters, holder._parameters), (own._buffers, holder._buffers)):
                for name in [name for name in held if name not in wanted]:
                    del held[name]
                for name, value in wanted.items():
                    own.__dict__.pop(name, None)
                    held[name] = value
            own._non_persistent_buffers_set = set(holder._non_persistent_buffers_set)
            if "kept_state" in holder.__dict__:
                own.set_extra_state(copy.deepcopy(holder.__dict__["kept_state"]))
