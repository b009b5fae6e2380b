"""How much of the model lies in a graph that tracing captured, and what may be hidden outside it?

A parameter is captured if a graph reads it, or calls the known layer that owns it. Where the model's own Python has to
stay, only the graphs of its regions count; what the recording of the whole forward reads besides is told apart. A
parameter is opaque if it belongs to a submodule that tracing had to keep whole: what such a part computes is not seen.
With two or more weight layers in it, residual joins may be among what is not seen, and the scheme treats these layers
as if there were none.

Never fails: a part that is kept whole still gets its values by rules. Warns if such a part owns more than one weight
layer, or if less than half of the parameters are in captured graphs: then most of the model is as it was, but for its
values.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from zero_convert.graph.kinds import WEIGHT_KINDS, kind_of
from zero_convert.graph.traced import Traced
from zero_convert.nn.tree import ConvertedModule

from .harness.bench import Answer, CheckContext

NAME = "coverage"
QUESTION = "What share of the parameters is inside a captured graph, and can joins hide in the rest?"
AFTER = ""
LEVELS = ("quick", "full")
NEEDS = ()
LEAST = {"parameters": 1}  # in graphs, in recordings or in parts kept whole
SHOWN = 3
LITTLE = 0.5


def ask(context: CheckContext) -> Answer:
    traced = context.subject.traced
    sizes = {id(p): p.numel() for p in traced.root.parameters()}
    inside = {path: traced.root.get_submodule(path) for path in _opaque(traced)}
    opaque = {id(p) for module in inside.values() for p in module.parameters()}
    seen = {id(p) for p in _read(traced)} & sizes.keys() - opaque
    recorded = set() if traced.whole else seen - {id(p) for module in _regions(traced) for p in module.parameters()}
    seen -= recorded
    leaves = {
        path: {"parameters": sum(p.numel() for p in module.parameters()), "weight_layers": len(weight_layers(module))}
        for path, module in inside.items()
    }
    captured, total = sum(sizes[i] for i in seen), sum(sizes.values())
    hiding = [path for path, leaf in leaves.items() if leaf["weight_layers"] > 1]
    share = captured / total if total else 1.0
    summary = f"{captured:,} of {total:,} parameters ({share:.1%}) in captured graphs"
    if leaves:
        summary += f", {sum(sizes[i] for i in opaque):,} in {len(leaves)} parts kept whole"
    if recorded:
        summary += f", {sum(sizes[i] for i in recorded):,} in a recording only"
    unread = total - captured - sum(sizes[i] for i in opaque | recorded)
    if unread:
        summary += f", {unread:,} that no graph reads"
    if hiding:
        layers = sum(leaves[path]["weight_layers"] for path in hiding)
        summary += f"; joins may be hidden among {layers} weight layers in {', '.join(hiding[:SHOWN])}"
        summary += f" and {len(hiding) - SHOWN} more" if len(hiding) > SHOWN else ""
    little = share < LITTLE and len(weight_layers(traced.root)) > 1
    fix = "Give what branches on values a module of its own, so that only that is kept whole."
    return Answer(
        "warn" if hiding or little else "pass",
        summary,
        {
            "parameters": total,
            "captured": captured,
            "recorded": sum(sizes[i] for i in recorded),
            "unread": unread,
            "share": share,
            "opaque": leaves,
        },
        f"at least {LITTLE:.0%} captured, and no part kept whole owns more than one weight layer",
        fix if hiding or little else "",
        {"parameters": total - unread},
    )


def _regions(traced: Traced) -> list[nn.Module]:
    """The parts with graphs of their own: named, or rewritten in their place."""
    named = [traced.root.get_submodule(region.path) for region in traced.regions]
    return [*named, *(m for m in traced.root.modules() if isinstance(m, ConvertedModule))]


def _opaque(traced: Traced) -> list[str]:
    """Paths of the parts kept whole, those in regions included."""
    inner = [f"{region.path}.{path}" for region in traced.regions for path in _opaque(region.traced)]
    return list(dict.fromkeys([*traced.opaque, *inner]))


def _read(traced: Traced) -> Iterator[nn.Parameter]:
    """The parameters that the graphs read themselves or through the modules they call."""
    for graph in traced.graphs:
        for node in graph.nodes:
            if node.op == "call_module":
                yield from traced.root.get_submodule(str(node.target)).parameters()
            elif node.op == "get_attr":
                owner, _, name = str(node.target).rpartition(".")
                value = getattr(traced.root.get_submodule(owner), name, None)
                if isinstance(value, nn.Parameter):
                    yield value


def weight_layers(module: nn.Module) -> list[str]:
    """Paths in the module of the layers with weights; a layer inside a known one does not count again."""
    paths: list[str] = []
    for path, m in module.named_modules():
        if kind_of(m) in WEIGHT_KINDS and not any(path.startswith(f"{outer}.") or not outer for outer in paths):
            paths.append(path)
    return paths
