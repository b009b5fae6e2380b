"""Post-activation residual blocks get the order activation → norm → convolution.

    before   x = act(join);   x → C1 → N1 → act → C2 → N2 → (+ shortcut(x)) → act
    after    x = join;        a = N1(act(x));  C1(a) → act → N2 → C2 → (+ x, or the projection of a)

A norm keeps its name and gets as many channels as the convolution it now stands before has inputs. What reads a join
from outside the blocks reads N_out(act(join)), with a new norm. A chain C → N → act before the first block is turned
into C → act → N. Only blocks whose branch is one chain that starts with a weight layer are reordered. [A]; for gates
and pooling between the layers, which stay where they are, [X].
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import fx, nn

from zero_convert.graph.editing import add_module, insert_after, replace_module
from zero_convert.graph.kinds import WEIGHT_KINDS, geometry, new_norm
from zero_convert.graph.queries import is_size, kind, only_user, tensors_in

from ..records import Analyzed, Edit, Join, Option

NAME = "preactivation"


@dataclass(frozen=True)
class _Unit:
    """One weight layer of a branch and the norm that follows it."""

    weight: fx.Node
    norm: fx.Node | None


@dataclass(frozen=True)
class _Block:
    join: Join
    node: fx.Node
    fork: fx.Node
    activation: fx.Node
    shortcut: fx.Node
    units: tuple[_Unit, ...]


def rewrite(root: nn.Module, graph: fx.Graph, analyzed: Analyzed, options: Mapping[str, Option]) -> list[Edit]:
    nodes = {node.name: node for node in graph.nodes}
    blocks, edits = [], []
    for join in analyzed().joins:
        if join.order != "post-activation":
            continue
        outcome = _block(root, nodes, join)
        if isinstance(outcome, _Block):
            blocks.append(outcome)
        else:
            edits.append(Edit(NAME, join.node, "order kept", applied=False, reason=outcome))
    raw = {block.activation: block.node for block in blocks}
    channels = {block.activation: block for block in blocks}
    for block in blocks:
        edits.append(_reorder(root, graph, block, raw))
    for activation, block in channels.items():
        if not activation.users:
            graph.erase_node(activation)
            continue
        edits += _norm_after(root, graph, activation, block)
    for block in blocks:
        if block.fork not in raw:
            edits += _swap_upstream(root, block.fork)
    return edits


def _block(root: nn.Module, nodes: Mapping[str, fx.Node], join: Join) -> _Block | str:
    """The block's parts, or the reason why its order is kept."""
    if not join.residual or not join.chain:
        return join.reason or "its branch is not one chain of layers"
    if join.shortcut == "other":
        return "its shortcut does more than pooling or projecting"
    chain = [nodes[name] for name in join.chain]
    units = []
    for node in chain:
        if kind(node, root) not in WEIGHT_KINDS or node.op != "call_module":
            continue
        after = only_user(node)
        norm = after if after is not None and kind(after, root) == "norm" else None
        g = geometry(root.get_submodule(str(node.target)))
        if norm is not None and norm.op != "call_module":
            return f"{norm.name} is no module of its own"
        if norm is not None and (g is None or new_norm(root.get_submodule(str(norm.target)), g.in_channels) is None):
            return f"its {type(root.get_submodule(str(norm.target))).__name__} cannot be moved before its layer"
        if norm is not None and g is not None and not _all_read_from(root, norm, g.in_channels):
            return f"{norm.target} is used after layers of different widths"
        units.append(_Unit(node, norm))
    if not units or units[0].weight is not chain[0]:
        return "its branch does not begin with a weight layer"
    node = nodes[join.node]
    return _Block(join, node, nodes[join.fork], nodes[join.activation], nodes[join.shortcut_node], tuple(units))


def _all_read_from(root: nn.Module, norm: fx.Node, channels: int) -> bool:
    """Whether every layer that this norm's module follows has so many inputs: it can be given but one width."""
    for node in norm.graph.nodes:
        if node.op == "call_module" and node.target == norm.target:
            above = tensors_in(node)[0]
            g = geometry(root.get_submodule(str(above.target))) if above.op == "call_module" else None
            if g is None or g.in_channels != channels:
                return False
    return True


