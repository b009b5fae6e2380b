"""What a convolution or linear layer with a forward of its own does with its parameters before it applies them.

Such a layer is one node of every graph. Its forward is captured by itself here, and asked how its weight is made, and
which other parameters stand beside it: in x·Wᵀ + x·Aᵀ·Bᵀ (low-rank adapters) the last factor of what is added is 0.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.conv import _ConvNd

from zero_convert.graph.fixed import fixed_names

from ..records import Geometry
from .attentions import product
from .made_weights import Made, made_weight
from .raw_geometry import followed, labels_of, matrix, source_of


def own_forward(module: nn.Module, answers: dict[Hashable, Any]) -> tuple[Made, ...]:
    """How the weights of the layer are made, names as in the layer; nothing for a layer of torch, or a forward that
    cannot be captured.

    Args:
        answers: what was asked of layers of the same class before. Sizes change the answer only where it has some.
    """
    home = getattr(type(module).forward, "__module__", "") or ""
    if not isinstance(module, nn.Linear | _ConvNd) or home.startswith("torch."):
        return ()
    own = tuple((name, value.ndim) for name, value in module._parameters.items() if value is not None)
    plain = tuple((key, value) for key, value in vars(module).items() if isinstance(value, (float, str)))
    kind = ("own forward", type(module), own, plain, tuple(fixed_names(module)))
    sized = (*kind, *(tuple(value.shape) for value in module._parameters.values() if value is not None))
    for key in (kind, sized):
        if key in answers:
            known: tuple[Made, ...] = answers[key]
            return known
    found = _asked(module)
    answers[sized if any(sizes for each in found for _, sizes in _others(each)) else kind] = found
    return found


def _others(made: Made) -> Iterator[tuple[str, Geometry | None]]:
    """The uses of all parameters but the layer's own weight."""
    return (use for name, use in made.uses.items() if name != "weight")


def _asked(module: nn.Module) -> tuple[Made, ...]:
    try:
        graph = fx.Tracer().trace(module)
    except Exception:  # whatever a forward raises on symbols
        return ()
    _shapes(module, graph)

    def owned(node: fx.Node) -> bool:
        name = str(node.target)
        return module._parameters.get(name) is not None and name not in fixed_names(module)

    found = [made for node in graph.nodes if (made := made_weight(module, node, owned, {})) is not None]
    return (*found, *_beside(graph, owned))


def _beside(graph: fx.Graph, owned: Callable[[fx.Node], bool]) -> tuple[Made, ...]:
    """The other matrices that the layer multiplies a signal by."""
    maps: dict[fx.Node, tuple[str, Geometry]] = {}
    for node in graph.nodes:
        operands = product(node) or ()
        for operand in operands:
            source = source_of(operand) if isinstance(operand, fx.Node) else None
            if source is None or not owned(source) or source.target == "weight":
                continue
            labels = _followed(source, operand)
            geometry = matrix(node, operands, operand, labels, tuple(source.meta["shape"]))
            if geometry is not None:
                maps[node] = str(source.target), geometry
    inner = {n for n in maps if any(_reaches(n, other) for other in maps if other is not n)}
    return tuple(
        Made(name, {name: ("inner", geometry) if node in inner else ("added", None)})
        for node, (name, geometry) in maps.items()
    )


def _followed(source: fx.Node, operand: fx.Node) -> Tensor | None:
    way = [operand]
    while way[-1] is not source:
        way.append(way[-1].all_input_nodes[0])
    labels = labels_of(source)
    for before, after in zip(way[::-1], way[-2::-1], strict=False):
        labels = followed(after, before, labels)
    return labels


def _reaches(node: fx.Node, end: fx.Node) -> bool:
    todo, seen = list(node.users), set()
    while todo:
        at = todo.pop()
        if at is end:
            return True
        if at not in seen:
            seen.add(at)
            todo += at.users
    return False


def _shapes(module: nn.Module, graph: fx.Graph) -> None:
    """The shape of each value that is made of the layer's own tensors alone, in the node's `meta`."""
    values: dict[fx.Node, Any] = {}
    with torch.no_grad():
        for node in graph.nodes:
            if node.op == "get_attr":
                held = getattr(module, str(node.target), None)
                values[node] = held.detach() if isinstance(held, Tensor) else held
            elif node.op in ("call_function", "call_method") and all(n in values for n in node.all_input_nodes):
                args, kwargs = fx.map_arg(node.args, values.__getitem__), fx.map_arg(node.kwargs, values.__getitem__)
                function = node.target
                if node.op == "call_method":
                    function, args = getattr(args[0], str(node.target)), args[1:]
                try:
                    values[node] = function(*args, **kwargs)
                except Exception:  # on NaN, which a construction without random numbers draws
                    continue
            if isinstance(value := values.get(node), Tensor):
                node.meta["shape"] = tuple(value.shape)
