"""Which modules of the user's may keep their own Python after the rewrites.

The forward of a module makes nodes, its *own* ones and those of the modules it calls. It may stay if each of its own
nodes is still there and reads what it read, where a layer may have become another value: the layer with nodes that a
rewrite put around it (a *group*, one input and one output), or its input where the layer was taken away. Values of the
graph as it was are variables here, bound to nodes of the rewritten graph; a value from outside of a module is bound by
its first use, and has to agree with what the module around makes of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import fx, nn

from zero_convert.graph.in_place import pure_form
from zero_convert.graph.module_tree import Content
from zero_convert.graph.scopes import Scope, ScopeCall

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class ChangedError(Exception):
    """A module's own code is not what the rewritten graph does."""


@dataclass(eq=False)
class _Variable:
    node: fx.Node | None = None
    same: _Variable | None = None


@dataclass
class Group:
    """A layer and what stands around it, as one call.

    Attributes:
        path: of the layer.
        nodes: of the rewritten graph, in order, `end` the last one; empty where the layer was taken away.
        source: the input.
        layer: the layer's own node; None where something else stands in its place.
    """

    path: str
    nodes: tuple[fx.Node, ...] = ()
    source: fx.Node | None = None
    layer: fx.Node | None = None

    @property
    def end(self) -> fx.Node:
        return self.nodes[-1]


