"""The user's module tree over the layers of a rewritten network: a second view of it, made last.

A module whose own Python still says what the network computes keeps it (`_scopes`); a layer with nodes of a rewrite
around it becomes one module at its path. Any other module that is called gets the graphs of what it computes
(`_outlining`) under its own class's name, and where that cannot be cut out, it refuses to be called. The finished tree
is traced again and compared with the graphs (`_proof`); where they differ, the innermost module gives way.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import fx, nn

from zero_convert.graph.kinds import NORMS
from zero_convert.graph.module_tree import Tree
from zero_convert.graph.scopes import Scope, Unknown
from zero_convert.graph.state import EXTRA, stored_tensors
from zero_convert.graph.traced import Traced
from zero_convert.nn import containers
from zero_convert.nn.containers import AugmentedLayer, Block, Code, Extended, Refusal, RemovedLayer, code_of
from zero_convert.nn.tree import Container

from ._outlining import as_call, body_of, contract, text_of
from ._proof import MismatchError, compare
from ._scopes import ChangedError, Content, Group, Mode

TRIES = 12  # trees that are compared with the graphs before all modules give way
EMPTY = Code("", "", {}, "", ())


@dataclass(frozen=True)
class Given:
    """The network before the rewrites: its modules, what each graph computed, and the children of its lists."""

    root: nn.Module
    contents: Mapping[fx.Graph, Content]
    children: Mapping[str, tuple[str, ...]]


def build(traced: Traced, given: Given, retrace: Callable[[nn.Module], tuple[fx.Graph, fx.Graph]]) -> Tree:
    """The tree of a rewritten network; `retrace` gives the graphs of a module in training and in evaluation mode."""
    undo = _snapshot(given.root)
    yielding: dict[str, int] = {}
    for _ in range(TRIES):
        try:
            plan = _Plan(traced, given, yielding)
            plan.make()
            tree = _Assembly(traced, given, plan).tree()
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
    without_scopes(traced)
    return Tree(traced.root, refused={"": "the tree could not be compared with the graphs"})


def without_scopes(traced: Traced) -> None:
    """Takes what the tracers noted for a module tree out of the graphs, which may be pickled with a module."""
    for graph in traced.graphs:
        for node in graph.nodes:
            for name in ("scope", "anchor", "calls"):
                node.meta.pop(name, None)


class _Plan:
    """What becomes of each module.

    Attributes:
        kept, refused: as of `Tree`.
        codes: path → the graph of each mode.
        groups: path of a layer → what stands around it, by mode.
        simple: paths in `codes` with one input and one output, which can be called as they were.
        fixed: path → the graph's inputs and the constants it was called with.
    """

    def __init__(self, traced: Traced, given: Given, yielding: Mapping[str, int]) -> None:
        self.traced, self.given, self.yielding = traced, given, yielding
        self.modes = [Mode(given.root, graph, given.contents[graph]) for graph in traced.graphs]
        self.kept: dict[str, None] = {}
        self.refused: dict[str, str] = {}
        self.codes: dict[str, list[fx.Graph]] = {}
        self.others: dict[str, dict[str, str]] = {}
        self.groups: dict[str, dict[int, tuple[fx.Graph, dict[str, str], dict[str, str]] | None]] = {}
        self.simple: set[str] = set()
        self.constants: dict[str, dict[str, Any]] = {}
        self.scopes: dict[str, list[tuple[Mode, Scope]]] = {}
        for mode in self.modes:
            for scope in mode.own:
                self.scopes.setdefault(scope[-1][0] if scope else "", []).append((mode, scope))
        self.called = {str(n.target) for graph in traced.graphs for n in graph.nodes if n.op == "call_module"}

    def make(self) -> None:
        depths = {path: max(len(scope) for _, scope in scopes) for path, scopes in self.scopes.items()}
        for path in sorted(depths, key=lambda path: -depths[path]):
            if path in self.called:
                continue  # a norm that was taken apart is a layer now
            try:
                self._keep(path)
            except ChangedError as why:
                self._write(path, str(why))

    def _keep(self, path: str) -> None:
        if self.yielding.get(path, 0) > 0:
            raise ChangedError("its own code gives other graphs")
        found: list[tuple[Mode, Scope, list[Group]]] = []
        texts: dict[str, dict[int, Any]] = {}
        for mode, scope in self.scopes[path]:
            children = self._children(mode, scope)
            for child in children:
                name = child[-1][0]
                if name not in self.kept and name not in self.simple:
                    raise ChangedError(f"{name} is called in another way")
            groups = mode.groups(scope, children)
            found.append((mode, scope, groups))
            number = self.modes.index(mode)
            for group in groups:
                known = texts.setdefault(group.path, dict(self.groups.get(group.path, {})))
                text = self._program(group)
                if number in known and str(known[number] and known[number][0]) != str(text and text[0]):
                    raise ChangedError(f"{group.path} is followed by something else at each call")
                known[number] = text
        self.groups |= texts
        self.kept[path] = None
        for mode, scope, groups in found:
            mode.collapse(scope, groups)

    def _children(self, mode: Mode, scope: Scope) -> list[Scope]:
        return [s for s in mode.own if len(s) == len(scope) + 1 and s[:-1] == scope]

    def _program(self, group: Group) -> tuple[fx.Graph, dict[str, str], dict[str, str]] | None:
        """The graph of a group, and the modules that it calls by name: its own, and those that stay elsewhere."""
        if not group.nodes or group.source is None:
            return None
        graph, parts, shared = fx.Graph(), dict[str, str](), dict[str, str]()
        known = {group.source: graph.placeholder("input")}
        for node in group.nodes:
            target = node.target
            if node is group.layer:
                target = containers.HIDDEN
            elif node.op == "call_module":
                path = str(node.target)
                name = path.rpartition(".")[2].removeprefix(f"{group.path.rpartition('.')[2]}_")
                own = not self.given.root.get_submodule(path).state_dict(keep_vars=True)
                (parts if own else shared)[name if own else f"_{name}"] = path
                target = name if own else f"_{name}"
            args, kwargs = fx.map_arg((node.args, dict(node.kwargs)), known.__getitem__)
            known[node] = graph.create_node(node.op, target, args, kwargs)
        graph.output(known[group.end])
        return graph, parts, shared

    # -- modules with graphs of their own ------------------------------------------------------------------------------

    def _write(self, path: str, why: str) -> None:
        for mode, scope in self.scopes[path]:
            for child in self._children(mode, scope):
                self._contracted(mode, child)
        if not path:
            self.codes[""] = [mode.graph for mode in self.modes]
            return
        try:
            if self.yielding.get(path, 0) > 1:
                raise ChangedError("its graphs could not be compared with those of the network")
            self._outline(path)
        except ChangedError as error:
            self.refused[path] = f"{why}; {error}"

    def _contracted(self, mode: Mode, scope: Scope) -> None:
        path = scope[-1][0]
        if path not in self.kept:
            return
        try:
            contract(mode, scope)
        except ChangedError as error:
            del self.kept[path]
            self._write(path, str(error))

    def _outline(self, path: str) -> None:
        several = {id(mode): 0 for mode in self.modes}
        for mode, _ in self.scopes[path]:
            several[id(mode)] += 1
        bodies = []
        for mode, scope in self.scopes[path]:
            body, ins, outs = body_of(mode, path, scope if several[id(mode)] > 1 else None)
            if not outs:
                raise ChangedError("nothing reads what it computes")
            names, constants = self._names(mode, scope, ins)
            graph, others = text_of(path, body, list(zip(ins, names, strict=True)), outs)
            bodies.append((mode, scope, body, ins, outs, graph, others, names, constants))
        texts = {(id(mode), str(graph)) for mode, _, _, _, _, graph, *_ in bodies}
        shapes = {(tuple(names), len(outs)) for _, _, _, _, outs, _, _, names, _ in bodies}
        if len(texts) > len(self.modes) or len(shapes) > 1 or len({id(b[0]) for b in bodies}) < len(self.modes):
            raise ChangedError("its calls compute different things")
        self.codes[path] = [next(b[5] for b in bodies if b[0] is mode) for mode in self.modes]
        self.others[path] = {name: target for b in bodies for name, target in b[6].items()}
        self.constants[path] = bodies[0][8]
        simple = len(bodies[0][3]) == 1 and len(bodies[0][4]) == 1
        for mode, scope, body, ins, outs, *_ in bodies:
            exits = {node: () if len(outs) == 1 else (i,) for i, node in enumerate(outs)}
            as_call(mode, path, scope, body, tuple(ins), {}, exits)
            call = mode.calls.get(scope)
            try:
                if not simple or call is None or not isinstance(call.value, fx.Node) or not self._one(call):
                    raise ChangedError("it has other inputs or outputs than before")
                mode.called(scope, self._one(call)[0], ins[0], call.value, mode.current(outs[0]))
            except ChangedError:
                simple = False
        if simple:
            self.simple.add(path)

    @staticmethod
    def _one(call: Any) -> list[fx.Node]:
        """The input of a call whose only tensor is its first argument."""
        first, *rest = call.args or (None,)
        others: list[fx.Node] = []
        fx.map_arg((tuple(rest), call.kwargs), others.append)
        plain = Unknown not in (*rest, *call.kwargs.values())
        return [first] if isinstance(first, fx.Node) and not others and plain else []

    def _names(self, mode: Mode, scope: Scope, ins: list[fx.Node]) -> tuple[list[str], dict[str, Any]]:
        """Names of the inputs, and the constants that the module was called with."""
        call = mode.calls.get(scope)
        if call is not None and len(ins) == 1 and self._one(call):
            try:
                signature = inspect.signature(self.given.root.get_submodule(scope[-1][0]).forward)
                bound = signature.bind(*call.args, **call.kwargs).arguments
            except TypeError:
                return ["input"], {}
            first, *rest = bound
            return [first], {name: bound[name] for name in rest if name != "kwargs" or bound[name]}
        return [f"input_{i}" for i in range(len(ins))], {}


class _Assembly:
    """Puts a plan into practice on the modules of the given network."""

    def __init__(self, traced: Traced, given: Given, plan: _Plan) -> None:
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
