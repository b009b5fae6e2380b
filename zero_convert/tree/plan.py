"""What becomes of each module of the user's: it keeps its Python, gets the graphs of what it computes, or refuses."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import fx

from zero_convert.graph.module_tree import Given
from zero_convert.graph.scopes import Scope, Unknown
from zero_convert.graph.traced import Traced
from zero_convert.nn import containers

from .outlining import as_call, body_of, contract, text_of
from .proof import MismatchError
from .scopes import ChangedError, Group, Mode


class Plan:
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
        except (KeyError, ValueError) as error:  # of values that a part hands over and gets back
            raise MismatchError(f"its graphs cannot be cut out ({type(error).__name__}: {error})", path) from error

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