@dataclass(eq=False)
class Mode:
    """The graph of one mode: as it was, and a copy of the rewritten one in which modules become calls, step by step.

    Attributes:
        graph: the copy.
        flat: node of the copy → the node of the rewritten graph whose value it has.
        own: scope → what the module's own forward made.
        ends: node of a layer as it was → the node of the copy that has its value now; None where it was taken away.
    """

    root: nn.Module
    rewritten: fx.Graph
    before: Content
    graph: fx.Graph = field(default_factory=fx.Graph)
    flat: dict[fx.Node, fx.Node] = field(default_factory=dict)
    own: dict[Scope, list[tuple[fx.Node, str, Any, Any, Any]]] = field(default_factory=dict)
    ends: dict[fx.Node, fx.Node | None] = field(default_factory=dict)
    collapsed: dict[fx.Node, Group] = field(default_factory=dict)  # end in the rewritten graph → group of its nodes

    def __post_init__(self) -> None:
        self.now: dict[fx.Node, fx.Node] = {}
        self.graph.output(self.graph.graph_copy(self.rewritten, self.now))
        self.flat = {copied: node for node, copied in self.now.items()}
        self.calls: Mapping[Scope, ScopeCall] = self.rewritten.output_node().meta["calls"]
        old = {entry[0] for entry in self.before}
        self.inserted = {copied for node, copied in self.now.items() if node not in old}
        self._layers = {str(target) for _, op, target, _, _ in self.before if op == "call_module"}
        self._variables: dict[fx.Node, _Variable] = {}
        self._inputs: dict[Scope, dict[fx.Node, _Variable]] = {}  # what came into a module, by its scope
        self._scope: Scope = ()
        self._moved: dict[fx.Node, fx.Node] = {}
        self._erased: set[fx.Node] = set()
        self._called = {str(node.target) for node in self.graph.nodes if node.op == "call_module"}
        anchored: dict[fx.Node, fx.Node] = {}
        for node in self.graph.nodes:
            if node in self.inserted and node.meta.get("anchor") in old:
                anchored[node.meta["anchor"]] = node
        for scope in self.calls:
            self.own.setdefault(scope, [])
        for entry in self.before:
            node, op = entry[:2]
            if op == "output":
                self.now[node] = self.graph.output_node()
            self.own.setdefault(node.meta["scope"] if op not in ("placeholder", "output") else (), []).append(entry)
            if op == "call_module":
                self.ends[node] = anchored.get(node, self.now.get(node))
        self._taken = {end: node for node, end in self.ends.items() if end is not None}

    # -- variables -----------------------------------------------------------------------------------------------------

    def value(self, node: fx.Node, scope: Scope) -> fx.Node | None:
        """The node of the copy that has the value of a node as it was, as far as that is known within a module."""
        self._scope = scope
        held = self._variable(node).node
        return None if held is None else self.current(held)

    def called(self, scope: Scope, source: fx.Node, given: fx.Node, value: fx.Node, result: fx.Node) -> None:
        """A module with another forward was called as before. Raises ChangedError if its value is known as another."""
        self._scope = scope
        if not self._inside(value):
            raise ChangedError("it hands its input on")
        self.bind(source, given)
        self.bind(value, result)

    def current(self, node: fx.Node) -> fx.Node:
        while node in self._moved:
            node = self._moved[node]
        return node

    def bind(self, old: fx.Node, node: fx.Node) -> None:
        """Raises ChangedError if the value is known to be another one."""
        variable = self._variable(old)
        if variable.node is None:
            variable.node = node
        elif self.current(variable.node) is not self.current(node):
            raise ChangedError(f"{old.name} is {node.name} here and {variable.node.name} elsewhere")

    def moved(self, old: fx.Node, new: fx.Node) -> None:
        """What had the value of a node of the copy that is no longer there."""
        self._moved[old] = new
        if old in self.flat:
            self.flat.setdefault(new, self.flat[old])

    def _inside(self, node: fx.Node) -> bool:
        return (node.meta["scope"] or ())[: len(self._scope)] == self._scope

    def _variable(self, node: fx.Node) -> _Variable:
        held = self._variables if self._inside(node) else self._inputs.setdefault(self._scope, {})
        variable = held.setdefault(node, _Variable())
        while variable.same is not None:
            variable = variable.same
        return variable

    def _alias(self, node: fx.Node, other: fx.Node) -> None:
        first, second = self._variable(node), self._variable(other)
        if first is second:
            return
        if first.node is not None and second.node is not None:
            self.bind(node, second.node)
            return
        second.node = second.node or first.node
        first.same = second

    def _match(self, old: Any, new: Any) -> None:
        if isinstance(old, fx.Node) and isinstance(new, fx.Node):
            self.bind(old, new)
        elif isinstance(old, tuple | list) and isinstance(new, tuple | list) and len(old) == len(new):
            for a, b in zip(old, new, strict=True):
                self._match(a, b)
        elif isinstance(old, dict) and isinstance(new, dict) and old.keys() == new.keys():
            for key in old:
                self._match(old[key], new[key])
        elif isinstance(old, slice) and isinstance(new, slice):
            self._match((old.start, old.stop, old.step), (new.start, new.stop, new.step))
        elif type(old) is not type(new) or (old is not new and old != new):
            raise ChangedError(f"{new!r:.60} instead of {old!r:.60}")

    # -- modules -------------------------------------------------------------------------------------------------------

    def groups(self, scope: Scope, children: Iterable[Scope]) -> list[Group]:
        """The groups that the layers called in this scope have become. Raises ChangedError if it cannot stay."""
        saved = {node: (v, v.node, v.same) for node, v in self._variables.items()}
        self._inputs.pop(scope, None)
        try:
            self._scope = scope
            for child in children:
                for node, variable in self._inputs.get(child, {}).items():
                    self._agree(node, variable)
            return self._matched(scope)
        except ChangedError:
            self._inputs.pop(scope, None)
            self._variables = {node: v for node, (v, _, _) in saved.items()}
            for variable, held, same in saved.values():
                variable.node, variable.same = held, same
            raise

    def _agree(self, node: fx.Node, variable: _Variable) -> None:
        """What came into a module that was called is what the node's value is here."""
        while variable.same is not None:
            variable = variable.same
        own = self._variable(node)
        if variable.node is not None:
            self.bind(node, variable.node)
        elif own is not variable:
            variable.same = own

    def _matched(self, scope: Scope) -> list[Group]:
        groups = []
        for node, op, target, args, kwargs in self.own.get(scope, ()):
            copied = self.now.get(node)
            if op == "placeholder":
                self.bind(node, self._there(node, copied))
            elif op == "call_module":
                groups += self._layer(node, str(target), args, kwargs)
            elif op == "get_attr" and copied is None:
                continue  # of a norm that is gone
            else:
                found = self._there(node, copied)
                was = pure_form(op, target, args, kwargs)
                now = pure_form(found.op, found.target, found.args, found.kwargs)
                if was[:2] != now[:2]:
                    raise ChangedError(f"{node.name} calls {found.target}")
                self._match(was[2:], now[2:])
                if op != "output":
                    self.bind(node, found)
        return groups

    def _there(self, node: fx.Node, copied: fx.Node | None) -> fx.Node:
        if copied is None or copied.graph is not self.graph or copied in self._erased:
            raise ChangedError(f"{node.name} is gone")
        return copied

    def _layer(self, node: fx.Node, path: str, args: Any, kwargs: Any) -> list[Group]:
        end = self.ends[node]
        if end is None:
            if path in self._called:
                raise ChangedError(f"{path} is called elsewhere now")
            sources = list(dict.fromkeys(node_ for node_ in _nodes((args, kwargs))))
            if len(sources) != 1:
                raise ChangedError(f"{path} is gone, and it had {len(sources)} inputs")
            self._alias(node, sources[0])
            return [Group(path)]
        nodes, outside = self._around(node, end)
        own = self.now.get(node)
        if nodes == {end} and end is own:
            if str(end.target) != path:
                raise ChangedError(f"{path} became {end.target}")
            self._match(args, end.args)
            self._match(dict(kwargs), dict(end.kwargs))
            self.bind(node, end)
            return []
        if len(args) != 1 or not isinstance(args[0], fx.Node) or kwargs or len(outside) != 1:
            raise ChangedError(f"{path} and what stands around it have {len(outside)} inputs")
        if any(user not in nodes for inner in nodes - {end} for user in inner.users):
            raise ChangedError(f"a value beside {path} is read elsewhere")
        if any(inner.op == "get_attr" for inner in nodes):
            raise ChangedError(f"a tensor stands beside {path}")
        layer = self.root.get_submodule(path)
        if own in nodes and (any(layer.children()) or any(getattr(layer, name) for name in HOOKS)):
            raise ChangedError(f"{path} has hooks or parts of its own")
        self.bind(args[0], next(iter(outside)))
        self.bind(node, end)
        ordered = tuple(inner for inner in self.graph.nodes if inner in nodes)
        return [Group(path, ordered, next(iter(outside)), own if own in nodes else None)]

    def _around(self, node: fx.Node, end: fx.Node) -> tuple[set[fx.Node], set[fx.Node]]:
        """The nodes of a layer's group, from the last one back, and their inputs from outside."""
        own, nodes, outside, todo = self.now.get(node), set[fx.Node](), set[fx.Node](), [end]
        while todo:
            at = todo.pop()
            if at in nodes or at in outside:
                continue
            if at is own or (at in self.inserted and self._taken.get(at, node) is node and self._free(at)):
                nodes.add(at)
                todo += at.all_input_nodes
            else:
                outside.add(at)
        return nodes, outside

    def _free(self, node: fx.Node) -> bool:
        """Whether an inserted node may become part of a layer: it calls no module with tensors that has its own place
        in the network."""
        if node.op != "call_module" or str(node.target) not in self._layers:
            return True
        return not self.root.get_submodule(str(node.target)).state_dict(keep_vars=True)

    def collapse(self, scope: Scope, groups: Iterable[Group]) -> None:
        """Each group becomes one call of its layer's path."""
        for group in groups:
            if not group.nodes or group.source is None:
                continue
            end = group.end
            with self.graph.inserting_after(end):
                call = self.graph.call_module(group.path, (self.current(group.source),))
            call.meta["scope"] = scope
            end.replace_all_uses_with(call, lambda user, call=call: user is not call)  # type: ignore[misc]
            flat = [self.flat[inner] for inner in group.nodes]
            layer = None if group.layer is None else self.flat[group.layer]
            self.collapsed[flat[-1]] = Group(group.path, tuple(flat), self.flat[self.current(group.source)], layer)
            self.moved(end, call)
            for inner in reversed(group.nodes):
                self.erase(inner)

    def erase(self, node: fx.Node) -> None:
        self.graph.erase_node(node)
        self._erased.add(node)


def _nodes(value: Any) -> list[fx.Node]:
    found: list[fx.Node] = []
    fx.map_arg(value, lambda node: found.append(node))
    return found