def _reorder(root: nn.Module, graph: fx.Graph, block: _Block, raw: Mapping[fx.Node, fx.Node]) -> Edit:
    source = raw.get(block.fork, block.fork)
    pattern = block.fork if block.fork in raw else block.activation
    with graph.inserting_after(source):
        start = graph.node_copy(pattern, lambda n: source if n is tensors_in(pattern)[0] else n)
    start.meta["shape"] = source.meta.get("shape")
    first = block.units[0]
    start = _norm_before(root, graph, first, start)
    first.weight.replace_input_with(block.fork, start)
    for i, unit in enumerate(block.units):
        if unit.norm is not None:
            unit.norm.replace_all_uses_with(unit.weight)
            if i > 0:
                before = tensors_in(unit.weight)[0]
                unit.weight.replace_input_with(before, _norm_before(root, graph, unit, before))
            graph.erase_node(unit.norm)
    if block.shortcut is block.fork:
        block.node.replace_input_with(block.fork, source)
    elif block.join.shortcut == "projection":
        _reroute(block, start)
    else:
        _reroute(block, source)
    block.node.meta["order"] = "pre-activation"
    what = f"activation and norm moved before {', '.join(block.join.branch)}"
    return Edit(NAME, block.join.node, what, source=block.join.branch)


def _norm_before(root: nn.Module, graph: fx.Graph, unit: _Unit, value: fx.Node) -> fx.Node:
    """The unit's norm applied to what its weight layer reads; the value itself where there is no norm."""
    if unit.norm is None:
        return value
    path = str(unit.norm.target)
    g = geometry(root.get_submodule(str(unit.weight.target)))
    norm = new_norm(root.get_submodule(path), g.in_channels) if g else None
    assert norm is not None, "checked by _block"
    replace_module(root, path, norm)
    with graph.inserting_after(value):
        node = graph.call_module(path, (value,))
    node.meta["shape"] = value.meta.get("shape")
    return node


def _reroute(block: _Block, value: fx.Node) -> None:
    """Lets the shortcut side read `value` instead of the fork."""
    node, seen = [block.shortcut], set()
    while node:
        at = node.pop()
        if at in seen or at is block.fork:
            continue
        seen.add(at)
        inputs = list(at.all_input_nodes)
        if block.fork in inputs:
            at.replace_input_with(block.fork, value)
        node += [n for n in inputs if n.op not in ("placeholder", "get_attr") and not is_size(n)]


def _norm_after(root: nn.Module, graph: fx.Graph, activation: fx.Node, block: _Block) -> list[Edit]:
    """N_out between the activation of a join and what reads it from outside the blocks."""
    last = next((unit.norm for unit in reversed(block.units) if unit.norm is not None), None)
    if last is None:
        return []
    path = str(last.target)
    norm = new_norm(root.get_submodule(path), block.join.out_channels)
    assert norm is not None, "checked by _block"
    placed = add_module(root, f"{path}_out", norm)
    insert_after(graph, activation, placed)
    channels = block.join.out_channels
    what = f"new norm over {channels} channels where the blocks end"
    return [Edit(NAME, placed, what, source=(activation.name, str(channels)))]


def _swap_upstream(root: nn.Module, fork: fx.Node) -> list[Edit]:
    """Turns the chains C → N → act above the first block into C → act → N."""
    edits = []
    node = fork
    while len(tensors_in(node)) == 1:
        above = tensors_in(node)[0]
        what = kind(node, root)
        if what == "activation" and kind(above, root) == "norm" and only_user(above) is node:
            weight = tensors_in(above)[0]
            if kind(weight, root) not in WEIGHT_KINDS or only_user(weight) is not above:
                break
            for user in list(node.users):
                user.replace_input_with(node, above)
            node.replace_input_with(above, weight)
            above.replace_input_with(weight, node)
            norm = str(above.target)
            edits.append(Edit(NAME, str(weight.target), f"activation before {norm}", source=(norm,)))
            node = weight
        elif what in WEIGHT_KINDS or what in ("activation", "pool", "drop", "other"):
            node = above
        else:
            break
    return edits
