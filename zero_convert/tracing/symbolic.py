"""The fx tracer: known layers are leaves, optional arguments take their defaults."""

from __future__ import annotations

import bisect
import dis
import functools
import inspect
import operator
import sys
import types
from collections.abc import Callable, Collection, Iterator
from typing import Any

from torch import Tensor, fx, nn
from torch.fx.proxy import Attribute

from zero_convert.graph.kinds import kept_whole
from zero_convert.graph.scopes import Scope, ScopeCall
from zero_convert.runtime import rng

from .side_effects import refuse_draws, restored, unassigned


def argument_names(module: nn.Module, count: int) -> list[str]:
    """The names of the first `count` positional arguments of the module's forward.

    Raises:
        TypeError: it does not take so many.
    """
    names: list[str] = []
    for parameter in inspect.signature(module.forward).parameters.values():
        if parameter.kind is parameter.VAR_POSITIONAL:
            names += [f"{parameter.name}_{i}" for i in range(count - len(names))]
        elif parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD):
            names.append(parameter.name)
    if count > len(names):
        raise TypeError(f"forward takes {len(names)} positional inputs, {count} were given")
    return names[:count]


class TraceFailure(Exception):
    """What stopped fx, and the path of the innermost submodule it happened in ("" is the model itself)."""

    def __init__(self, path: str, cause: BaseException) -> None:
        super().__init__(path)
        self.path, self.cause = path, cause


@functools.lru_cache(maxsize=256)
def _unpacked(code: types.CodeType) -> tuple[list[int], list[int]]:
    """Where a function unpacks a sequence: offset of each instruction, and into how many names (0: another one)."""
    found = list(dis.get_instructions(code))
    return [i.offset for i in found], [int(i.argval) if i.opname == "UNPACK_SEQUENCE" else 0 for i in found]


class _Unpacking:
    """As fx does it, `a, b = proxy` takes as many items as there are names; the function is read once."""

    tracer: Any

    def __iter__(self) -> Iterator[Any]:
        frame = sys._getframe(1)
        offsets, counts = _unpacked(frame.f_code)
        count = counts[bisect.bisect_left(offsets, frame.f_lasti)]
        return (self[i] for i in range(count)) if count else self.tracer.iter(self)  # type: ignore[index]


class _Proxy(_Unpacking, fx.Proxy):
    def __getattr__(self, k: str) -> _Attribute:
        return _Attribute(self, k)


class _Attribute(_Unpacking, Attribute):
    def __getattr__(self, k: str) -> _Attribute:
        return _Attribute(self, k)


def _node_of(proxy: fx.Proxy) -> fx.Node:
    return proxy.node


class LayerTracer(fx.Tracer):
    """Records the first `inputs` arguments of `forward`; the others take their defaults.

    Args:
        leaves: paths of submodules to keep whole besides the known layers.
        inputs: how many positional arguments the example inputs give.
    """

    proxy_buffer_attributes = True  # else what a forward does to a buffer would happen now, and never again

    def __init__(self, leaves: Collection[str], inputs: int) -> None:
        super().__init__()
        self._leaves, self._inputs = frozenset(leaves), inputs
        self._named: dict[int, tuple[str, Tensor]] = {}
        self._scope: Scope = ()
        self._calls: dict[Scope, ScopeCall] = {}

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return module_qualified_name in self._leaves or kept_whole(m)

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        before, path = rng.states(), self.path_of_module(m)
        outer = self._scope
        if not self.is_leaf_module(m, path):
            self._scope = (*outer, (path, self.num_calls.get(path, 0)))
        try:
            value = super().call_module(m, forward, args, kwargs)
            refuse_draws(before, "")
            if self._scope is not outer:
                call = ScopeCall.of((args, kwargs), fx.Proxy, _node_of)
                self._calls[self._scope] = call.returning(value, fx.Proxy, _node_of)
            return value
        except TraceFailure:
            raise
        except (Exception, SystemExit) as error:
            raise TraceFailure(path, error) from error
        finally:
            self._scope = outer

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        node = super().create_node(*args, **kwargs)
        node.meta["scope"] = self._scope
        return node

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, fx.Proxy]) -> Any:
        """As fx does it, without a walk through all parameters for each that is read."""
        name, known = self._named.get(id(attr_val), ("", None))
        if known is None or known is not attr_val:
            return super().getattr(attr, attr_val, parameter_proxy_cache)
        if name not in parameter_proxy_cache:
            parameter_proxy_cache[name] = self.create_proxy("get_attr", name, (), {})
        return parameter_proxy_cache[name]

    def trace(self, root: Any, concrete_args: dict[str, Any] | None = None) -> fx.Graph:
        self._named = {id(value): (name, value) for name, value in (*root.named_parameters(), *root.named_buffers())}
        try:
            with restored(root), unassigned(root):
                before = rng.states()
                graph = super().trace(root, concrete_args)
                refuse_draws(before, "")
        except TraceFailure:
            raise
        except (Exception, SystemExit) as error:
            raise TraceFailure("", error) from error
        for node in reversed(graph.nodes):  # `x, _ = attention(…)` leaves a part that nobody reads
            if node.target is operator.getitem and not node.users:
                graph.erase_node(node)
        graph.output_node().meta["calls"] = self._calls
        return graph

    def create_args_for_root(
        self, root_fn: Callable[..., Any], is_module: bool, concrete_args: Any = None
    ) -> tuple[Callable[..., Any], list[Any]]:
        names = argument_names(self.root, self._inputs)
        proxies = [self.create_proxy("placeholder", name, (), {}) for name in names]
        return root_fn, [self.root, *proxies]
